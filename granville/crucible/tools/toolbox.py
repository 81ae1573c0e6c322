"""The tools of a run: found by name, called when allowed, their arguments checked and what they give bounded."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from granville.crucible.tools.allowance import Allowance, plain, read_allowance
from granville.crucible.tools.catalogue import Catalogue, tools_of
from granville.crucible.tools.interface import Call, NotAllowed, Tool, ToolFailed
from granville.crucible.tools.schemas import check_arguments
from granville.crucible.tools.servers import open_servers
from granville.crucible.tools.shell import shell_tool
from granville.crucible.tools.values import bounded
from granville.crucible.workflow.model import Workflow
from granville.crucible.workflow.suggest import did_you_mean
from granville.errors import GranvilleError, StartupError

MAX_REASON_CHARS = 300
"""Of what a tool raised, in the sentence that says so."""
log = logging.getLogger(__name__)


class RunToolbox:
    """A Toolbox (tools/interface.py)."""

    def __init__(
        self, catalogue: Catalogue, allowance: Allowance, *, servers: Mapping[str, Mapping[str, Tool]] | None = None
    ) -> None:
        self._catalogue = catalogue
        self._allowance = allowance
        self._servers = servers or {}
        self._shell = {f"shell.{name}": shell_tool(name, path) for name, path in allowance.commands.items()}

    def find(self, name: str) -> Tool:
        """`shell:git` is another name of `shell.git`: the former is how it is allowed, the latter what a model may be
        told of."""
        first, separator, rest = name.partition(".")
        if name.startswith(("shell:", "shell.")):
            command = name[len("shell:") :]
            if f"shell.{command}" not in self._shell:
                raise NotAllowed(
                    f"{name} may not be called here; whoever starts the run can allow it: --allow shell:{command}"
                )
            return self._shell[f"shell.{command}"]
        if separator and first in self._servers:
            tools = self._servers[first]
            if name not in tools:
                raise ToolFailed(f"the MCP server {first!r} has no tool {rest!r}; {did_you_mean(name, tools)}")
            return tools[name]
        try:
            tool = self._catalogue.find(name)
        except ToolFailed:
            known = [*self._catalogue.names, *self._shell, *(one for tools in self._servers.values() for one in tools)]
            if name in self._catalogue.names:
                raise
            words = did_you_mean(name, known)
            own = "" if words.endswith("?") else "; tools of your own come by --tools FILE"
            raise ToolFailed(f"there is no tool {name!r}; {words}{own}") from None
        self._allowance.grants(tool)
        return tool

    async def call(self, name: str, arguments: Mapping[str, Any], call: Call) -> Any:
        tool = self.find(name)
        if not isinstance(arguments, Mapping):
            raise ToolFailed(f"{tool.name}: its arguments are a map, by their names")
        check_arguments(tool, arguments)
        call = replace(call, grants=self._allowance.grants(tool))
        try:
            value = await tool.function(arguments, call)
        except ToolFailed:
            raise
        except GranvilleError as error:
            raise ToolFailed(f"{tool.name}: {error.message}") from error
        except (Exception, SystemExit) as error:
            log.exception("tool failed name=%s run=%s step=%s", tool.name, call.run_id, call.step)
            raise ToolFailed(f"{tool.name} failed: {_reason(error)}") from None
        return bounded(tool.name, value)


class Toolboxes:
    """What opens the toolbox of a run: the tools of this process, with what the run may have of them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def check(self, allow: Iterable[str]) -> tuple[str, ...]:
        """What was allowed, with folders made absolute. Raises StartupError for what there is not."""
        allow = plain(allow)
        try:
            read_allowance(allow, known=self.catalogue.names)
        except NotAllowed as error:
            raise StartupError(error.message) from None
        return allow

    @asynccontextmanager
    async def __call__(
        self, workflow: Workflow, folder: Path | None = None, allow: tuple[str, ...] = ()
    ) -> AsyncIterator[RunToolbox]:
        """The toolbox, for the length of the body; MCP servers that the workflow names run as long.

        Raises NotAllowed, or ToolFailed for a server that cannot be had.
        """
        allowance = read_allowance(allow, known=self.catalogue.names)
        for name, server in workflow.servers.items():
            if name not in allowance.servers:
                what = " ".join(server.command) if server.command else server.url
                raise NotAllowed(
                    f"the workflow has an MCP server {name!r} ({what}); whoever starts the run can allow it: "
                    f"--allow mcp:{name}"
                )
        if not workflow.servers:
            yield RunToolbox(self.catalogue, allowance)
            return
        if folder is None or not folder.is_absolute():
            raise NotAllowed("a run that came over the wire starts no MCP servers; have it name a workflow's file")
        async with open_servers(workflow.servers, folder, taken=self.catalogue.names) as servers:
            yield RunToolbox(self.catalogue, allowance, servers=servers)


def toolboxes(places: Sequence[str] = (), *, tools: Iterable[Tool | Callable[..., Any]] = ()) -> Toolboxes:
    """Toolboxes with Crucible's own tools, those of installed packages, those of Python files or modules, and tools as
    objects. Raises StartupError for a file that cannot be imported, and for two tools of one name."""
    own = [*tools_of(places)]
    for one in tools:
        if not isinstance(one, Tool):
            raise StartupError(f"{one!r:.80} is no tool; put @tool before the function")
        own.append(one)
    return Toolboxes(Catalogue(own))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= MAX_REASON_CHARS else f"{text[:MAX_REASON_CHARS]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

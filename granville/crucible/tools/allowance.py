"""What may be called though it needs to be allowed: `--allow NAME`, `NAME:OF_IT`, `shell:COMMAND`, `mcp:SERVER`.

An allowance comes from whoever starts a run, or the daemon, and from nowhere else: no workflow, no model, no document
and no tool's output can add to it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from granville.crucible.tools.interface import NotAllowed, Tool
from granville.crucible.workflow.suggest import did_you_mean

SHELL, MCP = "shell", "mcp"
OF_FOLDERS = frozenset(("read_file", "list_files", "write_file", "search", "index"))
"""Tools that are allowed for folders: `read_file:/data`."""
OF_HOSTS = frozenset(("http_get",))


@dataclass(frozen=True, slots=True)
class Allowance:
    tools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By name, with what was said behind the colon."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """By name, with the path of the executable that it is."""
    servers: frozenset[str] = frozenset()

    def grants(self, tool: Tool) -> tuple[str, ...]:
        """Raises NotAllowed for a tool that needs to be allowed and is not."""
        if tool.needs_allowance and tool.name not in self.tools:
            raise NotAllowed(
                f"{tool.name} may not be called here; whoever starts the run can allow it: {hint(tool.name)}"
            )
        return self.tools.get(tool.name, ())


def hint(name: str) -> str:
    of = ":FOLDER" if name in OF_FOLDERS else ":HOST" if name in OF_HOSTS else ""
    return f"--allow {name}{of}"


def plain(allow: Iterable[str]) -> tuple[str, ...]:
    """The same with folders made absolute, so that it means the same wherever a run is taken up again."""
    return tuple(
        f"{name}:{Path(of).absolute()}" if of and name in OF_FOLDERS else text
        for text in allow
        for name, _, of in (text.partition(":"),)
    )


def read_allowance(
    allow: Iterable[str], *, known: Collection[str], which: Callable[[str], str | None] = shutil.which
) -> Allowance:
    """Raises NotAllowed for what is no tool or no command, with what it may have been."""
    tools: dict[str, tuple[str, ...]] = {}
    commands: dict[str, str] = {}
    servers: set[str] = set()
    for text in plain(allow):
        name, _, of = text.partition(":")
        if name == SHELL:
            commands[of] = _executable(of, which)
        elif name == MCP:
            if not of:
                raise NotAllowed("--allow mcp: say which server, by its name in the workflow: --allow mcp:NAME")
            servers.add(of)
        elif name not in known:
            names = [*known, "shell:COMMAND", "mcp:SERVER"]
            raise NotAllowed(f"--allow {text}: there is no tool {name!r}; {did_you_mean(name, names)}")
        elif of and name not in OF_FOLDERS | OF_HOSTS:
            raise NotAllowed(f"--allow {text}: {name} is allowed as it is: --allow {name}")
        elif not of and (name in OF_HOSTS or name == "write_file"):
            raise NotAllowed(f"--allow {text}: say what of it: {hint(name)}")
        else:
            tools[name] = (*tools.get(name, ()), *((of,) if of else ()))
    return Allowance(tools, commands, frozenset(servers))


def _executable(command: str, which: Callable[[str], str | None]) -> str:
    if not command or "/" in command:
        raise NotAllowed("--allow shell: say which command, by its name on the PATH: --allow shell:git")
    path = which(command)
    if path is None:
        raise NotAllowed(f"--allow shell:{command}: there is no such command on the PATH")
    return str(Path(path).absolute())

"""The tools that this process has: Crucible's own, those that installed packages bring (entry points of the group
`granville.tools`), and those of `--tools`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from granville.crucible.tools.allowance import MCP, SHELL
from granville.crucible.tools.builtin import BUILTIN
from granville.crucible.tools.interface import Tool, ToolFailed
from granville.crucible.workflow.suggest import did_you_mean
from granville.errors import StartupError

GROUP = "granville.tools"
RESERVED = frozenset((SHELL, MCP))
log = logging.getLogger(__name__)


class Catalogue:
    """Tools by name. One from a package is loaded when it is looked for the first time."""

    def __init__(self, own: Iterable[Tool] = (), *, installed: Iterable[EntryPoint] | None = None) -> None:
        """Raises StartupError for two tools with one name."""
        self._tools: dict[str, Tool] = {tool.name: tool for tool in BUILTIN}
        for tool in own:
            if self._tools.get(tool.name, tool) is not tool:
                raise StartupError(f"--tools: there are two tools named {tool.name!r}; give one another name")
            if tool.name.partition(".")[0] in RESERVED:
                raise StartupError(f"--tools: {tool.name!r}: names of that beginning are Crucible's own")
            self._tools[tool.name] = tool
        self._installed: dict[str, EntryPoint] = {}
        for point in entry_points(group=GROUP) if installed is None else installed:
            if point.name in self._tools or point.name in self._installed or point.name in RESERVED:
                log.warning("tool left out name=%s from=%s: the name is taken", point.name, point.value)
            else:
                self._installed[point.name] = point

    @property
    def names(self) -> list[str]:
        return [*self._tools, *self._installed]

    def find(self, name: str) -> Tool:
        """Raises ToolFailed, with what it may have been."""
        if name not in self._tools:
            self._tools[name] = self._load(name)
        return self._tools[name]

    def _load(self, name: str) -> Tool:
        point = self._installed.get(name)
        if point is None:
            raise ToolFailed(f"there is no tool {name!r}; {did_you_mean(name, self.names)}")
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:
            log.exception("tool not loaded name=%s from=%s", name, point.value)
            raise ToolFailed(f"the tool {name!r} cannot be loaded from {point.value}: {error!r:.200}") from None
        if not isinstance(loaded, Tool) or loaded.name != name:
            raise ToolFailed(f"{point.value} is not a tool named {name!r}; make it with @tool")
        return loaded


def tools_of(places: Iterable[str]) -> list[Tool]:
    """The tools of Python files (`FILE.py`) and modules (`package.module`). Raises StartupError for a place that cannot
    be imported, or has none."""
    found: dict[int, Tool] = {}
    for place in places:
        tools = _tools_in(_imported(place))
        if not tools:
            raise StartupError(f"--tools {place}: there is no tool in it; put @tool before a function")
        found |= {id(tool): tool for tool in tools}
    return list(found.values())


def _tools_in(module: ModuleType) -> list[Tool]:
    names: Mapping[str, object] = vars(module)
    return [value for value in names.values() if isinstance(value, Tool)]


def _imported(place: str) -> ModuleType:
    try:
        if place.endswith(".py") or "/" in place:
            return _file(Path(place))
        return importlib.import_module(place)
    except StartupError:
        raise
    except (Exception, SystemExit) as error:
        log.debug("tools not imported from=%s", place, exc_info=True)
        raise StartupError(f"--tools {place}: {type(error).__name__}: {error}") from None


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise StartupError(f"--tools {path}: there is no such file")
    path = path.absolute()
    name = f"crucible_tools_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise StartupError(f"--tools {path}: expected a file of Python, with the ending .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and annotations look their module up by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

"""Which driver a name means: an entry point in the group `granville.drivers`, or `module:Class` written out."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from granville.errors import StartupError
from granville.hosting.interface import Driver

GROUP = "granville.drivers"


def find_driver(name: str) -> Driver:
    """A new driver object. Raises StartupError for a name that nothing answers to, or a class that is no driver."""
    made = _named(name)()
    if not isinstance(made, Driver):
        raise StartupError(f"--driver {name}: this is no driver; it lacks load(), name or version")
    return made


def _named(name: str) -> type[object]:
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            found: type[object] = getattr(import_module(module_name), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise StartupError(f"--driver {name}: {error}") from None
        return found
    points = entry_points(group=GROUP)
    for point in points:
        if point.name == name:
            try:
                return point.load()  # type: ignore[no-any-return]  # an entry point can hold anything; checked above
            except (ImportError, AttributeError) as error:
                raise StartupError(f"--driver {name}: cannot be loaded: {error}") from None
    known = ", ".join(sorted(point.name for point in points)) or "none"
    raise StartupError(f"--driver {name}: no such driver is installed; installed are: {known}")

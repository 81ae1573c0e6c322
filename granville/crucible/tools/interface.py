"""What a tool is: a name, a schema of its arguments, and a call. `@tool` makes one of a function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from granville.client import Client
from granville.errors import GranvilleError

MAX_TOOL_OUTPUT_BYTES = 1 << 20
"""Of one call, as MessagePack. What gives more is cut off, or fails where it cannot be cut."""


class ToolFailed(GranvilleError):
    """A tool has failed, hung, or may not be called; the message is shown to a person and to the model that asked."""

    error = "tool_failed"
    code = 502


class NotAllowed(ToolFailed):
    """The tool is there, and nobody has allowed it."""

    error = "not_allowed"
    code = 403


@dataclass(frozen=True, slots=True)
class Call:
    """What a tool knows of the call beside its arguments."""

    run_id: str
    step: str
    """Its key in the run, such as `loop[2].act`: with the run's id the same after a crash and for no other call."""
    client: Client | None = None
    """A connection to Granville, for tools that ask a model themselves."""
    folder: Path = Path()
    """Where the workflow's file lies: relative paths begin there. Not absolute for a run that came over the wire: it
    names no files of this machine."""
    grants: tuple[str, ...] = ()
    """What was said behind the colon when the tool was allowed, such as the folders of `--allow read_file:/data`."""


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, an object."""
    function: Callable[[Mapping[str, Any], Call], Awaitable[Any]]
    """Gives a value of JSON's types, or bytes. Raises ToolFailed. Cancelled when its time is over."""
    once: bool = False
    """A call that a crash has cut short is not made again without being told to: it may have had its effect."""
    needs_allowance: bool = False
    """Only runs that were started with its name allowed may call it."""
    checks: Mapping[str, Any] | None = None
    """The schema that arguments are checked against before the call, where that is not `parameters`: what a model is
    told may be more than is checked here. An empty one: the function checks them itself."""


class Toolbox(Protocol):
    """The tools of a run."""

    def find(self, name: str) -> Tool:
        """Raises ToolFailed, with what it may have been, or NotAllowed, with how to allow it."""

    async def call(self, name: str, arguments: Mapping[str, Any], call: Call) -> Any:
        """Check the arguments against the schema, call, and bound what comes back. Raises ToolFailed."""

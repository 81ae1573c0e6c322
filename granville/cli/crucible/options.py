"""The options that several of Crucible's commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from granville.crucible.journal.runs import Journal

Granville = Annotated[
    str,
    Parameter(
        name=("--granville", "-s"),
        env_var="GRANVILLE_SOCKET",
        help="Where Granville listens: a socket's path, or tcp://host:port.",
    ),
]


def _names(_: object, texts: object) -> tuple[str, ...]:
    tokens: tuple[object, ...] = texts if isinstance(texts, tuple) else (texts,)
    return tuple(name for token in tokens for name in str(getattr(token, "value", token)).split(",") if name)


Allow = Annotated[
    tuple[str, ...],
    Parameter(
        converter=_names,
        show_default=False,
        help="Tools that may be called though they need to be allowed, by commas: shell:git,read_file.",
    ),
]
OwnTools = Annotated[
    tuple[str, ...],
    Parameter(show_default=False, help="A Python file or module with tools of your own. May be repeated."),
]
JournalFile = Annotated[
    Path | None, Parameter(help="The file that keeps the runs; $GRANVILLE_HOME/crucible/runs.db unless given.")
]
Crucible = Annotated[
    str, Parameter(name=("--socket", "-s"), help="Where `crucible serve` listens: a socket's path, or tcp://host:port.")
]
Out = Annotated[
    tuple[str, ...],
    Parameter(
        name=("--out", "-o"),
        allow_leading_hyphen=True,
        show_default=False,
        help="Where the output that is sound goes: a file, or NAME=FILE for any output; - is stdout. May be repeated.",
    ),
]
Json = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Print as JSON, and nothing else on standard output.")
]
Quiet = Annotated[bool, Parameter(name=("--quiet", "-q"), negative=(), show_default=False, help="Show no progress.")]
WaitForGranville = Annotated[float, Parameter(help="Seconds that a step waits for a Granville that is away.")]


def open_journal(path: Path | None) -> Journal:
    """Raises StartupError."""
    return Journal.open(None if path is None else path.absolute())

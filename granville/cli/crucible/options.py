"""The options that several of Crucible's commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Granville = Annotated[
    str,
    Parameter(
        name=("--granville", "-s"),
        env_var="GRANVILLE_SOCKET",
        help="Where Granville listens: a socket's path, or tcp://host:port.",
    ),
]

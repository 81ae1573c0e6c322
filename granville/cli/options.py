"""The options that several commands share, and the request that they make."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from granville.client import Request, new_id
from granville.wire.messages import parse_message

Socket = Annotated[
    str,
    Parameter(name=("--socket", "-s"), help="Where the daemon listens: a socket's path, or tcp://host:port."),
]
ModelId = Annotated[
    str | None, Parameter(name="--model", help="The id of the model that is to answer (`granville status`).")
]
Priority = Literal["critical", "high", "normal", "low"]
Temperature = Annotated[float | None, Parameter(help="0 always takes the likeliest token; 0.8 unless given.")]
DriverConfig = Annotated[list[str] | None, Parameter(help="An option of the driver as key=value; may be repeated.")]

DropOldest = Annotated[
    bool,
    Parameter(
        negative=(),
        show_default=False,
        help="When the conversation leaves no room for an answer, go on without its oldest turns.",
    ),
]


def make_request(**fields: object) -> Request:
    """A request with a new id; fields that are None keep the protocol's defaults. Raises BadRequest, naming the
    field, as the daemon would."""
    given = {name: value for name, value in fields.items() if value is not None}
    request, _ = parse_message({"id": new_id(), **given})
    assert isinstance(request, Request)
    return request

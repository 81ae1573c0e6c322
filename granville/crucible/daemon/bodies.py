"""A run as it is asked for over HTTP: JSON with sound as base64, or a form whose parts are the inputs."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from granville.crucible.daemon.desk import Desk
from granville.crucible.workflow.model import Workflow
from granville.doors.asgi import BoundedBody, content_length
from granville.errors import BadRequest, Unsupported
from granville.wire.messages import Id, convert

MAX_PARTS = 100
MAX_FIELD_BYTES = 8 << 20
"""Of a part that is no file."""
RUN_PART = "run"
"""Of a form: the JSON; every other part is the input of its name."""


class Body(Struct, frozen=True, kw_only=True):
    workflow: dict[str, Any] | str | None = None
    inputs: dict[str, Any] = {}
    id: Id | None = None
    path: Any = None


@dataclass(frozen=True, slots=True)
class Order:
    workflow: Workflow
    folder: Path | None
    inputs: dict[str, Any]
    id: str | None


async def read_run(desk: Desk, request: Request) -> Order:
    """Raises BadRequest, TooLarge, Unsupported, WorkflowError."""
    limit = desk.config.max_request_bytes
    content_length(request.headers, limit)
    bounded = Request(request.scope, BoundedBody(request.receive, limit))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    files: dict[str, bytes | str] = {}
    if kind == "application/json":
        body = _body(await bounded.body())
    elif kind == "multipart/form-data":
        body, files = await _form(bounded)
    else:
        raise BadRequest("content-type: expected application/json or multipart/form-data")
    if body.path is not None:
        raise Unsupported("path: no file is read over HTTP; send the workflow itself, or use the Unix socket")
    if body.workflow is None:
        raise BadRequest("workflow: missing; a map, or YAML in a string")
    workflow, folder = await desk.read(body.workflow, None)
    inputs = {name: _sound(workflow, name, value) for name, value in body.inputs.items()}
    for name in files.keys() & inputs.keys():
        raise BadRequest(f"inputs.{name}: given twice, in `{RUN_PART}` and as a part")
    return Order(workflow, folder, inputs | files, body.id)


def _body(data: bytes | str) -> Body:
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object with `workflow` and `inputs`")
    return convert(value, Body)


async def _form(request: Request) -> tuple[Body, dict[str, bytes | str]]:
    """A file is bytes if it says that it is sound, else text."""
    files: dict[str, bytes | str] = {}
    body: Body | None = None
    try:
        async with request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_FIELD_BYTES) as form:
            for name, part in form.multi_items():
                value = part if isinstance(part, str) else await _content(name, part)
                if name != RUN_PART:
                    files[name] = value
                elif isinstance(value, str):
                    body = _body(value)
    except HTTPException as error:
        raise BadRequest(f"the form cannot be read: {error.detail}") from None
    if body is None:
        raise BadRequest(f"{RUN_PART}: missing; the part with `workflow`, as JSON")
    return body, files


async def _content(name: str, part: UploadFile) -> bytes | str:
    data = await part.read()
    if name != RUN_PART and not (part.content_type or "").startswith(("text/", "application/json")):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{name}: not valid UTF-8, and its type is {part.content_type}") from None


def _sound(workflow: Workflow, name: str, value: Any) -> Any:
    """JSON has no bytes: of an input that is sound, a string is base64."""
    declared = workflow.inputs.get(name)
    if declared is None or declared.type != "audio" or not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"inputs.{name}: not base64, which an input of type audio is in JSON") from None

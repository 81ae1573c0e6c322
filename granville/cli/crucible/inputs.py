"""A run's inputs from the command line: texts, files, JSON, sound."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from granville.crucible.workflow.model import Input, Workflow
from granville.crucible.workflow.values import from_text
from granville.errors import BadRequest

MAX_INPUT_BYTES = 60 << 20
STDIN = "-"


def gather(
    workflow: Workflow,
    *,
    inputs: Sequence[str] = (),
    files: Sequence[str] = (),
    values: Sequence[str] = (),
    audio: str | None = None,
    recorded: bytes | None = None,
) -> dict[str, Any]:
    """What each option gives, by the input's name; what is missing or of another kind the runner tells. Raises
    BadRequest, which names the option."""
    given: dict[str, Any] = {}
    stdin_is = ""

    def put(option: str, name: str, value: Any) -> None:
        if name not in workflow.inputs:
            known = ", ".join(workflow.inputs) or "it has none"
            raise BadRequest(f"{option} {name}: no such input; {workflow.name} has {known}")
        if name in given:
            raise BadRequest(f"{option} {name}: given twice")
        given[name] = value

    def read(option: str, path: str) -> bytes:
        nonlocal stdin_is
        if path == STDIN:
            if stdin_is:
                raise BadRequest(f"{option}: stdin is taken by {stdin_is}")
            stdin_is = option
        return _read(option, path)

    def sound(path: str) -> bytes | str:
        """A long recording is named, not sent: the daemon opens it."""
        size = Path(path).stat().st_size if path != STDIN and Path(path).is_file() else 0
        return str(Path(path).absolute()) if size > MAX_INPUT_BYTES else read("--audio", path)

    for pair in inputs:
        name, text = _split("--input", pair)
        put("--input", name, _typed(name, text, workflow.inputs.get(name)))
    for pair in values:
        name, text = _split("--input-json", pair)
        data = read("--input-json", text[1:]) if text.startswith("@") else text.encode()
        put("--input-json", name, _json(f"--input-json {name}", data))
    for pair in files:
        name, path = _split("--input-file", pair)
        declared = workflow.inputs.get(name)
        data = read("--input-file", path)
        is_sound = declared is not None and declared.type == "audio"
        put("--input-file", name, data if is_sound else _text(f"--input-file {name}", data))
    if audio is not None:
        put("--audio", audio_input(workflow, "--audio", given), sound(audio))
    if recorded is not None:
        put("--microphone", audio_input(workflow, "--microphone", given), recorded)
    for name, declared in workflow.inputs.items():
        if name not in given and declared.is_required:
            what = f" ({declared.description})" if declared.description else ""
            raise BadRequest(f"inputs.{name}: missing{what}; give it by {_option(name, declared)}")
    return given


def _option(name: str, declared: Input) -> str:
    match declared.type:
        case "audio":
            return "--audio FILE, or --microphone SECONDS"
        case "text":
            return f"--input {name}=TEXT, or --input-file {name}=PATH"
        case "list" | "object" | "any":
            return f"--input-json {name}=JSON"
    return f"--input {name}={declared.type.upper()}"


def audio_input(workflow: Workflow, option: str, given: dict[str, Any]) -> str:
    """The one input that is sound and not given yet. Raises BadRequest."""
    sounds = [name for name, one in workflow.inputs.items() if one.type == "audio" and name not in given]
    if len(sounds) != 1:
        found = f"has {', '.join(sounds)}; name one with --input-file" if sounds else "takes no sound"
        raise BadRequest(f"{option}: {workflow.name} {found}")
    return sounds[0]


def _split(option: str, pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise BadRequest(f"{option} {pair}: expected NAME=VALUE")
    return name, value


def _typed(name: str, text: str, declared: Input | None) -> Any:
    """A text as the kind that was declared: `3` is a number where one is expected, and text elsewhere."""
    try:
        return text if declared is None else from_text(declared.type, text)
    except BadRequest as error:
        raise BadRequest(f"--input {name}: {error.message}") from None


def _json(what: str, data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{what}: not JSON: {error}") from None


def _read(option: str, path: str) -> bytes:
    try:
        if path == STDIN:
            data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"{option}: {path} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_INPUT_BYTES:
        raise BadRequest(f"{option}: {path} has more than {MAX_INPUT_BYTES} bytes")
    return data


def _text(what: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"{what}: not valid UTF-8") from None

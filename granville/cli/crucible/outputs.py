"""A run's outputs: to stdout for a person or a program, to files."""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from granville.cli.files import write_whole
from granville.cli.terminal import note, show
from granville.errors import BadRequest, StartupError

STDOUT = "-"


def check_out(out: Sequence[str]) -> None:
    """Before anything runs. Raises BadRequest."""
    to_stdout = [spec for spec in out if _path(spec) == STDOUT]
    if len(to_stdout) > 1:
        raise BadRequest("--out -: given twice")
    if to_stdout and sys.stdout.isatty():
        raise BadRequest("--out -: sound is not for a terminal; name a file, or send it on with | or >")
    for spec in out:
        folder = Path(_path(spec)).parent
        if not folder.is_dir():
            raise BadRequest(f"--out {spec}: the folder {folder} does not exist")


def deliver(id: str, outputs: Mapping[str, Any], out: Sequence[str], *, json: bool) -> None:
    """Write the files that `--out` names, and show the rest. Raises StartupError for one that cannot be written."""
    files = dict(_named(spec, outputs) for spec in out)
    for name, path in files.items():
        _write(name, outputs[name], path)
    if STDOUT in files.values():
        return  # stdout has the sound, and nothing beside it
    if json:
        plain = {name: _for_json(value, files.get(name)) for name, value in outputs.items()}
        show(msgspec.json.encode(plain).decode(), end="\n")
        return
    shown = {name: value for name, value in outputs.items() if name not in files}
    for name, value in shown.items():
        if isinstance(value, bytes):
            note(f"{name}: {len(value)} bytes; `crucible runs show {id} --out {name}=FILE` writes them")
        elif len([one for one in outputs.values() if not isinstance(one, bytes)]) == 1:
            show(_text(value), end="\n")
        else:
            text = _text(value)
            show(f"{name}:{chr(10) if chr(10) in text else ' '}{text}", end="\n")
    for name, path in files.items():
        note(f"{name}: {path}")


def _path(spec: str) -> str:
    name, equals, path = spec.partition("=")
    return path if equals and name.isidentifier() else spec


def _named(spec: str, outputs: Mapping[str, Any]) -> tuple[str, str]:
    """(output, path) of `--out`: the one that is sound, when it names none. Raises StartupError."""
    path = _path(spec)
    if path != spec:
        name = spec.partition("=")[0]
        if name not in outputs:
            raise StartupError(f"--out {spec}: no output {name}; there are {', '.join(outputs)}")
        return name, path
    sounds = [name for name, value in outputs.items() if isinstance(value, bytes)]
    if len(sounds) != 1:
        found = f"{', '.join(sounds)} are; name one, --out {sounds[0]}={path}" if sounds else "none is"
        raise StartupError(f"--out {path}: of the outputs that are sound, one is written: {found}")
    return sounds[0], path


def _write(name: str, value: Any, path: str) -> None:
    """In one step: a file that is there is the old one or the new one."""
    data = value if isinstance(value, bytes) else f"{_text(value)}\n".encode()
    if path == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        write_whole(Path(path), data)
    except OSError as error:
        raise StartupError(f"--out: {name} cannot be written to {path}: {error.strerror or error}") from None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    data = msgspec.json.encode(value)
    is_vector = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
    return (data if is_vector else msgspec.json.format(data)).decode()


def _for_json(value: Any, path: str | None) -> Any:
    if not isinstance(value, bytes):
        return value
    return {"bytes": len(value), **({"base64": base64.b64encode(value).decode()} if path is None else {"file": path})}

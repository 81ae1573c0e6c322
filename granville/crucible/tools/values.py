"""What a tool may give, and how much of it: whatever comes back is data, of types that a journal and JSON can hold."""

from __future__ import annotations

from typing import Any

import msgspec

from granville.crucible.tools.interface import MAX_TOOL_OUTPUT_BYTES, ToolFailed
from granville.crucible.workflow.bounds import TemplateError, Work, finished

_CUT = "\n… cut off here: {whole} bytes, and {most} are the most that a tool may give"


def bounded(name: str, value: Any, *, most_bytes: int = MAX_TOOL_OUTPUT_BYTES) -> Any:
    """The value in JSON's types and bytes: tuples are lists, structs and dataclasses are maps. A text that is too long
    is cut, with a note at its end. Raises ToolFailed for what is too large otherwise, or has another type."""
    if isinstance(value, str):
        return _text(value, most_bytes)
    try:
        packed = msgspec.msgpack.encode(value, enc_hook=_refuse)
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise ToolFailed(f"{name} gave what is no value of JSON's types: {_sentence(error)}") from None
    if len(packed) > most_bytes:
        raise ToolFailed(f"{name} gave {len(packed)} bytes, and {most_bytes} are the most; have it give less")
    try:
        return finished(msgspec.msgpack.decode(packed, strict=False), Work({}))
    except TemplateError as error:
        raise ToolFailed(f"{name} gave what is no value of JSON's types: {error.message}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ToolFailed(f"{name} gave what is no value of JSON's types: {_sentence(error)}") from None


def _text(text: str, most_bytes: int) -> str:
    """Half characters become question marks."""
    if text.isascii() and len(text) <= most_bytes:
        return text
    encoded = text.encode(errors="replace")
    if len(encoded) <= most_bytes:
        return encoded.decode()
    note = _CUT.format(whole=len(encoded), most=most_bytes)
    return encoded[: most_bytes - len(note.encode())].decode(errors="ignore") + note


def _refuse(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is none of them")


def _sentence(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)

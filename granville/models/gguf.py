"""The head of a GGUF file: what the model is, without its tensors and without its vocabulary in memory.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing in the file is trusted: every length is
held against the file's own size and against a bound before it is used.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from granville.errors import StartupError
from granville.fetch.verify import check_gguf

MAX_KEYS = 4096
MAX_KEY_BYTES = 65535
"""The format's own bound on a key."""
MAX_STRING_BYTES = 1 << 20
"""Of a string that is wanted; longer ones, and those that are not wanted, are only stepped over."""
MAX_ARRAY_STRINGS = 4 << 20
"""Sixteen times the largest vocabularies; each string is a step of the walk, about 0.2 µs."""
MAX_LAYERS = 4096
WINDOW_BYTES = 256 << 10
SHAPE = (
    ".block_count", ".embedding_length", ".attention.head_count", ".attention.head_count_kv", ".attention.key_length",
    ".attention.value_length",
)  # fmt: skip
"""What the size of the KV cache follows from."""

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of the format as the struct module's letters, all little-endian."""

QUANTIZATIONS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0",
}  # fmt: skip
"""`general.file_type`, llama.cpp's llama_ftype; a type that is not here is shown by its number."""

Value = int | float | bool | str
T = TypeVar("T", str, int)


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What the head says. Fields it does not have are None."""

    architecture: str
    name: str | None
    quantization: str | None
    context_length: int | None
    """Tokens the model was trained for."""
    has_chat_template: bool
    tensors: int
    layers: int | None = None
    embedding: int | None = None
    """Width of the model."""
    heads: int | None = None
    kv_heads: int | None = None
    kv_heads_of_layers: int | None = None
    """Where layers differ: all layers' together."""
    key_length: int | None = None
    value_length: int | None = None


def read_header(path: Path) -> ModelHeader:
    """Read a GGUF's key-values. Raises StartupError that names the file for one that is not whole and sound."""
    try:
        check_gguf(path)
        with path.open("rb") as file:
            return _header(_Walk(file, path.stat().st_size))
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from error
    except _Unsound as error:
        raise StartupError(f"{path}: not a sound GGUF model: {error}") from error


class _Unsound(Exception):
    """What in the file cannot be true."""


class _Walk:
    """A position in a file that moves forward through a window of it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.at = 0
        self._window = b""
        self._start = 0

    def scalar(self, letter: str) -> int | float | bool:
        layout = struct.Struct(f"<{letter}")
        offset = self._have(layout.size)
        self.at += layout.size
        value: int | float | bool = layout.unpack_from(self._window, offset)[0]
        return value

    def count(self, letter: str = "Q") -> int:
        return int(self.scalar(letter))

    def text(self, most: int) -> str:
        length = self.count()
        if length > most:
            raise _Unsound(f"a string of {length} bytes at byte {self.at}, {most} are the most")
        offset = self._have(length)
        self.at += length
        try:
            return self._window[offset : offset + length].decode()
        except UnicodeDecodeError:
            raise _Unsound(f"a string at byte {self.at - length} is not UTF-8") from None

    def skip(self, length: int) -> None:
        if length > self.size - self.at:
            raise _Unsound(f"it ends at byte {self.size}, inside a value; the file was cut off")
        self.at += length

    def skip_strings(self, count: int) -> None:
        if count > MAX_ARRAY_STRINGS:
            raise _Unsound(f"an array of {count} strings, {MAX_ARRAY_STRINGS} are the most")
        unpack, size = struct.Struct("<Q").unpack_from, self.size
        for _ in range(count):
            offset = self.at - self._start
            if not 0 <= offset <= len(self._window) - 8:
                offset = self._have(8)
            self.at += 8 + unpack(self._window, offset)[0]
            if self.at > size:
                raise _Unsound(f"it ends at byte {size}, inside an array of strings; the file was cut off")

    def _have(self, length: int) -> int:
        """The offset in the window at which the next `length` bytes are."""
        if length > self.size - self.at:
            raise _Unsound(f"it ends at byte {self.size}, inside its head; the file was cut off")
        offset = self.at - self._start
        if not 0 <= offset <= len(self._window) - length:
            self.file.seek(self.at)
            self._window = self.file.read(max(length, WINDOW_BYTES))
            self._start, offset = self.at, 0
            if len(self._window) < length:
                raise _Unsound("it became shorter while it was read")
        return offset


def _header(walk: _Walk) -> ModelHeader:
    walk.skip(8)  # magic and version, checked before
    tensors, keys = walk.count(), walk.count()
    if keys > MAX_KEYS:
        raise _Unsound(f"{keys} keys, {MAX_KEYS} are the most")
    found: dict[str, Value] = {}
    for _ in range(keys):
        key = walk.text(MAX_KEY_BYTES)
        kind = walk.count("I")
        if _is_wanted(key):
            found[key] = _value(walk, key, kind)
        elif kind == ARRAY and key.endswith(".attention.head_count_kv"):
            found[f"{key}.sum"] = _sum(walk, key)
        elif kind in SCALARS and key.endswith(SHAPE):
            found[key] = walk.scalar(SCALARS[kind])
        else:
            _skip(walk, key, kind)
    architecture = _take(found, "general.architecture", str)
    if architecture is None:
        raise _Unsound("general.architecture is missing")
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", architecture) is None:
        raise _Unsound(f"general.architecture is {architecture[:80]!r}, which cannot be part of a model's id")
    file_type = _take(found, "general.file_type", int)
    return ModelHeader(
        architecture=architecture,
        name=_take(found, "general.name", str),
        quantization=None if file_type is None else QUANTIZATIONS.get(file_type, f"type {file_type}"),
        context_length=_take(found, f"{architecture}.context_length", int),
        has_chat_template=bool(found.get("tokenizer.chat_template")),
        tensors=tensors,
        layers=_take(found, f"{architecture}.block_count", int),
        embedding=_take(found, f"{architecture}.embedding_length", int),
        heads=_take(found, f"{architecture}.attention.head_count", int),
        kv_heads=_take(found, f"{architecture}.attention.head_count_kv", int),
        kv_heads_of_layers=_take(found, f"{architecture}.attention.head_count_kv.sum", int),
        key_length=_take(found, f"{architecture}.attention.key_length", int),
        value_length=_take(found, f"{architecture}.attention.value_length", int),
    )


def _is_wanted(key: str) -> bool:
    wanted = ("general.architecture", "general.name", "general.file_type", "tokenizer.chat_template")
    return key in wanted or key.endswith(".context_length")


def _value(walk: _Walk, key: str, kind: int) -> Value:
    if kind == STRING:
        return walk.text(MAX_STRING_BYTES)
    if kind in SCALARS:
        return walk.scalar(SCALARS[kind])
    raise _Unsound(f"{key} has the type {kind}, a number or a string was expected")


def _sum(walk: _Walk, key: str) -> int:
    """Of an array of whole numbers, one a layer."""
    item, count = walk.count("I"), walk.count()
    letter = SCALARS.get(item, "")
    if not letter or letter in "fd?":
        raise _Unsound(f"{key} is an array of the type {item}, whole numbers were expected")
    if count > MAX_LAYERS:
        raise _Unsound(f"{key} has {count} items, {MAX_LAYERS} are the most")
    return sum(walk.count(letter) for _ in range(count))


def _skip(walk: _Walk, key: str, kind: int) -> None:
    if kind == STRING:
        walk.skip(walk.count())
    elif kind in SCALARS:
        walk.skip(struct.calcsize(SCALARS[kind]))
    elif kind == ARRAY:
        item, count = walk.count("I"), walk.count()
        if item == STRING:
            walk.skip_strings(count)
        elif item in SCALARS:
            walk.skip(count * struct.calcsize(SCALARS[item]))
        else:
            raise _Unsound(f"{key} is an array of the type {item}, which no model has")
    else:
        raise _Unsound(f"{key} has the unknown type {kind}")


def _take(found: dict[str, Value], key: str, kind: type[T]) -> T | None:
    value = found.get(key)
    if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise _Unsound(f"{key} is {value!r}, {kind.__name__} was expected")

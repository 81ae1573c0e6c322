"""A walk through the head of a GGUF file, forwards, with every length held against the file's size and a bound.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from granville.errors import StartupError
from granville.fetch.verify import check_gguf

MAX_ARRAY_STRINGS = 4 << 20
"""Sixteen times the largest vocabularies; each string is a step of the walk, about 0.2 µs."""
WINDOW_BYTES = 256 << 10

UINT32, STRING, ARRAY = 4, 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of the format as the struct module's letters, all little-endian."""


class Unsound(Exception):
    """What in the file cannot be true."""


@contextmanager
def open_walk(path: Path) -> Iterator[Walk]:
    """A walk that stands behind the magic and the version. Raises StartupError that names the file for one that is no
    GGUF, cannot be read, or turns out unsound in the body."""
    try:
        check_gguf(path)
        with path.open("rb") as file:
            walk = Walk(file, path.stat().st_size)
            walk.skip(8)
            yield walk
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from error
    except Unsound as error:
        raise StartupError(f"{path}: not a sound GGUF model: {error}") from error


class Walk:
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
            raise Unsound(f"a string of {length} bytes at byte {self.at}, {most} are the most")
        offset = self._have(length)
        self.at += length
        try:
            return self._window[offset : offset + length].decode()
        except UnicodeDecodeError:
            raise Unsound(f"a string at byte {self.at - length} is not UTF-8") from None

    def skip(self, length: int) -> None:
        if length > self.size - self.at:
            raise Unsound(f"it ends at byte {self.size}, inside a value; the file was cut off")
        self.at += length

    def skip_strings(self, count: int) -> None:
        if count > MAX_ARRAY_STRINGS:
            raise Unsound(f"an array of {count} strings, {MAX_ARRAY_STRINGS} are the most")
        unpack, size = struct.Struct("<Q").unpack_from, self.size
        for _ in range(count):
            offset = self.at - self._start
            if not 0 <= offset <= len(self._window) - 8:
                offset = self._have(8)
            self.at += 8 + unpack(self._window, offset)[0]
            if self.at > size:
                raise Unsound(f"it ends at byte {size}, inside an array of strings; the file was cut off")

    def _have(self, length: int) -> int:
        """The offset in the window at which the next `length` bytes are."""
        if length > self.size - self.at:
            raise Unsound(f"it ends at byte {self.size}, inside its head; the file was cut off")
        offset = self.at - self._start
        if not 0 <= offset <= len(self._window) - length:
            self.file.seek(self.at)
            self._window = self.file.read(max(length, WINDOW_BYTES))
            self._start, offset = self.at, 0
            if len(self._window) < length:
                raise Unsound("it became shorter while it was read")
        return offset


def skip_value(walk: Walk, key: str, kind: int) -> int:
    """Step over a value; how many items an array has, else 0."""
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
            raise Unsound(f"{key} is an array of the type {item}, which no model has")
        return count
    else:
        raise Unsound(f"{key} has the unknown type {kind}")
    return 0

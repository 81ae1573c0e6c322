"""A shared library that is open: its symbols, strings of its memory, and the one context that its models share."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

from granville.errors import StartupError
from granville.hosting.binary import check_library
from granville.hosting.interface import DriverError

MAX_TEXT_BYTES = 16 << 20
"""GRANVILLE_MAX_TEXT_BYTES: a v1 answer, or the text of one v2 event."""
MAX_NAME_BYTES = 256
"""GRANVILLE_MAX_NAME_BYTES."""

Identity = tuple[int, int, int, int]


class Context:
    """A driver's context, made with its first model and freed with its last. All that makes and frees goes through
    `lock`, one at a time."""

    def __init__(self, make: Callable[[], int], free: Callable[[int], None]) -> None:
        self.lock = threading.Lock()
        self._make = make
        self._free = free
        self._handle = 0
        self._users = 0

    def take(self) -> int:
        """The context for one model more. Call it with the lock. Raises DriverError."""
        if not self._users:
            self._handle = self._make()
        self._users += 1
        return self._handle

    def give_back(self) -> None:
        """One model less. Call it with the lock."""
        self._users -= 1
        if not self._users:
            handle, self._handle = self._handle, 0
            self._free(handle)


class Library:
    """Opened once in a process and never closed: its code may be in the use of threads that it started."""

    _opened: dict[Path, tuple[Identity, Library]] = {}  # noqa: RUF012  # all libraries of this process
    _opening = threading.Lock()

    def __init__(self, path: Path) -> None:
        """Use `open`. Raises StartupError."""
        self.path = path
        self.contexts: dict[str, Context] = {}
        """By interface; drivers of the same library share them."""
        try:
            # RTLD_NOW, which ctypes adds: what it lacks is told now, not in the middle of an answer.
            self._dll = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        except OSError as error:
            raise StartupError(f"{path}: the system cannot open it: {error}") from None

    @classmethod
    def open(cls, path: Path) -> Library:
        """Raises StartupError for what is no library of this machine, or cannot be opened."""
        path = path.resolve()
        check_library(path)
        status = path.stat()
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        with cls._opening:
            known = cls._opened.get(path)
            if known is None:
                known = identity, cls(path)
                cls._opened[path] = known
        if known[0] != identity:
            # The system goes by the path and would give the old one again.
            raise StartupError(f"{path}: has been replaced since it was opened; start Granville anew to use it")
        return known[1]

    def address(self, symbol: str) -> int | None:
        """Of a function or of data; None when the library does not export it."""
        try:
            return ctypes.addressof(ctypes.c_char.in_dll(self._dll, symbol))
        except ValueError:
            return None

    def text(self, address: int | None, what: str) -> str:
        """A name or version that the driver gives; `what` is where it stands. Raises StartupError."""
        if not address:
            raise StartupError(f"{self.path}: {what} is NULL; it has to be a text")
        data = c_string(address, MAX_NAME_BYTES)
        if data is None:
            raise StartupError(f"{self.path}: {what} is longer than the {MAX_NAME_BYTES} bytes that it may have")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise StartupError(f"{self.path}: {what} is not UTF-8: {data[:40]!r}") from None
        if not text or not text.isprintable():
            raise StartupError(f"{self.path}: {what} is {text[:40]!r}; it has to be a text that can be printed")
        return text


_strnlen = ctypes.CDLL(None).strnlen
_strnlen.restype = ctypes.c_size_t
_strnlen.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def c_string(address: int, most: int) -> bytes | None:
    """A copy of a NUL-terminated string, or None when it has more than `most` bytes."""
    size = int(_strnlen(address, most + 1))
    return None if size > most else ctypes.string_at(address, size)


def refuse_type(name: str, type: str, known: tuple[str, ...]) -> None:
    """Raises DriverError for a type of model that the driver's interface has no work for."""
    if type not in known:
        raise DriverError(f"{name} has no models of type {type}; of {', '.join(known)} it has")

"""A byte stream cut into MessagePack values: any split of the stream gives the same values.

msgpack's streaming unpacker keeps its place inside a part-message, so a message that comes a byte at a time costs
no more than one that comes whole. Everything it may be made to hold is bounded here.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgpack

from granville.errors import FramingLost, TooLarge

MAX_REPLY_BYTES = 64 << 20
"""One message from a daemon; sound is the largest."""
MAX_ITEMS = 65_536
"""Elements of one array or map. The unpacker makes room for an array when it reads its header, so this also bounds
what a header that promises more than it brings can take: with msgpack 1.2, 64 KiB a header and 64 MiB for the deepest
nest of them that it follows (1024)."""


class FrameReader:
    """Bytes in, values out. After an exception the stream cannot be read any further."""

    def __init__(self, max_message_bytes: int = 1 << 20) -> None:
        self.max_message_bytes = max_message_bytes
        self._unpacker = _unpacker(max_message_bytes)
        self.last_bytes = 0
        """The size of the message that was yielded last."""
        self._fed = 0
        self._end_of_last = 0

    @property
    def pending(self) -> int:
        """Bytes of a message that has begun and is not whole."""
        return self._fed - self._end_of_last

    def allow(self, max_message_bytes: int) -> None:
        """Another limit, unless a message has begun, which is read under the old one."""
        if max_message_bytes != self.max_message_bytes and not self.pending:
            self.max_message_bytes = max_message_bytes
            self._unpacker = _unpacker(max_message_bytes)
            self._fed = self._end_of_last = 0

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[object]:
        """The maps and arrays that are whole now, in order.

        Raises FramingLost for what is not MessagePack (or is a bare scalar, as text taken for MessagePack is), and
        TooLarge for a message over the limit, in either case after the values before it.
        """
        view = memoryview(data)
        while view:
            room = self.max_message_bytes - self.pending
            if room == 0:
                raise self._too_large()
            part, view = view[:room], view[room:]
            self._unpacker.feed(part)
            self._fed += len(part)
            yield from self._whole()

    def close(self) -> None:
        """The stream has ended; raises FramingLost when that was inside a message."""
        if self.pending:
            raise FramingLost(f"the stream ended inside a message, {self.pending} bytes into it")

    def _whole(self) -> Iterator[object]:
        while self.pending:
            try:
                value = self._unpacker.unpack()
            except msgpack.OutOfData:
                return
            except (msgpack.FormatError, msgpack.StackError):
                raise FramingLost("not MessagePack; a message is a MessagePack map") from None
            except ValueError as error:
                if "exceeds max" in str(error):
                    raise self._too_large() from None
                raise FramingLost(f"not MessagePack: {error}") from None
            except TypeError:
                raise FramingLost("a map's key must be a string") from None
            end = self._unpacker.tell()
            self.last_bytes, self._end_of_last = end - self._end_of_last, end
            if not isinstance(value, dict | list):
                raise FramingLost(f"expected MessagePack maps, got a bare {type(value).__name__}")
            yield value

    def _too_large(self) -> TooLarge:
        return TooLarge(f"a message may have {self.max_message_bytes} bytes and {MAX_ITEMS} items a list")


def _unpacker(max_message_bytes: int) -> msgpack.Unpacker:
    return msgpack.Unpacker(
        raw=False,
        unicode_errors="surrogateescape",  # a bad string costs its own message only: wire.messages refuses it
        strict_map_key=False,
        max_buffer_size=max_message_bytes,
        max_array_len=MAX_ITEMS,
        max_map_len=MAX_ITEMS,
    )

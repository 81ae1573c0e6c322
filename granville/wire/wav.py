"""WAV as answers are spoken in it: one channel of 16-bit samples, behind a header of 44 bytes.

The layout is RIFF's: "RIFF", the size of what follows, "WAVE", a chunk "fmt " that says how samples are written, and a
chunk "data" with them. Where sound is sent while it is made its size is not known yet: 0xFFFFFFFF stands for that in
both places, which players take for "until the end".
"""

from __future__ import annotations

import struct

from granville.errors import DriverFailed, TooLarge
from granville.wire.framing import MAX_REPLY_BYTES

HEADER_BYTES = 44
SAMPLE_BYTES = 2
MAX_SOUND_BYTES = MAX_REPLY_BYTES - (64 << 10)
"""Of one answer's samples: with all that is said of it, it is one message."""
MIN_RATE, MAX_RATE = 1_000, 384_000
"""Hz."""
_UNKNOWN = 0xFFFFFFFF
_PCM = 1
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")


def header(sample_rate: int, pcm_bytes: int | None = None) -> bytes:
    """What stands before the samples; `pcm_bytes` None where their number is not known yet."""
    riff = _UNKNOWN if pcm_bytes is None else HEADER_BYTES - 8 + pcm_bytes
    data = _UNKNOWN if pcm_bytes is None else pcm_bytes
    return _HEADER.pack(
        b"RIFF", riff, b"WAVE", b"fmt ", 16, _PCM, 1, sample_rate, SAMPLE_BYTES * sample_rate, SAMPLE_BYTES,
        8 * SAMPLE_BYTES, b"data", data,
    )  # fmt: skip


def wav(pcm: bytes, sample_rate: int) -> bytes:
    """A file of samples: one channel, 16-bit signed little-endian, `sample_rate` a second."""
    return header(sample_rate, len(pcm)) + pcm


class Sound:
    """The sound of one answer while it is made."""

    def __init__(self) -> None:
        self.sample_rate: int | None = None
        """Hz; None before there is any."""
        self.pcm_bytes = 0
        self._pieces: list[bytes] = []

    @property
    def duration_s(self) -> float:
        return 0.0 if self.sample_rate is None else self.pcm_bytes / SAMPLE_BYTES / self.sample_rate

    def add(self, pcm: bytes, sample_rate: int) -> bytes:
        """More of it; what is to be sent of a stream, the header too where this is its beginning. Raises DriverFailed
        for what is no sound, or another's, and TooLarge when it is more than an answer may have."""
        if not isinstance(pcm, bytes) or len(pcm) % SAMPLE_BYTES:
            raise DriverFailed("the driver gave sound that is not bytes of whole 16-bit samples")
        if type(sample_rate) is not int or not MIN_RATE <= sample_rate <= MAX_RATE:
            raise DriverFailed(f"the driver gave sound of {sample_rate!r} Hz; {MIN_RATE} to {MAX_RATE} can be")
        if self.sample_rate not in (None, sample_rate):
            raise DriverFailed(f"the driver went from {self.sample_rate} Hz to {sample_rate} in one answer")
        if self.pcm_bytes + len(pcm) > MAX_SOUND_BYTES:
            minutes = MAX_SOUND_BYTES / SAMPLE_BYTES / sample_rate / 60
            raise TooLarge(
                f"the sound is over {MAX_SOUND_BYTES} bytes, {minutes:.0f} minutes; have the text spoken in parts"
            )
        first = self.sample_rate is None
        self.sample_rate = sample_rate
        self.pcm_bytes += len(pcm)
        self._pieces.append(pcm)
        return header(sample_rate) + pcm if first else pcm

    def stream(self) -> bytes:
        """What has been sent of a stream so far."""
        return b"" if self.sample_rate is None else b"".join([header(self.sample_rate), *self._pieces])

    def file(self) -> bytes:
        """The whole, as a file. There has to be some."""
        assert self.sample_rate is not None
        return b"".join([header(self.sample_rate, self.pcm_bytes), *self._pieces])

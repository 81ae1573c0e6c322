"""Sound as the fake driver makes and hears it: each byte of a text is a sample, so what it speaks it hears again.

Any other recording is so and so many bytes of sound to it.
"""

from __future__ import annotations

import struct
from typing import Any

from granville.hosting.interface import Speak, Transcribe
from granville.wire.wav import HEADER_BYTES, SAMPLE_BYTES, header

RATE = 16_000
"""Hz, at speed 1."""
LOUDNESS = 64
"""Of a sample, for each unit of its byte."""


def spoken(text: str) -> bytes:
    """A text as samples."""
    data = text.encode()
    return struct.pack(f"<{len(data)}h", *(LOUDNESS * byte for byte in data))


def heard(audio: bytes) -> str:
    """The text that a recording was made of."""
    try:
        (rate,) = struct.unpack_from("<I", audio, 24)
        pcm = audio[HEADER_BYTES:]
        samples = struct.unpack(f"<{len(pcm) // SAMPLE_BYTES}h", pcm)
        if audio[:40] in (header(rate, len(pcm))[:40], header(rate)[:40]):
            return bytes(_byte(sample) for sample in samples).decode()
    except (struct.error, ValueError):
        return _unknown(audio)
    return _unknown(audio)


def said_words(task: Transcribe | Speak) -> list[str]:
    """What a job of sound has for its answer, word by word."""
    if isinstance(task, Speak):
        text = task.text if task.voice is None else f"{task.voice}: {task.text}"
        return text.split()
    audio = task.audio if task.audio is not None or task.path is None else task.path.read_bytes()
    return heard(audio or b"").split()


def rate_of(task: Speak) -> int:
    return int(RATE * task.speed)


def last_word(task: Transcribe | Speak, words: list[str]) -> dict[str, Any]:
    """The value that ends the job; its words follow each other without a pause."""
    text = " ".join(words)
    rate = rate_of(task) if isinstance(task, Speak) else RATE
    duration_s = len(text.encode()) / rate
    if isinstance(task, Speak):
        return {"duration_s": duration_s}
    segment: dict[str, Any] = {"start": 0.0, "end": duration_s, "text": text}
    if task.words:
        ends = [len(" ".join(words[: number + 1]).encode()) / rate for number in range(len(words))]
        segment["words"] = [
            {"start": start, "end": end, "word": word, "probability": 1.0}
            for word, start, end in zip(words, [0.0, *ends], ends, strict=False)
        ]
    return {"language": task.language or "en", "duration_s": duration_s, "segments": [segment] if words else []}


def _byte(sample: int) -> int:
    byte, rest = divmod(sample, LOUDNESS)
    if rest:
        raise ValueError("no byte of a text is as loud as this")
    return byte


def _unknown(audio: bytes) -> str:
    return f"{len(audio)} bytes of sound"

"""Sound as the fake driver makes and hears it: each byte of a text is a sample, so what it speaks it hears again.

Any other recording is so and so many bytes of sound to it.
"""

from __future__ import annotations

import io
import math
import struct
import wave
from typing import Any

from granville.hosting.interface import Speak, Transcribe
from granville.wire.wav import HEADER_BYTES, SAMPLE_BYTES, header

RATE = 16_000
"""Hz, at speed 1."""
VOICES = ("amy", "joe")
LOUDNESS = 64
"""Of a sample, for each unit of its byte."""


def spoken(text: str) -> bytes:
    """A text as samples."""
    data = text.encode()
    return struct.pack(f"<{len(data)}h", *(LOUDNESS * byte for byte in data))


def heard(audio: bytes) -> str:
    """The text that a recording was made of; silence has none. Raises ValueError for what is no WAV file."""
    if len(audio) < HEADER_BYTES or (audio[:4], audio[8:12]) != (b"RIFF", b"WAVE"):
        raise ValueError("audio: it is no WAV file, and the fake driver hears no other")
    pcm = audio[HEADER_BYTES:]
    (rate,) = struct.unpack_from("<I", audio, 24)
    if audio[8:40] == header(rate)[8:40] and len(pcm) % SAMPLE_BYTES == 0:
        steps = [divmod(sample, LOUDNESS) for (sample,) in struct.iter_unpack("<h", pcm)]
        if all(0 <= byte < 256 and not rest for byte, rest in steps):
            try:
                return bytes(byte for byte, _ in steps if byte).decode()
            except UnicodeDecodeError:
                return _unknown(audio)
    return _unknown(audio)


def said_words(task: Transcribe | Speak) -> list[str]:
    """What a job of sound has for its answer, word by word. Raises ValueError for a job that the client got wrong."""
    if isinstance(task, Speak):
        if task.voice not in (None, *VOICES):
            raise ValueError(f"voice: no voice {task.voice!r}; there are {', '.join(VOICES)}")
        if not task.text.strip():
            raise ValueError("text: there is nothing in it to be spoken")
        text = task.text if task.voice is None else f"{task.voice}: {task.text}"
        return text.split()
    try:
        audio = task.path.read_bytes() if task.path is not None else task.audio or b""
    except OSError as error:
        raise ValueError(f"audio_path: {task.path} cannot be read: {error.strerror}") from None
    return heard(audio).split()


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


def _unknown(audio: bytes) -> str:
    return f"{len(audio)} bytes of sound"


def tone(seconds: float, *, hz: float = 220.0, rate: int = RATE, channels: int = 1) -> bytes:
    """A WAV file with a tone in it; 0 Hz is silence."""
    frames = range(int(seconds * rate))
    samples = [int(8000 * math.sin(2 * math.pi * hz * frame / rate)) for frame in frames for _ in range(channels)]
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(SAMPLE_BYTES)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return out.getvalue()

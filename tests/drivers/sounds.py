"""Recordings for tests: speech in every format, noises, and how much of a text was understood."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
from av.audio.fifo import AudioFifo
from av.audio.resampler import AudioResampler

from granville.hosting.interface import Audio, Event, Failed, Model, Output, Speak, Task, Token, Transcribe

Pcm = npt.NDArray[np.int16]
MAX_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class Format:
    """How FFmpeg is to write a recording."""

    container: str
    codec: str
    rate: int
    layout: str
    samples: str


FORMATS: Mapping[str, Format] = {
    "8-bit, 8 kHz": Format("wav", "pcm_u8", 8_000, "mono", "u8"),
    "telephone": Format("wav", "pcm_mulaw", 8_000, "mono", "s16"),
    "floats in six channels": Format("wav", "pcm_f32le", 48_000, "5.1", "flt"),
    "FLAC": Format("flac", "flac", 44_100, "stereo", "s16"),
    "MP3": Format("mp3", "libmp3lame", 44_100, "stereo", "fltp"),
    "OGG": Format("ogg", "libopus", 48_000, "mono", "s16"),
    "M4A": Format("ipod", "aac", 44_100, "mono", "fltp"),
    "WebM": Format("webm", "libopus", 48_000, "stereo", "s16"),
}


def done(model: Model, *tasks: Task) -> list[Event]:
    """Everything that comes of some jobs, until all have ended."""
    for task in tasks:
        model.submit(task)
    left = {task.id for task in tasks}
    events: list[Event] = []
    for _ in range(MAX_STEPS):
        if not left:
            return events
        for event in model.step(None):
            assert event.id in left, f"an event of {event.id}, which has ended: {event}"
            events.append(event)
            if isinstance(event, Output | Failed):
                left.discard(event.id)
    raise AssertionError(f"{left} did not end in {MAX_STEPS} steps")


def said(model: Model, text: str, **how: object) -> tuple[Pcm, int]:
    """A text read aloud: its samples and their rate."""
    events = done(model, Speak("said", text, **how))  # type: ignore[arg-type]  # voice and speed
    assert isinstance(events[-1], Output), events[-1]
    sounds = [event for event in events if isinstance(event, Audio)]
    (rate,) = {sound.sample_rate for sound in sounds}
    return np.frombuffer(b"".join(sound.pcm for sound in sounds), "<i2"), rate


def joined(texts: Iterable[tuple[Pcm, int]], pause_s: float) -> tuple[Pcm, int]:
    """One after the other, each with a pause behind it."""
    parts: list[Pcm] = []
    rate = 0
    for pcm, rate in texts:
        parts += [pcm, np.zeros(round(pause_s * rate), np.int16)]
    return np.concatenate(parts), rate


def wav(pcm: npt.NDArray[np.floating] | Pcm, rate: int = 16_000) -> bytes:
    """One channel, 16-bit; floats are from -1 to 1."""
    samples = pcm if pcm.dtype == np.int16 else np.round(pcm * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def encoded(pcm: Pcm, rate: int, format: Format) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format.container) as container:
        stream = container.add_stream(format.codec, rate=format.rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout, stream.format = format.layout, format.samples
        resampler = AudioResampler(format.samples, format.layout, format.rate)
        frame = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
        frame.sample_rate = rate
        queue = AudioFifo()
        for one in (frame, None):
            for resampled in resampler.resample(one):
                resampled.pts = None
                queue.write(resampled)
        while queue.samples:
            size = stream.codec_context.frame_size or queue.samples
            container.mux(stream.encode(queue.read(min(size, queue.samples))))
        container.mux(stream.encode(None))
    return file.getvalue()


def heard(model: Model, audio: bytes, **how: object) -> tuple[str, Output]:
    """The text of a recording as its events tell it, and how the job ended."""
    events = done(model, Transcribe("heard", audio, **how))  # type: ignore[arg-type]  # path, language and words
    end = events[-1]
    assert isinstance(end, Output), end
    return "".join(event.text for event in events if isinstance(event, Token)), end


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9' ]", "", text.lower().replace("-", " ")).split()


def word_errors(wanted: str, got: str) -> int:
    """The fewest words to put in, take out or replace."""
    rows = words(got)
    before = list(range(len(rows) + 1))
    for number, word in enumerate(words(wanted), 1):
        after = [number]
        for index, other in enumerate(rows, 1):
            after.append(min(before[index] + 1, after[-1] + 1, before[index - 1] + (word != other)))
        before = after
    return before[-1]


def error_rate(wanted: str, got: str) -> float:
    return word_errors(wanted, got) / len(words(wanted))

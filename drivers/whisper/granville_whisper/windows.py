"""A recording in windows of up to 30 s, which is what Whisper hears at once, cut where nobody speaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from granville_whisper.sound import RATE, Samples, Sound

WINDOW_S = 30
CUT_FROM_S = 20
"""A window that is not the last one is cut between here and its end."""
PAUSE_S = 0.2
"""Where nobody speaks for so long it can be cut."""
SILENCE_S = 2.0
"""Inside a window, longer silences are left out but for PAD_S on either side: Whisper fills them with made-up text."""
PAD_S = 0.4
QUIET_S = 0.1
"""Without a pause it is cut in the middle of the quietest stretch of this length."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of samples."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Window:
    start: int
    """Its first sample in the recording."""
    samples: Samples
    spans: list[Span]
    """What of it is heard, in order; none where nobody speaks."""


def windows(sound: Sound, *, threshold: float, vad: bool) -> Iterator[Window]:
    """All of a recording. Without `vad` all is heard, and voices are looked for only to cut between them."""
    start, rest = 0, np.zeros(0, np.float32)
    while True:
        samples = np.concatenate([rest, sound.read(WINDOW_S * RATE - len(rest))])
        is_last = len(samples) < WINDOW_S * RATE
        speech = _speech(samples, threshold) if len(samples) else []
        end = len(samples) if is_last else _cut(samples, speech)
        if vad:
            heard = _heard([Span(one.start, min(one.end, end)) for one in speech if one.start < end], end)
        else:
            heard = [Span(0, end)] if end else []
        yield Window(start, samples[:end], heard)
        if is_last:
            return
        start, rest = start + end, samples[end:]


def _speech(samples: Samples, threshold: float) -> list[Span]:
    options = VadOptions(threshold=threshold, min_silence_duration_ms=round(PAUSE_S * 1000), speech_pad_ms=0)
    return [Span(int(one["start"]), int(one["end"])) for one in get_speech_timestamps(samples, options)]


def _cut(samples: Samples, speech: list[Span]) -> int:
    """Where to end a window that goes on: in its longest late pause."""
    first, size = CUT_FROM_S * RATE, len(samples)
    edges = [0, *(edge for span in speech for edge in (span.start, span.end)), size]
    pauses = [Span(max(start, first), end) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    pause = max(pauses, key=lambda one: one.end - one.start)
    if pause.end - pause.start >= PAUSE_S * RATE:
        # What follows may begin at the very end, too short to be told from noise.
        return (pause.start + pause.end) // 2
    stretch = round(QUIET_S * RATE)
    late = samples[first : size - size % stretch].reshape(-1, stretch)
    return first + int(np.square(late).sum(axis=1).argmin()) * stretch + stretch // 2


def _heard(speech: list[Span], end: int) -> list[Span]:
    """Speech with a little around it, and with the shorter silences in between."""
    heard: list[Span] = []
    pad = round(PAD_S * RATE)
    for span in speech:
        if heard and span.start - heard[-1].end < SILENCE_S * RATE - pad:
            heard[-1] = Span(heard[-1].start, min(span.end + pad, end))
        else:
            heard.append(Span(max(0, span.start - pad), min(span.end + pad, end)))
    return heard

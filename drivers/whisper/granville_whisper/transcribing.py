"""A job of granville-whisper: a pass over a window of the recording is a piece of work, and its segments are told one
by one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.transcribe import Segment, restore_speech_timestamps
from granville_speech.turns import Job, JobError

from granville.hosting.interface import Output, Token, Transcribe, Usage
from granville_whisper.options import Options
from granville_whisper.sound import RATE, Sound
from granville_whisper.windows import Window, windows

log = logging.getLogger(__name__)

TEMPERATURES = (0.0, 0.4, 0.8)
"""Tried in turn while a window's text is improbable or repeats itself: they bound what one window can cost."""
SAMPLES = 1
"""Texts that are drawn at a temperature over 0. Five, as is usual, took a repeating window from 2 to 7 s and read it no
better."""
DIGITS = 3
"""Of seconds."""


@dataclass(slots=True)
class _Transcript:
    """What has been understood so far."""

    language: str | None
    segments: list[dict[str, Any]] = field(default_factory=list)
    end_s: float = 0.0
    """Of the last segment."""
    tokens: int = 0


class Transcriber:
    """Turns recordings into text with one loaded model."""

    def __init__(self, model: WhisperModel, options: Options) -> None:
        self.heard_s = 0.0
        """Of all jobs together."""
        self._model = model
        self._options = options
        self._languages = frozenset(model.supported_languages)

    def begin(self, request: Transcribe) -> Job:
        """Raises JobError from the job: no recording, a damaged one, one that is too long, or a language that the
        model does not know."""
        transcript = _Transcript(self._language(request.language))
        if (request.audio is None) == (request.path is None):
            raise JobError("bad_request", "a recording is either in `audio` or in the file `audio_path`")
        source = request.path if request.audio is None else request.audio
        assert source is not None
        sound = Sound(source)
        try:
            for window in windows(sound, threshold=self._options.vad_threshold, vad=self._options.vad):
                if sound.read_samples > self._options.max_audio_s * RATE:
                    most = f"{self._options.max_audio_s:g} s is the most (option max_audio_s)"
                    raise JobError("bad_request", f"the recording is too long: {most}; send it in parts")
                yield from self._read(window, request, transcript)
                yield []  # the next window is work enough
            if sound.damaged:
                log.warning("audio damaged job=%s packets=%d", request.id, sound.damaged)
            yield [
                Output(
                    request.id,
                    {
                        "language": transcript.language,
                        "duration_s": round(sound.read_samples / RATE, DIGITS),
                        "segments": transcript.segments,
                    },
                    Usage(completion_tokens=transcript.tokens),
                )
            ]
        finally:
            sound.close()

    def _language(self, asked: str | None) -> str | None:
        """As Whisper has it; None is to be found out."""
        if not asked:
            return None if len(self._languages) > 1 else next(iter(self._languages))
        language = asked.lower().replace("_", "-").partition("-")[0]
        if language not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise JobError("unsupported", f"language: this model does not know {asked!r:.40}; it knows {known}")
        return language

    def _read(self, window: Window, request: Transcribe, transcript: _Transcript) -> Job:
        """A segment at a time: where a pass ends in the middle of a sentence, faster-whisper begins another there."""
        self.heard_s += len(window.samples) / RATE
        if not window.spans:
            return
        samples = np.concatenate([window.samples[span.start : span.end] for span in window.spans])
        segments, info = self._model.transcribe(
            samples,
            language=transcript.language,
            beam_size=self._options.beam_size,
            temperature=TEMPERATURES,
            best_of=SAMPLES,
            condition_on_previous_text=False,  # a mistake would be carried on from window to window
            initial_prompt=self._options.prompt or None,
            word_timestamps=request.words,
        )
        kept = [{"start": span.start, "end": span.end} for span in window.spans]
        for segment in restore_speech_timestamps(segments, kept, RATE):
            transcript.tokens += len(segment.tokens)
            if any(map(str.isalnum, segment.text)):
                transcript.language = info.language
                yield [Token(request.id, self._take(segment, window, transcript))]

    def _take(self, segment: Segment, window: Window, transcript: _Transcript) -> str:
        """Its text as it follows on the text before."""
        clock = _clock(transcript.end_s, window.start / RATE, (window.start + len(window.samples)) / RATE)
        start, end = clock(segment.start), clock(segment.end)
        taken: dict[str, Any] = {"start": start, "end": end, "text": segment.text.strip()}
        if segment.words is not None:
            times = _clock(start, window.start / RATE, end)
            taken["words"] = [
                {
                    "start": times(word.start),
                    "end": times(word.end),
                    "word": word.word.strip(),
                    "probability": round(float(word.probability), DIGITS),
                }
                for word in segment.words
            ]
        text: str = segment.text if transcript.segments else segment.text.lstrip()
        transcript.segments.append(taken)
        transcript.end_s = end
        return text


def _clock(least_s: float, offset_s: float, most_s: float) -> Callable[[float], float]:
    """From the time in a window to the one in the recording, never back and never past the end: Whisper's own times of
    neighbours overlap now and then."""
    last = least_s

    def tell(seconds: float) -> float:
        nonlocal last
        last = round(min(max(float(seconds) + offset_s, last), most_s), DIGITS)
        return last

    return tell

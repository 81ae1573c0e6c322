"""A job of granville-espeak: a piece of the text is a piece of work, and its sound is told at once."""

from __future__ import annotations

import difflib
from array import array

from granville_speech.pieces import pieces
from granville_speech.speech import spoken, text_of
from granville_speech.turns import Job, JobError

from granville.hosting.interface import Audio, Output, Speak, Usage
from granville_espeak.library import BYTES_A_SAMPLE, MIN_RATE, Espeak
from granville_espeak.options import Options

PIECE_CHARS = 300
"""About 20 s, cut where a sentence ends if one does."""
EXAMPLES = "en-us, en-gb, de, fr, es"


class Reader:
    """Reads texts aloud with the library of this process."""

    def __init__(self, library: Espeak, options: Options) -> None:
        self.spoken_s = 0.0
        """Of all jobs together."""
        self._library = library
        self._options = options

    def begin(self, request: Speak) -> Job:
        text = text_of(request)
        voice = self.voice(request.voice or self._options.voice)
        words_per_minute = self._rate(request.speed)
        rate = self._library.sample_rate
        samples, is_heard = 0, False
        for piece in pieces(text, PIECE_CHARS):
            pcm = self._library.say(piece, voice, words_per_minute=words_per_minute, pitch=self._options.pitch)
            is_heard = is_heard or any(array("h", pcm))
            if not is_heard:
                yield []
                continue
            samples += len(pcm) // BYTES_A_SAMPLE
            self.spoken_s += len(pcm) / BYTES_A_SAMPLE / rate
            yield [Audio(request.id, pcm, rate)]
        if not is_heard:
            raise JobError("bad_request", "text: there is nothing in it that this voice can say")
        yield [Output(request.id, spoken(samples, rate), Usage(prompt_tokens=len(text)))]

    def voice(self, asked: str) -> str:
        """The library's name for a language, or a voice, with a variant or without. Raises JobError."""
        name, plus, variant = asked.strip().partition("+")
        known = self._library.voices.get(name.lower())
        if known is None:
            near = difflib.get_close_matches(name.lower(), self._library.voices, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {EXAMPLES} and many more"
            raise JobError("bad_request", f"voice: there is no {name!r:.60}; {hint}")
        if plus and variant not in self._library.variants:
            raise JobError(
                "bad_request", f"voice: there is no variant {variant!r:.40}; there are m1 to m8, f1 to f5, whisper"
            )
        return f"{known}{plus}{variant}"

    def _rate(self, speed: float) -> int:
        words_per_minute = round(self._options.words_per_minute * speed)
        if words_per_minute < MIN_RATE:
            least = MIN_RATE / self._options.words_per_minute
            raise JobError("bad_request", f"speed: this voice speaks at {least:.2f} or faster, got {speed:g}")
        return words_per_minute

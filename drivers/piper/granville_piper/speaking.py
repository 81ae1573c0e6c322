"""A job of granville-piper: a sentence is a piece of work, and its sound is told at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from granville_speech.pieces import pieces
from granville_speech.speech import spoken, text_of
from granville_speech.turns import Job, JobError
from piper.config import SynthesisConfig

from granville.hosting.interface import Audio, Output, Speak, Usage
from granville_piper.options import Options
from granville_piper.voices import Speaker, Voices

BLOCK_CHARS = 1000
"""Of a text that are turned into phonemes at once. espeak-ng finds the sentences in them."""
SENTENCE_PHONEMES = 200
"""About 12 s. A longer sentence is cut: memory grows with its length, and nothing else is done meanwhile."""
FIRST_PHONEMES = 120
"""Of the first piece, where it can be cut at a clause: whoever waits hears something sooner."""
LOUDEST = 32767
_RAW = re.compile(r"\[(?=\[)|\](?=\])")
"""piper takes what stands in double brackets for phonemes; a text is to be read as it is."""


class Reader:
    """Reads texts aloud with the voices of one model."""

    def __init__(self, voices: Voices, options: Options) -> None:
        self.spoken_s = 0.0
        """Of all jobs together."""
        self._voices = voices
        self._options = options

    def begin(self, request: Speak) -> Job:
        text = text_of(request)
        speaker = self._voices.speaker(request.voice)
        rate = speaker.voice.config.sample_rate
        settings = SynthesisConfig(
            speaker_id=speaker.number,
            length_scale=speaker.voice.config.length_scale / request.speed,
            noise_scale=self._options.noise,
            noise_w_scale=self._options.rhythm_noise,
        )
        samples = 0
        for block in pieces(_RAW.sub(lambda one: f"{one.group()} ", text), BLOCK_CHARS):
            for ids in _sentences(speaker, block, is_first=not samples):
                pcm = _sound(speaker, ids, settings)
                samples += len(pcm)
                self.spoken_s += len(pcm) / rate
                yield [Audio(request.id, pcm.tobytes(), rate)]
            yield []  # a block of what has no sound is work as well
        if not samples:
            raise JobError("bad_request", "text: there is nothing in it that this voice can say")
        yield [Output(request.id, spoken(samples, rate), Usage(prompt_tokens=len(text)))]


def _sentences(speaker: Speaker, text: str, *, is_first: bool) -> Iterator[list[int]]:
    """The phonemes of each sentence, as the model has them, leaving out what has no sound."""
    known = speaker.voice.config.phoneme_id_map
    for sentence in speaker.voice.phonemize(text):
        phonemes = [one for one in sentence if one in known]
        while phonemes:
            size = _size(phonemes, FIRST_PHONEMES if is_first else SENTENCE_PHONEMES, is_first)
            part, phonemes = phonemes[:size], phonemes[size:]
            if any(map(str.isalpha, part)):
                is_first = False
                yield speaker.voice.phonemes_to_ids(part)


def _size(phonemes: Sequence[str], most: int, is_first: bool) -> int:
    """How many of them to say at once: all, or up to the last clause, or else word, that fits."""
    if len(phonemes) <= most:
        return len(phonemes)
    for pause in (",;:", " "):
        ends = [at + 1 for at in range(most // 4, most) if phonemes[at] in pause]
        if ends:
            return ends[-1]
        if is_first:  # nothing to be heard sooner by
            return _size(phonemes, SENTENCE_PHONEMES, False)
    return most


def _sound(speaker: Speaker, ids: list[int], settings: SynthesisConfig) -> npt.NDArray[np.int16]:
    """As loud as a sentence can be, like piper's own."""
    made = speaker.voice.phoneme_ids_to_audio(ids, settings)
    sound = np.atleast_1d(np.nan_to_num(np.asarray(made[0] if isinstance(made, tuple) else made)))
    peak = float(np.abs(sound).max(initial=0.0))
    return (sound * (LOUDEST / peak if peak > 1e-8 else 0.0)).astype("<i2")

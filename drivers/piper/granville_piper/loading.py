"""From a ModelSpec to a model that speaks."""

from __future__ import annotations

import logging

from granville_speech.options import check_spec, read_options, usable_cores
from granville_speech.turns import TurnModel

from granville.hosting.interface import DriverError, Model, ModelInfo, ModelSpec, Speak
from granville_piper.options import Options

NAME = "granville-piper"
WORKING_BYTES = 100 << 20
"""Beside the weights: the libraries, and what a sentence is calculated with."""


def load(spec: ModelSpec) -> Model:
    """Raises DriverError: what is missing, or the option or the file that stands in the way."""
    options = read_options(NAME, Options, spec.options)
    check_spec(NAME, spec, "tts")
    try:
        from granville_piper.speaking import Reader
        from granville_piper.voices import Voices, find
    except ImportError as error:
        raise DriverError(f"piper-tts is missing ({error.name}): pip install 'granville[piper]'") from None
    if not spec.verbose:
        logging.getLogger("piper").setLevel(logging.ERROR)
    threads = spec.threads or usable_cores()
    files = find(spec.path)
    voices = Voices(files, first=options.voice, threads=threads, most=options.max_voices)
    reader = Reader(voices, options)
    largest = sorted((file.stat().st_size for file in files.values()), reverse=True)[: options.max_voices]
    info = ModelInfo(
        architecture="piper",
        context_size=0,
        memory_bytes=sum(largest) + WORKING_BYTES,
        description=f"Piper, {len(files)} voice{'s' if len(files) > 1 else ''}: {', '.join(files)}",
    )
    return TurnModel(
        Speak,
        reader.begin,
        serves="tts",
        slots=spec.slots,
        info=info,
        stats=lambda: {
            "threads": threads,
            "voices": len(files),
            "voices_loaded": voices.loaded,
            "audio_s": round(reader.spoken_s, 1),
        },
        close=voices.close,
        interruptible=True,  # a sentence is bounded, and takes less than a second
    )

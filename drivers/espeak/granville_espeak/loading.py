"""From a ModelSpec to a model that speaks."""

from __future__ import annotations

from granville_speech.options import check_spec, read_options
from granville_speech.turns import JobError, TurnModel

from granville.hosting.interface import DriverError, Model, ModelInfo, ModelSpec, Speak
from granville_espeak.options import Options

NAME = "granville-espeak"
MODEL = "espeak"
MEMORY_BYTES = 20 << 20


def load(spec: ModelSpec) -> Model:
    """Raises DriverError: what is missing, or the name or the option that stands in the way."""
    options = read_options(NAME, Options, spec.options)
    check_spec(NAME, spec, "tts")
    if spec.path.name != MODEL:
        raise DriverError(f"{spec.path}: espeak-ng brings its voices and reads no model; name the model {MODEL}")
    try:
        from granville_espeak.library import espeak
        from granville_espeak.speaking import Reader
    except ImportError as error:
        raise DriverError(f"espeakng-loader is missing ({error.name}): pip install 'granville[espeak]'") from None
    library = espeak()
    reader = Reader(library, options)
    try:
        reader.voice(options.voice)
    except JobError as error:
        raise DriverError(f"option {error.message}") from None
    return TurnModel(
        Speak,
        reader.begin,
        serves="tts",
        slots=spec.slots,
        info=ModelInfo("espeak", 0, MEMORY_BYTES, f"espeak-ng, {len(set(library.voices.values()))} voices"),
        stats=lambda: {"threads": 1, "audio_s": round(reader.spoken_s, 1)},
        close=lambda: None,  # the library stays as it is for the next model of this process
        interruptible=True,  # a piece of text takes some milliseconds
    )

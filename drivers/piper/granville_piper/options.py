"""granville-piper's options."""

from __future__ import annotations

from typing import Annotated

import msgspec
from granville_speech.options import about

MAX_VOICES = 64
MAX_NOISE = 2.0
Noise = Annotated[float, msgspec.Meta(ge=0, le=MAX_NOISE)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelSpec.options` as they may be given. Each description says what the option takes."""

    voice: Annotated[str | None, about("the voice of requests that name none: NAME or NAME#SPEAKER")] = None
    noise: Annotated[Noise | None, about(f"how lively the voice is, from 0 to {MAX_NOISE:g}; as the voice says")] = None
    rhythm_noise: Annotated[
        Noise | None, about(f"how uneven its rhythm is, from 0 to {MAX_NOISE:g}; as the voice says")
    ] = None
    max_voices: Annotated[
        int, about(f"how many voices stay loaded, a whole number from 1 to {MAX_VOICES}", 1, MAX_VOICES)
    ] = 4

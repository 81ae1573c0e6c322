"""granville-whisper's options."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from granville_speech.options import about

Compute = Literal["int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32"]
COMPUTE: tuple[str, ...] = get_args(Compute)
MAX_BEAM = 16
MAX_AUDIO_S = 24 * 3600


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelSpec.options` as they may be given. Each description says what the option takes."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"], about("auto, cpu or cuda; auto is a GPU where CTranslate2 sees one")
    ] = "auto"
    compute_type: Annotated[
        Compute | None, about(f"how to calculate, one of {', '.join(COMPUTE)}; int8 on a CPU, float16 on a GPU")
    ] = None
    beam_size: Annotated[int, about(f"how many texts to weigh, from 1 (fastest) to {MAX_BEAM}", 1, MAX_BEAM)] = 5
    vad: Annotated[
        bool, about("true or false: leave out what is no speech, so that nothing is made up where nothing is said")
    ] = True
    vad_threshold: Annotated[
        float, about("how sure to be that it is speech, from 0.01 to 0.99; higher leaves out more", 0.01, 0.99)
    ] = 0.5
    prompt: Annotated[
        str, msgspec.Meta(description="names and words to expect, a text of up to 500 characters", max_length=500)
    ] = ""
    max_audio_s: Annotated[float, about(f"the longest recording, in seconds, up to {MAX_AUDIO_S}", 1, MAX_AUDIO_S)] = (
        4 * 3600.0
    )

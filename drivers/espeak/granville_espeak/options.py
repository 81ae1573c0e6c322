"""granville-espeak's options."""

from __future__ import annotations

from typing import Annotated

import msgspec
from granville_speech.options import about


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelSpec.options` as they may be given. Each description says what the option takes."""

    voice: Annotated[
        str,
        about("the voice of requests that name none: a language such as en-gb, or a voice's name"),
    ] = "en-us"
    pitch: Annotated[int, about("a whole number from 0 to 99", 0, 99)] = 50
    words_per_minute: Annotated[int, about("at speed 1, a whole number from 80 to 450", 80, 450)] = 175

"""granville-llama's options, in one place: their JSON Schema and their checks are both made from this struct."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from granville.hosting.interface import DriverError

KvType = Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
Vectors = Literal["mean", "cls", "last"]
KV_TYPES: tuple[str, ...] = get_args(KvType)
VECTORS: tuple[str, ...] = get_args(Vectors)
BATCH_TOKENS = 128
"""What the backend computes at once, and the most of prefill in a step. Its scratch memory grows with this times the
context; more was not faster."""
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 16, 2048


def _about(text: str, ge: int | None = None, le: int | None = None) -> Meta:
    return Meta(description=text, ge=ge, le=le)


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelSpec.options` as they may be given. None, and a 0 that says so, is "choose". Each description says what the
    option takes: it is part of the message for a wrong value."""

    gpu_layers: Annotated[
        Annotated[int, Meta(ge=-1)] | None,
        _about("layers on the GPU, a whole number from -1 (all) up; all where this build has a GPU, unless given"),
    ] = None
    context_size: Annotated[int, _about("tokens a slot; 0 for the smaller of the model's own and 4096", ge=0)] = 0
    threads: Annotated[int, _about("a whole number from 0 (all cores) up", ge=0)] = 0
    flash_attention: Annotated[
        bool | None,
        _about("true or false; off, results do not depend on what else runs; on for layers on a GPU, unless given"),
    ] = None
    kv_type: Annotated[
        KvType, _about(f"how the KV cache is stored, one of {', '.join(KV_TYPES)}; under f16 with flash_attention only")
    ] = "f16"
    repack: Annotated[
        bool | None,
        _about("true or false: rearrange weights for the CPU's matrix instructions; on but for AMX, unless given"),
    ] = None
    pooling: Annotated[
        Vectors | None,
        _about(f"how a text becomes a vector, one of {', '.join(VECTORS)}; as the file says, unless given"),
    ] = None
    batch_tokens: Annotated[
        int,
        _about(
            f"tokens computed at once, a whole number from {MIN_BATCH_TOKENS} to {MAX_BATCH_TOKENS}",
            ge=MIN_BATCH_TOKENS,
            le=MAX_BATCH_TOKENS,
        ),
    ] = BATCH_TOKENS
    most_threads: Annotated[int, _about("without threads: no more than so many, from 0 (all cores) up", ge=0)] = 0


@cache
def config_schema() -> Mapping[str, Any]:
    """JSON Schema of the options, an object without references."""
    schema: dict[str, Any] = msgspec.json.schema(Options)["$defs"][Options.__name__]
    return schema


def read_options(given: Mapping[str, object]) -> Options:
    """Raises DriverError that names the option and what it takes."""
    properties = config_schema()["properties"]
    for name, value in given.items():
        if name not in properties:
            raise DriverError(f"granville-llama has no option {name!r}; it has {', '.join(properties)}")
        try:
            msgspec.convert({name: value}, Options)
        except msgspec.ValidationError:
            raise DriverError(f"option {name}: got {value!r}; it is {properties[name]['description']}") from None
    return msgspec.convert(dict(given), Options)

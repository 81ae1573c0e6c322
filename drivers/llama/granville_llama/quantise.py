"""Writing a model file anew with its weights in another format, by llama.cpp."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

from granville.hosting.interface import DriverError
from granville_llama.binding import LOG_LEVEL_ERROR, c

TYPES: dict[str, int] = {
    "F16": c.LLAMA_FTYPE_MOSTLY_F16,
    "Q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q6_K": c.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q5_K_M": c.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q5_1": c.LLAMA_FTYPE_MOSTLY_Q5_1,
    "Q5_0": c.LLAMA_FTYPE_MOSTLY_Q5_0,
    "Q4_K_M": c.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q4_1": c.LLAMA_FTYPE_MOSTLY_Q4_1,
    "Q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0,
    "IQ4_NL": c.LLAMA_FTYPE_MOSTLY_IQ4_NL,
}
"""Name to llama_ftype, of the formats that need no data about which weights matter."""
KEPT: dict[str, int] = {
    "Q5_1": c.GGML_TYPE_Q5_1,
    "Q5_0": c.GGML_TYPE_Q5_0,
    "Q4_1": c.GGML_TYPE_Q4_1,
    "Q4_0": c.GGML_TYPE_Q4_0,
}
"""Name to ggml_type: `Q8_0/Q4_1` is Q8_0 with the tensors of `ATTENTION` in Q4_1, which stay as they are where a file
has them so. They are an eighth of a small model; whether it is worth it shows in what is read and timed."""
ATTENTION = (b"attn_v", b"attn_output")
MIXED = tuple(f"Q8_0/{kept}" for kept in KEPT)
TENSOR = re.compile(rb"\[ *(\d+)/ *(\d+)\]")
"""What llama.cpp's log says of each tensor: its number, and how many there are."""


def quantise(source: Path, target: Path, kind: str, threads: int, progress: Callable[[int, int], None]) -> None:
    """Write `source` to `target`, its matrices as `kind` (of `TYPES` or `MIXED`). `progress` is called with tensors
    begun and tensors in all. Raises DriverError; what is there of the target then is the caller's to remove."""
    if kind not in TYPES and kind not in MIXED:
        raise DriverError(f"type: llama.cpp writes {', '.join((*TYPES, *MIXED))}, not {kind}")
    base, _, kept = kind.partition("/")
    errors: list[str] = []

    def listen(level: int, text: bytes, _: object) -> None:
        if level == LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip())
        elif found := TENSOR.match(text):
            progress(int(found[1]), int(found[2]))

    log = c.llama_log_callback(listen)
    params = c.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = TYPES[base], threads, True
    overrides = (c.llama_model_tensor_override * (len(ATTENTION) + 1))()  # the last one is empty and ends them
    if kept:
        for override, pattern in zip(overrides, ATTENTION, strict=False):
            override.pattern, override.type = pattern, KEPT[kept]
        params.tt_overrides = overrides
    c.llama_log_set(log, None)
    try:
        code = c.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    finally:
        c.llama_log_set(c.llama_log_callback(), None)
    if code != 0:
        raise DriverError(
            f"{source} cannot be written as {kind}: {errors[0] if errors else 'llama.cpp gave no reason'}"
        )

"""From a ModelSpec to a model that runs: the options checked, the file judged, weights and KV cache made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from granville.hosting.interface import DriverError, ModelInfo, ModelSpec
from granville_llama.binding import BUILT_WITH_AMX, KV_TYPES, MAX_SLOTS, Context, Weights
from granville_llama.engine import LlamaModel
from granville_llama.template import ChatTemplate
from granville_llama.threads import usable_cores

DEFAULT_CONTEXT_TOKENS = 4096
CONTEXT_STEP_TOKENS = 256
"""llama.cpp rounds a sequence's cache up to a multiple of this."""
BATCH_TOKENS = 128
"""What the backend computes at once, and the most of prefill in a step. Its scratch memory grows with this times the
context; more was not faster."""


@dataclass(frozen=True, slots=True)
class Options:
    """`ModelSpec.options`, checked."""

    gpu_layers: int = 0
    """-1 is all of them."""
    flash_attention: bool = False
    """Off, results do not depend on what else runs; on a GPU it is worth having."""
    kv_type: str = "f16"
    repack: bool = not BUILT_WITH_AMX
    """Let the CPU backend rearrange weights for its matrix instructions. Not for AMX by default: GCC 12 leaves out
    the stores to the tile configuration in ggml's AMX code, and the first batch ends the process."""


CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "gpu_layers": (lambda value: type(value) is int and value >= -1, "a whole number from -1 (all) up"),
    "flash_attention": (lambda value: type(value) is bool, "true or false"),
    "kv_type": (lambda value: isinstance(value, str) and value in KV_TYPES, f"one of {', '.join(KV_TYPES)}"),
    "repack": (lambda value: type(value) is bool, "true or false"),
}


def load(spec: ModelSpec) -> LlamaModel:
    """Raises DriverError: the option, the file or the memory that stands in the way."""
    options = _options(spec)
    _check_file(spec.path)
    try:
        weights = Weights(spec.path, gpu_layers=options.gpu_layers, repack=options.repack, verbose=spec.verbose)
    except DriverError as error:
        raise DriverError(f"{spec.path} cannot be loaded: {error}") from None
    try:
        if not weights.generates:
            raise DriverError(f"{spec.path} is a model of type {weights.architecture} that does not generate text")
        size = spec.context_size or min(weights.trained_context, DEFAULT_CONTEXT_TOKENS)
        padded = -(-size // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS
        batch_tokens = max(BATCH_TOKENS, spec.slots)
        template = ChatTemplate(weights, weights.template) if weights.template else None
        context = Context(
            weights,
            slots=spec.slots,
            context_size=padded,
            batch_tokens=batch_tokens,
            threads=spec.threads or usable_cores(),
            flash_attention=options.flash_attention,
            kv_type=options.kv_type,
            gpu=options.gpu_layers != 0,
        )
    except BaseException:
        weights.close()
        raise
    info = ModelInfo(
        architecture=weights.architecture,
        context_size=size,
        memory_bytes=weights.size_bytes + int(spec.slots * padded * weights.kv_bytes_a_token(options.kv_type)),
        description=weights.description,
    )
    return LlamaModel(weights, context, template, info, slots=spec.slots, batch_tokens=batch_tokens)


def _options(spec: ModelSpec) -> Options:
    for name, value in spec.options.items():
        if name not in CHECKS:
            raise DriverError(f"granville-llama has no option {name!r}; it has {', '.join(CHECKS)}")
        fits, wanted = CHECKS[name]
        if not fits(value):
            raise DriverError(f"option {name}: expected {wanted}, got {value!r}")
    options = Options(**spec.options)  # type: ignore[arg-type]  # each was just checked against CHECKS
    if options.kv_type not in ("f32", "f16") and not options.flash_attention:
        raise DriverError(f"option kv_type: {options.kv_type} needs flash_attention: true")
    if not 1 <= spec.slots <= MAX_SLOTS:
        raise DriverError(f"slots: llama.cpp takes 1 to {MAX_SLOTS}, got {spec.slots}")
    for name, number in (("context_size", spec.context_size), ("threads", spec.threads)):
        if number < 0:
            raise DriverError(f"{name}: must not be negative, got {number}")
    return options


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DriverError(f"{path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise DriverError(f"{path} is not a GGUF file: it begins with {magic!r}")

"""From a ModelSpec to a model that runs: the options checked, the file judged, weights and KV cache made."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from granville.hosting.interface import DriverError, Model, ModelInfo, ModelSpec
from granville_llama.binding import BUILT_WITH_AMX, MAX_SLOTS, Context, Weights
from granville_llama.devices import choose_layers
from granville_llama.embedding import BATCH_TEXTS, EmbeddingModel
from granville_llama.embedding import BATCH_TOKENS as READING_BATCH_TOKENS
from granville_llama.engine import LlamaModel
from granville_llama.kv import KvStore
from granville_llama.kvfiles import KvFiles
from granville_llama.options import read_options
from granville_llama.reader import Reader, pooling_of
from granville_llama.scoring import BATCH_TOKENS as SCORING_BATCH_TOKENS
from granville_llama.scoring import SCORING_TOKENS, Scorer
from granville_llama.template import ChatTemplate
from granville_llama.threads import Crew, usable_cores

log = logging.getLogger(__name__)

LLAMA_VERSION = version("llama-cpp-python")
DEFAULT_CONTEXT_TOKENS = 4096
CONTEXT_STEP_TOKENS = 256
"""llama.cpp rounds a sequence's cache up to a multiple of this."""
DEFAULT_TEXT_TOKENS = 512
"""The context of a model that reads: a text is computed whole, and scratch memory grows with the longest one."""
READERS = ("embedding", "rerank")
TYPES = ("inference", "ranker", *READERS)


@dataclass(frozen=True, slots=True)
class Settings:
    """`ModelSpec.options`, checked, and chosen where nothing was said."""

    gpu_layers: int
    """-1 is all of them."""
    flash_attention: bool
    """Off, results do not depend on what else runs; on a GPU, where that cannot be promised, it is worth having."""
    kv_type: str
    repack: bool
    """Let the CPU backend rearrange weights for its matrix instructions. Not for AMX by default: GCC 12 leaves out
    the stores to the tile configuration in ggml's AMX code, and the first batch ends the process."""
    pooling: str | None
    """How a text's tokens become one vector; None: as the file says."""
    batch_tokens: int
    most_threads: int
    """Without `ModelSpec.threads`: no more than so many, 0 for the physical cores."""


def load(spec: ModelSpec) -> Model:
    """Raises DriverError: the option, the file or the memory that stands in the way."""
    spec, options = _check(spec)
    _check_file(spec.path)
    try:
        weights = Weights(spec.path, gpu_layers=options.gpu_layers, repack=options.repack, verbose=spec.verbose)
    except DriverError as error:
        raise DriverError(f"{spec.path} cannot be loaded: {error}") from None
    try:
        return (_reading if spec.type in READERS else _generating)(spec, options, weights)
    except BaseException:
        weights.close()
        raise


def _generating(spec: ModelSpec, options: Settings, weights: Weights) -> LlamaModel:
    if not weights.generates:
        use = "rerank" if pooling_of(weights) == "rank" else "embedding"
        raise DriverError(
            f"{spec.path} is a model of type {weights.architecture}, which generates no text; "
            f"serve it as {use}:{spec.path}"
        )
    size = _context_size(spec, weights, DEFAULT_CONTEXT_TOKENS)
    padded = -(-size // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS
    batch_tokens = max(options.batch_tokens, spec.slots)
    template = ChatTemplate(weights, weights.template) if weights.template else None
    threads = spec.threads or options.most_threads or usable_cores()
    context = Context(
        weights,
        slots=spec.slots,
        context_size=padded,
        batch_tokens=batch_tokens,
        threads=threads,
        flash_attention=options.flash_attention,
        kv_type=options.kv_type,
        gpu=options.gpu_layers != 0,
    )
    info = ModelInfo(
        architecture=weights.architecture,
        context_size=size,
        memory_bytes=weights.size_bytes + int(spec.slots * padded * weights.kv_bytes_a_token(options.kv_type)),
        description=weights.description,
    )
    key = f"{spec.fingerprint} {LLAMA_VERSION} slots={spec.slots} {options}"
    scorer = _scorer(spec, options, weights)

    def set_threads(threads: int) -> None:
        context.set_threads(threads)
        scorer.set_threads(threads)

    crew = Crew(threads, set_threads, pinned=spec.threads > 0, interrupt=context.interrupt)
    return LlamaModel(
        weights, context, template, info, _store(spec, key), scorer, crew, slots=spec.slots, batch_tokens=batch_tokens
    )


def _scorer(spec: ModelSpec, options: Settings, weights: Weights) -> Scorer:
    return Scorer(
        weights,
        lambda: Context(
            weights,
            slots=1,
            context_size=SCORING_TOKENS,
            batch_tokens=SCORING_BATCH_TOKENS,
            threads=spec.threads or options.most_threads or usable_cores(),
            flash_attention=options.flash_attention,
            kv_type=options.kv_type,
            gpu=options.gpu_layers != 0,
        ),
    )


def _store(spec: ModelSpec, key: str) -> KvStore:
    """Of cached states. `key` is all that a state depends on beside its tokens."""
    files = None
    if spec.kv_dir is not None and spec.kv_disk_bytes and spec.fingerprint:
        try:
            files = KvFiles(spec.kv_dir, key)
        except BlockingIOError:
            log.warning("kv folder in use by another process, states stay in memory folder=%s", spec.kv_dir)
        except OSError as error:
            log.warning("kv folder cannot be used folder=%s error=%s", spec.kv_dir, error.strerror)
    return KvStore(spec.kv_ram_bytes, spec.kv_disk_bytes if files else 0, files)


def _reading(spec: ModelSpec, options: Settings, weights: Weights) -> EmbeddingModel:
    size = _context_size(spec, weights, DEFAULT_TEXT_TOKENS)
    batch_tokens = max(size, READING_BATCH_TOKENS)
    threads = spec.threads or usable_cores()
    reader = Reader(
        weights,
        pooling=_pooling(spec, options, weights),
        batch_tokens=batch_tokens,
        texts=BATCH_TEXTS,
        threads=threads,
        flash_attention=options.flash_attention,
        kv_type=options.kv_type,
        gpu=options.gpu_layers != 0,
    )
    info = ModelInfo(
        architecture=weights.architecture,
        context_size=size,
        memory_bytes=weights.size_bytes + Reader.memory_bytes(weights, batch_tokens, options.kv_type),
        description=weights.description,
    )
    crew = Crew(threads, reader.set_threads, pinned=spec.threads > 0)
    return EmbeddingModel(weights, reader, info, crew, type=spec.type, slots=spec.slots)


def _context_size(spec: ModelSpec, weights: Weights, default: int) -> int:
    """Never more than the model was trained for: beyond that one that generates goes astray, and one that reads has no
    positions, for which llama.cpp ends the process."""
    trained = weights.trained_context
    if spec.context_size > trained:
        log.warning(
            "context_size is over what the model was trained for, which it gets instead asked=%d context_size=%d",
            spec.context_size,
            trained,
        )
    return min(trained, spec.context_size or default)


def _pooling(spec: ModelSpec, options: Settings, weights: Weights) -> str:
    said = pooling_of(weights)
    if spec.type == "rerank":
        if said != "rank":
            raise DriverError(
                f"{spec.path} is no reranker: it has no head that scores a document; serve it as embedding:{spec.path}"
            )
        return said
    if said == "rank" and options.pooling is None:
        raise DriverError(
            f"{spec.path} is a reranker: serve it as rerank:{spec.path}, or set the option pooling to have vectors"
        )
    return options.pooling or said or ("last" if weights.generates else "mean")


def _check(spec: ModelSpec) -> tuple[ModelSpec, Settings]:
    """The spec with what was given as an option instead of as a field, and the settings."""
    options = read_options(spec.options)
    spec = replace(
        spec, context_size=spec.context_size or options.context_size, threads=spec.threads or options.threads
    )
    gpu_layers = choose_layers(options.gpu_layers)
    settings = Settings(
        gpu_layers=gpu_layers,
        flash_attention=gpu_layers != 0 if options.flash_attention is None else options.flash_attention,
        kv_type=options.kv_type,
        repack=not BUILT_WITH_AMX if options.repack is None else options.repack,
        pooling=options.pooling,
        batch_tokens=options.batch_tokens,
        most_threads=options.most_threads,
    )
    if settings.kv_type not in ("f32", "f16") and not settings.flash_attention:
        raise DriverError(f"option kv_type: {settings.kv_type} needs flash_attention: true")
    if not 1 <= spec.slots <= MAX_SLOTS:
        raise DriverError(f"slots: llama.cpp takes 1 to {MAX_SLOTS}, got {spec.slots}")
    if spec.type not in TYPES:
        raise DriverError(f"type: granville-llama serves {', '.join(TYPES)}, not {spec.type}")
    if settings.pooling is not None and spec.type != "embedding":
        raise DriverError(f"option pooling: only for type embedding, and this model is loaded as {spec.type}")
    if spec.context_size == 1:
        raise DriverError("context_size: 1 holds no prompt with an answer; it takes 2 or more, or 0 to be chosen")
    for name, number in (("context_size", spec.context_size), ("threads", spec.threads)):
        if number < 0:
            raise DriverError(f"{name}: must not be negative, got {number}")
    return spec, settings


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DriverError(f"{path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise DriverError(f"{path} is not a GGUF file: it begins with {magic!r}")

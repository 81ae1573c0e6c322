"""llama.cpp behind a thin typed face. Beside it only reader.py, devices.py and quantise.py touch ctypes and llama_cpp.

Three objects own C memory and must be closed: `Weights` (the file, its vocabulary), `Context` (the KV cache and
the batch being built) and `SamplerChain`. Nothing here decides anything; every method is one C call or a few.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any

from granville.hosting.interface import DriverError


def _bindings() -> Any:
    """`llama_cpp.llama_cpp`, without the package around it: that imports numpy, a web of helpers and a logger of its
    own, which cost 22 MB and 0.12 s and are of no use here."""
    package = sys.modules.get("llama_cpp")
    if package is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise DriverError("llama-cpp-python is not installed")
        sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        if package is None:  # whoever wants the whole package later gets it
            del sys.modules["llama_cpp"]


c = _bindings()

KV_TYPES: dict[str, tuple[int, float]] = {
    "f32": (c.GGML_TYPE_F32, 4.0),
    "f16": (c.GGML_TYPE_F16, 2.0),
    "q8_0": (c.GGML_TYPE_Q8_0, 34 / 32),
    "q5_1": (c.GGML_TYPE_Q5_1, 24 / 32),
    "q5_0": (c.GGML_TYPE_Q5_0, 22 / 32),
    "q4_1": (c.GGML_TYPE_Q4_1, 20 / 32),
    "q4_0": (c.GGML_TYPE_Q4_0, 18 / 32),
}
"""Name to (ggml_type, bytes an element), the block's scale included."""

BUILT_WITH_AMX = b"AMX_INT8 = 1" in c.llama_print_system_info()
MAX_SLOTS = int(c.llama_max_parallel_sequences())
SPECIAL_ATTRIBUTES = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_UNKNOWN | c.LLAMA_TOKEN_ATTR_USER_DEFINED
LOG_LEVEL_ERROR = 4
MAX_PIECE_BYTES = 1024
"""Longer tokens cannot be part of a constrained answer."""

_library = ctypes.PyDLL(c._lib._name)


def _keeping_the_gil(name: str) -> Any:
    """A function of llama.cpp called without letting go of the interpreter. Dozens of short calls make a step, and
    after each of them a busy thread elsewhere would keep the interpreter for its whole turn."""
    function, known = getattr(_library, name), getattr(c, name)
    function.argtypes, function.restype = known.argtypes, known.restype
    return function


_sample = _keeping_the_gil("llama_sampler_sample")
_is_end_of_generation = _keeping_the_gil("llama_vocab_is_eog")
_token_to_piece = _keeping_the_gil("llama_token_to_piece")
_libc = ctypes.CDLL(None)
# Callbacks in Python would be called hundreds of times a decode and wait for the GIL each time. A C function with a
# fitting signature does instead: strlen over a two-byte flag is "the flag is set", and abs has no effect.
flag_is_set = ctypes.cast(_libc.strlen, c.ggml_abort_callback)
_no_log = ctypes.cast(_libc.abs, c.llama_log_callback)
_stderr_log = c.llama_log_callback()


State = ctypes.Array[ctypes.c_uint8]
"""A saved sequence: opaque, and only for a context made alike."""


def as_state(data: bytearray | memoryview) -> State:
    """A state that was stored as bytes, writable ones; it shares their memory."""
    return (ctypes.c_uint8 * len(data)).from_buffer(data)


class Decoded(IntEnum):
    """What llama_decode says, below zero a failure."""

    OK = 0
    NO_KV_SLOT = 1
    ABORTED = 2
    INVALID_BATCH = -1
    FAILED = -2


class Weights:
    """A model file: its tensors, metadata and vocabulary."""

    def __init__(self, path: Path, *, gpu_layers: int, repack: bool, verbose: bool) -> None:
        """Raises DriverError with what llama.cpp found wrong with the file."""
        errors: list[str] = []

        def keep_errors(level: int, text: bytes, _: object) -> None:
            if level == LOG_LEVEL_ERROR:
                errors.append(text.decode(errors="replace").strip())

        error_log = c.llama_log_callback(keep_errors)
        c.llama_log_set(_stderr_log if verbose else error_log, None)
        try:
            c.llama_backend_init()
            params = c.llama_model_default_params()
            params.n_gpu_layers = gpu_layers
            params.use_extra_bufts = repack
            self._model = c.llama_model_load_from_file(str(path).encode(), params)
        finally:
            c.llama_log_set(_stderr_log if verbose else _no_log, None)
        if not self._model:
            raise DriverError(_why(errors))
        self._vocab = c.llama_model_get_vocab(self._model)
        self._pieces: dict[int, bytes] = {}
        self._piece_buffer = ctypes.create_string_buffer(256)
        self.vocabulary_size: int = c.llama_vocab_n_tokens(self._vocab)
        self.bos: int = c.llama_vocab_bos(self._vocab)
        self.adds_bos: bool = c.llama_vocab_get_add_bos(self._vocab)
        self.is_spm: bool = c.llama_vocab_type(self._vocab) == c.LLAMA_VOCAB_TYPE_SPM
        self.size_bytes: int = c.llama_model_size(self._model)
        self.trained_context: int = c.llama_model_n_ctx_train(self._model)
        self.recurrent: bool = c.llama_model_is_recurrent(self._model) or c.llama_model_is_hybrid(self._model)
        is_causal = self.metadata(f"{self.architecture}.attention.causal") != "false"
        self.generates: bool = (
            is_causal and c.llama_model_has_decoder(self._model) and not c.llama_model_has_encoder(self._model)
        )

    @property
    def architecture(self) -> str:
        return self.metadata("general.architecture") or "unknown"

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        c.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    @property
    def template(self) -> str | None:
        """The chat template in the file, Jinja source."""
        source: bytes | None = c.llama_model_chat_template(self._model, None)
        return None if source is None else source.decode(errors="replace")

    def metadata(self, key: str) -> str | None:
        """A scalar of the file's metadata as text (up to 255 bytes), or None."""
        buffer = ctypes.create_string_buffer(256)
        if c.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer)) < 0:
            return None
        return buffer.value.decode(errors="replace")

    def kv_bytes_a_token(self, kv_type: str) -> float:
        """Keys and values of all layers for one token; for sliding-window layers an upper bound."""
        layers = c.llama_model_n_layer(self._model)
        heads = c.llama_model_n_head_kv(self._model)
        head_size = c.llama_model_n_embd(self._model) // max(1, c.llama_model_n_head(self._model))
        sizes = (self.metadata(f"{self.architecture}.attention.{part}_length") for part in ("key", "value"))
        return float(sum(int(size or head_size) for size in sizes) * heads * layers * KV_TYPES[kv_type][1])

    def tokenize(self, text: str, *, control: bool, bos: bool = False) -> list[int]:
        """`control`: read the names of control tokens in the text as those tokens. `bos`: put what the vocabulary
        wants at the start and end of a text there."""
        data = text.encode(errors="replace")
        room = len(data) + 4
        while True:
            buffer = (ctypes.c_int32 * room)()
            count: int = c.llama_tokenize(self._vocab, data, len(data), buffer, room, bos, control)
            if count >= 0:
                return buffer[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        """The token's bytes, which may be part of a character; none for a control token."""
        piece = self._pieces.get(token)
        if piece is None:
            buffer = self._piece_buffer
            size: int = c.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            if size < 0:
                self._piece_buffer = ctypes.create_string_buffer(-size)
                return self.piece(token)
            piece = self._pieces[token] = buffer.raw[:size]
        return piece

    def vocabulary(self) -> list[bytes]:
        """Every token's bytes; for a control token a byte 0xFF, which no text has, and its name."""
        buffer = ctypes.create_string_buffer(MAX_PIECE_BYTES)
        pieces = []
        for token in range(self.vocabulary_size):
            size = _token_to_piece(self._vocab, token, buffer, MAX_PIECE_BYTES, 0, False)
            if size > 0:
                pieces.append(buffer.raw[:size])
            else:
                pieces.append(b"\xff" + self.name(token).encode() if self.is_special(token) else b"")
        return pieces

    def name(self, token: int) -> str:
        """The token as the vocabulary spells it: `<|im_end|>`."""
        text: bytes = c.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace")

    def ends_generation(self, token: int) -> bool:
        return bool(_is_end_of_generation(self._vocab, token))

    def is_special(self, token: int) -> bool:
        """A token that has a name of its own instead of being part of a text."""
        return bool(c.llama_vocab_get_attr(self._vocab, token) & SPECIAL_ATTRIBUTES)

    def special_token(self, kind: str) -> str:
        """The name of the `bos`, `eos`, ... token, empty when the vocabulary has none."""
        token: int = getattr(c, f"llama_vocab_{kind}")(self._vocab)
        return "" if token < 0 else self.name(token)

    def close(self) -> None:
        c.llama_model_free(self._model)


class SamplerChain:
    """Samplers applied to the logits in the order they were added; the last one chooses a token."""

    def __init__(self) -> None:
        self._chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())

    def penalties(self, vocabulary_size: int, last_tokens: int, repeat: float) -> None:
        self._add(c.llama_sampler_init_penalties(vocabulary_size, last_tokens, repeat, 0.0, 0.0))

    def top_k(self, k: int) -> None:
        self._add(c.llama_sampler_init_top_k(k))

    def top_p(self, p: float) -> None:
        self._add(c.llama_sampler_init_top_p(p, 1))

    def min_p(self, p: float) -> None:
        self._add(c.llama_sampler_init_min_p(p, 1))

    def temperature(self, temperature: float) -> None:
        self._add(c.llama_sampler_init_temp(temperature))

    def distribution(self, seed: int) -> None:
        self._add(c.llama_sampler_init_dist(seed))

    def greedy(self) -> None:
        self._add(c.llama_sampler_init_greedy())

    def accept(self, token: int) -> None:
        """Tell the samplers of a token that they did not choose."""
        c.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, index: int) -> int:
        """Choose and accept a token from the logits of the decoded batch's token `index`."""
        return int(_sample(self._chain, context.handle, index))

    def close(self) -> None:
        c.llama_sampler_free(self._chain)

    def _add(self, sampler: int) -> None:
        c.llama_sampler_chain_add(self._chain, sampler)


class Context:
    """KV cache for `slots` sequences, each a stream of its own, and one batch of up to `batch_tokens`."""

    def __init__(
        self, weights: Weights, *, slots: int, context_size: int, batch_tokens: int,
        threads: int, flash_attention: bool, kv_type: str, gpu: bool, outputs: int = 0,
    ) -> None:  # fmt: skip
        """`outputs`: how many tokens of a batch may have logits; 0 for one a sequence. Raises DriverError when the
        memory cannot be had."""
        self._flag = ctypes.create_string_buffer(2)
        params = c.llama_context_default_params()
        params.n_ctx = slots * context_size
        params.n_seq_max = slots
        params.n_batch = params.n_ubatch = batch_tokens
        # Logits are kept for one token a sequence; the default is a row of the vocabulary for each token of a batch.
        params.n_outputs_max = outputs or slots
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        params.flash_attn_type = (
            c.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.type_k = params.type_v = KV_TYPES[kv_type][0]
        params.offload_kqv = params.op_offload = gpu
        params.no_perf = True
        if not weights.recurrent:
            # A batch moves the states of sequences that are not in it, too: cut short, it leaves theirs wrong.
            params.abort_callback = flag_is_set
            params.abort_callback_data = ctypes.addressof(self._flag)
        self.handle = c.llama_init_from_model(weights._model, params)
        if not self.handle:
            raise DriverError(
                f"llama.cpp could not make a context of {slots} slots of {context_size} tokens; "
                "fewer slots or a smaller context size need less memory"
            )
        self._memory = c.llama_get_memory(self.handle)
        self._row_type = ctypes.c_float * weights.vocabulary_size
        self._tokens = (ctypes.c_int32 * batch_tokens)()
        self._positions = (ctypes.c_int32 * batch_tokens)()
        self._counts = (ctypes.c_int32 * batch_tokens)(*[1] * batch_tokens)
        self._sequences = (ctypes.c_int32 * batch_tokens)()
        self._outputs = (ctypes.c_int8 * batch_tokens)()
        int32 = ctypes.POINTER(ctypes.c_int32)
        start, width = ctypes.addressof(self._sequences), ctypes.sizeof(ctypes.c_int32)
        self._sequence_pointers = (int32 * batch_tokens)(
            *(ctypes.cast(start + index * width, int32) for index in range(batch_tokens))
        )
        self._batch = c.llama_batch(
            0, self._tokens, None, self._positions, self._counts, self._sequence_pointers, self._outputs
        )
        self._size = 0

    def add(self, tokens: list[int], position: int, sequence: int, output: bool) -> int:
        """Append a run of one sequence's tokens to the batch; `output` asks for the logits of the last. The
        index of that last token in the batch is what `SamplerChain.sample` wants."""
        start, end = self._size, self._size + len(tokens)
        count = end - start
        self._tokens[start:end] = [*tokens]
        self._positions[start:end] = [*range(position, position + count)]
        self._sequences[start:end] = [sequence] * count
        self._outputs[start:end] = [0] * count
        self._outputs[end - 1] = output
        self._size = end
        return end - 1

    def want_all_logits(self) -> None:
        """Ask for the logits of every token that is in the batch by now."""
        self._outputs[: self._size] = [1] * self._size

    def decode(self) -> Decoded:
        """Run the batch and empty it. Unless OK, sequences may hold some of its tokens: see `trim`."""
        self._batch.n_tokens, self._size = self._size, 0
        code = c.llama_decode(self.handle, self._batch)
        if code == 0:
            # Without this the first reader of the logits would wait in a sampler, which the step's time would miss.
            c.llama_synchronize(self.handle)
        return Decoded(max(code, Decoded.FAILED))

    def logits(self, index: int) -> Any:
        """The logits of the decoded batch's token `index`, a float a token of the vocabulary; until the next decode."""
        return c.llama_get_logits_ith(self.handle, index)

    def logits_row(self, index: int) -> memoryview[float]:
        """The same as floats that can be changed before they are sampled from."""
        row = ctypes.cast(self.logits(index), ctypes.POINTER(self._row_type)).contents
        return memoryview(row).cast("B").cast("f")

    def trim(self, sequence: int, length: int) -> int:
        """Forget the tokens from position `length` on. A recurrent model cannot forget a part and forgets all:
        the length that is left comes back."""
        # Looked at, and not only asked for: to take a part from an empty sequence succeeds.
        if (
            length
            and c.llama_memory_seq_rm(self._memory, sequence, length, -1)
            and c.llama_memory_seq_pos_max(self._memory, sequence) == length - 1
        ):
            return length
        c.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return 0

    def save(self, sequence: int) -> State | None:
        """The sequence's KV cells, without logits; None when the backend cannot say."""
        size: int = c.llama_state_seq_get_size(self.handle, sequence)
        state = (ctypes.c_uint8 * size)()
        return state if c.llama_state_seq_get_data(self.handle, state, size, sequence) == size else None

    def restore(self, sequence: int, state: State) -> bool:
        """Replace what the sequence has by what was saved. False leaves the sequence empty."""
        if c.llama_state_seq_set_data(self.handle, state, len(state), sequence):
            return True
        self.trim(sequence, 0)
        return False

    def set_threads(self, threads: int) -> None:
        """From the next decode on; results do not depend on it."""
        c.llama_set_n_threads(self.handle, threads, threads)

    def interrupt(self) -> None:
        """From any thread: end the running `decode`, or else the next one, until `rearm`. A recurrent model's goes on
        to its end."""
        self._flag[0] = b"\1"

    def rearm(self) -> None:
        self._flag[0] = b"\0"

    def close(self) -> None:
        c.llama_free(self.handle)


def _why(errors: list[str]) -> str:
    """llama.cpp's first error says what is wrong, the later ones what became of it."""
    for line in errors:
        _, _, reason = line.partition(": ")
        if reason:
            return reason
    return errors[0] if errors else "llama.cpp refused it without a reason"

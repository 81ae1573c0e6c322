"""llama.cpp as a reader: whole texts in, a pooled row of numbers for each out. Beside binding.py and devices.py the
only module that touches ctypes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable

from granville.hosting.interface import DriverError
from granville_llama.binding import KV_TYPES, Decoded, Weights, c, flag_is_set

POOLING = {
    "mean": c.LLAMA_POOLING_TYPE_MEAN,
    "cls": c.LLAMA_POOLING_TYPE_CLS,
    "last": c.LLAMA_POOLING_TYPE_LAST,
    "rank": c.LLAMA_POOLING_TYPE_RANK,
}
CONTEXT_STEP_TOKENS = 256
"""llama.cpp rounds a KV cache up to a multiple of this."""


def pooling_of(weights: Weights) -> str | None:
    """What the file says about how its tokens become one row."""
    said = weights.metadata(f"{weights.architecture}.pooling_type")
    return next((name for name, value in POOLING.items() if said == str(value)), None)


class Reader:
    """A context for one batch of up to `batch_tokens` tokens in up to `texts` texts. Nothing of a batch is left for
    the next, so results depend on a text's neighbours by no more than rounding."""

    def __init__(
        self, weights: Weights, *, pooling: str, batch_tokens: int, texts: int, threads: int, flash_attention: bool,
        kv_type: str, gpu: bool,
    ) -> None:  # fmt: skip
        """Raises DriverError when the memory cannot be had, or the model is of a kind that reads in two parts."""
        if c.llama_model_has_encoder(weights._model) and c.llama_model_has_decoder(weights._model):
            raise DriverError(
                f"a model of type {weights.architecture} translates from text to text and gives no vectors"
            )
        self._flag = ctypes.create_string_buffer(2)
        params = c.llama_context_default_params()
        # An encoder sees a text from both ends, so that the backend has to compute a whole one at once; a decoder has
        # a KV cache, which all texts of a batch share.
        params.n_ctx = params.n_batch = params.n_ubatch = batch_tokens
        params.kv_unified = True
        params.n_seq_max = texts
        params.embeddings = True
        params.pooling_type = POOLING[pooling]
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = (
            c.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.type_k = params.type_v = KV_TYPES[kv_type][0]
        params.offload_kqv = params.op_offload = gpu
        params.no_perf = True
        params.abort_callback = flag_is_set
        params.abort_callback_data = ctypes.addressof(self._flag)
        self._handle = c.llama_init_from_model(weights._model, params)
        if not self._handle:
            raise DriverError(
                f"llama.cpp could not make a context of {batch_tokens} tokens; a smaller context size needs less memory"
            )
        self._memory = c.llama_get_memory(self._handle)
        self._batch = c.llama_batch_init(batch_tokens, 0, 1)
        self._width: int = 1 if pooling == "rank" else c.llama_model_n_embd_out(weights._model)

    @staticmethod
    def memory_bytes(weights: Weights, batch_tokens: int, kv_type: str) -> int:
        """What a batch takes beside the weights: its KV cache, and a row of the vocabulary for each token, which
        llama.cpp sets aside although nobody reads it."""
        cache_tokens = -(-batch_tokens // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS if weights.generates else 0
        return 4 * batch_tokens * weights.vocabulary_size + int(cache_tokens * weights.kv_bytes_a_token(kv_type))

    def read(self, texts: Iterable[list[int]]) -> tuple[Decoded, list[list[float]]]:
        """A row of numbers for each text's tokens; no rows unless the code is OK."""
        batch, size, count = self._batch, 0, 0
        for count, tokens in enumerate(texts, start=1):
            for position, token in enumerate(tokens):
                batch.token[size], batch.pos[size] = token, position
                batch.n_seq_id[size], batch.seq_id[size][0] = 1, count - 1
                batch.logits[size] = True
                size += 1
        batch.n_tokens = size
        if self._memory:
            c.llama_memory_clear(self._memory, False)
        code = Decoded(max(c.llama_decode(self._handle, batch), Decoded.FAILED))
        if code is not Decoded.OK:
            return code, []
        return code, [c.llama_get_embeddings_seq(self._handle, text)[: self._width] for text in range(count)]

    def set_threads(self, threads: int) -> None:
        """Of the next `read`."""
        c.llama_set_n_threads(self._handle, threads, threads)

    def interrupt(self) -> None:
        """From any thread: end the running `read`, or else the next one, until `rearm`."""
        self._flag[0] = b"\1"

    def rearm(self) -> None:
        self._flag[0] = b"\0"

    def close(self) -> None:
        c.llama_batch_free(self._batch)
        c.llama_free(self._handle)


class Pairs:
    """A query and a document as the one text that a reranker was trained on."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        vocabulary = weights._vocab
        source: bytes | None = c.llama_model_chat_template(weights._model, b"rerank")
        self._template = None if source is None else source.decode(errors="replace")
        separator = c.llama_vocab_sep(vocabulary)
        end = c.llama_vocab_eos(vocabulary)
        end = separator if end < 0 else end
        ends = [end] if c.llama_vocab_get_add_eos(vocabulary) and end >= 0 else []
        separators = [separator] if c.llama_vocab_get_add_sep(vocabulary) and separator >= 0 else []
        self._before = [weights.bos] if weights.adds_bos else []
        self._between = ends + separators
        self._after = ends

    def tokens(self, query: str, document: str) -> list[int]:
        """By the file's own template for this if it has one, else with the vocabulary's marks around and between."""

        def read(text: str, control: bool = False) -> list[int]:
            return self._weights.tokenize(text, control=control)

        if self._template is None:
            return [*self._before, *read(query), *self._between, *read(document), *self._after]
        texts = {"{query}": query, "{document}": document}
        parts = re.split(f"({'|'.join(texts)})", self._template)
        return [token for part in parts for token in (read(texts[part]) if part in texts else read(part, control=True))]

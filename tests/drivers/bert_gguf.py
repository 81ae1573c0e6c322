"""Tiny BERT models with random weights, as GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from examples.models.minilm import SPECIAL, Array, Shape, write

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "rain", "sun", "blue", "red", "[", "]", "sep", "cls", ".")
VOCABULARY = (*SPECIAL, *WORDS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))


def tiny(path: Path, *, pooling: gguf.PoolingType, classifier: bool = False, seed: int = 0) -> Path:
    """Random weights; with `classifier` a head that gives one score to each text."""
    shape, random = Shape(), np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Array:
        return random.normal(scale=columns**-0.5, size=(rows, columns)).astype(np.float32)

    def norm(name: str) -> dict[str, Array]:
        return {f"{name}.weight": np.ones(shape.size, np.float32), f"{name}.bias": np.zeros(shape.size, np.float32)}

    def linear(name: str, rows: int, columns: int) -> dict[str, Array]:
        return {f"{name}.weight": matrix(rows, columns), f"{name}.bias": np.zeros(rows, np.float32)}

    tensors = {
        "token_embd.weight": 4 * matrix(len(VOCABULARY), shape.size),
        "position_embd.weight": matrix(shape.context, shape.size),
        "token_types.weight": matrix(2, shape.size),
        **norm("token_embd_norm"),
    }
    for layer in range(shape.layers):
        at = f"blk.{layer}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors |= linear(f"{at}.{part}", shape.size, shape.size)
        tensors |= linear(f"{at}.ffn_up", shape.feed_forward, shape.size)
        tensors |= linear(f"{at}.ffn_down", shape.size, shape.feed_forward)
        tensors |= norm(f"{at}.attn_output_norm") | norm(f"{at}.layer_output_norm")
    if classifier:
        tensors |= linear("cls", shape.size, shape.size) | linear("cls.output", 1, shape.size)
    return write(path, shape, VOCABULARY, tensors, pooling)

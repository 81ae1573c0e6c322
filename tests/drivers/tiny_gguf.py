"""Llama models of a few hundred kilobytes, made on the spot.

`alphabet` says what follows which token: its layer adds nothing, so the next token depends on the last one alone.
`noise` has random weights: what it says depends on everything before, and means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, Unpack

import gguf
import numpy as np
import numpy.typing as npt

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS, IM_START, IM_END = 1, 2, 3, 4
FIRST_BYTE = len(SPECIAL)
SPACE = FIRST_BYTE + 256
VOCABULARY_SIZE = SPACE + 1
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Array = npt.NDArray[np.float32]


class Options(TypedDict, total=False):
    """What else the file says. `template` None leaves the chat template out."""

    template: str | None
    space_prefix: bool
    architecture: str
    context_size: int


def token(char: str | int) -> int:
    """The token of an ASCII character or a byte."""
    if char == " ":
        return SPACE
    return FIRST_BYTE + (char if isinstance(char, int) else ord(char))


def tokens(text: str) -> list[int]:
    return [SPACE if byte == 32 else FIRST_BYTE + byte for byte in text.encode()]


def follows(text: bytes | str, end: int | None = None) -> dict[int, int]:
    """Each byte of the text is followed by the next one, and the last by `end`."""
    chain = [token(chr(byte) if byte == 32 else byte) for byte in (text.encode() if isinstance(text, str) else text)]
    return dict(zip(chain, [*chain[1:], *([] if end is None else [end])], strict=False))


def alphabet(path: Path, rules: Mapping[int, int], **options: Unpack[Options]) -> Path:
    """A model that follows the rules, and says "z" after any other token."""
    size = -(-VOCABULARY_SIZE // 32) * 32
    head = np.zeros((VOCABULARY_SIZE, size), np.float32)
    for before in range(VOCABULARY_SIZE):
        head[rules.get(before, token("z")), before] = 10
    return _write(path, np.eye(VOCABULARY_SIZE, size, dtype=np.float32), head, _layers(size, 1, None), **options)


def noise(path: Path, seed: int = 0, **options: Unpack[Options]) -> Path:
    size = 64
    random = np.random.default_rng(seed)
    embedding, head = (random.normal(size=(VOCABULARY_SIZE, size)).astype(np.float32) for _ in range(2))
    head[[EOS, IM_END]] = 0  # its answers end at max_tokens
    return _write(path, embedding, head, _layers(size, 2, random), quantised=True, **options)


def recurrent(path: Path, seed: int = 0, **options: Unpack[Options]) -> Path:
    """As `noise`, but a Mamba: what it has read is one state, of which no part can be forgotten."""
    size, inner, state, rank, window = 64, 128, 16, 4, 4
    random = np.random.default_rng(seed)
    shapes = {
        "ssm_in": (2 * inner, size), "ssm_conv1d": (inner, window), "ssm_x": (rank + 2 * state, inner),
        "ssm_dt": (inner, rank), "ssm_out": (size, inner),
    }  # fmt: skip
    layers = [
        {name: (random.normal(size=shape) / shape[1] ** 0.5).astype(np.float32) for name, shape in shapes.items()}
        | {name: np.zeros(inner, np.float32) for name in ("ssm_conv1d.bias", "ssm_dt.bias")}
        | {
            "ssm_a": -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)),
            "ssm_d": np.ones(inner, np.float32),
        }
        | {"attn_norm": np.ones(size, np.float32)}
        for _ in range(2)
    ]
    embedding, head = (random.normal(size=(VOCABULARY_SIZE, size)).astype(np.float32) for _ in range(2))
    head[[EOS, IM_END]] = 0
    options = {"architecture": "mamba", **options}
    return _write(path, embedding, head, layers, quantised=True, **options)


def _layers(size: int, count: int, random: np.random.Generator | None) -> list[dict[str, Array]]:
    """Weights by name; all zero without a generator."""

    def matrix() -> Array:
        return (random.normal(size=(size, size)) / 4 if random else np.zeros((size, size))).astype(np.float32)

    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return [
        {name: matrix() for name in names} | {name: np.ones(size, np.float32) for name in ("attn_norm", "ffn_norm")}
        for _ in range(count)
    ]


def _write(
    path: Path,
    embedding: Array,
    head: Array,
    layers: list[dict[str, Array]],
    *,
    quantised: bool = False,
    template: str | None = CHATML,
    space_prefix: bool = False,
    architecture: str = "llama",
    context_size: int = 8192,
) -> Path:
    size = embedding.shape[1]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(context_size)
    writer.add_embedding_length(size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length(size)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    if architecture == "mamba":
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * size)
        writer.add_ssm_state_size(16)
        writer.add_ssm_time_step_rank(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    writer.add_token_list([*SPECIAL, *bytes_, "▁"])
    writer.add_token_scores([0.0] * VOCABULARY_SIZE)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.UNKNOWN, *[kinds.CONTROL] * 4, *[kinds.BYTE] * 256, kinds.NORMAL])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(IM_END)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(space_prefix)
    if template is not None:
        writer.add_chat_template(template)
    tensors = {"token_embd": embedding, "output": head, "output_norm": np.ones(size, np.float32)}
    for index, layer in enumerate(layers):
        tensors |= {f"blk.{index}.{name}": weights for name, weights in layer.items()}
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, weights in tensors.items():
        if not name.endswith((".bias", "ssm_a", "ssm_d")):
            name += ".weight"
        if quantised and weights.ndim == 2 and weights.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(weights, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

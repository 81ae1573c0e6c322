"""The head of a GGUF file: what the model is, without its tensors and without its vocabulary in memory.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing in the file is trusted: every length is
held against the file's own size and against a bound before it is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from granville.models.walk import ARRAY, SCALARS, STRING, UINT32, Unsound, Walk, open_walk, skip_value

MAX_KEYS = 4096
MAX_KEY_BYTES = 65535
"""The format's own bound on a key."""
MAX_STRING_BYTES = 1 << 20
"""Of a string that is wanted; longer ones, and those that are not wanted, are only stepped over."""
MAX_LAYERS = 4096
SHAPE = (
    ".block_count", ".embedding_length", ".attention.head_count", ".attention.head_count_kv", ".attention.key_length",
    ".attention.value_length",
)  # fmt: skip
"""What the size of the KV cache follows from."""

OPTIONAL = (
    ("general.license", STRING), ("general.size_label", STRING), ("general.alignment", UINT32),
    ("tokenizer.ggml.model", STRING), ("tokenizer.ggml.pre", STRING),
)  # fmt: skip
"""What is nice to know of a model; under another type it is not taken for it."""
TEMPLATE_TOOLS = re.compile(r"\btools\b")
"""In a chat template that shows tools to the model."""

QUANTIZATIONS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0",
}  # fmt: skip
"""`general.file_type`, llama.cpp's llama_ftype; a type that is not here is shown by its number."""

Value = int | float | bool | str
T = TypeVar("T", str, int)


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What the head says. Fields it does not have are None."""

    architecture: str
    name: str | None
    quantization: str | None
    context_length: int | None
    """Tokens the model was trained for."""
    has_chat_template: bool
    tensors: int
    layers: int | None = None
    embedding: int | None = None
    """Width of the model."""
    heads: int | None = None
    kv_heads: int | None = None
    kv_heads_of_layers: int | None = None
    """Where layers differ: all layers' together."""
    key_length: int | None = None
    value_length: int | None = None
    template_has_tools: bool = False
    """The chat template shows tools to the model in the form that it was trained on."""
    tokenizer: str | None = None
    """As llama.cpp names its kind: `gpt2`, `llama`, `bert`."""
    pre_tokenizer: str | None = None
    vocabulary: int = 0
    """Tokens."""
    license: str | None = None
    size_label: str | None = None
    """Its parameters as its makers say it: `135M`, `8x7B`."""
    alignment: int = 32
    """Of the tensors' data, in bytes."""


def read_header(path: Path) -> ModelHeader:
    """Read a GGUF's key-values. Raises StartupError that names the file for one that is not whole and sound."""
    with open_walk(path) as walk:
        return parse_header(walk)


def parse_header(walk: Walk) -> ModelHeader:
    """What follows magic and version; the walk stands before the tensors then."""
    tensors, keys = walk.count(), walk.count()
    if keys > MAX_KEYS:
        raise Unsound(f"{keys} keys, {MAX_KEYS} are the most")
    found: dict[str, Value] = {}
    for _ in range(keys):
        key = walk.text(MAX_KEY_BYTES)
        kind = walk.count("I")
        if _is_wanted(key) or (key, kind) in OPTIONAL:
            found[key] = _value(walk, key, kind)
        elif kind == ARRAY and key.endswith(".attention.head_count_kv"):
            found[f"{key}.sum"] = _sum(walk, key)
        elif kind in SCALARS and key.endswith(SHAPE):
            found[key] = walk.scalar(SCALARS[kind])
        elif key == "tokenizer.ggml.tokens":
            found[f"{key}.count"] = skip_value(walk, key, kind)
        else:
            skip_value(walk, key, kind)
    architecture = _take(found, "general.architecture", str)
    if architecture is None:
        raise Unsound("general.architecture is missing")
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", architecture) is None:
        raise Unsound(f"general.architecture is {architecture[:80]!r}, which cannot be part of a model's id")
    file_type = _take(found, "general.file_type", int)
    return ModelHeader(
        architecture=architecture,
        name=_take(found, "general.name", str),
        quantization=None if file_type is None else QUANTIZATIONS.get(file_type, f"type {file_type}"),
        context_length=_take(found, f"{architecture}.context_length", int),
        has_chat_template=bool(found.get("tokenizer.chat_template")),
        tensors=tensors,
        layers=_take(found, f"{architecture}.block_count", int),
        embedding=_take(found, f"{architecture}.embedding_length", int),
        heads=_take(found, f"{architecture}.attention.head_count", int),
        kv_heads=_take(found, f"{architecture}.attention.head_count_kv", int),
        kv_heads_of_layers=_take(found, f"{architecture}.attention.head_count_kv.sum", int),
        key_length=_take(found, f"{architecture}.attention.key_length", int),
        value_length=_take(found, f"{architecture}.attention.value_length", int),
        template_has_tools=TEMPLATE_TOOLS.search(str(found.get("tokenizer.chat_template", ""))) is not None,
        tokenizer=_take(found, "tokenizer.ggml.model", str),
        pre_tokenizer=_take(found, "tokenizer.ggml.pre", str),
        vocabulary=_take(found, "tokenizer.ggml.tokens.count", int) or 0,
        license=_take(found, "general.license", str),
        size_label=_take(found, "general.size_label", str),
        alignment=_take(found, "general.alignment", int) or 32,
    )


def _is_wanted(key: str) -> bool:
    wanted = ("general.architecture", "general.name", "general.file_type", "tokenizer.chat_template")
    return key in wanted or key.endswith(".context_length")


def _value(walk: Walk, key: str, kind: int) -> Value:
    if kind == STRING:
        return walk.text(MAX_STRING_BYTES)
    if kind in SCALARS:
        return walk.scalar(SCALARS[kind])
    raise Unsound(f"{key} has the type {kind}, a number or a string was expected")


def _sum(walk: Walk, key: str) -> int:
    """Of an array of whole numbers, one a layer."""
    item, count = walk.count("I"), walk.count()
    letter = SCALARS.get(item, "")
    if not letter or letter in "fd?":
        raise Unsound(f"{key} is an array of the type {item}, whole numbers were expected")
    if count > MAX_LAYERS:
        raise Unsound(f"{key} has {count} items, {MAX_LAYERS} are the most")
    return sum(walk.count(letter) for _ in range(count))


def _take(found: dict[str, Value], key: str, kind: type[T]) -> T | None:
    value = found.get(key)
    if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise Unsound(f"{key} is {value!r}, {kind.__name__} was expected")

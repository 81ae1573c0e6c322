"""The tensors of a GGUF file: how many parameters, in which formats, and whether all of their bytes are there.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; sizes of blocks: ggml/src/ggml-common.h.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from granville.models.gguf import ModelHeader, parse_header
from granville.models.walk import Unsound, Walk, open_walk

MAX_TENSORS = 1 << 20
MAX_NAME_BYTES = 255
"""The format's own bound is 64; files with longer names are about."""
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 48
MAX_ALIGNMENT = 1 << 20

BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""ggml_type: its name, elements a block, bytes a block. A type that is not here has bounds that cannot be told."""


@dataclass(frozen=True, slots=True)
class Tensors:
    count: int
    parameters: int
    """Elements of all tensors."""
    elements: Counter[str] = field(default_factory=Counter)
    """By format."""


def read_model(path: Path) -> tuple[ModelHeader, Tensors]:
    """The head and the list of tensors. Raises StartupError that names the file when a tensor's bytes are not in it."""
    with open_walk(path) as walk:
        header = parse_header(walk)
        return header, _tensors(walk, header)


def _tensors(walk: Walk, header: ModelHeader) -> Tensors:
    if header.tensors > MAX_TENSORS:
        raise Unsound(f"{header.tensors} tensors, {MAX_TENSORS} are the most")
    if not 1 <= header.alignment <= MAX_ALIGNMENT or header.alignment & (header.alignment - 1):
        raise Unsound(f"general.alignment is {header.alignment}, a power of two was expected")
    elements: Counter[str] = Counter()
    ends = []
    for _ in range(header.tensors):
        name, kind, count, end = _tensor(walk, header.alignment)
        elements[kind] += count
        ends.append((end, name))
    begin = -(-walk.at // header.alignment) * header.alignment
    end, name = max(ends, default=(0, ""))
    if ends and begin + end > walk.size:
        raise Unsound(
            f"the tensor {name} ends at byte {begin + end} and the file at byte {walk.size}; the file was cut off"
        )
    return Tensors(header.tensors, elements.total(), elements)


def _tensor(walk: Walk, alignment: int) -> tuple[str, str, int, int]:
    """A tensor's name, format, number of elements, and the byte of the tensors' data at which it ends."""
    name = walk.text(MAX_NAME_BYTES)
    dimensions = walk.count("I")
    if dimensions > MAX_DIMENSIONS:
        raise Unsound(f"the tensor {name!r} has {dimensions} dimensions, {MAX_DIMENSIONS} are the most")
    shape = [walk.count() for _ in range(dimensions)]
    kind, offset = walk.count("I"), walk.count()
    count = prod(shape)
    if count > MAX_ELEMENTS:
        raise Unsound(f"the tensor {name!r} has {count} elements")
    if offset % alignment:
        raise Unsound(f"the tensor {name!r} begins at byte {offset}, which is no multiple of {alignment}")
    known, block, size = BLOCKS.get(kind, (f"type {kind}", 1, 0))
    if shape and shape[0] % block:
        raise Unsound(f"the tensor {name!r} has rows of {shape[0]}, which are no whole blocks of {known}")
    return name, known, count, offset + count // block * size

"""The tensors of a file: their number and formats, and that each of them lies inside of it."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from granville.errors import StartupError
from granville.models.tensors import BLOCKS, read_model


def write(path: Path, alignment: int | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_context_length(2048)
    writer.add_license("apache-2.0")
    writer.add_size_label("7B")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b", "c"])
    writer.add_chat_template("{% if tools %}{{ tools }}{% endif %}")
    writer.add_tensor("small", np.ones(3, np.float32))
    writer.add_tensor("half", np.ones((2, 5), np.float16))
    q8 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("quantised", gguf.quantize(np.ones((4, 64), np.float32), q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [None, 64])
def test_what_is_in_a_file(tmp_path: Path, alignment: int | None) -> None:
    header, tensors = read_model(write(tmp_path / "m.gguf", alignment))
    assert (tensors.count, tensors.parameters) == (3, 3 + 10 + 256)
    assert tensors.elements == {"F32": 3, "F16": 10, "Q8_0": 256}
    assert (header.license, header.size_label) == ("apache-2.0", "7B")
    assert (header.tokenizer, header.pre_tokenizer, header.vocabulary) == ("gpt2", "smollm", 3)
    assert header.has_chat_template
    assert header.template_has_tools
    assert header.alignment == (alignment or 32)


def test_the_sizes_of_blocks_are_the_formats_own() -> None:
    """Held against the gguf package, which is kept beside llama.cpp."""
    known = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in BLOCKS} == BLOCKS


def test_a_file_that_was_cut_off_anywhere_is_told(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(8, len(whole) - 64, 37), len(whole) - 64]:
        cut.write_bytes(whole[:size])
        with pytest.raises(StartupError, match=r"cut\.gguf: not a sound GGUF model: .*the file was cut off"):
            read_model(cut)


def changed(path: Path, name: bytes, *, at: int, new: bytes) -> Path:
    """With other bytes so far behind a tensor's name: its number of dimensions, them, its type, its offset."""
    data = bytearray(path.read_bytes())
    begin = data.index(name) + len(name) + at
    data[begin : begin + len(new)] = new
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("at", "new", "says"),
    [
        (0, struct.pack("<I", 9), "'quantised' has 9 dimensions, 4 are the most"),
        (4, struct.pack("<Q", 1 << 60), "'quantised' has 4611686018427387904 elements"),
        (4, struct.pack("<Q", 65), "rows of 65, which are no whole blocks of Q8_0"),
        (24, struct.pack("<Q", 7), "begins at byte 7, which is no multiple of 32"),
        (24, struct.pack("<Q", 1 << 40), "the tensor quantised ends at byte .*; the file was cut off"),
    ],
)
def test_a_tensor_that_cannot_be(tmp_path: Path, at: int, new: bytes, says: str) -> None:
    path = changed(write(tmp_path / "m.gguf"), b"quantised", at=at, new=new)
    with pytest.raises(StartupError, match=says):
        read_model(path)


def test_a_format_that_is_not_known_has_no_bounds(tmp_path: Path) -> None:
    path = changed(write(tmp_path / "m.gguf"), b"quantised", at=20, new=struct.pack("<I", 777))
    _, tensors = read_model(path)
    assert tensors.elements["type 777"] == 256


def test_more_tensors_than_any_model_has(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    data[8:16] = struct.pack("<Q", 1 << 40)
    path.write_bytes(data)
    with pytest.raises(StartupError, match="1099511627776 tensors"):
        read_model(path)


@pytest.mark.parametrize("alignment", [3, 1 << 30])
def test_an_alignment_that_is_none(tmp_path: Path, alignment: int) -> None:
    path = write(tmp_path / "m.gguf", 64)
    key = b"general.alignment"
    changed(path, key, at=4, new=struct.pack("<I", alignment))
    with pytest.raises(StartupError, match=f"general.alignment is {alignment}, a power of two"):
        read_model(path)

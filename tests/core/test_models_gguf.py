"""The head of a GGUF: read right where it is sound, refused in one sentence where it is not."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from granville.errors import StartupError
from granville.models.gguf import QUANTIZATIONS, ModelHeader, read_header

VOCABULARY = 50_000


def write_model(path: Path, *, words: int = VOCABULARY) -> None:
    """A head with all kinds of values, the wanted ones on both sides of a long vocabulary, and one tensor."""
    import numpy

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A model, naïve")
    writer.add_context_length(2048)
    writer.add_float64("test.double", 1.5)
    writer.add_bool("test.flag", True)
    writer.add_array("test.ints", [1, 2, 3])
    writer.add_token_list([f"word{index}" for index in range(words)])
    writer.add_token_scores([0.5] * words)
    writer.add_chat_template("{{ messages }}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tensor("weights", numpy.zeros((4, 4), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_model(path, words=20)
    return path.read_bytes()


def test_everything_wanted_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path)
    assert read_header(path) == ModelHeader("llama", "A model, naïve", "Q8_0", 2048, True, tensors=1, vocabulary=50_000)


def test_the_names_of_quantisations_are_those_of_the_format() -> None:
    theirs = {kind.value: kind.name for kind in gguf.LlamaFileType if kind.name != "GUESSED"}
    for value, name in QUANTIZATIONS.items():
        if value in theirs:
            assert name == theirs[value].removeprefix("MOSTLY_").removeprefix("ALL_")
    assert theirs.keys() <= QUANTIZATIONS.keys()


def test_tensors_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, words=20)
    with path.open("r+b") as file:
        file.truncate(64 << 30)  # sparse: 64 GB that would take minutes to read
    began = time.monotonic()
    assert read_header(path).name == "A model, naïve"
    assert time.monotonic() - began < 5


def kv(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def head(*pairs: bytes, keys: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs) if keys is None else keys) + b"".join(pairs)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


ARCHITECTURE = kv(b"general.architecture", 8, string(b"llama"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (head(), "general.architecture is missing"),
        (head(kv(b"general.architecture", 8, string(b"../etc"))), "cannot be part"),
        (head(kv(b"general.architecture", 4, struct.pack("<I", 7))), "str was expected"),
        (head(kv(b"general.architecture", 8, string(b"\xff"))), "not UTF-8"),
        (head(keys=1 << 40), "keys, 4096 are the most"),
        (head(ARCHITECTURE, keys=2), "cut off"),
        (head(ARCHITECTURE, kv(b"a", 77, b"")), "unknown type 77"),
        (head(ARCHITECTURE, kv(b"a", 9, struct.pack("<IQ", 9, 1))), "array of the type 9"),
        (head(ARCHITECTURE, kv(b"a", 9, struct.pack("<IQ", 8, 1 << 60))), "array of 1152921504606846976 strings"),
        (head(ARCHITECTURE, kv(b"a", 9, struct.pack("<IQ", 10, 1 << 61))), "cut off"),
        (head(ARCHITECTURE, kv(b"a", 8, struct.pack("<Q", 1 << 63))), "cut off"),
        (head(ARCHITECTURE, kv(b"a", 9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 2**64 - 8))), "cut off"),
        (head(ARCHITECTURE, kv(b"a", 9, struct.pack("<IQQ", 8, 1, 1 << 40))), "inside an array of strings"),
        (head(ARCHITECTURE, kv(b"general.name", 8, struct.pack("<Q", 1 << 33))), "string of 8589934592 bytes"),
        (head(ARCHITECTURE, kv(b"general.name", 9, struct.pack("<IQ", 4, 0))), "string was expected"),
        (head(struct.pack("<Q", 1 << 62)), "string of"),
        (b"GGUF\x03\0\0\0", "cut off"),
    ],
)
def test_what_cannot_be_true_is_said(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(StartupError, match=says) as raised:
        read_header(path)
    assert str(path) in raised.value.message or path.name in raised.value.message


def test_an_unknown_file_type_is_shown_by_number(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(head(ARCHITECTURE, kv(b"general.file_type", 4, struct.pack("<I", 999))))
    assert read_header(path) == ModelHeader("llama", None, "type 999", None, False, tensors=0)


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read"):
        read_header(tmp_path / "none.gguf")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000), flips=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=6))
def test_garbage_ends_in_a_header_or_in_one_sentence(
    small: bytes, tmp_path: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(small[: len(small) - cut] if cut < len(small) else small)
    for at, byte in flips:
        if at < len(data):
            data[at] = byte
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with contextlib.suppress(StartupError):
        assert read_header(path).architecture

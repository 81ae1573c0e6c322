"""What a model will take, from its head; what the machine has, from its control groups; sizes as people type them."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from granville.errors import StartupError
from granville.models.gguf import read_header
from granville.models.memory import (
    CONTEXT_STEP_TOKENS,
    READING_TOKENS,
    default_kv_ram,
    estimate,
    group_limits,
    kv_token_bytes,
    machine_memory,
    parse_size,
)


def write(path: Path, kv_heads: int | list[int] | None = 3, **more: int) -> Path:
    """A head like SmolLM2's: 30 layers, 576 wide, 9 heads."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_block_count(30)
    writer.add_embedding_length(576)
    writer.add_head_count(9)
    if kv_heads is not None:
        writer.add_head_count_kv(kv_heads)
    for name, value in more.items():
        writer.add_uint32(f"llama.attention.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kv_heads", "more", "bytes_a_token"),
    [
        (3, {}, 30 * 3 * 2 * 64 * 2),
        (None, {}, 30 * 9 * 2 * 64 * 2),
        ([1, 2] * 15, {}, 45 * 2 * 64 * 2),
        (3, {"key_length": 128, "value_length": 32}, 30 * 3 * 160 * 2),
    ],
)
def test_kv_of_a_token(
    tmp_path: Path, kv_heads: int | list[int] | None, more: dict[str, int], bytes_a_token: int
) -> None:
    assert kv_token_bytes(read_header(write(tmp_path / "m.gguf", kv_heads, **more))) == bytes_a_token


def test_an_estimate_is_slots_times_context(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    need = estimate(path, "inference", 8, 0)
    assert (need.slots, need.context_size, need.kv_bytes) == (8, 2048, 8 * 2048 * 23_040)
    assert need.weights_bytes == path.stat().st_size
    assert estimate(path, "inference", 1, 1).context_size == CONTEXT_STEP_TOKENS
    assert (
        estimate(path, "inference", 1, 9000).context_size == 2048
    )  # more than the model was trained for it cannot use
    reads = estimate(path, "embedding", 8, 0)
    assert (reads.slots, reads.context_size) == (1, READING_TOKENS)


def test_of_a_file_that_is_no_gguf_its_size_is_known(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * 1000)
    need = estimate(path, "inference", 8, 4096)
    assert (need.weights_bytes, need.kv_bytes) == (1000, 0)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4G", 4 << 30),
        ("500M", 500 << 20),
        ("1048576", 1 << 20),
        ("1.5 GiB", 3 << 29),
        ("0", 0),
        ("2k", 2048),
        ("1TB", 1 << 40),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size("--memory", text) == count


@pytest.mark.parametrize("text", ["", "G", "4X", "-1G", "four", "4 G B", "1e9", "nan"])
def test_what_is_no_size_is_told_what_would_be(text: str) -> None:
    with pytest.raises(StartupError, match=r"^--kv-ram: expected a size such as 4G"):
        parse_size("--kv-ram", text)


def test_limits_of_control_groups(tmp_path: Path) -> None:
    """Of the group and of those above it, the top of the mount included; `max` and what is not there are none."""
    mount = tmp_path / "cgroup"
    for folder, text in (("", "9000"), ("a", "max"), ("a/b", "7000\n")):
        (mount / folder).mkdir(parents=True, exist_ok=True)
        (mount / folder / "memory.max").write_text(text)
    member = tmp_path / "self"
    member.write_text("0::/a/b/c\n")
    assert sorted(group_limits(member, mount)) == [7000, 9000]
    (mount / "memory/x").mkdir(parents=True)
    (mount / "memory/x/memory.limit_in_bytes").write_text("5000")
    member.write_text("12:cpu:/x\n5:memory:/x\n")
    assert group_limits(member, mount) == [5000]
    assert group_limits(tmp_path / "none", mount) == []


def test_the_machine_has_some_memory_and_a_tenth_is_for_states() -> None:
    assert machine_memory() > 100 << 20
    assert [default_kv_ram(size) for size in (1 << 20, 4000 << 20, 1 << 50)] == [16 << 20, 400 << 20, 1 << 30]

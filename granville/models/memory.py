"""What a model will take in memory, told from its file before it is loaded, and what the machine has to give."""

from __future__ import annotations

import os
import re
from pathlib import Path

from granville.errors import StartupError
from granville.fetch.trees import tree_bytes
from granville.hosting.fileless import is_fileless
from granville.models.gguf import ModelHeader, read_header
from granville.scheduling.memory import MODEL_OVERHEAD_BYTES, ModelMemory
from granville.wire.messages import ModelType

SHARE = 0.8
"""Of the machine's memory, or of the control group's limit where that is smaller: the rest is for everything else
there, and a group that reaches its limit has its processes killed."""
DEFAULT_CONTEXT_TOKENS = 4096
CONTEXT_STEP_TOKENS = 256
"""As granville-llama has it: a slot's cache is rounded up to this."""
READING_TOKENS = 2048
"""An embedding model's cache: that of its batch, whatever its slots."""
SCORING_TOKENS = 1024
"""The cache in which a model that generates scores labels, beside its slots."""
SPEECH_FACTOR = 2
"""Of the files of a model that hears or speaks: its weights as they are used, and what a job works in. Whisper tiny.en,
78 MB, takes 131 MB. Once it is loaded the driver's own figure counts."""
KV_VALUE_BYTES = 2
"""f16."""
MIN_DEFAULT_KV_RAM_BYTES = 16 << 20
MAX_DEFAULT_KV_RAM_BYTES = 1 << 30
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", re.IGNORECASE)


def estimate(path: Path, type: ModelType, slots: int, context_size: int, kv_type: object = "f16") -> ModelMemory:
    """What a model of this file will take. `context_size` 0 is the driver's default. For a file that is no GGUF only
    its own size is known. A KV type smaller than f16 counts as f16. Raises OSError when the file cannot be read."""
    weights = 0 if is_fileless(path) else tree_bytes(path)
    if type in ("stt", "tts"):
        return ModelMemory(SPEECH_FACTOR * weights)
    try:
        header = read_header(path)
    except StartupError:
        return ModelMemory(weights)
    token = kv_token_bytes(header) * (2 if kv_type == "f32" else 1)
    if type in ("embedding", "rerank"):
        return ModelMemory(weights, token, 1, READING_TOKENS)
    tokens = context_size or DEFAULT_CONTEXT_TOKENS
    tokens = min(tokens, header.context_length or tokens)  # granville-llama gives no more than a model was trained for
    padded = -(-tokens // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS
    return ModelMemory(weights, token, slots, padded, MODEL_OVERHEAD_BYTES + SCORING_TOKENS * token)


def kv_token_bytes(header: ModelHeader) -> int:
    """Keys and values of all layers for one token, at f16. For layers with a window an upper bound; 0 when the file
    does not say."""
    if not header.layers or not header.heads or not header.embedding:
        return 0
    head = header.embedding // header.heads
    lengths = (header.key_length or head) + (header.value_length or head)
    all_layers = header.kv_heads_of_layers or header.layers * (header.kv_heads or header.heads)
    return all_layers * lengths * KV_VALUE_BYTES


def parse_size(flag: str, text: str) -> int:
    """Bytes: `4G`, `500M`, `1.5 GiB`, `1048576`; K, M, G and T are powers of two. Raises StartupError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise StartupError(f"{flag}: expected a size such as 4G, 500M or a number of bytes, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def machine_memory() -> int:
    """The default budget: SHARE of the machine's memory, or of its control group's limit where that is smaller."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(SHARE * min([whole, *group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def group_limits(membership: Path, mount: Path) -> list[int]:
    """The memory limits of this process's control group and of those above it, both versions of the interface
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, memory.max; v1 memory.limit_in_bytes)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux, or /proc is closed
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's while the mount shows the group itself: its top counts as well.
        group = top / path.lstrip("/")
        limits += [_limit(folder / name) for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return [limit for limit in limits if limit is not None]


def default_kv_ram(budget_bytes: int) -> int:
    """A tenth of the budget, between two bounds."""
    return min(max(budget_bytes // 10, MIN_DEFAULT_KV_RAM_BYTES), MAX_DEFAULT_KV_RAM_BYTES)


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None

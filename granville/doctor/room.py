"""Memory and disk: what there is, and which of the models that are here fit with how many slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from granville.doctor.finding import Finding
from granville.errors import DoesNotFit
from granville.models.memory import default_kv_ram, estimate
from granville.scheduling.memory import MemoryBudget, size
from granville.wire.messages import ModelType

LOW_DISK_BYTES = 1 << 30
FEW_AVAILABLE = 0.5
"""Of the budget: with less free at the moment, a daemon would push others out, or be killed."""


@dataclass(frozen=True, slots=True)
class Folder:
    name: str
    path: Path
    free_bytes: int | None
    """None: the folder, and what is above it, cannot be looked at."""
    writable: bool
    wanted_bytes: int
    """What may be put there by itself."""


@dataclass(frozen=True, slots=True)
class ModelOnDisk:
    name: str
    path: Path
    type: ModelType
    problem: str | None = None


def memory(whole: int, available: int | None, group_limits: Sequence[int], budget: int) -> list[Finding]:
    """Bytes; `budget` is what `granville serve` takes as --memory by itself."""
    seen = f"{size(whole)}" + (f", {size(available)} available now" if available is not None else "")
    found = [Finding("Memory", "machine", seen, "ok")]
    limits = [limit for limit in group_limits if limit < whole]
    if limits:
        found.append(
            Finding("Memory", "control group", f"at most {size(min(limits))}; over it processes are killed", "note",
                    "the container's memory limit (docker run --memory) decides")
        )  # fmt: skip
    fix = "--memory SIZE sets another; --kv-ram SIZE is the part for cached states"
    if available is not None and available < FEW_AVAILABLE * budget:
        found.append(
            Finding("Memory", "budget", f"granville serve takes up to {size(budget)}, and {size(available)} are free",
                    "warn", f"--memory {max(1, available >> 20)}M, or end what else runs")
        )  # fmt: skip
    else:
        found.append(Finding("Memory", "budget", f"granville serve takes up to {size(budget)}", "ok", fix))
    return found


def disk(folders: Sequence[Folder]) -> list[Finding]:
    found = []
    for one in folders:
        if not one.writable:
            setting = "--kv-dir" if one.name == "states" else "GRANVILLE_HOME"
            found.append(
                Finding("Disk", one.name, f"{one.path} cannot be written to by this user", "problem",
                        f"chown it, or set {setting} to another folder")
            )  # fmt: skip
        elif one.free_bytes is None:
            found.append(Finding("Disk", one.name, f"{one.path}: its file system does not tell what is free", "note"))
        else:
            short = one.free_bytes < one.wanted_bytes
            fix = ""
            if short:
                fix = "free some, or GRANVILLE_HOME elsewhere"
                if one.name == "states":
                    fix = f"--kv-disk {max(0, one.free_bytes // 2 >> 20)}M, or --kv-dir elsewhere"
            found.append(
                Finding("Disk", one.name, f"{size(one.free_bytes)} free in {one.path}", "warn" if short else "ok", fix)
            )
    return found


def models(found: Sequence[ModelOnDisk], slots: int, context_size: int, budget: int) -> list[Finding]:
    """Each by itself, with the slots and the context (0: the default) that `granville serve` would give it."""
    if not found:
        return [Finding("Models", "on this disk", "none", "note", "granville download smollm2")]
    return [_model(one, slots, context_size, budget) for one in found]


def _model(one: ModelOnDisk, slots: int, context_size: int, budget: int) -> Finding:
    if one.problem is not None:
        return Finding("Models", one.name, one.problem, "warn", f"granville download it again, or remove {one.path}")
    try:
        need = estimate(one.path, one.type, slots, context_size)
        MemoryBudget(budget, default_kv_ram(budget)).reserve(one.name, one.name, need)
    except OSError as error:
        return Finding("Models", one.name, f"{one.path} cannot be read: {error.strerror}", "warn")
    except DoesNotFit:
        return _smaller(one, slots, context_size, budget)
    what = f"{need.slots} x {need.context_size} tokens" if need.kv_token_bytes else f"{need.slots} slots"
    return Finding("Models", one.name, f"fits: {size(need.total_bytes)} with {what}", "ok")


def _smaller(one: ModelOnDisk, slots: int, context_size: int, budget: int) -> Finding:
    """The most slots, halved each time, and then the longest context, with which it fits."""
    tried = [(count, context_size) for count in (4, 2, 1) if count < slots]
    tried += [(1, tokens) for tokens in (2048, 1024, 512)]
    for count, tokens in tried:
        need = estimate(one.path, one.type, count, tokens)
        try:
            MemoryBudget(budget, default_kv_ram(budget)).reserve(one.name, one.name, need)
        except DoesNotFit:
            continue
        flags = f"--slots {count}" + (f" --context-size {tokens}" if tokens else "")
        return Finding(
            "Models", one.name, f"does not fit with {slots} slots", "warn", f"granville serve {one.name} {flags}"
        )
    whole = estimate(one.path, one.type, 1, 512).total_bytes
    return Finding("Models", one.name, f"does not fit: it takes {size(whole)} at the least", "warn",
                   "a smaller model or quantisation, or more --memory")  # fmt: skip

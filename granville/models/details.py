"""All that can be told of one model without loading it: its head, its tensors, its hash, its tuning, its memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from granville.errors import DoesNotFit, StartupError
from granville.fetch.verify import known_as, remembered
from granville.models.kinds import TYPES
from granville.models.memory import default_kv_ram, estimate, machine_memory
from granville.models.store import ModelFile
from granville.models.tensors import Tensors, read_model
from granville.models.tune import Tuning
from granville.models.tuned import read_tuning, tuned_path
from granville.scheduling.memory import MemoryBudget, ModelMemory
from granville.wire.messages import ModelType


@dataclass(frozen=True, slots=True)
class Need:
    """What a file takes with so many slots and tokens, and whether a daemon with nothing else has it."""

    path: Path
    memory: ModelMemory
    refusal: str | None
    """Why it does not fit the default `--memory`, with what would; None when it does."""


@dataclass(frozen=True, slots=True)
class Details:
    """A model on this disk. What is not known is None."""

    file: ModelFile
    path: Path
    tensors: Tensors | None
    problem: str | None
    sha256: str | None
    sha256_from: str | None
    """`verified` when the file had it and has not changed since; `catalogue`, or `changed` when it was another then."""
    source: str | None
    license: str | None
    tuning: Tuning | None
    tuning_problem: str | None
    needs: list[Need]
    """Of the file itself; then of the tuned one, which `serve` prefers."""
    budget_bytes: int
    """What a daemon here takes at most: the default `--memory`."""


def describe(file: ModelFile, *, slots: int, context_size: int) -> Details:
    """The details of a model that is on this disk. `context_size` 0 is the driver's default. Raises StartupError when
    the file cannot be read at all."""
    assert file.path is not None
    path, entry = file.path, file.entry
    tensors, problem = None, file.problem
    if problem is None and file.kind in (None, "gguf"):
        try:
            _, tensors = read_model(path)
        except StartupError as error:
            problem = error.message
    tuning, tuning_problem = _tuning(path)
    known, old = known_as(path), remembered(path)
    sha256: str | None = None
    sha256_from: str | None = None
    if known is not None:
        sha256, sha256_from = known.sha256, "verified"
    elif old is not None:
        sha256, sha256_from = old.sha256, "changed"
    elif entry is not None:
        sha256, sha256_from = entry.sha256, "catalogue"
    source = (old.source if old else None) or (entry.all_sources[0] if entry else None)
    header = file.header
    budget = machine_memory()
    needs = []
    if problem is None:
        type = model_type(file)
        files = [(path, "f16")]
        if tuning is not None and tuning.tuned is not None:
            files.append((tuned_path(path), tuning.settings.kv_type))
        for each, kv_type in files:
            memory = estimate(each, type, slots, context_size, kv_type)
            needs.append(Need(each, memory, _refusal(each.name, memory, budget)))
    return Details(
        file=file,
        path=path,
        tensors=tensors,
        problem=problem,
        sha256=sha256,
        sha256_from=sha256_from,
        source=source,
        license=(entry.license if entry else None) or (header.license if header else None),
        tuning=tuning,
        tuning_problem=tuning_problem,
        needs=needs,
        budget_bytes=budget,
    )


def model_type(file: ModelFile) -> ModelType:
    """What it is loaded for: as the catalogue has it, else as its kind is, else inference."""
    known: tuple[ModelType, ...] = get_args(ModelType)
    said = file.entry.type if file.entry is not None else TYPES.get(file.kind) if file.kind is not None else None
    return next((type for type in known if type == said), "inference")


def _tuning(path: Path) -> tuple[Tuning | None, str | None]:
    try:
        tuning = read_tuning(path)
    except (OSError, ValueError) as error:
        return None, f"cannot be read: {error}"
    if tuning is not None and tuning.tuned is not None and not tuned_path(path).is_file():
        return None, f"{tuning.tuned.name} is missing"
    return tuning, None


def _refusal(name: str, memory: ModelMemory, budget_bytes: int) -> str | None:
    try:
        MemoryBudget(budget_bytes, default_kv_ram(budget_bytes)).reserve("", name, memory)
    except DoesNotFit as error:
        return error.message
    return None

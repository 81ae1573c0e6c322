"""One budget over all that the daemon keeps in memory: which models fit, and what yields to requests, in which order.

    sum(weights) + sum(KV) + overhead a model + the daemon's own + cached states + held requests <= --memory

Weights and KV are fixed once a model is loaded. What is left is shared by cached states, at most `--kv-ram`, and the
requests that the daemon holds. As requests grow, cached states go first, then nothing more is parked, then new work is
refused; what runs is never failed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from granville.errors import DoesNotFit

DAEMON_BYTES = 96 << 20
"""Python, Trio, HTTP and the drivers' libraries, before any model."""
MODEL_OVERHEAD_BYTES = 64 << 20
"""A model's scratch buffers, threads and vocabulary, beside its weights and KV."""
REQUEST_FLOOR_BYTES = 8 << 20
"""With less than this for requests a daemon is of no use."""
JOB_BYTES = 16 << 10
"""What a held job takes whatever its size: its task, its bookkeeping, its answer."""
SIZE_FACTOR = 3
"""A request's text as it came, decoded, and as its driver's copy of the prompt."""
STEPS = 16
"""Caches are told of a change of a sixteenth of their share, not of every request."""
KEEPS_STATES = ("inference", "ranker")
"""Types of models whose KV is worth keeping, and whose jobs may be parked; the others get no share of `--kv-ram` and
`--kv-disk`."""


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What a model takes. The KV cache is slots × context_size tokens."""

    weights_bytes: int
    kv_token_bytes: int = 0
    slots: int = 1
    context_size: int = 0
    """Tokens a slot, as they are allocated."""
    overhead_bytes: int = MODEL_OVERHEAD_BYTES

    @property
    def kv_bytes(self) -> int:
        return self.slots * self.context_size * self.kv_token_bytes

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


@dataclass(eq=False)
class MemoryBudget:
    """`limit_bytes` None keeps no bound: everything fits and nothing has to yield."""

    limit_bytes: int | None
    kv_ram_bytes: int
    _models: dict[str, ModelMemory] = field(default_factory=dict)

    @property
    def models(self) -> Mapping[str, ModelMemory]:
        return self._models

    @property
    def fixed_bytes(self) -> int:
        return DAEMON_BYTES + sum(model.total_bytes for model in self._models.values())

    @property
    def request_bytes_limit(self) -> float:
        """How much held requests may take when every cached state has gone."""
        return float("inf") if self.limit_bytes is None else max(0, self.limit_bytes - self.fixed_bytes)

    def reserve(self, id: str, what: str, need: ModelMemory, held_bytes: int = 0) -> None:
        """Take the memory of a model, called `what`, out of the budget, while requests of so many bytes are held.
        Raises DoesNotFit, with the figures and what would fit; then nothing has changed."""
        if self.limit_bytes is not None:
            requests = max(REQUEST_FLOOR_BYTES, held_bytes - self.kv_ram_bytes)  # cached states go for them first
            left = self.limit_bytes - self.fixed_bytes - self.kv_ram_bytes - requests
            if need.total_bytes > left:
                raise DoesNotFit(self._refusal(what, need, left, requests))
        self._models[id] = need

    def correct(self, id: str, loaded_bytes: int) -> None:
        """A driver has said what weights and KV really take; 0 when it does not know."""
        if loaded_bytes and id in self._models:
            self._models[id] = ModelMemory(loaded_bytes, overhead_bytes=self._models[id].overhead_bytes)

    def release(self, id: str) -> None:
        self._models.pop(id, None)

    def cache_allowance(self, held_bytes: float) -> int:
        """How much cached and parked states of all models may take while requests of so many bytes are held."""
        return int(min(max(0, self.request_bytes_limit - held_bytes), self.kv_ram_bytes))

    def may_hold(self, held_bytes: float, more_bytes: float) -> bool:
        """Whether one more request fits."""
        return held_bytes + more_bytes <= self.request_bytes_limit

    def cache_step(self, held_bytes: float) -> int:
        """A number that changes when `cache_allowance` has changed by enough to tell the models."""
        return 0 if not self.kv_ram_bytes else self.cache_allowance(held_bytes) * STEPS // self.kv_ram_bytes

    def _refusal(self, what: str, need: ModelMemory, left: int, requests: int) -> str:
        assert self.limit_bytes is not None
        others = sum(model.total_bytes for model in self._models.values())
        parts = [
            f"{size(DAEMON_BYTES)} for the daemon",
            f"{size(self.kv_ram_bytes)} for cached states (--kv-ram)",
            f"{size(requests)} for requests",
            *([f"{size(others)} for other models"] if others else []),
        ]
        return (
            f"{what} does not fit: weights {size(need.weights_bytes)} + KV {need.slots} slots x {need.context_size} "
            f"tokens x {need.kv_token_bytes} bytes = {size(need.kv_bytes)} + buffers {size(need.overhead_bytes)} are "
            f"{size(need.total_bytes)}; of --memory {size(self.limit_bytes)}, {', '.join(parts)} leave "
            f"{size(max(0, left))}. {self._advice(need, left)}"
        )

    def _advice(self, need: ModelMemory, left: int) -> str:
        for_kv = left - need.weights_bytes - need.overhead_bytes
        enough = size_up(need.total_bytes - left + (self.limit_bytes or 0))
        ways = []
        if need.kv_token_bytes and need.context_size:
            slots = for_kv // (need.context_size * need.kv_token_bytes)
            context = for_kv // (need.slots * need.kv_token_bytes) // 256 * 256
            ways += [f"--slots {slots}"] if slots >= 1 else []
            ways += [f"--context-size {context}"] if context >= 256 else []
        if not ways and need.kv_token_bytes and for_kv >= 256 * need.kv_token_bytes:
            ways.append(f"--slots 1 --context-size {for_kv // need.kv_token_bytes // 256 * 256}")
        return f"What would fit: {' or '.join([*ways, f'--memory {enough}'])}"


class Held:
    """The bytes of the requests that the daemon holds, from acceptance until their answers are delivered."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.total_bytes = 0
        self._step = budget.cache_step(0)

    def fits(self, request_bytes: int) -> bool:
        return self.budget.may_hold(self.total_bytes, held_bytes(request_bytes))

    def take(self, request_bytes: int) -> None:
        self.total_bytes += held_bytes(request_bytes)

    def give_back(self, request_bytes: int) -> None:
        self.total_bytes -= held_bytes(request_bytes)

    def caches_are_to_change(self) -> bool:
        """Whether the models' caches have another allowance, by enough to tell them, since this last said so."""
        step = self.budget.cache_step(self.total_bytes)
        changed, self._step = step != self._step, step
        return changed


def held_bytes(request_bytes: int) -> int:
    return SIZE_FACTOR * request_bytes + JOB_BYTES


def share(total_bytes: int, models: int) -> int:
    """Of a total that is split evenly over the models that keep states."""
    return total_bytes // max(1, models)


def size(count: int) -> str:
    """Bytes for a person: 98 MB, 1.5 GB (powers of ten)."""
    if count >= 10**9:
        return f"{count / 10**9:.1f} GB"
    return f"{count / 10**6:.0f} MB" if count >= 10**6 or not count else f"{count / 10**3:.0f} kB"


def size_up(count: int) -> str:
    """As --memory takes it, rounded up to a whole M (powers of two)."""
    return f"{-(-count // (1 << 20))}M"

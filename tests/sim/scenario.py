"""What a seed stands for: which models there are, what goes wrong, who comes, how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from granville.wire.messages import ModelType

Ending = Literal["quiet", "drain", "stop"]
Kind = Literal["plain", "slow", "callback", "half-closing", "leaving"]


@dataclass(frozen=True)
class FakeSpec:
    type: ModelType
    slots: int
    plan: dict[str, Any]
    """Fields of FakePlan."""


@dataclass(frozen=True)
class Scenario:
    seed: int
    models: tuple[FakeSpec, ...]
    config: dict[str, Any]
    """Fields of ServeConfig."""
    people: tuple[Kind, ...]
    requests: int
    """Of each."""
    pause_s: float
    """The mean time between two of them."""
    opens_s: float
    """When the first of them comes."""
    faults: frozenset[str]
    """raise, fail_job, hang, poison, load."""
    operations: frozenset[str]
    """load, unload, force."""
    ending: Ending
    spare_bytes: int | None
    """What --memory leaves for cached states and held requests; None for no bound."""
    high_water_bytes: int
    deadlines: bool
    cancels: bool
    repeats: bool
    sessions: int
    """How many conversations there are; 0 for none."""
    classes: tuple[str | None, ...] = field(default=("critical", "high", "normal", "low", None))

    @property
    def healthy(self) -> bool:
        """All models serve all the time, and alike."""
        return not self.faults and not self.operations and self.all_chat

    @property
    def all_chat(self) -> bool:
        return all(model.plan["messages"] for model in self.models)

    @property
    def small_contexts(self) -> bool:
        return any(model.plan["context_size"] < 4096 for model in self.models)


def draw(seed: int) -> Scenario:
    rng = Random(seed)
    faults = frozenset(rng.sample(["raise", "fail_job", "hang", "poison", "load"], rng.choice([0, 0, 1, 1, 2, 5])))
    operations = frozenset(rng.sample(["load", "unload", "force"], rng.choice([0, 0, 0, 1, 3])))
    if "hang" in faults:  # nothing else ends a driver that hangs
        operations |= {"force"}
    types: list[ModelType] = ["inference"] * rng.choice([1, 1, 2, 2, 3])
    others: tuple[ModelType, ...] = ("ranker", "embedding", "rerank")
    types += [other for other in others if rng.random() < 0.2]
    decode_s, prefill_token_s = rng.choice([0.0, 0.05, 0.5, 1.0]), rng.choice([0.0, 0.0, 0.01])
    no_chat = rng.random() < 0.15
    models = tuple(_model(rng, type, decode_s, prefill_token_s, no_chat and n == 0) for n, type in enumerate(types))
    config = {
        "queue_size": rng.choice([1, 3, 8, 20, 1000]),
        "timeout_s": 1e6,
        "age_after_s": rng.choice([0.5, 5.0, 30.0]),
        "grace_s": rng.choice([0.0, 1.0, 30.0]),
        "stall_s": 5.0,
        "strategy": rng.choice(["least-busy", "round-robin"]),
        "rank_ms": rng.choice([0.0, 50.0, 250.0]),
        "max_outbox_bytes": rng.choice([30, 1 << 20]),
        "max_senders": rng.choice([1, 64]),
        "kv_ram_bytes": 64 << 10,
    }
    kinds: list[Kind] = ["plain", "plain", "slow", "callback", "half-closing", "leaving"]
    return Scenario(
        seed=seed,
        models=models,
        config=config,
        people=tuple(rng.choices(kinds, k=rng.randint(2, 5))),
        requests=rng.choice([3, 6, 12]),
        pause_s=rng.choice([0.0, 0.1, 1.0, 3.0]),
        opens_s=rng.choice([0.0, 0.0, 10.0]),
        faults=faults,
        operations=operations,
        ending=rng.choice(["quiet", "quiet", "drain", "stop"]),
        spare_bytes=rng.choice([None, None, None, 128 << 10, 400 << 10]),
        high_water_bytes=rng.choice([600, 262_144]),
        deadlines=rng.random() < 0.3,
        cancels=rng.random() < 0.4,
        repeats=rng.random() < 0.4,
        sessions=rng.choice([0, 0, 1, 3]),
    )


def _model(rng: Random, type: ModelType, decode_s: float, prefill_token_s: float, no_chat: bool) -> FakeSpec:
    plan = {
        "decode_s": decode_s * rng.choice([1.0, 1.0, 2.0]),
        "prefill_token_s": prefill_token_s,
        "load_s": rng.choice([0.0, 2.0]),
        "park": rng.random() < 0.85,
        "messages": not no_chat,
        "token_bytes": rng.choice([0, 1, 1000]),
        "context_size": rng.choice([4096, 4096, 4096, 12]),
        "scores": rng.random() < 0.5,
        "score_s": rng.choice([0.0, 0.01, 0.1]),
        "score_fails": rng.random() < 0.1,
        "weights_bytes": 1000,
        "resume": rng.random() < 0.5,
        "warm": rng.random() < 0.8,
    }
    return FakeSpec(type, rng.choice([1, 1, 2, 4]), plan)

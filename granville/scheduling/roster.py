"""The models of the daemon: which there are, what each can do, how busy it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from granville.errors import NoModel, UnknownModel, Unsupported
from granville.scheduling.job import Lane
from granville.wire.messages import ModelType, Request

ModelState = Literal["loading", "ready", "failed", "restarting", "unloading", "stopped"]
"""failed: it was never loaded so far, and is tried again as a restarting one is. unloading: it ends what it runs and
takes nothing new."""


RATE_WINDOW_S = 5.0
SOUND_INPUTS = ("audio", "audio_path", "language", "words", "voice", "speed")
OTHER_INPUTS: dict[str, tuple[str, ...]] = {
    "inference": (*SOUND_INPUTS, "documents"),
    "embedding": SOUND_INPUTS,
    "rerank": SOUND_INPUTS,
}
"""By a model's type, what a request may bring to models of others: it would pass over it in silence."""


@dataclass(eq=False, slots=True)
class ModelEntry:
    """One model. `running` holds the ids of the jobs on its slots; a slot is freed when the driver says so."""

    id: str
    type: ModelType
    path: str
    driver: str
    state: ModelState = "loading"
    slots: int = 0
    features: frozenset[str] = frozenset()
    architecture: str = ""
    context_size: int = 0
    memory_bytes: int = 0
    running: set[str] = field(default_factory=set)
    drains: bool = False
    """It is unloading, and jobs that are parked on it come back to end."""
    restarts: int = 0
    last_error: str | None = None
    isolated: bool = False
    """Its driver runs in a process of its own."""
    pid: int | None = None
    """That process, while there is one that has loaded the model."""
    _tokens_per_s: float = 0.0
    _measured_at: float = 0.0

    def produced(self, tokens: int, now: float) -> None:
        self._tokens_per_s = self.tokens_per_s(now) + tokens / RATE_WINDOW_S
        self._measured_at = now

    def tokens_per_s(self, now: float) -> float:
        """Tokens of all answers together, each counting less as RATE_WINDOW_S passes (exponential decay)."""
        return self._tokens_per_s * math.exp((self._measured_at - now) / RATE_WINDOW_S)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        own: Lane = ("model", self.id)
        return (own,) if self.drains else (own, ("type", self.type))

    @property
    def serves(self) -> bool:
        """Whether it takes jobs, now or when it is loaded again."""
        return self.state not in ("unloading", "stopped")

    @property
    def free(self) -> int:
        return self.slots - len(self.running) if self.state == "ready" or self.drains else 0

    def listing(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": self.type,
            "path": self.path,
            "busy": bool(self.running),
            "state": self.state,
            "slots": self.slots,
            "running": len(self.running),
            "driver": self.driver,
            "architecture": self.architecture,
            "context_size": self.context_size,
            "memory_bytes": self.memory_bytes,
            "restarts": self.restarts,
            "last_error": self.last_error,
            "isolated": self.isolated,
            "pid": self.pid,
        }


class Roster:
    """Every model by its id, in the order they were given."""

    def __init__(self) -> None:
        self._models: dict[str, ModelEntry] = {}

    def __iter__(self) -> Iterator[ModelEntry]:
        return iter(self._models.values())

    def __contains__(self, id: str) -> bool:
        return id in self._models

    def __getitem__(self, id: str) -> ModelEntry:
        return self._models[id]

    def __len__(self) -> int:
        return len(self._models)

    def remove(self, id: str) -> None:
        del self._models[id]

    def add(self, entry: ModelEntry) -> None:
        if entry.id in self._models:
            raise ValueError(f"two models with the id {entry.id}")
        self._models[entry.id] = entry

    def check(self, request: Request) -> None:
        """Raises what `able` raises."""
        self.able(request)

    def able(self, request: Request) -> list[ModelEntry]:
        """The models that can take this request, now or when they are loaded again. Raises UnknownModel, NoModel or
        Unsupported when there are none."""
        if request.model_id is not None:
            named = self._models.get(request.model_id)
            if named is None or named.state == "unloading":
                known = ", ".join(entry.id for entry in self if entry.serves) or "none"
                raise UnknownModel(f"model_id: no model {request.model_id!r} here; there are: {known}")
            if named.type != request.model_type:
                raise Unsupported(f"model_type: {named.id} is of type {named.type}, not {request.model_type}")
            able = [named]
        else:
            able = [entry for entry in self if entry.type == request.model_type and entry.state != "unloading"]
        if not able:
            raise NoModel(f"model_type: no model of type {request.model_type} is loaded")
        able = [entry for entry in able if entry.serves]
        if not able:
            raise NoModel("the model has been stopped")
        for field_name, feature in _needs(request):
            # What one that was never loaded can do is not known: it may take the job, and refuse it.
            able = [entry for entry in able if feature in entry.features or not entry.slots]
            if not able:
                raise Unsupported(f"{field_name}: the model cannot do this")
        return able


SAMPLING: tuple[tuple[str, object], ...] = tuple(
    (name, getattr(Request(id="-"), name))
    for name in ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")
)
"""What a request may set, and how it is when nobody has."""


def _needs(request: Request) -> list[tuple[str, str]]:
    """(field, feature) for what a request asks of a model beyond completing a single turn."""
    return [
        (name, feature)
        for name, feature in (
            ("messages", "messages"),
            ("session_id", "messages"),
            ("grammar", "constrain"),
            ("json_schema", "constrain"),
            ("tools", "tools"),
            ("tool_choice", "tools"),
            ("overflow", "drop_oldest"),
            *((name, name) for name in OTHER_INPUTS.get(request.model_type, ())),
        )
        if getattr(request, name) not in (None, False)
    ] + [(name, "sampling") for name, unset in SAMPLING if getattr(request, name) != unset]

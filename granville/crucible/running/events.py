"""What a run tells while it goes on: for a person's terminal, for a stream over HTTP, for a test."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

StepKind = Literal["inference", "ranker", "stt", "tts", "embedding", "rerank", "tool", "workflow", "group"]
StepState = Literal["running", "finished", "skipped", "failed", "cancelled"]
RunState = Literal["running", "finished", "failed", "cancelled", "interrupted"]
"""interrupted: its process has ended, or a call that may not be repeated was cut short: it can be resumed."""


class StepEvent(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="step", tag_field="event"):
    """A step has changed its state."""

    run_id: str
    step: str
    """Its key: `answer`, `each[3]`, `loop[2].plan`, `sub/answer`."""
    kind: StepKind
    state: StepState
    attempt: int = 1
    at: float
    """Seconds since 1970."""
    duration_s: float | None = None
    output: Any = None
    """A short look at the value, for a person; the journal has the whole."""
    usage: dict[str, int] | None = None
    error: str | None = None
    retry_in_s: float | None = None
    """With `failed`: another attempt follows after this."""
    waits: str | None = None
    """With `running`: why it cannot go on yet. The next event without it says that it does; its text begins anew."""


class DeltaEvent(Struct, frozen=True, kw_only=True, tag="delta", tag_field="event"):
    """A piece of a running inference or stt step's text."""

    run_id: str
    step: str
    delta: str


class RunEvent(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="run", tag_field="event"):
    """The run has changed its state."""

    run_id: str
    workflow: str
    state: RunState
    at: float
    outputs: dict[str, Any] | None = None
    error: str | None = None
    step: str | None = None
    """Which step's failure was the run's."""


Event = StepEvent | DeltaEvent | RunEvent

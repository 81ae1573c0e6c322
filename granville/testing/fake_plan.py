"""How a fake model behaves: how long things take, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fault = Literal["raise", "hang", "fail_job"]


@dataclass(kw_only=True)
class FakePlan:
    """How a fake model behaves. Seconds are simulated, or slept in a real thread."""

    load_s: float = 0.0
    load_error: str | None = None
    failing_loads: int | None = None
    """How many loads fail with `load_error`; None is all of them."""
    weights_bytes: int = 0
    """What it says that its weights take."""
    prefill_token_s: float = 0.0
    decode_s: float = 0.0
    """One decode, whatever the number of jobs in it; 0 answers a job whole in one step."""
    context_size: int = 4096
    park: bool = True
    resume: bool = False
    """Whether it goes on with what a job had said before a failure."""
    messages: bool = True  # whether it takes whole conversations, which can be shortened
    token_bytes: int = 0  # of a parked job
    fault: Fault | None = None
    fault_after_steps: int = 0
    """The step, counted from 1 over all lives of the driver, that has the fault; once only."""
    warm: bool = True
    """Whether it takes `Warm`; what it has read so is not read again."""
    scores: bool = False
    """Whether it takes `Score`; a label is the likelier the nearer to the prompt's end it was mentioned."""
    score_s: float = 0.0
    score_fails: bool = False
    fault_word: str | None = None  # in a job's prompt: it has the fault, whenever it runs

"""Label scores asked of a model, beside its jobs."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from granville.hosting.floor import StepEvent
from granville.hosting.interface import Failed, Output, Score
from granville.nursery.stepper import Stepper


@dataclass(eq=False)
class _Question:
    answered: trio.Event = field(default_factory=trio.Event)
    value: list[float] | None = None


class Scores:
    """The questions under way to one model. Whatever becomes of it, whoever asks gets an answer or None."""

    def __init__(self) -> None:
        self._questions: dict[str, _Question] = {}
        self._asked = 0

    async def ask(self, stepper: Stepper, prompt: str, labels: tuple[str, ...]) -> list[float] | None:
        """The scores in the order of the labels; None when the model has none to give, or was lost. The caller sets
        the deadline; a question that is given up is taken back from the model."""
        self._asked += 1
        key = f"score-{self._asked}"
        question = self._questions[key] = _Question()
        stepper.submit(Score(key, prompt, labels))
        try:
            await question.answered.wait()
        finally:
            if self._questions.pop(key, None) is not None:
                stepper.cancel(key)
        return question.value

    def take(self, event: StepEvent) -> bool:
        """Whether the event was the answer to a question."""
        question = self._questions.pop(event.id, None)
        if question is None:
            return False
        if isinstance(event, Output):
            question.value = [float(value) for value in event.value if isinstance(value, int | float)]
        elif not isinstance(event, Failed):  # neither an answer nor its failure
            self._questions[event.id] = question
            return False
        question.answered.set()
        return True

    def lost(self) -> None:
        """The model is gone."""
        for question in self._questions.values():
            question.answered.set()
        self._questions.clear()

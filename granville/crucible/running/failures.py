"""What a step's failure means: for its next attempt, for its run."""

from __future__ import annotations

from granville.crucible.workflow.model import Retry
from granville.errors import GranvilleError

HOPELESS = {400, 401, 403, 404, 413, 422}
"""Another attempt would ask for the same, and get the same."""


class BudgetExceeded(GranvilleError):
    """A run has done as much as its `limits` allow."""

    error = "budget_exceeded"
    code = 429


class Interrupted(GranvilleError):
    """The run has to be told how to go on."""

    error = "interrupted"
    code = 409


class StepFailed(Exception):
    """A step has failed for good; the step around it may have an `on_error` for it."""

    def __init__(self, key: str, error: GranvilleError) -> None:
        super().__init__(f"{key}: {error.message}")
        self.key = key
        """Of the innermost step that failed."""
        self.error = error


def may_be_mended(error: GranvilleError, retry: Retry) -> bool:
    """Whether another attempt is worth making."""
    if error.code in HOPELESS or isinstance(error, BudgetExceeded):
        return False
    return "any" in retry.on or error.error in retry.on

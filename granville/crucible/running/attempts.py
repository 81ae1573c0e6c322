"""One step, kept: looked up in the journal, tried as often as it may be, written down, and what its failure means."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import tenacity
import trio

from granville.crucible.journal.records import StepRecord, plain
from granville.crucible.journal.writer import JournalFailed
from granville.crucible.running.context import ATTEMPT_AT, Context, Entry, Outcome
from granville.crucible.running.failures import BudgetExceeded, Interrupted, StepFailed, may_be_mended
from granville.crucible.running.plan import Ended
from granville.crucible.workflow.model import Instead, Retry, Step
from granville.crucible.workflow.templates import render
from granville.errors import DeadlineExceeded, GranvilleError

FATAL = (BudgetExceeded, Interrupted, JournalFailed)
"""No step's `on_error` is for these: the run stops."""
NO_RETRY = Retry(attempts=1)

Body = Callable[[Entry], Awaitable[Outcome]]


async def kept(
    context: Context, step: Step, entry: Entry, scope: Mapping[str, Any], body: Body, *, retry: Retry | None = None,
    timeout_s: float | None = None, is_tolerant: bool = True,
) -> Ended:  # fmt: skip
    """How the step has ended: as the journal knows, or as `body` brings it about. Raises StepFailed when it has failed
    and the run is not to go on behind it (never mind `on_error` if it `is_tolerant`), and what stops the run."""
    recorded = context.progress.ended(entry.key)
    if recorded is not None:
        return _as_recorded(step, recorded)
    begun = context.progress.begun(entry.key)
    if begun is not None and begun.state == "running":  # cut off by a crash: the same attempt once more
        entry.attempts, entry.usage = begun.attempts - 1, begun.usage
        entry.attempt_at = begun.more.get(ATTEMPT_AT, 0.0)
    try:
        try:
            outcome = await _attempts(context, entry, body, retry or NO_RETRY, timeout_s)
        except StepFailed as failure:
            ended = _instead(step, scope, failure) if is_tolerant else None
            if ended is None:
                context.fail(entry, _told(entry, failure))
                raise
            return await context.end(entry, ended)
        return await context.end(entry, Ended("finished", outcome.value, more=outcome.more), outcome.turn)
    except trio.Cancelled:
        context.cancel(entry)
        raise
    except FATAL as error:
        context.fail(entry, error.message)
        raise
    except GranvilleError as error:  # of what was to be written down
        context.fail(entry, error.message)
        raise StepFailed(entry.key, error) from error


async def _attempts(context: Context, entry: Entry, body: Body, retry: Retry, timeout_s: float | None) -> Outcome:
    if retry.attempts == 1:
        return await _attempt(context, entry, body, timeout_s)

    def pause(state: tenacity.RetryCallState) -> float:
        return min(base(state) * random.uniform(0.75, 1.25), retry.max_backoff_s)

    def say(state: tenacity.RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(failure, StepFailed)
        context.again(entry, failure.error, state.next_action.sleep if state.next_action is not None else 0.0)

    base = tenacity.wait_exponential(multiplier=retry.backoff_s, max=retry.max_backoff_s)
    trying = tenacity.AsyncRetrying(
        sleep=trio.sleep,
        stop=lambda _: entry.attempts >= retry.attempts,
        wait=pause,
        retry=tenacity.retry_if_exception(lambda one: isinstance(one, StepFailed) and may_be_mended(one.error, retry)),
        before_sleep=say,
        reraise=True,
    )
    return await trying(_attempt, context, entry, body, timeout_s)


async def _attempt(context: Context, entry: Entry, body: Body, timeout_s: float | None) -> Outcome:
    entry.attempts += 1
    entry.attempt_at = entry.attempt_at or context.clock()
    with trio.CancelScope(deadline=context.deadline(entry, timeout_s)):
        try:
            outcome = await body(entry)
            outcome.value, _ = plain(outcome.value, "the value")
        except FATAL:
            raise
        except GranvilleError as error:
            raise StepFailed(entry.key, error) from error
        else:
            return outcome
        finally:
            entry.attempt_at = 0.0  # the next attempt has its own
    raise StepFailed(entry.key, DeadlineExceeded(f"its {timeout_s:g} s (timeout_s) are over"))


def _instead(step: Step, scope: Mapping[str, Any], failure: StepFailed) -> Ended | None:
    """What the run goes on with; None when it does not."""
    if step.on_error == "fail":
        return None
    if not isinstance(step.on_error, Instead):
        return Ended("failed", None, puts_out=False, error=failure.error.message)
    try:
        value = render(step.on_error.use, scope)
    except GranvilleError as error:
        raise StepFailed(failure.key, error) from failure
    return Ended("failed", value, error=failure.error.message)


def _as_recorded(step: Step, record: StepRecord) -> Ended:
    puts_out = record.state == "finished" or (record.state == "failed" and isinstance(step.on_error, Instead))
    return Ended(
        record.state, record.output, puts_out, record.error, record.attempts, record.usage, record.more
    )  # fmt: skip


def _told(entry: Entry, failure: StepFailed) -> str:
    return failure.error.message if failure.key == entry.key else str(failure)

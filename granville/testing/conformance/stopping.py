"""Checks of jobs that end early or pause: cancel, park and resume, and a model that is closed while it runs."""

from __future__ import annotations

import time

from granville.hosting.interface import Parked
from granville.testing.conformance.checks import Fail, Warn, check
from granville.testing.conformance.ledger import Job, difference
from granville.testing.conformance.rig import Rig, Watched, answered, words

CANCEL_LIMIT_S = 1.0
"""cancel() only marks and frees; whoever waits for it is the model's thread, and with it every other job."""
STEPS_AFTER = 3
ROUNDS = 3
LONG_TOKENS = 32


def begun(model: Watched, *jobs: Job) -> bool:
    """Step until something came for one of them. False when an answer came whole in its first step."""
    model.until(lambda: any(job.events for job in jobs), *jobs)
    return all(job.end is None for job in jobs)


@check(
    "cancel",
    group="jobs",
    right=f"cancel() ends a job at once (here: within {CANCEL_LIMIT_S:g} s), and the others go on",
    where="interface: Model.cancel",
    needs=("answer",),
    text=False,
)
def cancel(rig: Rig) -> str:
    """Cancel a job in its middle, before its first step, and beside another"""
    model = rig.model
    took: list[float] = []

    def cancelled(job: Job) -> None:
        began = time.perf_counter()
        model.cancel(job.task.id)
        took.append(time.perf_counter() - began)
        answered(model.ask(words(6), max_tokens=3))  # steps in which something more of it could come

    whole = 0
    for number in range(ROUNDS):
        job = model.submit(rig.task(words(48, start=number), max_tokens=LONG_TOKENS))
        if begun(model, job):
            cancelled(job)
        else:
            whole += 1
        cancelled(model.submit(rig.task(words(24, start=number))))
    if model.slots > 1:
        neighbour, job = (model.submit(rig.task(words(24, start=number))) for number in range(2))
        cancelled(job)
        answered(model.until_ended(neighbour)[0])
    slowest = max(took)
    if slowest > CANCEL_LIMIT_S:
        raise Fail(f"cancel() took {slowest:.2f} s; all other jobs of the model wait meanwhile")
    how = "; its steps are whole answers, so that nothing can be cancelled inside one" if whole else ""
    return f"{len(took)} cancelled, the slowest call {slowest * 1000:.2f} ms{how}"


@check(
    "cancel-unknown",
    group="jobs",
    right="cancel() of a job that is unknown, has ended or was cancelled before does nothing",
    where="interface: Model.cancel",
    needs=("answer",),
    text=False,
)
def cancel_unknown(rig: Rig) -> str:
    """Cancel what is not there"""
    model = rig.model
    ended = answered(model.ask(words(4)))
    twice = model.submit(rig.task(words(8)))
    model.cancel(twice.task.id)
    running = model.submit(rig.task(words(8, start=2)))
    for id in (rig.new_id("never-seen"), ended.task.id, twice.task.id, ""):
        model.cancel(id)
    answered(model.until_ended(running)[0])
    return "unknown, ended, twice and empty ids: nothing happened"


@check(
    "cancel-frees",
    group="jobs",
    right="when cancel() returns the job's slot is free",
    where="interface: Model.cancel",
    needs=("all-slots",),
    text=False,
)
def cancel_frees(rig: Rig) -> str:
    """Fill all slots, cancel, and fill them again"""
    model = rig.model

    def fill(start: int) -> list[Job]:
        return [
            model.submit(rig.task(words(16, start=start + number), max_tokens=LONG_TOKENS))
            for number in range(model.slots)
        ]

    for number in range(ROUNDS):
        jobs = fill(number)
        model.step()
        for job in jobs:
            model.cancel(job.task.id)
        try:
            for job in model.until_ended(*fill(number + 1)):
                answered(job)
        except Fail as failure:
            raise Fail(
                f"after {model.slots} jobs were cancelled their slots are not free: {failure.seen}", failure.detail
            ) from None
    return f"{ROUNDS} times {model.slots} slot{'s' * (model.slots > 1)}"


@check(
    "park",
    group="jobs",
    right="with Capabilities(park=True) a job that was parked and resumed gives the tokens that it would have given",
    where="interface: Model.park, Model.resume",
    needs=("cancel-frees",),
)
def park(rig: Rig) -> str:
    """Park a job, run others, and resume it"""
    model = rig.model
    model.need("park")
    prompt = words(40)
    plain, again = (answered(model.ask(prompt, max_tokens=LONG_TOKENS)) for _ in range(2))
    if plain.text != again.text:
        raise Warn(
            "nothing can be said of parking: at temperature 0 two answers to the same prompt differ "
            f"{difference(plain.text, again.text)}"
        )
    for after_first_token in (True, False):
        job = model.submit(rig.task(prompt, max_tokens=LONG_TOKENS))
        if after_first_token and not begun(model, job):
            continue  # whole in one step: it can only be parked before that
        for number in range(2):
            _parked(model, job)
            for other in range(model.slots):
                model.submit(rig.task(words(6, start=number + other + 1), max_tokens=3))
            others = [one for one in model.ledger.jobs.values() if one.state == "running"]
            model.until_ended(*others)
            model.resume(job.task.id)
            if number == 0:
                model.step()
                if job.end is not None:
                    break
        answered(model.until_ended(job)[0])
        if job.text != plain.text:
            raise Fail(f"the answer without parking and the one with it differ {difference(plain.text, job.text)}")
        if job.token_ids != plain.token_ids:
            raise Fail("parked and resumed, the text is the same and the token ids are others")
    return f"parked twice, with {model.slots} others in between: the same {len(plain.text)} characters"


def _parked(model: Watched, job: Job) -> None:
    """Park a running job, and step until it says so."""
    model.park(job.task.id)
    for _ in range(STEPS_AFTER):
        if any(isinstance(event, Parked) and event.id == job.task.id for event in model.step()):
            return
    raise Fail(f"park({job.task.id!r}) was called, and the next steps did not say Parked")


@check(
    "park-cancel",
    group="jobs",
    right="a parked job that is cancelled is forgotten; parked jobs take no slot",
    where="interface: Parked, Model.cancel",
    needs=("park",),
)
def park_cancel(rig: Rig) -> str:
    """Cancel a parked job"""
    model = rig.model
    model.need("park")
    for number in range(ROUNDS):
        job = model.submit(rig.task(words(24, start=number), max_tokens=LONG_TOKENS))
        _parked(model, job)
        model.cancel(job.task.id)
        others = [model.submit(rig.task(words(6, start=other))) for other in range(model.slots)]
        for other in model.until_ended(*others):
            answered(other)
    return f"{ROUNDS} parked and cancelled, {model.slots} others after each"


@check(
    "resume",
    group="jobs",
    right="with Capabilities(resume=True) a job goes on after the tokens in `produced` and tells none of them again",
    where="interface: Generate.produced",
    needs=("reload",),
)
def resume(rig: Rig) -> str:
    """Go on with a job in another life of the model"""
    rig.model.need("resume")
    prompt = words(40)
    plain = answered(rig.model.ask(prompt, max_tokens=LONG_TOKENS))
    if not plain.token_ids:
        raise Fail("Capabilities(resume=True), and its Token events have no token_ids to go on from")
    rig.let_go()
    cut = len(plain.pieces) // 2
    read, rest = plain.pieces[:cut], plain.pieces[cut:]
    produced = tuple(id for piece in read for id in piece.token_ids)
    job = answered(rig.model.ask(prompt, max_tokens=LONG_TOKENS, produced=produced))
    wanted = "".join(piece.text for piece in rest)
    if job.text != wanted:
        raise Fail(
            f"after {len(produced)} of {len(plain.token_ids)} tokens what should come and what came differ "
            f"{difference(wanted, job.text)}"
        )
    if job.usage.completion_tokens != plain.usage.completion_tokens:
        raise Fail(
            f"the answer has {plain.usage.completion_tokens} tokens in one life and {job.usage.completion_tokens} in "
            "two; those of `produced` count"
        )
    return f"after {len(produced)} of {len(plain.token_ids)} tokens, the same answer"


@check(
    "close-running",
    group="jobs",
    right="close() frees everything, whatever still runs; the driver can load the model again",
    where="interface: Model.close",
    needs=("answer",),
    text=False,
)
def close_running(rig: Rig) -> str:
    """Close a model while its jobs run"""
    rig.let_go()
    for steps in (0, 1, 2):
        model = rig.load()
        for number in range(model.slots):
            model.submit(rig.task(words(24, start=number), max_tokens=LONG_TOKENS))
        for _ in range(steps):
            model.step()
        model.close()
    model = rig.load()
    answered(model.ask(words(8)))
    model.close()
    return "closed after 0, 1 and 2 steps with all slots taken; loaded again, it answers"

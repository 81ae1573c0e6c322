"""Checks of the two calls that come from another thread at any time, and of bounds while jobs run."""

from __future__ import annotations

import threading
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from granville.testing.conformance.checks import Fail, check
from granville.testing.conformance.ledger import a, difference, shown
from granville.testing.conformance.rig import Rig, Watched, answered, words

EVERY_S = 0.001
RARER = 1.5
RAREST_S = 1.0
"""Each interrupt comes later after the one before than that did: a step that is always interrupted gets nowhere."""
STATS_LIMIT_S = 0.5
"""At once, with room for a machine that has other things to do and for a backend that holds Python's lock."""
JOIN_S = 10.0
ROUNDS = 3


@contextmanager
def called_meanwhile(
    rig: Rig, name: str, call: Callable[[], None], rarer: float = 1.0
) -> Iterator[list[tuple[float, float]]]:
    """Call it from another thread again and again while the body runs. Yields when the calls began and ended. Fails
    when one raises or does not return."""
    calls: list[tuple[float, float]] = []
    raised: list[BaseException] = []
    stop = threading.Event()

    def again() -> None:
        every_s = EVERY_S
        while not stop.is_set():
            began = time.perf_counter()
            try:
                call()
            except Exception as error:  # noqa: BLE001  # whatever the driver raises is told
                raised.append(error)
                return
            calls.append((began, time.perf_counter()))
            stop.wait(every_s)
            every_s = min(every_s * rarer, RAREST_S)

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        with rig.beside(f"while another thread calls {name}"):
            yield calls
    finally:
        stop.set()
        thread.join(JOIN_S)
    if thread.is_alive():
        raise Fail(f"{name} from another thread had not returned {JOIN_S:g} s after the last step")
    if raised:
        kind = type(raised[0]).__name__
        raise Fail(f"{name} from another thread raised {kind} while the model was stepped: {raised[0]}")


def _jobs(rig: Rig, model: Watched) -> list[str]:
    """The texts of a few rounds of jobs in all slots."""
    found = []
    for number in range(ROUNDS):
        jobs = [model.submit(rig.task(words(32, start=number + other))) for other in range(model.slots)]
        found += [answered(job).text for job in model.until_ended(*jobs)]
    return found


@check(
    "interrupt",
    group="threads",
    right="interrupt() may come from any thread at any time, ends a step early, and changes no answer",
    where="interface: Model.interrupt",
    needs=("all-slots",),
    text=False,
)
def interrupt(rig: Rig) -> str:
    """interrupt() from another thread while the model is stepped"""
    model = rig.model
    rig.call("interrupt()", model.raw.interrupt)
    plain, again = _jobs(rig, model), _jobs(rig, model)
    ends: list[float] = []
    rig.step_ends = ends
    with called_meanwhile(rig, "interrupt()", model.raw.interrupt, RARER) as calls:
        interrupted = _jobs(rig, model)
    rig.step_ends = None
    if plain == again != interrupted:
        changed = next((one, two) for one, two in zip(plain, interrupted, strict=True) if one != two)
        raise Fail(f"an answer without interrupts and the one with them differ {difference(*changed)}")
    answered(model.ask(words(8)))
    late = [ends[after] - began for began, _ in calls if (after := bisect(ends, began)) < len(ends)]
    slowest = f"; the step ended at most {max(late) * 1000:.1f} ms later" if late else ""
    return f"{len(calls)} calls while {len(interrupted)} jobs ran{slowest}"


@check(
    "stats",
    group="threads",
    right=f"stats() gives a mapping of names to numbers or text, from any thread, at once (here: {STATS_LIMIT_S:g} s)",
    where="interface: Model.stats",
    needs=("all-slots",),
    text=False,
)
def stats(rig: Rig) -> str:
    """stats() from another thread while the model is stepped"""
    model = rig.model
    found: list[Mapping[str, int | float | str]] = [rig.call("stats()", model.raw.stats)]
    with called_meanwhile(rig, "stats()", lambda: found.append(model.raw.stats())) as calls:
        _jobs(rig, model)
    for figures in found:
        if not isinstance(figures, Mapping):
            raise Fail(f"stats() gave {a(figures)}, not a mapping")
        if rig.abi != "python" and "error" in figures:
            raise Fail(f"what stats() wrote cannot be read: {figures['error']}")
        for name, figure in figures.items():
            if not isinstance(name, str) or not isinstance(figure, int | float | str):
                raise Fail(f"stats() has {shown(name)}: {shown(figure)}; names are text, figures numbers or text")
    slowest = max((ended - began for began, ended in calls), default=0.0)
    if slowest > STATS_LIMIT_S:
        raise Fail(f"stats() took {slowest:.2f} s while the model was stepped")
    named = ", ".join(sorted(found[-1])[:4])
    return f"{len(calls)} calls, the slowest {slowest * 1000:.1f} ms: {named or 'no figures'}"


@check(
    "limit-cache",
    group="threads",
    right="limit_cache() may come between any two steps, and the jobs that run go on",
    where="interface: Model.limit_cache",
    needs=("all-slots",),
    text=False,
)
def limit_cache(rig: Rig) -> str:
    """limit_cache() to nothing and back while jobs run"""
    model = rig.model
    for limit in (0, 1 << 20, 0, 64 << 20):
        jobs = [model.submit(rig.task(words(32, start=other))) for other in range(model.slots)]
        model.step()
        model.limit_cache(limit)
        model.until_ended(*jobs)
        for job in jobs:
            answered(job)
    return "to 0, 1 MiB, 0 and 64 MiB with jobs running"

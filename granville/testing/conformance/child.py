"""The process in which a driver is checked: `python -m granville.testing.conformance.child PLAN`.

What it finds goes to the process that started it, line by line on standard output, so that nothing is lost when the
driver brings it down. It ends when that process does.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import sys
import threading
from collections.abc import Callable

import msgspec

from granville.testing.conformance.checks import Check, Ending, Fail, Skip, Warn
from granville.testing.conformance.lines import Began, Done, Found, Line, Plan, encode
from granville.testing.conformance.listing import all_checks
from granville.testing.conformance.report import Verdict
from granville.testing.conformance.rig import Rig, trace

ORPHANED = 70
"""The exit status where whoever started it is gone."""
VERDICTS: dict[type[Ending], Verdict] = {Fail: "fail", Warn: "warn", Skip: "skipped"}


def main(argument: str) -> None:
    plan = msgspec.json.decode(argument, type=Plan)
    out = _own_stdout()
    faulthandler.enable()
    logging.getLogger().addHandler(logging.NullHandler())  # a log in Python is for whoever reads it: it is silent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(line: Line) -> None:
        data = encode(line) + b"\n"
        while data:
            data = data[os.write(out, data) :]

    checks = all_checks()
    rig = Rig(plan, tell)
    verdicts: dict[str, Verdict] = {}
    for name in plan.checks:
        tell(Began(name))
        lacking = checks[name].lacks(verdicts)
        found = Found(name, "skipped", f"it needs {lacking}", lacking) if lacking else _found(checks[name], rig)
        verdicts[name] = found.verdict
        tell(found)
    _let_go(rig, tell, plan)
    tell(Done())


def _own_stdout() -> int:
    """The pipe for our lines; whatever the driver prints goes to stderr."""
    sys.stdout.flush()
    out = os.dup(1)
    os.dup2(2, 1)
    return out


def _end_with_parent() -> None:
    while os.read(0, 4096):
        """Nothing is ever written: the end of the pipe is the end of the parent."""
    os._exit(ORPHANED)


def _found(check: Check, rig: Rig) -> Found:
    """Do one check. Whatever goes wrong in it is a finding; a model in which something went wrong is not used again."""
    try:
        if check.text and not rig.generates:
            raise Skip(f"models of type {rig.plan.type} give values, not text")
        seen = check.run(rig)
    except Skip as skip:
        return Found(check.name, "skipped", skip.seen)
    except Ending as ending:
        detail = ending.detail
        try:
            rig.let_go(close=not detail)
        except Fail as failure:
            detail += (f"and then {failure.seen}",)
        return Found(check.name, VERDICTS[type(ending)], ending.seen, detail=detail)
    except Exception as error:  # noqa: BLE001  # a driver's odd values can trip a check anywhere: that is a finding too
        rig.let_go(close=False)
        return Found(
            check.name, "fail", f"what the driver gave led to {type(error).__name__}: {error}", detail=trace(error)
        )
    return Found(check.name, "pass", seen)


def _let_go(rig: Rig, tell: Callable[[Line], None], plan: Plan) -> None:
    """Close the shared model; that it cannot be closed is told with the last check."""
    try:
        rig.let_go()
    except Fail as failure:
        tell(Found(plan.checks[-1], "fail", failure.seen, detail=failure.detail))


if __name__ == "__main__":
    main(sys.argv[1])

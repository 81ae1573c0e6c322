"""Runs the checks in child processes, one a group, and makes the report; a child that dies or hangs is a finding."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import msgspec

from granville.errors import StartupError
from granville.hosting.fileless import is_fileless
from granville.hosting.manifest import read_manifest
from granville.testing.conformance.checks import RULES, Check
from granville.testing.conformance.defaults import CONTEXT_SIZE, LOAD_TIMEOUT_S, ROUNDS, SLOTS, STEP_TIMEOUT_S
from granville.testing.conformance.lines import (
    About,
    Began,
    Broke,
    Found,
    Judged,
    Lines,
    Plan,
    Returned,
)
from granville.testing.conformance.listing import all_checks
from granville.testing.conformance.places import place_of
from granville.testing.conformance.process import Process
from granville.testing.conformance.report import Finding, Report, Verdict
from granville.testing.conformance.rig import TYPES

MAX_DEATHS = 5
"""After so many children that died or hung the rest is not tried."""
SLOW_STEP_S = 2.0
SHOWN_LINES = 10
TEXT = "This is a text, for drivers that take any file for a model.\n"

Progress = Callable[[Check | Finding], None]
"""Called with a check that begins, and with each finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be checked, and how. See `granville.testing.conformance.check_driver`."""

    driver: str
    model: Path | None = None
    type: str = ""
    """Empty: inference, or what the driver's driver.json names first."""
    options: Mapping[str, object] = field(default_factory=dict)
    rounds: int = ROUNDS
    slots: int = SLOTS
    context_size: int = CONTEXT_SIZE
    step_timeout_s: float = STEP_TIMEOUT_S
    load_timeout_s: float = LOAD_TIMEOUT_S
    only: tuple[str, ...] = ()
    """Names of checks; what they need is done as well. None: all."""


def silent(what: Check | Finding) -> None:
    """A progress that nobody watches."""


async def conform(wish: Wish, progress: Progress = silent) -> Report:
    """Check a driver, in a Trio program. Cancelled, it leaves no process behind. Raises StartupError."""
    wish = replace(wish, type=wish.type or _usual_type(wish.driver))
    checks = _chosen(wish)
    _sensible(wish)
    with tempfile.TemporaryDirectory(prefix="granville-check-") as folder:
        path = wish.model
        if path is None:
            path = Path(folder, "any.txt")
            path.write_text(TEXT)
        run = _Run(wish, path.absolute(), progress)
        for _, group in groupby(checks, key=lambda check: check.group):
            await run.group(list(group))
    return run.report()


def _usual_type(driver: str) -> str:
    """What a driver's models are loaded as, by its driver.json; whatever is wrong with that file is for the check."""
    try:
        named = read_manifest(Path(driver)).capabilities if "/" in driver else ()
    except StartupError:
        named = ()
    return "inference" if "inference" in named or not named else named[0]


def _chosen(wish: Wish) -> list[Check]:
    """The checks that are wished for and those that they need, in their order."""
    known = all_checks()
    unknown = [name for name in wish.only if name not in known]
    if unknown:
        raise StartupError(f"there is no check {unknown[0]!r}; there are {', '.join(known)}")

    def needed(name: str) -> Iterator[str]:
        yield name
        for one in known[name].needs:
            yield from needed(one)

    wanted = {each for name in wish.only or known for each in needed(name)}
    return [check for name, check in known.items() if name in wanted]


def _sensible(wish: Wish) -> None:
    for what, value, least in (
        ("slots", wish.slots, 1), ("rounds", wish.rounds, 0), ("context size", wish.context_size, 0),
    ):  # fmt: skip
        if value < least:
            raise StartupError(f"{what}: must be at least {least}, got {value}")
    if wish.type not in TYPES:
        raise StartupError(f"type: there are checks for {', '.join(TYPES)}, not for {wish.type}")
    if not (wish.step_timeout_s > 0 and wish.load_timeout_s > 0):
        raise StartupError("a timeout must be over 0 s")
    if wish.model is not None and not wish.model.exists() and not is_fileless(wish.model):
        raise StartupError(f"there is no file {wish.model}")


class _Run:
    """One conformance run: what is known so far."""

    def __init__(self, wish: Wish, path: Path, progress: Progress) -> None:
        self.wish = wish
        self.path = path
        self.progress = progress
        self.findings: dict[str, Finding] = {}
        self.broken: dict[str, list[str]] = {}
        self.judged = 0
        self.said: list[str] = []
        """What the driver wrote of itself, in children that ended well."""
        self.ends: list[str] = []
        """Of children that had done all checks and then did not end well."""
        self.steps: list[float] = []
        self.about: dict[str, str] = {}
        self.interruptible: bool | None = None
        self.deaths = 0

    async def group(self, checks: list[Check]) -> None:
        """The checks of a group in one child, and in another from where the first one died."""
        while checks:
            checks = [check for check in checks if not self._skipped(check)]
            if checks:
                died_in = await self._child(checks)
                left = [check.name for check in checks].index(died_in) + 1 if died_in else len(checks)
                checks = checks[left:]

    def _skipped(self, check: Check) -> bool:
        lacking = check.lacks({name: finding.verdict for name, finding in self.findings.items()})
        if lacking:
            self._find(check, "skipped", f"it needs {lacking}", needs=lacking)
        elif self.deaths >= MAX_DEATHS:
            self._find(check, "skipped", f"the driver brought its process down {self.deaths} times")
        return check.name in self.findings

    async def _child(self, checks: list[Check]) -> str | None:
        """Run checks in a child. The name of the one in which it died, None when it did them all."""
        plan = Plan(
            driver=self.wish.driver,
            path=str(self.path),
            any_file=self.wish.model is None,
            type=self.wish.type,
            options=dict(self.wish.options),
            slots=self.wish.slots,
            context_size=self.wish.context_size,
            rounds=self.wish.rounds,
            patience_s=self.wish.step_timeout_s,
            checks=tuple(check.name for check in checks),
        )
        child = Process(plan, self._limit, lambda line: self._take(line, child))
        await child.run()
        if child.done:
            self.said += child.said_lines()
            if child.status:
                self.ends.append(f"{child.ended()}, after {checks[-1].name}")
            return None
        self.deaths += 1
        name = child.check or checks[0].name
        self._find(all_checks()[name], "fail", self._death(child), child.last_words())
        return name

    def _limit(self, call: str | None) -> float:
        if call is None or call.startswith(("load", "find")):
            return self.wish.load_timeout_s
        return self.wish.step_timeout_s

    def _take(self, line: Lines, child: Process) -> None:
        match line:
            case Began(check=name):
                self.progress(all_checks()[name])
            case Found(check=name, verdict=verdict, seen=seen, needs=needs, detail=detail):
                self._find(all_checks()[name], verdict, seen, detail, needs)
            case Broke(rule=rule, seen=seen):
                self.broken.setdefault(rule, []).append(f"{seen} (in the check {child.check})")
            case Judged(events=events):
                self.judged += events
            case Returned(seconds=float() as seconds):
                self.steps.append(seconds)
            case About():
                self.about |= {
                    name: text
                    for name, text in (("name", line.name), ("version", line.version), ("kind", line.kind))
                    if text is not None
                }
                self.interruptible = self.interruptible if line.interruptible is None else line.interruptible

    def _death(self, child: Process) -> str:
        """How a child ended before its time; of a step that hung, whether the model says that it may."""
        words = child.ended()
        if child.hung_s is not None and (child.call or "").startswith("step"):
            says = {
                True: "True, so a step is to be short and to end when it is interrupted",
                False: "False, so a step may be a whole answer, but no longer than --step-timeout",
                None: "unknown",
            }[self.interruptible]
            words += f"; the model's Capabilities.interruptible is {says}"
        return words

    def _find(self, check: Check, verdict: Verdict, seen: str, detail: Sequence[str] = (), needs: str = "") -> None:
        self._keep(
            Finding(
                check=check.name, verdict=verdict, seen=seen, right=check.right, where=check.where, needs=needs,
                detail=tuple(detail),
            )
        )  # fmt: skip

    def _keep(self, finding: Finding) -> None:
        kind = self.about.get("kind", "C" if self.wish.driver.endswith((".so", ".dylib", ".dll")) else "")
        where = place_of(finding.check, finding.where, kind)
        placed = self.findings[finding.check] = msgspec.structs.replace(finding, where=where)
        self.progress(placed)

    def report(self) -> Report:
        for finding in self._watched():
            self._keep(finding)
        return Report(
            driver=self.wish.driver,
            name=self.about.get("name"),
            version=self.about.get("version"),
            kind=self.about.get("kind", ""),
            model=None if self.wish.model is None else str(self.wish.model),
            findings=tuple(self.findings.values()),
        )

    def _watched(self) -> Iterator[Finding]:
        """What was looked at all the while: the rules, the time of a step, and silence."""
        for rule in RULES.values():
            broken = self.broken.get(rule.name, [])
            verdict: Verdict = "fail" if broken else "pass" if self.judged else "skipped"
            seen = f"{self.judged} events" if self.judged else "there were no events"
            if broken:
                times = f"; {len(broken)} times in all" if len(broken) > 1 else ""
                seen = f"{broken[0]}{times}"
            needs = "" if self.judged else "answer"
            yield Finding(check=rule.name, verdict=verdict, seen=seen, right=rule.right, where=rule.where, needs=needs)
        yield self._step_time()
        yield self._silence()
        yield self._end()

    def _step_time(self) -> Finding:
        right = "a step is at most one decode of all running jobs and prefill_ms of prefill (here: 20)"
        where = "interface: Model.step"
        if not self.steps:
            return Finding(
                check="step-time",
                verdict="skipped",
                seen="there were no steps",
                right=right,
                where=where,
                needs="answer",
            )
        longest = max(self.steps)
        typical = sorted(self.steps)[len(self.steps) // 2]
        seen = f"{len(self.steps)} steps, the longest {longest * 1000:.1f} ms, the median {typical * 1000:.2f} ms"
        slow = longest > SLOW_STEP_S and self.interruptible is not False
        if slow:
            seen += ", and Capabilities.interruptible is True: other jobs and a cancel wait for it"
        return Finding(check="step-time", verdict="warn" if slow else "pass", seen=seen, right=right, where=where)

    def _silence(self) -> Finding:
        many = len(self.said)
        common = Counter(self.said).most_common(SHOWN_LINES)
        return Finding(
            check="silence",
            verdict="warn" if many else "pass",
            seen=f"{many} lines on standard output or standard error" if many else "nothing was written",
            right="with ModelSpec.verbose False a driver writes nothing to standard output and standard error",
            where="interface: ModelSpec.verbose",
            detail=tuple(line for line, _ in common),
        )

    def _end(self) -> Finding:
        return Finding(
            check="process-end",
            verdict="fail" if self.ends else "pass",
            seen=self.ends[0] if self.ends else "the processes ended well",
            right="when all models are closed the process ends without a crash, and with the status that it wants to",
            where="interface: Model.close",
        )

"""What a check is, how it ends, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from granville.testing.conformance.report import Verdict

if TYPE_CHECKING:
    from granville.testing.conformance.rig import Rig

MAX_SEEN_CHARACTERS = 600
"""Of a sentence: what a driver raises can be of any length."""

Run = Callable[["Rig"], str]
"""Does the check. What it returns is a sentence: what was seen, and it was right."""


class Ending(Exception):
    """How a check ends that did not see what is right."""

    def __init__(self, seen: str, detail: tuple[str, ...] = ()) -> None:
        super().__init__(seen)
        self.seen = seen if len(seen) <= MAX_SEEN_CHARACTERS else f"{seen[:MAX_SEEN_CHARACTERS]}…"
        self.detail = detail


class Fail(Ending):
    """The driver breaks its promise."""


class Warn(Ending):
    """Allowed, and probably not meant."""


class Skip(Ending):
    """The driver does not say that it can do this."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    group: str
    """The checks of a group share a child process."""
    title: str
    """What is tried, for the progress line and the documents."""
    right: str
    where: str
    """A name in `granville.hosting.interface`, or a heading of docs/drivers.md."""
    run: Run
    needs: tuple[str, ...] = ()
    """Checks without which this one says nothing."""
    text: bool = True
    """Of models that generate text alone."""

    def lacks(self, verdicts: Mapping[str, Verdict]) -> str | None:
        """The check that this one needs and that has not passed."""
        return next((name for name in self.needs if verdicts.get(name, "pass") not in ("pass", "warn")), None)


@dataclass(frozen=True, slots=True)
class Rule:
    """What every event of every check has to keep to."""

    name: str
    right: str
    where: str


CHECKS: list[Check] = []
"""As they were entered; `listing.all_checks` has them in order."""

RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "events",
            "step() returns a list of Token, Audio, Finished, Output, Failed and Parked, with fields of their types",
            "interface: Model.step",
        ),
        Rule(
            "token-text",
            "Token.text is str, whole characters that can be written as UTF-8; errors are never text",
            "interface: Token",
        ),
        Rule(
            "known-jobs",
            "events name jobs that were submitted, by the ids they were submitted with",
            "interface: Model.submit",
        ),
        Rule(
            "one-end",
            "a job ends with one Finished, Output or Failed, and nothing comes after it",
            "docs/drivers.md: What a driver promises",
        ),
        Rule("after-cancel", "once cancel() has returned no event names the job", "interface: Model.cancel"),
        Rule(
            "job-errors",
            "Failed.error is the name of a wire error and Failed.message a sentence for whoever asked",
            "interface: Failed",
        ),
    )
}


def check(
    name: str, *, group: str, right: str, where: str, needs: tuple[str, ...] = (), text: bool = True
) -> Callable[[Run], Run]:
    """Enter a function in the list; its docstring's first line is the title."""

    def enter(run: Run) -> Run:
        assert run.__doc__, name
        title = run.__doc__.strip().splitlines()[0].rstrip(".")
        CHECKS.append(Check(name, group, title, right, where, run, needs, text))
        return run

    return enter

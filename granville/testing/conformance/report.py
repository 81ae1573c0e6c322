"""What a conformance run found: one finding a check, and the words that its author acts on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

import msgspec

Verdict = Literal["pass", "fail", "warn", "skipped"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check, or one rule that was watched all the while."""

    check: str
    verdict: Verdict
    seen: str
    """A sentence: what the driver did, or why it was not asked."""
    right: str = ""
    """What it has to do."""
    where: str = ""
    """Where that is written."""
    needs: str = ""
    """The check that did not pass and without which this one was not done."""
    detail: tuple[str, ...] = ()
    """The end of a traceback, or of what the process wrote on stderr."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    driver: str
    """As it was asked for."""
    name: str | None = None
    version: str | None = None
    """As the driver says them."""
    kind: str = ""
    """What it is written in, and to which ABI."""
    model: str | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing failed. What was skipped did not fail."""
        return bool(self.findings) and not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    def count(self, verdict: Verdict) -> int:
        return sum(finding.verdict == verdict for finding in self.findings)

    @property
    def summary(self) -> str:
        """A line: who was checked, and how many checks ended how."""
        who = f"{self.name} {self.version}" if self.name else self.driver
        counts = {verdict: self.count(verdict) for verdict in ("pass", "fail", "warn", "skipped")}
        words = {"pass": "passed", "fail": "failed", "warn": "with a warning", "skipped": "skipped"}
        said = ", ".join(f"{count} {words[verdict]}" for verdict, count in counts.items() if count)
        return f"{who}{f' ({self.kind})' if self.kind else ''}: {said or 'nothing was checked'}"

    def text(self) -> str:
        """All of it in plain lines, those that passed in one each."""
        return "\n".join(
            [*(line for finding in self.findings for line in lines_of(finding)), *self.left_out, self.summary]
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """A line for each check that others would have needed."""
        needed = Counter(finding.needs for finding in self.findings if finding.needs)
        return tuple(
            f"{count} check{'s' if count > 1 else ''} not done: {'they need' if count > 1 else 'it needs'} {name}"
            for name, count in needed.items()
        )


def lines_of(finding: Finding) -> Iterator[str]:
    """A finding for a pipe or a log: one line, and under it what would be right where it is not; nothing for what was
    not done because another check did not pass."""
    if finding.needs:
        return
    yield f"{finding.verdict:<8} {finding.check:<16} {finding.seen}"
    if finding.verdict in ("fail", "warn"):
        yield f"{'':<8} right: {finding.right} ({finding.where})"
        yield from (f"{'':<8} | {line}" for line in finding.detail)

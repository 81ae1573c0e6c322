"""What a probe says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Verdict = Literal["ok", "note", "warn", "problem"]
"""ok: as it should be. note: a fact, nothing to do. warn: it works, and could be better. problem: it does not work."""
SEVERITY: tuple[Verdict, ...] = ("ok", "note", "warn", "problem")


class Finding(msgspec.Struct, frozen=True):
    section: str
    name: str
    value: str
    verdict: Verdict = "note"
    fix: str = ""
    """What to set or to run: a flag, a command, a sentence."""


def worst(findings: Iterable[Finding]) -> Verdict:
    return max((one.verdict for one in findings), key=SEVERITY.index, default="ok")

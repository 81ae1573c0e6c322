"""All checks, in the order in which they run."""

from __future__ import annotations

from functools import cache

from granville.testing.conformance import jobs, leaks, loading, native, speech, stopping, texts, threads
from granville.testing.conformance.checks import CHECKS, Check

_ORDER = [module.__name__ for module in (loading, native, jobs, speech, stopping, texts, threads, leaks)]


@cache
def all_checks() -> dict[str, Check]:
    """By name."""
    return {check.name: check for check in sorted(CHECKS, key=lambda check: _ORDER.index(check.run.__module__))}

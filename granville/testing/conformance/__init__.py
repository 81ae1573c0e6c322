"""Does a driver keep to the interface? `granville driver check`, and `check_driver` for an author's own tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from granville.testing.conformance.defaults import CONTEXT_SIZE, LOAD_TIMEOUT_S, ROUNDS, SLOTS, STEP_TIMEOUT_S
from granville.testing.conformance.report import Finding, Report

__all__ = ["Finding", "Report", "check_driver"]


def check_driver(
    driver: str,
    *,
    model: str | Path | None = None,
    type: str = "",
    options: Mapping[str, object] | None = None,
    rounds: int = ROUNDS,
    slots: int = SLOTS,
    context_size: int = CONTEXT_SIZE,
    step_timeout_s: float = STEP_TIMEOUT_S,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    only: Sequence[str] = (),
) -> Report:
    """Check a driver as `granville driver check` does, for a test of its author's:

        report = check_driver("./my-driver")
        assert report.passed, report.text()

    `driver` is what `--driver` of `granville serve` takes. Without a `model` it gets a text file. Raises StartupError
    for a wish that makes no sense; whatever the driver does is in the report.
    """
    # Imported here, for the child process imports this package too, and needs none of it.
    import trio

    from granville.testing.conformance.runner import Wish, conform

    wish = Wish(
        driver=driver, model=None if model is None else Path(model), type=type, options=options or {}, rounds=rounds,
        slots=slots, context_size=context_size, step_timeout_s=step_timeout_s, load_timeout_s=load_timeout_s,
        only=tuple(only),
    )  # fmt: skip
    return trio.run(conform, wish)

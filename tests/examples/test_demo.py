"""The demo's workflow: it runs on the demo's own model, and one that does not is a fault."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from granville.cli import demo
from tests.e2e.harness import Daemon


async def test_the_demo_runs_its_workflow(readers: Daemon, folder: Path) -> None:
    shown = io.StringIO()
    assert await demo.run_workflow(Console(file=shown), str(readers.socket), folder / "runs.db") == 0
    assert "crucible run examples/moderation/workflow.yaml" in shown.getvalue()


async def test_a_workflow_that_cannot_be_run_is_not_passed_over(
    readers: Daemon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WORKFLOW", folder / "examples" / "none" / "workflow.yaml")
    assert await demo.run_workflow(Console(file=io.StringIO()), str(readers.socket), folder / "runs.db") != 0

"""One run in this process, from its start or the step that it had reached, to its end: watched, and interrupted by
Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from granville.cli import exits
from granville.cli.crucible.options import open_journal
from granville.cli.crucible.outputs import deliver
from granville.cli.crucible.progress import Progress
from granville.cli.terminal import cancel_on_interrupt, note
from granville.crucible.journal.records import RunRecord
from granville.crucible.running.context import ToolboxFor
from granville.crucible.running.run import Run
from granville.crucible.running.runner import Runner, open_runner
from granville.errors import Cancelled


async def run_here(
    begin: Callable[[Runner], Awaitable[Run]],
    *,
    granville: str,
    journal: Path | None,
    toolbox_for: ToolboxFor | None,
    wait_for_granville_s: float,
    quiet: bool,
) -> RunRecord | None:
    """How the run stands in the end; after Ctrl-C it is interrupted, and None when it had not begun. Raises what
    `begin` raises."""
    run: Run | None = None
    with open_journal(journal) as kept:
        async with cancel_on_interrupt(), open_runner(
            address=granville, journal=kept, toolbox_for=toolbox_for, wait_for_granville_s=wait_for_granville_s,
            max_runs=1,
        ) as runner:  # fmt: skip
            run = await begin(runner)
            with Progress(quiet=quiet) as progress:
                await progress.follow(run.events(deltas=progress.shows_texts))
    return None if run is None else run.record


def conclude(record: RunRecord | None, out: Sequence[str], *, json: bool) -> int:
    """Show what a run has come to; the exit status."""
    if record is None:
        return exits.INTERRUPTED
    if record.state == "finished":
        deliver(record.id, record.outputs or {}, out, json=json)
        return exits.OK
    if record.state == "failed" or record.step:
        print(f"crucible: {' '.join((record.error or record.state).split())}", file=sys.stderr)
    if record.state == "cancelled":
        return exits.status_of(Cancelled(""))
    retry = f" --retry {record.step}" if record.state == "interrupted" and record.step else ""
    note(f"`crucible runs show {record.id}` has its steps; `crucible runs resume {record.id}{retry}` goes on with it")
    if record.state == "interrupted":
        return exits.FAILED if record.step else exits.INTERRUPTED
    return exits.status_of_name(record.error_code)

"""`crucible runs resume`: go on with a run at the step that it had reached."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import trio
from cyclopts import Parameter

from granville.cli.crucible.following import conclude, run_here
from granville.cli.crucible.options import (
    Crucible,
    JournalFile,
    Json,
    Out,
    OwnTools,
    Quiet,
    WaitForGranville,
)
from granville.cli.crucible.outputs import check_out
from granville.cli.crucible.progress import Progress
from granville.cli.terminal import cancel_on_interrupt, note
from granville.client.address import DEFAULT_ADDRESS
from granville.config import DEFAULT_CRUCIBLE_SOCKET
from granville.crucible.client import CrucibleClient, connect_crucible
from granville.crucible.journal.records import RunRecord
from granville.crucible.messages import RunFailed
from granville.crucible.running.failures import Interrupted
from granville.crucible.running.link import WAIT_FOR_GRANVILLE_S
from granville.crucible.running.run import Run
from granville.crucible.running.runner import Runner
from granville.crucible.tools.toolbox import toolboxes
from granville.errors import Cancelled, NoDaemon


def resume(
    id: Annotated[str, Parameter(help="A run's id.")],
    /,
    *,
    retry: Annotated[
        str | None, Parameter(help="A step whose call was cut short, and may have had its effect: make it again.")
    ] = None,
    out: Out = (),
    granville: Annotated[
        str,
        Parameter(env_var="GRANVILLE_SOCKET", help="Where Granville listens, when the run goes on in this process."),
    ] = DEFAULT_ADDRESS,
    tools: OwnTools = (),
    socket: Crucible = DEFAULT_CRUCIBLE_SOCKET,
    journal: JournalFile = None,
    wait_for_granville: WaitForGranville = WAIT_FOR_GRANVILLE_S,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Go on with a run that was interrupted or has failed: steps that have finished are not run again.

    If `crucible serve` is there, the run goes on in it, and Ctrl-C only ends the watching; otherwise it goes on here,
    as with `crucible run`, with the tools that it was allowed when it began.
    """
    check_out(out)
    if journal is None:
        try:
            record = trio.run(partial(_in_the_daemon, socket, id, retry, quiet=quiet))
            return conclude(record, out, json=json)
        except NoDaemon:
            pass

    async def begin(runner: Runner) -> Run:
        return await runner.resume(id, retry=retry)

    work = partial(
        run_here, begin, granville=granville, journal=journal, toolbox_for=toolboxes(tools),
        wait_for_granville_s=wait_for_granville, quiet=quiet,
    )  # fmt: skip
    return conclude(trio.run(work), out, json=json)


async def _in_the_daemon(socket: str, id: str, retry: str | None, *, quiet: bool) -> RunRecord | None:
    """How the run stands in the end; None after Ctrl-C."""
    async with connect_crucible(socket) as client:
        async with cancel_on_interrupt() as scope:
            await _watch(client, id, retry, quiet=quiet)
        if scope.cancelled_caught:
            note(f"the run goes on in the daemon; `crucible runs show {id}` shows it")
            return None
        shown = await client.show(id, full=True)
    return RunRecord(**{name: shown["run"][name] for name in RunRecord.__struct_fields__ if name in shown["run"]})


async def _watch(client: CrucibleClient, id: str, retry: str | None, *, quiet: bool) -> None:
    async with client.resume(id, retry=retry) as run:
        await run.accepted()
        with Progress(quiet=quiet) as progress:
            try:
                await progress.follow(run)
            except (RunFailed, Cancelled, Interrupted):
                return  # its record says it all

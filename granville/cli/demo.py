"""`make demo`: a daemon, requests of all four classes at once, what becomes of each as it happens, and a workflow."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import trio
from rich.console import Console
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from granville.cli.exits import INTERRUPTED
from granville.cli.options import make_request
from granville.cli.private import private_daemon
from granville.cli.program import describe, guarded
from granville.cli.status import make_console, print_status
from granville.cli.terminal import cancel_on_interrupt, printable
from granville.cli.tune import candidate_table, summary, tune_file
from granville.client import Client, connect
from granville.config import DEFAULT_MODEL
from granville.errors import GranvilleError, StartupError
from granville.models.measure import Outcome, Wish
from granville.models.store import obtain
from granville.models.tuned import read_tuning
from granville.wire.messages import Class

SLOTS = 2
TUNED_DRIVER = "granville-llama"
MAX_TOKENS = 32
STOP_S = 30.0
TUNE_S = 120.0
"""After which the demo goes on untuned: the machine has other things to do."""
STREAMED = 8
"""Deltas after which a line, where there is no terminal, shows that the answer streams."""
REFRESH_PER_S = 12
QUESTIONS: tuple[tuple[Class, str], ...] = (
    ("low", "Suggest a title for a page of notes about the sea."),
    ("low", "Write one sentence about autumn."),
    ("low", "Name a colour and say what it is like."),
    ("normal", "What does a librarian do?"),
    ("normal", "How is bread made?"),
    ("normal", "What is a bicycle?"),
    ("high", "Say hello to a new colleague."),
    ("high", "Thank a friend for lunch."),
    ("high", "How do I boil an egg?"),
    ("critical", "Write one line that says that the disk is full."),
    ("critical", "Write one line that says that the meeting begins now."),
    ("critical", "Write one line that says that the door is open."),
)
WORKFLOW = Path(__file__).parents[2] / "examples" / "moderation" / "workflow.yaml"
WORKFLOW_S = 120.0
MESSAGES = ("Does the library open on Sundays?", "Win money now! Click here for a cheap prize, order today!")
_COLOURS = {"critical": "bold red", "high": "yellow", "normal": "green", "low": "blue"}


@dataclass
class Row:
    """One request, and what has become of it. Times in seconds after it was sent."""

    name: str
    priority: Class
    question: str
    state: str = "sent"
    started_s: float | None = None
    ended_s: float | None = None
    place: int | None = None
    """1 for the request that started first."""
    tokens: int = 0
    text: str = ""
    error: GranvilleError | None = None


@dataclass
class Board:
    """All requests, shown as a table that changes on a terminal, and as a line for each event elsewhere."""

    console: Console
    rows: list[Row]
    began: float
    now: Callable[[], float] = trio.current_time
    started: int = 0

    def event(self, row: Row, state: str, detail: str = "") -> None:
        row.state = state
        if not self.console.is_terminal:
            since = self.now() - self.began
            self.console.print(
                f"{since:7.3f} s  {row.name:<11} {state:<9} {detail}".rstrip(), markup=False, soft_wrap=True
            )

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 1), expand=True)
        table.add_column("request", no_wrap=True)
        table.add_column("state", no_wrap=True, width=9)
        for title in ("start", "waited", "took", "tokens"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("answer", no_wrap=True, overflow="ellipsis", ratio=1)
        for row in self.rows:
            table.add_row(
                Text(row.name, _COLOURS[row.priority]),
                Text(row.state, "red" if row.error else "dim" if row.started_s is None else ""),
                "" if row.place is None else f"#{row.place}",
                _seconds(row.started_s),
                _seconds(row.ended_s),
                str(row.tokens or ""),
                Text(row.text or row.question, "" if row.text else "dim italic"),
            )
        return table


def main() -> int:
    """The exit status: 0 when every request was answered, in the right order, and the daemon ended cleanly."""
    console = make_console()
    faults = trio.run(_demo, console)
    if faults is None:
        return INTERRUPTED
    for fault in faults:
        console.print(f"granville: {fault}", style="bold red", markup=False)
    return 1 if faults else 0


async def _demo(console: Console) -> list[str] | None:
    """Everything in its order. What went wrong, in sentences; None after Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="granville-demo-") as directory:
        address = str(Path(directory, "granville.sock"))
        async with cancel_on_interrupt():
            await _tune(console)
            _heading(console, f"starting the daemon: granville serve {DEFAULT_MODEL} --slots {SLOTS}")
            async with _daemon(address, console) as process:
                async with connect(address) as client:
                    _heading(console, f"{len(QUESTIONS)} requests at once, the least urgent first")
                    rows = await _ask_all(client, console)
                    _heading(console, "granville status")
                    print_status(console, await client.status())
                workflow_status = await run_workflow(console, address, Path(directory, "runs.db"))
                _heading(console, "stopping the daemon: SIGTERM")
                process.send_signal(signal.SIGTERM)
                with trio.move_on_after(STOP_S):
                    await process.wait()
            faults = find_faults(rows)
            if workflow_status != 0:
                faults.append(f"the workflow should have ended with 0, and it was {workflow_status}")
            if process.returncode != 0:
                faults.append(f"the daemon should have ended with 0, and it was {process.returncode}")
            elif not faults:
                console.print(f"it has ended with 0: {len(rows)} requests, {len(rows)} answers")
            return faults
    return None


async def _tune(console: Console) -> None:
    """The first time, find what is fastest on this machine; `granville serve` takes it. A demo goes on without."""
    path = await obtain(DEFAULT_MODEL)
    try:
        if read_tuning(path) is not None:
            return
    except (OSError, ValueError) as error:
        console.print(f"an earlier tuning cannot be read: {error}", markup=False)
    _heading(console, f"the first time only, about a minute: granville models tune {DEFAULT_MODEL} --quick")

    def decide(outcome: Outcome) -> bool:
        console.print(candidate_table(outcome.tuning))
        for line in summary(outcome.tuning):
            console.print(line, markup=False)
        return True

    try:
        with trio.move_on_after(TUNE_S) as scope:
            await tune_file(path, TUNED_DRIVER, Wish(quick=True), decide)
        if scope.cancelled_caught:
            console.print(
                f"it took more than {TUNE_S:.0f} s: is the machine busy? The demo goes on untuned", markup=False
            )
    except* StartupError as errors:
        console.print(f"not tuned: {describe(errors.exceptions[0])}", markup=False)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Rule(Text(text, "bold"), align="left"))


def _daemon(address: str, console: Console) -> AbstractAsyncContextManager[trio.Process]:
    arguments = [
        DEFAULT_MODEL, "--socket", address, "--port", "0", "--slots", str(SLOTS),
        "--grace", "0",  # Ctrl-C at the terminal reaches the daemon too
        "--age-after", "300",  # on a slow machine too, the order shown is that of the classes alone
    ]  # fmt: skip
    return private_daemon(arguments, lambda line: console.print(line, markup=False, style="dim", soft_wrap=True))


async def _ask_all(client: Client, console: Console) -> list[Row]:
    """Send every question before the first is answered, and show what happens until the last one is."""
    count = dict.fromkeys(_COLOURS, 0)
    rows = []
    for priority, question in QUESTIONS:
        count[priority] += 1
        rows.append(Row(f"{priority}-{count[priority]}", priority, question))
    board = Board(console, rows, began=trio.current_time())
    with Live(board, console=console, refresh_per_second=REFRESH_PER_S):
        # All rows end together; a row keeps its own error.
        async with trio.open_nursery() as nursery:
            for row in rows:
                await nursery.start(_ask, client, board, row)
    return rows


async def _ask(
    client: Client, board: Board, row: Row, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """One request, from its sending to its end.

    Started by: `_ask_all`, and started once its request is on its way. Ends when: it is answered, or has failed.
    Cancelled by: nobody but Ctrl-C.
    """
    request = make_request(
        text=row.question, priority=row.priority, max_tokens=MAX_TOKENS, temperature=0.0, client="demo"
    )
    sent = trio.current_time()
    try:
        async with client.stream(request) as answer:
            task_status.started()
            await answer.accepted()
            board.event(row, "accepted")
            async for text in answer:
                row.tokens += 1
                row.text = printable(" ".join((row.text + text).split("\n")))
                if row.started_s is None:
                    row.started_s = trio.current_time() - sent
                    board.started += 1
                    row.place = board.started
                    board.event(row, "started", f"as #{row.place}, having waited {_seconds(row.started_s)}")
                elif row.tokens == STREAMED:
                    board.event(row, "streams", f"{row.text!r} ...")
            row.tokens = answer.result.usage.completion_tokens
            row.ended_s = trio.current_time() - sent
            board.event(row, "answered", f"{row.tokens} tokens in {_seconds(row.ended_s)}: {row.text!r}")
    except GranvilleError as error:
        row.error = error
        row.ended_s = trio.current_time() - sent
        row.text = describe(error)
        board.event(row, "failed", row.text)


async def run_workflow(console: Console, address: str, journal: Path) -> int:
    """A workflow on the same daemon, by the command that a person would type. Its exit status."""
    shown = WORKFLOW.relative_to(WORKFLOW.parents[2])
    _heading(console, f"a workflow: crucible run {shown}")
    command = [sys.executable, "-m", "granville.cli.crucible.main", "run", str(WORKFLOW)]
    command += ["--granville", address, "--journal", str(journal)]
    command += ["--input-json", f"messages={json.dumps(MESSAGES)}"]
    with trio.move_on_after(WORKFLOW_S) as scope:
        return (await trio.run_process(command, check=False)).returncode
    assert scope.cancelled_caught
    console.print(f"it was not done after {WORKFLOW_S:.0f} s", markup=False)
    return 1


def find_faults(rows: list[Row]) -> list[str]:
    """What went wrong with the requests, in sentences."""
    faults = [f"{row.name} failed: {describe(row.error)}" for row in rows if row.error]
    faults += [f"{row.name} has an empty answer" for row in rows if not row.error and not row.text.strip()]
    last_low = max((row.place or 0 for row in rows if row.priority == "low"), default=0)
    faults += [
        f"{row.name} was the {row.place}th to start, after every low one"
        for row in rows
        if row.priority == "critical" and (row.place or 0) > last_low
    ]
    return faults


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"


if __name__ == "__main__":
    sys.exit(guarded(main))

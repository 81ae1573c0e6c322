"""`granville models remove`: a model out of the store, or what downloads have left there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from granville.cli import exits
from granville.cli.options import Socket
from granville.client.address import DEFAULT_ADDRESS

DAEMON_ANSWERS_S = 5.0


def remove(
    model: Annotated[
        str | None, Parameter(help="A name that `granville models` lists, or a path in the store.")
    ] = None,
    /,
    *,
    unfinished: Annotated[
        bool, Parameter(negative="", show_default=False, help="Remove what unfinished downloads have left.")
    ] = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="", show_default=False, help="Do not ask.")] = False,
    socket: Socket = DEFAULT_ADDRESS,
) -> int:
    """Remove a model from this disk, with what tuning made of it and what is remembered of it.

    A model is not removed while the daemon at --socket serves it, or while any process of yours has it mapped into its
    memory (on Linux), nor while it is being fetched; nor is a file outside of the folder that `granville models` shows.
    """
    from granville.errors import StartupError
    from granville.models.store import ModelStore

    if (model is None) == (not unfinished):
        raise StartupError("name one model, or give --unfinished for what downloads have left")
    store = ModelStore()
    if model is None:
        return _remove_unfinished(store.folder, yes=yes)
    file = store.find(model)
    if file.path is None:
        raise StartupError(f"{file.name} is not on this disk: there is nothing to remove")
    return _remove_model(file.path, store.folder, socket, yes=yes)


def _remove_model(path: Path, folder: Path, socket: str, *, yes: bool) -> int:
    import trio

    from granville.errors import StartupError
    from granville.models.removal import belongings, remove, require_in_store, users_of

    require_in_store(path, folder)
    real = path.resolve()
    models = trio.run(_served, socket)
    served = next((str(one["id"]) for one in models if Path(str(one["path"])).resolve() == real), None)
    if served is not None:
        raise StartupError(f"{path.name} is served as {served} at {socket}; `granville unload {served}` comes first")
    if users := users_of(path):
        raise StartupError(f"{path.name} is in use by process {', '.join(map(str, users))}; end it first")
    names = ", ".join(one.name for one in belongings(path) if not one.name.startswith("."))
    if not yes and not _confirmed(f"Remove {names} from {path.parent}?", "--yes removes it without asking"):
        return exits.FAILED
    freed = remove(path, folder)
    print(f"removed {names} ({freed / 1e6:.0f} MB)")
    return exits.OK


def _remove_unfinished(folder: Path, *, yes: bool) -> int:
    from granville.cli.terminal import note
    from granville.fetch.parts import remove_unfinished, unfinished
    from granville.models.removal import remove_empty

    found = unfinished(folder)
    busy = [part for part in found if part.under_way]
    for part in busy:
        note(f"{part.name} is being fetched; it stays")
    left = [part for part in found if not part.under_way]
    if not left:
        print("there is nothing unfinished")
        return exits.OK
    total = sum(part.size_bytes for part in left)
    names = ", ".join(part.name for part in left)
    if not yes and not _confirmed(
        f"Remove what is here of {names} ({total / 1e6:.0f} MB)?", "--yes removes it without asking"
    ):
        return exits.FAILED
    for part in left:
        if not remove_unfinished(part):
            note(f"{part.name} is being fetched by now; it stays")
        remove_empty(part.destination.parent, folder)
    print(f"removed what was here of {names} ({total / 1e6:.0f} MB)")
    return exits.OK


def _confirmed(question: str, otherwise: str) -> bool:
    """Ask the person at the terminal. Raises StartupError where there is none."""
    from granville.errors import StartupError

    if not sys.stdin.isatty():
        raise StartupError(f"there is nobody to ask; {otherwise}")
    from rich.prompt import Confirm
    from rich.text import Text

    if Confirm.ask(Text(question), default=False):
        return True
    print("nothing is removed")
    return False


async def _served(socket: str) -> list[dict[str, Any]]:
    """The models of the daemon at the socket. A daemon that is not there serves none."""
    import trio

    from granville.client import connect
    from granville.errors import ConnectionLost, NoDaemon, StartupError

    try:
        with trio.fail_after(DAEMON_ANSWERS_S):
            async with connect(socket) as client:
                return await client.models()
    except (NoDaemon, ConnectionLost):
        return []
    except trio.TooSlowError:
        raise StartupError(f"the daemon at {socket} does not answer: what it serves is not known") from None

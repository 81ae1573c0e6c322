"""`crucible new`: a commented workflow to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, get_args

from cyclopts import Parameter

Kind = Literal["plain", "voice", "rag", "agent"]
KINDS = get_args(Kind)
NEXT = {
    "plain": "crucible run {file} --input who=world",
    "voice": "crucible run {file} --audio question.wav --out answer.wav",
    "rag": "crucible index FOLDER, then crucible run {file} --input folder=FOLDER --input question=…",
    "agent": "crucible run {file} --input task=…",
}


def new(
    name: Annotated[str, Parameter(help="Its name, such as hello. The file is NAME.yaml.")],
    /,
    *,
    kind: Annotated[Kind, Parameter(help="What to start from.")] = "plain",
    dir: Annotated[Path, Parameter(help="Where the file is made.")] = Path(),
) -> None:
    """Write a workflow with a comment on each line, to start from.

    - `plain`: two steps of text.
    - `voice`: a spoken question in, a spoken answer out.
    - `rag`: search in a folder of documents, and an answer with its sources.
    - `agent`: a loop that plans, calls a tool and looks at what came of it, with a bound.

    A file that is there already is left alone.

        crucible new hello
        crucible check hello.yaml
        crucible run hello.yaml --input who=world
    """
    from granville.errors import StartupError

    if not name or name.startswith((".", "-")) or not all(sign.isalnum() or sign in "._-" for sign in name):
        raise StartupError(f"{name!r} is no name for a workflow: take letters, digits and . _ -")
    stem = name.removesuffix(".yaml")
    path = dir / f"{stem}.yaml"
    text = (files("granville.cli.crucible") / "samples" / f"{kind}.yaml").read_text().replace("SAMPLE_NAME", stem)
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise StartupError(f"{path} is there already; it was left alone") from None
    except OSError as error:
        raise StartupError(f"{path}: cannot be written: {error.strerror}") from None
    print(f"{path}: a workflow to start from. Next:")
    print(f"  crucible check {path}")
    print(f"  {NEXT[kind].format(file=path)}")

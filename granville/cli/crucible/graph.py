"""`crucible graph`: a picture of what waits for what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def graph(
    file: Annotated[str, Parameter(help="A workflow in YAML or JSON, or a Python object as FILE.py:NAME.")],
    /,
    *,
    svg: Annotated[Path | None, Parameter(help="Write a picture as SVG to this file; - is stdout.")] = None,
    mermaid: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print a Mermaid flowchart; so it is without an option.")
    ] = False,
) -> None:
    """Draw a workflow: a box for each step, an arrow from what it waits for, frames around groups.

    An arrow into a step with `should_run` carries its condition. The SVG follows the reader's light or dark scheme.

        crucible graph voice.yaml --svg voice.svg
        crucible graph voice.yaml --mermaid >> README.md
    """
    from granville.cli.crucible.loading import load
    from granville.crucible.workflow import drawing
    from granville.crucible.workflow import graph as graphs
    from granville.errors import StartupError

    if svg is not None and mermaid:
        raise StartupError("--svg and --mermaid: one picture at a time")
    workflow, _ = load(file)
    if svg is None:
        print(graphs.mermaid(workflow), end="")
    elif str(svg) == "-":
        print(drawing.svg(workflow), end="")
    else:
        try:
            svg.write_text(drawing.svg(workflow))
        except OSError as error:
            raise StartupError(f"--svg {svg}: cannot be written: {error.strerror}") from None
        print(f"{svg}: {workflow.name}, {len(workflow.steps)} step{'s' if len(workflow.steps) > 1 else ''}")

"""`crucible check`: what is wrong with workflows, and where."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from granville.cli import exits

if TYPE_CHECKING:
    from granville.crucible.workflow.problems import Problem

MAX_SHOWN_CHARS = 120
"""Of a line of context."""


def check(
    *files: Annotated[str, Parameter(help="Workflows in YAML or JSON, or Python objects as FILE.py:NAME.")],
    schema: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print the JSON Schema of workflows, for an editor.")
    ] = False,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", show_default=False, help="Print the problems as a JSON list.")
    ] = False,
) -> int:
    """Read workflows without running anything, and print every problem with its place and what would be right.

    A problem looks like this:

        voice.yaml:14:19: speak.input: there is no `anwser`; did you mean answer?
           14 |   input: "{{ anwser }}"
              |              ^

    Checked are the form, names (unknown ones, and those that are read before a step has put them out), circles, what a
    model type takes, expressions and templates, schemas, the bounds of settings, and the workflows that a workflow
    runs. Tools are not looked for: which there are, a run knows. The exit status is 1 when something is wrong.
    """
    from importlib.resources import files as resources

    from granville.cli.crucible.loading import load
    from granville.crucible.workflow.problems import WorkflowError
    from granville.errors import StartupError

    if schema:
        print((resources("granville.crucible.workflow") / "crucible.schema.json").read_text(), end="")
        return exits.OK
    if not files:
        raise StartupError("which file? For example `crucible check hello.yaml`")
    problems: list[Problem] = []
    for path in files:
        try:
            workflow, _ = load(path)
        except WorkflowError as error:
            problems += error.problems
        else:
            if not as_json:
                print(f"{path}: {workflow.name} is right")
    if as_json:
        print(json.dumps([asdict(problem) for problem in problems], indent=2))
        return exits.FAILED if problems else exits.OK
    for problem in problems:
        print("\n".join(told(problem)), file=sys.stderr)
    if problems:
        print(f"crucible: {len(problems)} problem{'s' if len(problems) > 1 else ''}", file=sys.stderr)
    return exits.FAILED if problems else exits.OK


def told(problem: Problem) -> list[str]:
    """A problem as lines for a person: the sentence, the line of the file, and a mark under its place."""
    from granville.cli.terminal import printable

    line = _line_of(problem)
    if line is None or problem.column is None:
        return [printable(str(problem))]
    shown = printable(line.expandtabs(1))[:MAX_SHOWN_CHARS]
    column = min(problem.column, len(shown) + 1)
    number = f"{problem.line:5}"
    return [printable(str(problem)), f"{number} | {shown}", f"{' ' * len(number)} | {' ' * (column - 1)}^"]


def _line_of(problem: Problem) -> str | None:
    if problem.line is None or not problem.file:
        return None
    try:
        lines = Path(problem.file).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return None  # it was read a moment ago, and is gone: the sentence says what is to be said
    return lines[problem.line - 1] if problem.line <= len(lines) else None

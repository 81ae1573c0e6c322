"""What depends on what in one list of steps."""

from __future__ import annotations

from collections.abc import Sequence

from granville.crucible.workflow.model import Step
from granville.crucible.workflow.reads import readable_paths


def dependencies(steps: Sequence[Step]) -> dict[str, set[str]]:
    """For each step of the list, the steps of the list that must have ended before it starts.

    Those are: all that are listed before it and put out a name that it or a step in it reads, or its own name; those
    that it reads as `steps.<id>`, and those that it `needs`. A step that needs itself or one that is listed later is
    kept as it is written: check.py refuses it. A template that is none reads nothing.
    """
    ids = {step.id for step in steps}
    found: dict[str, set[str]] = {}
    putters: dict[str, set[str]] = {}
    for step in steps:
        read = readable_paths(step)
        before = {path[1] for path in read if path[0] == "steps" and len(path) > 1} & ids
        before |= set(step.needs) & ids
        for name in {path[0] for path in read} | {step.name}:
            before |= putters.get(name, set())
        if any(path == ("steps",) for path in read):
            before |= set(found)
        found[step.id] = before - {step.id}
        putters.setdefault(step.name, set()).add(step.id)
    return found

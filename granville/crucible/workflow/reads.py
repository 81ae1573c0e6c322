"""What a step reads: which of its fields are templates, which are expressions, and the names in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from granville.crucible.workflow.model import ForEach, Instead, Step
from granville.crucible.workflow.templates import Form, TemplateError, is_name, paths

TEMPLATES = ("input", "system", "messages", "documents", "with_", "session", "json_schema")
"""Fields whose strings are templates; beside them `on_error.use` and `repeat.start`."""


@dataclass(frozen=True, slots=True)
class Read:
    """One field of a step that reads names."""

    path: tuple[str | int, ...]
    """Where it stands in the step, by the names of the YAML form."""
    value: Any
    form: Form
    adds: frozenset[str] = frozenset()
    """Names that it sees beside those that its step sees."""
    inside: bool = False
    """It sees what the step's own group puts out."""

    def paths(self) -> set[tuple[str, ...]]:
        """Raises TemplateError."""
        return {path for path in paths(self.value, form=self.form) if path[0] not in self.adds}


def loop_names(step: Step, *, but_item: bool = False) -> frozenset[str]:
    """What `for_each` and `repeat` call their own inside; with `but_item` without what the item is called."""
    names: set[str] = set()
    if step.for_each is not None:
        names |= {"index"}
        if not but_item:
            names |= {step.for_each.name if isinstance(step.for_each, ForEach) else "item"}
    if step.repeat is not None:
        names |= {"round"}
    return frozenset(names)


def own_reads(step: Step) -> Iterator[Read]:
    """The fields of the step itself, without those of the steps in it."""
    inner = loop_names(step)
    items = frozenset[str]() if step.for_each is None else inner - {"round"}
    for name in TEMPLATES:
        value = getattr(step, name)
        if value is not None:
            bare = name == "input" and isinstance(value, str) and is_name(value)
            yield Read((name.rstrip("_"),), value, "expression" if bare else "template", inner)
    if isinstance(step.on_error, Instead):
        yield Read(("on_error", "use"), step.on_error.use, "template", inner)
    if step.should_run is not None:
        yield Read(("should_run",), step.should_run, "expression")
    if step.for_each is not None:
        path = ("for_each", "items") if isinstance(step.for_each, ForEach) else ("for_each",)
        yield Read(path, step.for_each.items if isinstance(step.for_each, ForEach) else step.for_each, "expression")
    if step.repeat is not None:
        yield Read(("repeat", "until"), step.repeat.until, "expression", inner, inside=True)
        yield Read(("repeat", "start"), step.repeat.start, "template", items)
    if step.result is not None:
        yield Read(("result",), step.result, "expression", inner | {"value"}, inside=True)


def names_inside(step: Step) -> set[str]:
    """What is read where the names of its own loop are there; none for a step with a template that is none."""
    try:
        own = [path for read in own_reads(step) if read.adds for path in paths(read.value, form=read.form)]
        return {path[0] for path in own} | {path[0] for one in step.steps or () for path in all_paths(one)}
    except TemplateError:
        return set()


def all_paths(step: Step) -> set[tuple[str, ...]]:
    """What the step and the steps in it read, the names of its own loop left out. Raises TemplateError."""
    found = {path for read in own_reads(step) for path in read.paths()}
    for one in step.steps or ():
        found |= {path for path in all_paths(one) if path[0] not in loop_names(step)}
    return found


def readable_paths(step: Step) -> set[tuple[str, ...]]:
    """The same; none for a step with a template that is none."""
    try:
        return all_paths(step)
    except TemplateError:
        return set()

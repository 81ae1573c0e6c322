"""Everything about a workflow that can be known before a run: names, kinds, fields, order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from granville.crucible.workflow import kinds
from granville.crucible.workflow.fields import field_problems
from granville.crucible.workflow.fitting import is_called, unfit
from granville.crucible.workflow.graph import dependencies
from granville.crucible.workflow.kinds import ANYTHING, Known, in_words
from granville.crucible.workflow.model import MAX_GROUP_DEPTH, MAX_LISTED_STEPS, ForEach, Step, Workflow
from granville.crucible.workflow.problems import Path, Problem
from granville.crucible.workflow.reads import Read, loop_names, names_inside, own_reads
from granville.crucible.workflow.scope import RESERVED, Scope
from granville.crucible.workflow.source import Source
from granville.crucible.workflow.suggest import did_you_mean
from granville.crucible.workflow.templates import TemplateError, compiled, is_template, locate

MAX_ALL_STEPS = 5000
"""Of a workflow and those that it runs, each as often as it is named."""


def problems_of(
    workflow: Workflow, source: Source | None = None, tools: Collection[str] | None = None
) -> list[Problem]:
    """What is wrong with a workflow whose own workflows are in place; none if it can be run.

    `tools` are the names that are known; None: nobody knows them yet, and any name may be right.
    """
    if source is None:
        source = Source(msgspec.to_builtins(workflow, builtin_types=(bytes,)))
    check = _Check(workflow, source, (), tools, set())
    check.whole()
    return check.problems


def listed_steps(steps: Sequence[Step], group: str = "") -> Iterator[tuple[Step, str]]:
    """All steps of a workflow, those of groups after their group, each with the group that it is in."""
    for step in steps:
        yield step, group
        yield from listed_steps(step.steps or (), step.id)


def _count(workflow: Workflow, known: dict[int, int]) -> int:
    """All steps, those of a workflow that is named twice twice. `known` has what has been counted."""
    if id(workflow) not in known:
        steps = [step for step, _ in listed_steps(workflow.steps)]
        others = (step.workflow for step in steps if isinstance(step.workflow, Workflow))
        known[id(workflow)] = len(steps) + sum(_count(other, known) for other in others)
    return known[id(workflow)]


class _Check:
    def __init__(
        self, workflow: Workflow, source: Source, base: Path, tools: Collection[str] | None, checked: set[int]
    ) -> None:
        self._workflow = workflow
        self._source = source
        self._base = base
        self._tools = tools
        self._checked = checked
        """Workflows in workflows that have been looked at."""
        self.problems: list[Problem] = []

    def _tell(self, path: Path, sentence: str, *, key: bool = False, position: int | None = None) -> None:
        self.problems.append(self._source.problem((*self._base, *path), sentence, key=key, position=position))

    def whole(self) -> None:
        workflow = self._workflow
        everyone = list(listed_steps(workflow.steps))
        if len(everyone) > MAX_LISTED_STEPS:
            self._tell(
                ("steps",),
                f"{len(everyone)} steps, groups counted with what is in them; {MAX_LISTED_STEPS} are the most",
            )
            return
        if _count(workflow, {}) > MAX_ALL_STEPS:
            self._tell(("steps",), f"over {MAX_ALL_STEPS} steps with those of the workflows that it runs")
            return
        scope = Scope(
            workflow.inputs,
            {name: kinds.of_input(name, one) for name, one in workflow.inputs.items()},
            everywhere={step.id: group for step, group in everyone},
            inner={step.name: group for step, group in everyone if group},
        )
        self._inputs()
        self._servers()
        self._ids()
        if workflow.session is not None and is_template(workflow.session):
            self._read(Read(("session",), workflow.session, "template"), (), Scope(workflow.inputs, dict(scope.names)))
        self._steps(workflow.steps, scope, (), 1)
        for name, expression in (workflow.outputs or {}).items():
            self._read(Read(("outputs", name), expression, "expression"), (), scope)

    def _inputs(self) -> None:
        for name, one in self._workflow.inputs.items():
            if name in RESERVED:
                self._tell(("inputs", name), "expressions have that name already; choose another", key=True)
            found = kinds.kind_of_value(one.default)
            if one.default is not None and not kinds.fits(found, one.type):
                self._tell(("inputs", name, "default"), f"expected {in_words(one.type)}, got {in_words(found)}")
            if one.required and one.default is not None:
                self._tell(("inputs", name, "required"), "it has a default, so it is never missing", key=True)

    def _servers(self) -> None:
        for name, server in self._workflow.servers.items():
            if (server.command is None) == (server.url is None):
                self._tell(("servers", name), "give either `command`, a list, or `url`")
            elif server.command is not None and not server.command:
                self._tell(("servers", name, "command"), "it is empty; give the program and its arguments")
            elif server.url is not None and not server.url.startswith(("http://", "https://")):
                self._tell(("servers", name, "url"), "expected http://… or https://…")

    def _ids(self) -> None:
        seen: dict[str, Path] = {}
        for step, path in _placed(self._workflow.steps, ()):
            if step.id in seen:
                first = self._source.values.get((*self._base, *seen[step.id], "id"))
                where = f" in line {first.line}" if first else ""
                self._tell(
                    (*path, "id"), f"there is a step `{step.id}`{where} already; ids are used once, groups counted in"
                )
            seen.setdefault(step.id, path)
            if step.name in RESERVED:
                field = "id" if step.output is None else "output"
                self._tell((*path, field), f"expressions have the name `{step.name}` already; choose another")

    def _steps(self, steps: Sequence[Step], scope: Scope, path: Path, depth: int) -> None:
        """Of one list, in its order. `scope` knows at the end what all of them have put out."""
        scope.later = {step.name: step for step in reversed(steps) if step.name not in scope.names}
        self._needs(steps, path)
        for number, step in enumerate(steps):
            scope.reader = step.name
            here = (*path, "steps", number)
            inner = self._group(step, scope, here, depth)
            self._reads(step, scope, inner, here)
            value = ANYTHING
            if (*self._base, *here) not in self._source.broken:
                self._step(step, scope, here)
                value = self._value(step, inner)
            scope.names[step.name] = scope.names[f"steps.{step.id}"] = value
            scope.ended[step.id] = step
            scope.later.pop(step.name, None)

    def _step(self, step: Step, scope: Scope, path: Path) -> None:
        for place, sentence, key in field_problems(step, self._workflow, self._tools):
            self._tell((*path, *place), sentence, key=key)
        self._fitting(step, scope, path)
        if isinstance(step.workflow, Workflow):
            self._workflow_step(step, step.workflow, scope, path)

    def _group(self, step: Step, scope: Scope, path: Path, depth: int) -> Scope:
        """What the inside of a step sees at its end; for a step that is no group, what it sees itself."""
        self._hidden(step, scope, path)
        inner = scope.within()
        inner.names |= dict.fromkeys(loop_names(step), ANYTHING)
        inner.loops = {**scope.loops, **dict.fromkeys(loop_names(step), step.id)}
        inner.repeats = step.repeat is not None
        if step.repeat is not None:
            inner.names |= dict.fromkeys(step.repeat.start, ANYTHING)
            for name in step.repeat.start:
                if step.steps is not None and name not in {one.name for one in step.steps}:
                    self._tell((*path, "repeat", "start", name), f"no step of the group puts `{name}` out", key=True)
        if step.steps:
            if depth >= MAX_GROUP_DEPTH:
                self._tell((*path, "steps"), f"groups in groups, {MAX_GROUP_DEPTH} deep are the most")
            else:
                self._steps(step.steps, inner, path, depth + 1)
        elif step.repeat is not None:
            # A step that repeats itself sees in `until` what it has put out.
            inner.names[step.name] = ANYTHING
        return inner

    def _hidden(self, step: Step, scope: Scope, path: Path) -> None:
        """Where a name means the loop's own, and may have been meant as another's; and the other way round."""
        own = loop_names(step)
        item = step.for_each.name if isinstance(step.for_each, ForEach) else None
        if item is not None and (item in RESERVED or item in loop_names(step, but_item=True)):
            self._tell((*path, "for_each", "name"), f"expressions have the name `{item}` already; choose another")
        for name in sorted((own & names_inside(step) & scope.names.keys()) - scope.loops.keys()):
            place = ("for_each", "name") if name == item else ("repeat",) if name == "round" else ("for_each",)
            ids = [one.id for one in scope.ended.values() if one.name == name]
            other = f"steps.{ids[-1]}.output" if ids else f"inputs.{name}"
            self._tell(
                (*path, *place),
                f"inside of this loop `{name}` is the loop's own and hides `{other}`; choose another name for one of "
                "them",
            )
        if step.name in scope.loops or (step.repeat is not None and step.name in own):
            loop = scope.loops.get(step.name, step.id)
            self._tell(
                (*path, "id" if step.output is None else "output"),
                f"`{step.name}` is what the loop of `{loop}` calls its own; choose another",
            )

    def _reads(self, step: Step, scope: Scope, inner: Scope, path: Path) -> None:
        own = scope.within()
        own.later, own.repeats, own.reader = scope.later, scope.repeats, scope.reader
        own.names |= dict.fromkeys(loop_names(step), ANYTHING)
        if step.steps is None and step.repeat is not None:
            own.names |= dict.fromkeys(step.repeat.start, ANYTHING)
        for read in own_reads(step):
            seen = inner if read.inside else scope if read.form == "expression" and read.path[0] in _OUTSIDE else own
            self._read(read, path, seen)

    def _read(self, read: Read, path: Path, scope: Scope) -> None:
        for place, text in _texts(read.value, (*path, *read.path)):
            if read.form == "expression" and text.strip().startswith("{{"):
                bare = text.strip().removeprefix("{{").removesuffix("}}").strip()
                self._tell(place, f"an expression is written without braces: `{bare}`")
                continue
            if read.form == "template" and not is_template(text):
                continue
            try:
                ready = compiled(text, read.form)
                kinds.of_text(text, read.form, scope.known)
            except TemplateError as error:
                self._tell(place, error.reason, position=error.position)
                continue
            for name in sorted(ready.reads):
                bare_input = read.path == ("input",) and read.form == "expression"
                if name[0] not in read.adds and (wrong := scope.wrong(name, read.adds, bare=bare_input)):
                    self._tell(
                        place, wrong, position=locate(text, name[1] if name[0] == "steps" and name[1:] else name[0])
                    )

    def _needs(self, steps: Sequence[Step], path: Path) -> None:
        ids = {step.id for step in steps}
        for number, step in enumerate(steps):
            for at, name in enumerate(step.needs):
                place = (*path, "steps", number, "needs", at)
                if name == step.id:
                    self._tell(place, "a step cannot need itself")
                elif name not in ids:
                    self._tell(place, f"there is no step `{name}` in this list; {did_you_mean(name, ids - {step.id})}")
        try:
            TopologicalSorter(dependencies(steps)).prepare()
        except CycleError as error:
            chain: list[str] = error.args[1][::-1]
            number = next(at for at, step in enumerate(steps) if step.id == chain[0])
            self._tell(
                (*path, "steps", number, "id"), f"these steps wait for each other in a circle: {' → '.join(chain)}"
            )

    def _kind(self, value: Any, scope: Scope, *, bare: bool = False) -> Known:
        """What a field of a step will be; `anything` for what is wrong and told elsewhere."""
        if not isinstance(value, str):
            kind = kinds.kind_of_value(value)
            return Known(kind, in_words(kind))
        try:
            return kinds.of_text(value, "expression" if bare else "template", scope.known)
        except TemplateError:
            return ANYTHING

    def _value(self, step: Step, inner: Scope) -> Known:
        def of(expression: str) -> Known:
            try:
                return kinds.of_text(expression, "expression", inner.known)
            except TemplateError:
                return ANYTHING

        if step.steps and step.result is None and step.for_each is None:
            return inner.names.get(f"steps.{step.steps[-1].id}", ANYTHING)
        return kinds.of_step(step, of)

    def _fitting(self, step: Step, scope: Scope, path: Path) -> None:
        """Whether what a step is given is what it takes, as far as that is known."""
        if step.for_each is not None:
            items = step.for_each if isinstance(step.for_each, str) else step.for_each.items
            where = ("for_each",) if isinstance(step.for_each, str) else ("for_each", "items")
            found = self._kind(items, scope, bare=True)
            if found.kind not in ("list", "any"):
                hint = f"; `{items} | split` makes a list of a text" if found.kind == "text" else ""
                self._tell((*path, *where), f"it goes through a list, and {is_called(items, found)}{hint}")
        if step.model_type is None:
            return
        for name, sentence in unfit(step, lambda value, bare: self._kind(value, scope, bare=bare)):
            self._tell((*path, name), sentence)

    def _workflow_step(self, step: Step, other: Workflow, scope: Scope, path: Path) -> None:
        place = (*path, "workflow")
        if id(other) not in self._checked:
            self._checked.add(id(other))
            elsewhere = self._source.others.get((*self._base, *place))
            source, base = (self._source, (*self._base, *place)) if elsewhere is None else (elsewhere, ())
            check = _Check(other, source, base, self._tools, self._checked)
            check.whole()
            self.problems += check.problems
        arguments = step.with_ or {}
        for name, value in arguments.items():
            if name not in other.inputs:
                self._tell(
                    (*path, "with", name),
                    f"`{other.name}` has no such input; {did_you_mean(name, other.inputs)}",
                    key=True,
                )
                continue
            found, wanted = self._kind(value, scope), other.inputs[name].type
            if not kinds.fits(found.kind, wanted):
                self._tell(
                    (*path, "with", name),
                    f"`{other.name}` takes {in_words(wanted)} there, and this is {in_words(found.kind)}",
                )
        for name, one in other.inputs.items():
            if name not in arguments and one.is_required:
                at: Path = (*path, "with") if step.with_ is not None else place
                self._tell(at, f"the input `{name}` of `{other.name}` is missing")


_OUTSIDE = ("should_run", "for_each")
"""Fields that are read once for a step, outside of its own loop."""


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """The strings of a field, each with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _texts(item, (*path, number))


def _placed(steps: Sequence[Step], path: Path) -> Iterator[tuple[Step, Path]]:
    for number, step in enumerate(steps):
        here = (*path, "steps", number)
        yield step, here
        yield from _placed(step.steps or (), here)

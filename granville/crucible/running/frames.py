"""Steps in their order: those of a list side by side as their data allow, the items of `for_each`, the rounds of
`repeat`.

A run that is taken up again goes the same way once more: what has ended says at once what it said, and the first step
that has not is where the work begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import trio

from granville.crucible.journal.records import BadOutput
from granville.crucible.running.attempts import Body, kept
from granville.crucible.running.budget import Budget
from granville.crucible.running.context import Context, Entry, Level, Outcome
from granville.crucible.running.events import StepKind
from granville.crucible.running.gang import Gang, open_gang
from granville.crucible.running.inputs import checked_inputs
from granville.crucible.running.keys import inside, numbered
from granville.crucible.running.leaves import DEFAULT_TOOL_TIMEOUT_S, ask_model, call_tool, session_of
from granville.crucible.running.plan import Ended, Frame, in_order_of_turns
from granville.crucible.running.request import kind_of
from granville.crucible.workflow.graph import dependencies
from granville.crucible.workflow.model import MAX_ITEMS, ForEach, Retry, Step, Workflow
from granville.crucible.workflow.templates import TemplateError, evaluate, render, test
from granville.errors import DeadlineExceeded, GranvilleError


class Executor:
    """One workflow of a run: the run's own, or one that a step calls."""

    def __init__(self, context: Context, level: Level) -> None:
        self._context = context
        self._level = level
        self._dependencies: dict[int, dict[str, set[str]]] = {}

    async def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Its outputs. Raises StepFailed, and what stops a run."""
        workflow = self._level.workflow
        scope = {
            **inputs,
            "inputs": dict(inputs),
            "run": {"id": self._context.run_id, "workflow": workflow.name},
            "steps": {},
        }
        frame = self._frame(workflow.steps, scope, self._level.prefix)
        await self._go_through(frame)
        if workflow.outputs is None:
            return {workflow.steps[-1].name: frame.value()}
        seen = frame.scope()
        return {name: _output(name, expression, seen) for name, expression in workflow.outputs.items()}

    def _frame(
        self, steps: Sequence[Step], outer: Mapping[str, Any], prefix: str, start: Mapping[str, Any] | None = None
    ) -> Frame:
        known = self._dependencies.get(id(steps))
        if known is None:
            session = self._level.workflow.session
            known = self._dependencies[id(steps)] = in_order_of_turns(steps, session, dependencies(steps))
        return Frame(steps, known, outer, prefix=prefix, start=start)

    async def _go_through(self, frame: Frame) -> None:
        async with open_gang() as gang:
            self._start_ready(frame, gang)

    def _start_ready(self, frame: Frame, gang: Gang) -> None:
        for step in frame.take_ready():
            gang.start(self._run_step, frame, gang, step)

    async def _run_step(self, frame: Frame, gang: Gang, step: Step) -> None:
        """Started by: the frame, when all that the step reads has ended. Ends when: the step has, and those that
        waited for it are started. Cancelled by: another step's failure, the run's end."""
        frame.end(step.id, await self._step(step, f"{frame.prefix}{step.id}", frame.scope(step)))
        self._start_ready(frame, gang)

    async def _step(self, step: Step, key: str, scope: dict[str, Any]) -> Ended:
        if step.should_run is not None and self._context.progress.ended(key) is None:
            entry = self._entry(step, key)
            try:
                is_wanted = test(step.should_run, scope)
            except GranvilleError as error:
                return await kept(self._context, step, entry, scope, partial(_fail, error))
            if not is_wanted:
                return await self._context.end(entry, Ended("skipped", puts_out=False))
        if step.for_each is None:
            return await self._single(step, key, scope)
        return await kept(self._context, step, self._entry(step, key), scope, partial(self._each, step, key, scope))

    async def _single(self, step: Step, key: str, scope: dict[str, Any]) -> Ended:
        """A step, or an item of its list: with attempts, with `on_error`."""
        if step.repeat is None:
            return await self._act(step, key, scope, self._retry(step))
        body = partial(self._rounds, step, key, scope)
        entry = self._entry(step, key)
        return await kept(
            self._context, step, entry, scope, body, retry=self._retry(step), timeout_s=step.timeout_s
        )  # fmt: skip

    async def _act(
        self, step: Step, key: str, scope: dict[str, Any], retry: Retry | None, *, is_round: bool = False
    ) -> Ended:
        timeout_s = None if is_round else step.timeout_s
        body: Body
        match step.kind:
            case "model":
                body = partial(self._with_result, step, scope, ask_model)
            case "tool":
                body = partial(self._with_result, step, scope, call_tool)
                timeout_s = timeout_s or DEFAULT_TOOL_TIMEOUT_S
            case "workflow":
                body = partial(self._call, step, scope)
            case "group":
                body = partial(self._group, step, scope)
        entry = self._entry(step, key, is_leaf=True)
        async with AsyncExitStack() as held:
            try:
                entry.session = session_of(self._level, step, scope)
            except GranvilleError as error:
                body = partial(_fail, error)
            if entry.session is not None:
                await held.enter_async_context(self._context.session_lock(entry.session))
            elif step.kind == "tool":
                await held.enter_async_context(self._context.tool_places)
            return await kept(
                self._context, step, entry, scope, body, retry=retry, timeout_s=timeout_s, is_tolerant=not is_round
            )

    async def _with_result(self, step: Step, scope: dict[str, Any], leaf: Any, entry: Entry) -> Outcome:
        outcome: Outcome = await leaf(self._context, self._level, step, scope, entry)
        if step.result is not None:
            outcome.value = evaluate(step.result, {**scope, "value": outcome.value})
        return outcome

    async def _group(self, step: Step, scope: dict[str, Any], entry: Entry) -> Outcome:
        assert step.steps is not None
        await self._context.begin(entry)
        frame = self._frame(step.steps, scope, inside(entry.key))
        await self._go_through(frame)
        return Outcome(self._value(step, frame))

    async def _call(self, step: Step, scope: dict[str, Any], entry: Entry) -> Outcome:
        workflow = step.workflow
        assert isinstance(workflow, Workflow), "workflows in workflows are read before a run starts"
        inputs = checked_inputs(workflow, render(step.with_ or {}, scope))
        self._level.budget.start(entry.key)
        await self._context.begin(entry, inputs)
        prefix = inside(entry.key, "/")
        steps, tokens = self._context.progress.spent(prefix)
        name = f"{entry.key} ({workflow.name})"
        async with AsyncExitStack() as held:
            toolbox = self._level.toolbox
            if workflow.servers:
                opened = self._context.toolbox_for(workflow, self._context.folder, self._context.allow)
                toolbox = await held.enter_async_context(opened)
            level = Level(
                workflow=workflow,
                toolbox=toolbox,
                budget=Budget(workflow.limits, name=name, outer=self._level.budget, steps=steps, tokens=tokens),
                prefix=prefix,
                priority=workflow.priority or step.priority or self._level.priority,
            )
            with trio.CancelScope(deadline=self._context.deadline(entry, workflow.timeout_s)):
                value: Any = await Executor(self._context, level).run(inputs)
                if step.result is not None:
                    value = evaluate(step.result, {**scope, "value": value})
                return Outcome(value)
        raise DeadlineExceeded(f"the {workflow.timeout_s:g} s (timeout_s) of {workflow.name} are over")

    async def _each(self, step: Step, key: str, scope: dict[str, Any], entry: Entry) -> Outcome:
        each = step.for_each if isinstance(step.for_each, ForEach) else ForEach(items=str(step.for_each))
        items = evaluate(each.items, scope)
        if not isinstance(items, list | tuple):
            raise BadOutput(f"for_each: expected a list, got {kind_of(items)}, of `{each.items}`")
        if len(items) > MAX_ITEMS:
            raise BadOutput(f"for_each: {len(items)} items, and {MAX_ITEMS} are the most; `{each.items}[:{MAX_ITEMS}]`")
        await self._context.begin(entry)
        values: list[Any] = [None] * len(items)
        numbered_items = iter(enumerate(items))

        async def take_items() -> None:
            """Started by: `_each`, a few. Ends when: no item is left. Cancelled by: an item's failure, the run's
            end."""
            for index, item in numbered_items:
                inner = {**scope, each.name: item, "index": index}
                values[index] = (await self._single(step, numbered(key, index), inner)).value

        async with open_gang() as gang:
            for _ in range(min(each.parallel, len(items))):
                gang.start(take_items)
        return Outcome(values)

    async def _rounds(self, step: Step, key: str, scope: dict[str, Any], entry: Entry) -> Outcome:
        repeat = step.repeat
        assert repeat is not None
        await self._context.begin(entry)
        names: dict[str, Any] = render(repeat.start, scope)
        value = None
        for number in range(repeat.max):
            outer = {**scope, "round": number}
            at = numbered(key, number)
            if step.steps is not None:
                frame = self._frame(step.steps, outer, inside(at), names)
                await self._go_through(frame)
                value = self._value(step, frame)
                names = frame.names()
                seen = frame.scope()
            else:
                value = (await self._act(step, at, {**outer, **names}, None, is_round=True)).value
                names = {**names, step.name: value}
                seen = {**outer, **names}
            if test(repeat.until, {**seen, "value": value}):
                return Outcome(value)
        return Outcome(value, {"exhausted": True})

    def _value(self, step: Step, frame: Frame) -> Any:
        if step.result is None:
            return frame.value()
        return evaluate(step.result, {**frame.scope(), "value": frame.value()})

    def _retry(self, step: Step) -> Retry | None:
        """Its own; the workflow's is for asking a model and for calls that may be repeated."""
        if step.retry is not None or step.kind in ("group", "workflow"):
            return step.retry
        if step.tool is not None and self._is_once(step.tool):
            return None
        return self._level.workflow.retry

    def _is_once(self, tool: str) -> bool:
        try:
            return self._level.toolbox.find(tool).once
        except GranvilleError:  # which the call will meet
            return False

    def _entry(self, step: Step, key: str, *, is_leaf: bool = False) -> Entry:
        """What holds items, or rounds, is a group, whatever is in it."""
        kind: StepKind = "group"
        if step.model_type is not None:
            kind = step.model_type
        elif step.kind != "model":
            kind = step.kind
        holds = not is_leaf and (step.for_each is not None or step.repeat is not None)
        return Entry(key, "group" if holds else kind, self._context.clock())


def top_level(context: Context, workflow: Workflow, toolbox: Any) -> Level:
    steps, tokens = context.progress.spent()
    budget = Budget(workflow.limits, name="the run", steps=steps, tokens=tokens)
    return Level(workflow=workflow, toolbox=toolbox, budget=budget, priority=workflow.priority or "normal")


def _output(name: str, expression: str, seen: Mapping[str, Any]) -> Any:
    """Raises TemplateError, which no step's key is told with: it says which output it was."""
    try:
        return evaluate(expression, seen)
    except TemplateError as error:
        raise TemplateError(f"outputs.{name}: {error.message}") from error


async def _fail(error: GranvilleError, _: Entry) -> Outcome:
    await trio.lowlevel.checkpoint()
    raise error

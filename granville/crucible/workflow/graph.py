"""What depends on what: in one list of steps for a run, and as a picture of the whole for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from granville.crucible.workflow.model import ForEach, Step, Workflow
from granville.crucible.workflow.reads import readable_paths
from granville.crucible.workflow.templates import TemplateError, paths

MAX_LABEL_CHARS = 44
_OUTPUTS = "outputs."
"""No step's id."""


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


@dataclass(frozen=True, slots=True)
class Box:
    """A step, an input or the outputs, as it is drawn."""

    id: str
    kind: str
    """`inference`, `stt`, …, `tool`, `workflow`, `group`, `input` or `outputs`."""
    title: str
    lines: tuple[str, ...] = ()
    """What is written under the title."""
    condition: str = ""
    """`if …`, at the end of the arrows that come in."""
    inner: Picture | None = None
    """Of a group."""


@dataclass(frozen=True, slots=True)
class Picture:
    boxes: tuple[Box, ...]
    arrows: tuple[tuple[str, str], ...]
    """From the id of a box to that of one after it."""


def picture(workflow: Workflow) -> Picture:
    """The steps with what they wait for, the inputs that they read before them, and the outputs after them."""
    inner = _list_of(workflow.steps)
    boxes = [Box(f"inputs.{name}", "input", name, (one.type,)) for name, one in workflow.inputs.items()]
    arrows = list(inner.arrows)
    put_out: set[str] = set()
    for step in workflow.steps:
        for path in sorted(readable_paths(step)):
            name = path[1] if path[0] == "inputs" and len(path) > 1 else path[0] if path[0] not in put_out else ""
            if name in workflow.inputs and (f"inputs.{name}", step.id) not in arrows:
                arrows.append((f"inputs.{name}", step.id))
        put_out.add(step.name)
    boxes += inner.boxes
    outputs = {workflow.steps[-1].name: workflow.steps[-1].name} if workflow.outputs is None else workflow.outputs
    boxes.append(Box(_OUTPUTS, "outputs", "outputs", tuple(_short(name) for name in outputs)))
    arrows += [
        (step.id, _OUTPUTS)
        for step in workflow.steps
        if any(_reads(expression, step) for expression in outputs.values())
    ]
    return Picture(tuple(boxes), tuple(arrows))


def _reads(expression: str, step: Step) -> bool:
    try:
        read = paths(expression, form="expression")
    except TemplateError:
        return False
    return any(path[0] == step.name or path[:2] == ("steps", step.id) for path in read)


def _list_of(steps: Sequence[Step]) -> Picture:
    arrows = [(before, step) for step, found in dependencies(steps).items() for before in sorted(found)]
    return Picture(tuple(_box(step) for step in steps), tuple(arrows))


def _box(step: Step) -> Box:
    lines = []
    if step.tool is not None:
        lines.append(_short(f"tool {step.tool}"))
    elif step.workflow is not None:
        name = step.workflow.name if isinstance(step.workflow, Workflow) else step.workflow
        lines.append(_short(f"workflow {name}"))
    elif step.model_type is not None:
        lines.append(step.model_type + (f" {step.model_id}" if step.model_id else ""))
    if step.for_each is not None:
        each = step.for_each if isinstance(step.for_each, ForEach) else ForEach(items=step.for_each)
        lines.append(_short(f"for each {each.name} in {each.items}"))
    if step.repeat is not None:
        lines.append(_short(f"until {step.repeat.until}"))
        lines.append(f"{step.repeat.max} times at most")
    if step.output is not None and step.output != step.id:
        lines.append(f"→ {step.output}")
    condition = "" if step.should_run is None else _short(f"if {step.should_run}")
    inner = None if step.steps is None else _list_of(step.steps)
    kind = step.model_type or step.kind
    return Box(step.id, kind, step.id, tuple(lines), condition, inner)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_LABEL_CHARS else f"{line[: MAX_LABEL_CHARS - 1]}…"


_SHAPES = {
    "input": ("([", "])"), "outputs": ("([", "])"), "tool": ("[[", "]]"), "workflow": ("[[", "]]"), "stt": ("(", ")"),
    "tts": ("(", ")"),
}  # fmt: skip


def mermaid(workflow: Workflow) -> str:
    """A Mermaid flowchart, as many pages and editors draw it."""
    whole = picture(workflow)
    lines = ["flowchart TD"]
    _mermaid_boxes(whole, lines, "  ", _numbers(whole, {}))
    return "\n".join(lines) + "\n"


def _numbers(one: Picture, numbers: dict[str, str]) -> dict[str, str]:
    """Names that Mermaid takes for none of its words: n0, n1, …"""
    for box in one.boxes:
        numbers[box.id] = f"n{len(numbers)}"
        if box.inner is not None:
            _numbers(box.inner, numbers)
    return numbers


def _mermaid_boxes(one: Picture, lines: list[str], pad: str, numbers: dict[str, str]) -> None:
    for box in one.boxes:
        text = _quoted("<br/>".join(_escaped(part) for part in (box.title, *box.lines)))
        if box.inner is None:
            left, right = _SHAPES.get(box.kind, ("[", "]"))
            lines.append(f"{pad}{numbers[box.id]}{left}{text}{right}")
        else:
            lines.append(f"{pad}subgraph {numbers[box.id]}[{text}]")
            _mermaid_boxes(box.inner, lines, pad + "  ", numbers)
            lines.append(f"{pad}end")
    conditions = {box.id: box.condition for box in one.boxes}
    for start, end in one.arrows:
        label = f"|{_quoted(_escaped(conditions[end]))}|" if conditions[end] else ""
        lines.append(f"{pad}{numbers[start]} -->{label} {numbers[end]}")


def _escaped(text: str) -> str:
    for sign, code in (("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("|", "#124;"), ("`", "#96;")):
        text = text.replace(sign, code)
    return text


def _quoted(text: str) -> str:
    return f'"{text}"'

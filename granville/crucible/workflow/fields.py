"""Which fields a step may have by what it does, and the bounds that the wire's request sets to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from msgspec import inspect

from granville.crucible.workflow.model import Step, Workflow
from granville.crucible.workflow.problems import Path, listed
from granville.crucible.workflow.shape import wrong_value
from granville.crucible.workflow.suggest import did_you_mean
from granville.crucible.workflow.templates import is_template
from granville.errors import BadRequest
from granville.wire.forms import CHOICES, MAX_TOOLS, check_constraint
from granville.wire.messages import Request

DOING = ("model_type", "tool", "workflow", "steps")
"""Exactly one of these says what a step does."""
EVERY = frozenset(
    (
        "id",
        "description",
        "output",
        "should_run",
        "needs",
        "for_each",
        "repeat",
        "retry",
        "timeout_s",
        "on_error",
        "result",
    )
)
_MODEL = frozenset(("input", "model_id", "priority"))
_TEXT = _MODEL | {
    "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "stop",
    "grammar", "json_schema",
}  # fmt: skip
ALLOWED: Mapping[str, frozenset[str]] = {
    "inference": _TEXT | {"session", "tools", "tool_choice"},
    "ranker": _TEXT,
    "stt": _MODEL | {"language"},
    "tts": _MODEL | {"voice", "speed", "language"},
    "embedding": _MODEL,
    "rerank": _MODEL | {"documents", "top"},
    "tool": frozenset(("with",)),
    "workflow": frozenset(("with",)),
    "group": frozenset(),
}
_BOUNDED = (
    "model_id", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "voice", "language",
    "speed",
)  # fmt: skip
_INSTEAD = {
    ("tool", "input"): "a tool's arguments are `with: {…}`",
    ("workflow", "input"): "a workflow's inputs are `with: {…}`",
    ("inference", "with"): "a model reads `input` or `messages`",
    ("tts", "messages"): "it speaks its `input`",
    ("embedding", "documents"): "give the list as `input`",
}


def _without_none(kind: inspect.Type) -> inspect.Type:
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    left = [one for one in kinds if not isinstance(one, inspect.NoneType)]
    return left[0] if len(left) == 1 else kind


_REQUEST = {field.encode_name: _without_none(field.type) for field in inspect.type_info(Request).fields}  # type: ignore[attr-defined]

Found = tuple[Path, str, bool]
"""Where in the step, the sentence, and whether its key is meant."""


def doing(step: Step) -> str:
    """`inference`, `stt`, … for a model step, else `tool`, `workflow` or `group`."""
    return step.model_type or step.kind


def given(step: Step) -> set[str]:
    """The fields that a step has, by their names in the YAML form."""
    return {
        name.rstrip("_")
        for name, default in zip(step.__struct_fields__, _DEFAULTS, strict=True)
        if getattr(step, name) != default
    }


_DEFAULTS = tuple(getattr(Step(id="a"), name) if name != "id" else None for name in Step.__struct_fields__)


def field_problems(step: Step, workflow: Workflow, tools: Collection[str] | None) -> Iterator[Found]:
    """What is wrong with the fields of one step, those of the steps in it left out."""
    has = given(step)
    does = [name for name in DOING if name in has]
    if len(does) != 1:
        if does:
            yield (does[1],), f"not together with `{does[0]}`: a step does one thing", True
        else:
            yield (), f"what does it do? Give it one of {listed(DOING, 'or')}", False
        return
    kind = doing(step)
    for name in sorted(has - EVERY - {does[0]} - ALLOWED[kind]):
        yield (name,), _not_there(kind, name), True
    if step.for_each is not None and step.repeat is not None:
        yield ("repeat",), "not together with `for_each`; put one of them into a group of the other", True
    if step.steps is not None and not step.steps:
        yield ("steps",), "it is empty; a group has one step at least", False
    if step.model_type is not None:
        yield from _model_problems(step, has)
    if step.tool is not None:
        yield from _tool_problem(step.tool, ("tool",), workflow, tools)
    for number, tool in enumerate(step.tools or ()):
        yield from _tool_problem(tool, ("tools", number), workflow, tools)


def _not_there(kind: str, name: str) -> str:
    owners = sorted(other for other, names in ALLOWED.items() if name in names)
    article = "an" if kind in ("inference", "stt", "embedding") else "a"
    hint = _INSTEAD.get((kind, name))
    if hint is None:
        hint = f"it belongs to {', '.join(owners)}"
    return f"{article} {kind} step has none; {hint}"


def _model_problems(step: Step, has: set[str]) -> Iterator[Found]:
    if step.model_type in ("inference", "ranker"):
        if "input" in has and "messages" in has:
            yield ("messages",), "give either `input` or `messages`, not both", True
        elif not has & {"input", "messages"}:
            yield (), '`input` is missing: what to ask, such as `input: "{{ question }}"`', False
    elif "input" not in has:
        hints = {
            "stt": "the sound to hear, such as `input: audio`", "tts": "the text to speak, such as `input: answer`",
            "embedding": "a text or a list of texts", "rerank": "the query that the documents are to answer",
        }  # fmt: skip
        yield (), f"`input` is missing: {hints[str(step.model_type)]}", False
    if step.model_type == "rerank" and "documents" not in has:
        yield (), "`documents` is missing: a list of texts to be scored against `input`", False
    for name in _BOUNDED:
        value = getattr(step, name)
        if name in has and name in _REQUEST and (wrong := wrong_value(value, _REQUEST[name])):
            yield (name,), wrong, False
    yield from _stop_problems(step)
    yield from _form_problems(step)
    if isinstance(step.messages, list):
        yield from _message_problems(step.messages)


def _stop_problems(step: Step) -> Iterator[Found]:
    if step.stop is None:
        return
    wanted = _REQUEST["stop"]
    assert isinstance(wanted, inspect.ListType)
    if wanted.max_length is not None and len(step.stop) > wanted.max_length:
        yield ("stop",), f"{len(step.stop)} of them, and {wanted.max_length} are the most", False
    for number, one in enumerate(step.stop):
        if wrong := wrong_value(one, wanted.item_type):
            yield ("stop", number), wrong, False


def _form_problems(step: Step) -> Iterator[Found]:
    """Of the answer's form, as the wire checks it."""
    schema = step.json_schema
    if isinstance(schema, str) and is_template(schema):
        schema = True
    try:
        check_constraint(step.grammar, schema, list(step.tools) if step.tools is not None else None)
    except BadRequest as error:
        name, _, sentence = error.message.partition(": ")
        yield (name,), sentence, "not together" in sentence
    if step.tools is not None and not 1 <= len(step.tools) <= MAX_TOOLS:
        yield ("tools",), f"{len(step.tools)} of them; 1 to {MAX_TOOLS} can be listed", False
    choice = step.tool_choice
    if choice is not None and step.tools is None:
        yield ("tool_choice",), "there are no `tools` to choose from", True
    elif choice is not None and choice not in (*CHOICES, *(step.tools or ())):
        yield ("tool_choice",), f"expected {', '.join(CHOICES)} or one of its `tools`, got {choice[:80]!r}", False


def _message_problems(messages: list[Any]) -> Iterator[Found]:
    if not messages:
        yield ("messages",), "it is empty; give a list of {role, content}", False
    for number, message in enumerate(messages):
        if isinstance(message, str) and is_template(message):
            continue
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            yield ("messages", number), "a message is a map with `role` and `content`", False
        elif not isinstance(message["role"], str):
            yield ("messages", number, "role"), "expected a text such as user, assistant or system", False


def _tool_problem(name: str, path: Path, workflow: Workflow, tools: Collection[str] | None) -> Iterator[Found]:
    if is_template(name):
        yield path, "a tool's name cannot be a template; use one step for each tool, with `should_run`", False
        return
    server, dot, _ = name.partition(".")
    if dot and server in workflow.servers:
        return
    if tools is None or name in tools or name.startswith(("shell.", "shell:")):  # a command is told by its allowance
        return
    known = [*tools, *(f"{server}.…" for server in workflow.servers)]
    words = did_you_mean(name, known)
    own = "" if words.endswith("?") else "; tools of your own come by --tools FILE"
    yield path, f"there is no tool {name[:80]!r}; {words}{own}", False

"""A model step and what it sees as a request for Granville. Pure, but for `templates.render`, which is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from granville.crucible.journal.records import BadOutput
from granville.crucible.running.progress import Conversation, Turn
from granville.crucible.tools.interface import Tool
from granville.crucible.workflow.model import Step
from granville.crucible.workflow.templates import render, render_input
from granville.errors import BadRequest
from granville.wire.messages import MAX_DOCUMENTS, ChatMessage, Request

SAMPLING = (
    "model_id", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "grammar",
    "language", "voice", "speed",
)  # fmt: skip
"""Fields of a step that are fields of a request, as they are."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that lacks its id and its deadline."""

    fields: dict[str, Any]
    inputs: dict[str, Any]
    """What the step was given, for the journal."""
    documents: Sequence[Any] = ()
    """Of a rerank step, as they were given: the value has them again."""
    is_list: bool = False
    """An embedding step was given a list."""
    said: tuple[Turn, ...] = ()
    """New words of the session, before the answer's."""

    def request(self, id: str, timeout_ms: int | None, *, stream: bool) -> Request:
        """Raises BadRequest for a field that no request has."""
        fields = {**self.fields, "id": id, "timeout_ms": timeout_ms, "stream": stream}
        unknown = fields.keys() - set(Request.__struct_fields__)
        if unknown:
            raise BadRequest(f"{min(unknown)}: this version of Granville's protocol does not have it")
        return Request(**fields)


def ask(
    step: Step, scope: Mapping[str, Any], *, conversation: Conversation | None = None,
    find_tool: Callable[[str], Tool] | None = None,
) -> Ask:  # fmt: skip
    """Raises BadOutput when the step is given what it cannot use, TemplateError, ToolFailed."""
    fields: dict[str, Any] = {"model_type": step.model_type}
    fields |= {name: value for name in SAMPLING if (value := getattr(step, name)) is not None}
    for name in ("json_schema", "tool_choice"):
        if getattr(step, name) is not None:
            fields[name] = render(getattr(step, name), scope)
    if step.stop is not None:
        fields["stop"] = list(step.stop)
    match step.model_type:
        case "stt":
            return _transcribe(step, scope, fields)
        case "tts":
            text = _text(render_input(step.input, scope), "input")
            return Ask(fields | {"text": text}, {"input": text})
        case "embedding":
            return _embed(step, scope, fields)
        case "rerank":
            return _rerank(step, scope, fields)
    return _chat(step, scope, fields, conversation, find_tool)


def _chat(
    step: Step, scope: Mapping[str, Any], fields: dict[str, Any], conversation: Conversation | None,
    find_tool: Callable[[str], Tool] | None,
) -> Ask:  # fmt: skip
    inputs: dict[str, Any] = {}
    said: list[Turn] = []
    system = None if step.system is None else _text(render(step.system, scope), "system")
    if step.messages is not None:
        said = _turns(render(step.messages, scope))
        inputs["messages"] = [{"role": role, "content": content} for role, content in said]
    else:
        text = _text(render_input(step.input, scope), "input")
        said = [("user", text)]
        inputs["input"] = text
    if system is not None:
        inputs["system"] = system
        said.insert(0, ("system", system))
    if step.tools is not None and find_tool is not None:
        fields["tools"] = told_tools(step.tools, find_tool)
        inputs["tools"] = list(step.tools)
    before: list[Turn] = []
    if conversation is not None:
        before = list(conversation.turns)
        if conversation.system is not None and not any(role == "system" for role, _ in said):
            said_first: list[Turn] = [("system", conversation.system)]
        else:
            said_first = [turn for turn in said if turn[0] == "system"]
        messages = [*said_first, *before, *(turn for turn in said if turn[0] != "system")]
    else:
        messages = said
    if conversation is None and len(messages) == 1 and messages[0][0] == "user":
        return Ask(fields | {"text": messages[0][1]}, inputs)
    wire = [ChatMessage(role, content) for role, content in messages]
    return Ask(fields | {"messages": wire}, inputs, said=tuple(said))


def _transcribe(step: Step, scope: Mapping[str, Any], fields: dict[str, Any]) -> Ask:
    audio = render_input(step.input, scope)
    if isinstance(audio, bytes):
        if not audio:
            raise BadOutput("input: the sound is empty; expected the bytes of a WAV, FLAC or MP3 file")
        return Ask(fields | {"audio": audio}, {"input": audio})
    if isinstance(audio, str) and audio:
        return Ask(fields | {"audio_path": audio}, {"input": audio})
    raise BadOutput(f"input: expected sound, as bytes or the path of a file, got {kind_of(audio)}")


def _embed(step: Step, scope: Mapping[str, Any], fields: dict[str, Any]) -> Ask:
    value = render_input(step.input, scope)
    if not isinstance(value, list | tuple):
        text = _text(value, "input")
        return Ask(fields | {"text": text}, {"input": text})
    texts = _documents(value, "input")
    return Ask(fields | {"documents": texts}, {"input": texts}, is_list=True)


def _rerank(step: Step, scope: Mapping[str, Any], fields: dict[str, Any]) -> Ask:
    query = _text(render_input(step.input, scope), "input")
    documents = render(step.documents, scope)
    if not isinstance(documents, list | tuple):
        raise BadOutput(f"documents: expected a list of texts, or of objects with `text`, got {kind_of(documents)}")
    texts = _documents(
        [one.get("text") if isinstance(one, dict) else one for one in documents], "documents"
    )  # fmt: skip
    return Ask(fields | {"text": query, "documents": texts}, {"input": query, "documents": texts}, tuple(documents))


def _documents(values: Sequence[Any], field: str) -> list[str]:
    if len(values) > MAX_DOCUMENTS:
        raise BadOutput(f"{field}: {len(values)} texts, and {MAX_DOCUMENTS} are the most of one step; use for_each")
    return [_text(value, f"{field}[{number}]") for number, value in enumerate(values)]


def _turns(value: Any) -> list[Turn]:
    if not isinstance(value, list | tuple) or not value:
        raise BadOutput(f"messages: expected a list of {{role, content}}, got {kind_of(value)}")
    turns = []
    for number, one in enumerate(value):
        if not isinstance(one, dict) or not isinstance(one.get("role"), str):
            raise BadOutput(f"messages[{number}]: expected {{role, content}}, got {kind_of(one)}")
        turns.append((one["role"], _text(one.get("content"), f"messages[{number}].content")))
    return turns


def _text(value: Any, field: str) -> str:
    """Text as it is, a number, a list or a map as JSON says it."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bytes):
        raise BadOutput(f"{field}: expected text, got {kind_of(value)}")
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadOutput(f"{field}: expected text, got {kind_of(value)}: {error}") from None


def told_tools(names: Sequence[str], find: Callable[[str], Tool]) -> list[dict[str, Any]]:
    """Tools as a request tells of them. Raises ToolFailed."""
    return [
        {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
        for tool in map(find, names)
    ]


def kind_of(value: Any) -> str:
    if value is None:
        return "null (was the step that gives it skipped?)"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)

"""A job as its driver sees it, and its driver's last word as its client sees it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import UNSET

from granville.errors import WIRE_ERRORS, DriverFailed, GranvilleError
from granville.hosting.interface import (
    Constraint,
    Embed,
    Failed,
    Finished,
    Generate,
    Message,
    Output,
    Rerank,
    Sampling,
    Speak,
    Task,
    Tool,
    Transcribe,
    Warm,
)
from granville.scheduling.job import Job
from granville.scheduling.priority import Priority
from granville.scheduling.roster import ModelEntry
from granville.wire.forms import schema_json
from granville.wire.messages import Request, Result, Usage, chat_json
from granville.wire.speech import Heard

IN_WORDS = ("inference", "ranker")
"""Types of models that end with Finished, the others with Output."""
TOOL_IDS = {
    "stt": "__transcript__", "tts": "__audio__", "embedding": "__embedding__", "rerank": "__rerank__",
}  # fmt: skip


def to_task(key: str, job: Job, messages: tuple[Message, ...]) -> Task:
    """`key` is the driver's name for the job, `messages` the conversation that its turn ends, if it has one."""
    request = job.request
    if request.model_type == "embedding":
        return Embed(key, tuple(request.documents or (request.text or "",)))
    if request.model_type == "rerank":
        return Rerank(key, request.text or "", tuple(request.documents or ()))
    if request.model_type == "stt":
        path = None if request.audio_path is None else Path(request.audio_path)
        return Transcribe(key, request.audio, path, request.language, request.words)
    if request.model_type == "tts":
        return Speak(key, request.text or "", request.voice, 1.0 if request.speed is None else request.speed)
    return Generate(
        id=key,
        messages=messages,
        max_tokens=request.max_tokens,
        sampling=Sampling(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
            repeat_penalty=request.repeat_penalty,
            seed=request.seed,
        ),
        stop=tuple(request.stop or ()),
        urgency=int(job.urgency),
        session=request.session_id,
        reset_cache=request.reset_cache,
        constraint=_constraint(request),
        tools=_tools(request),
        tool_choice=str(request.tool_choice or "auto"),
        drop_oldest=request.overflow == "drop_oldest",
        produced=tuple(job.token_ids),
    )


def to_warm(key: str, request: Request, messages: tuple[Message, ...]) -> Warm:
    """What is to be kept of a request that begins like those to come; of its class, or the lowest."""
    return Warm(
        id=key,
        messages=messages,
        session=request.session_id,
        tools=_tools(request),
        tool_choice=str(request.tool_choice or "auto"),
        urgency=int(Priority.LOW if request.priority is None else Priority.of(request.priority)),
    )


def _tools(request: Request) -> tuple[Tool, ...]:
    return tuple(Tool(tool["name"], tool["description"], tool["parameters"]) for tool in request.tools or ())


def _constraint(request: Request) -> Constraint | None:
    if request.grammar is not None:
        return Constraint("gbnf", request.grammar)
    if request.json_schema is not None:
        return Constraint("json_schema", schema_json(request.json_schema))
    return None


def to_result(job: Job, entry: ModelEntry, event: Finished | Output) -> Result | GranvilleError:
    """The result, or DriverFailed when the driver gave something else than it was asked for."""
    used = event.usage
    usage = Usage(used.prompt_tokens, used.cached_tokens, used.completion_tokens, used.dropped_turns or UNSET)
    kind = job.request.model_type
    if isinstance(event, Output) is (kind in IN_WORDS):
        return DriverFailed("the driver gave a value where text was asked for, or text where a value was")
    if isinstance(event, Output):
        try:
            value = _output(job, event)
        except DriverFailed as error:
            return error
        text = chat_json("".join(job.text)) if kind == "stt" else "[]"
        return Result(job.id, entry.id, TOOL_IDS[kind], text, job.priority.wire, "stop", usage, value)
    call = event.call
    return Result(
        id=job.id,
        model_id=entry.id,
        tool_id="__chat__" if call is None else call.name,
        tool_input_json=chat_json("".join(job.text)) if call is None else call.arguments,
        priority=job.priority.wire,
        finish_reason=event.finish_reason,
        usage=usage,
    )


def _output(job: Job, event: Output) -> object:
    """A value as its client gets it. Raises DriverFailed for one that was not asked for."""
    request, value = job.request, event.value
    if request.model_type == "tts":
        if job.sound is None:
            raise DriverFailed("the driver ended a text that it was to speak without any sound")
        return job.sound.file()
    if request.model_type == "stt":
        try:
            return msgspec.convert(value, Heard)
        except msgspec.ValidationError as error:
            raise DriverFailed(f"the driver's output is no transcript: {error}") from None
    asked = len(request.documents or (request.text,))
    if not isinstance(value, list) or len(value) != asked:
        raise DriverFailed(f"the driver gave {len(value)} values where {asked} were asked for")
    # One text asks for one vector, a list of them for a list.
    return value if request.model_type == "rerank" or request.text is None else value[0]


def to_error(event: Failed) -> GranvilleError:
    return WIRE_ERRORS.get(event.error, DriverFailed)(event.message)

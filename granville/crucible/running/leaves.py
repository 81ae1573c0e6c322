"""What a step does that is no group: ask a model, call a tool."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from granville.client import Client
from granville.crucible.running.answers import answer
from granville.crucible.running.context import Context, Entry, Level, Outcome, added_usage
from granville.crucible.running.keys import request_id, wire_session
from granville.crucible.running.link import timeout_ms
from granville.crucible.running.request import Ask, ask
from granville.crucible.running.warming import Hint
from granville.crucible.tools.interface import Call
from granville.crucible.workflow.model import Step
from granville.crucible.workflow.templates import render
from granville.errors import BadRequest, GranvilleError

LONGEST_REQUEST_S = 86_400.0
"""Of a request whose step and run have no deadline: waiting behind 10 000 others may take long."""
DEFAULT_TOOL_TIMEOUT_S = 300.0
"""Of a call whose step says nothing: a tool that hangs does not hold its run for ever."""
SENT_AS_PATH_BYTES = 1 << 20
"""A larger sound file is named to a daemon on the same machine, and read there."""
MAX_SOUND_BYTES = 32 << 20
STREAMED = ("inference", "ranker", "stt")
CHATS = ("inference", "ranker")
CLIENT = "crucible"
"""The name under which the daemon counts what is asked here."""


def session_of(level: Level, step: Step, scope: Mapping[str, Any]) -> str | None:
    """The name, in its run, of the session that a step belongs to. Raises TemplateError, or BadRequest."""
    if step.model_type != "inference":
        return None
    name = render(level.workflow.session if step.session is None else step.session, scope)
    if name is None or name == "":
        return None
    if not isinstance(name, str):
        raise BadRequest(f"session: expected a name, got {name!r:.80}")
    return f"{level.prefix}{name}"


async def ask_model(context: Context, level: Level, step: Step, scope: Mapping[str, Any], entry: Entry) -> Outcome:
    """Raises what Granville answered, BadOutput, and what `ask` raises."""
    conversation = None if entry.session is None else context.progress.conversation(entry.session)
    asked = ask(step, scope, conversation=conversation, find_tool=level.toolbox.find)
    if "audio_path" in asked.fields:
        asked = await _with_sound(context, asked)
    level.budget.start(entry.key)
    await context.begin(entry, asked.inputs)
    request = asked.request(
        request_id(context.run_id, entry.key),
        timeout_ms(LONGEST_REQUEST_S),
        stream=context.feed.readers > 0 and step.model_type in STREAMED,
    )
    priority = step.priority or level.priority
    request = msgspec.structs.replace(
        request,
        priority=priority,
        client=CLIENT,
        session_id=None if entry.session is None else wire_session(context.run_id, entry.session),
    )
    result = await context.link.ask(
        request, run_id=context.run_id, priority=priority, on_delta=lambda text: context.delta(entry.key, text),
        on_wait=lambda reason: context.waits(entry, reason),
    )  # fmt: skip
    usage = {
        "prompt_tokens": result.usage.prompt_tokens,
        "cached_tokens": result.usage.cached_tokens,
        "completion_tokens": result.usage.completion_tokens,
    }
    added_usage(entry, usage)
    level.budget.spend(usage)
    got = answer(step, asked, result)
    return Outcome(got.value, got.more, None if entry.session is None else got.turn)


async def call_tool(context: Context, level: Level, step: Step, scope: Mapping[str, Any], entry: Entry) -> Outcome:
    """Raises ToolFailed, or TemplateError."""
    assert step.tool is not None
    tool = level.toolbox.find(step.tool)
    arguments = render(step.with_ or {}, scope)
    level.budget.start(entry.key)
    await context.begin(entry, arguments, once=tool.once)
    if context.last_session is not None:  # a turn of it is likely to follow
        context.warmer.tell(Hint(level.priority, session_id=wire_session(context.run_id, context.last_session)))
    call = Call(context.run_id, entry.key, await _client(context), context.folder)
    return Outcome(await level.toolbox.call(step.tool, arguments, call))


async def _client(context: Context) -> Client | None:
    """For tools that ask a model themselves. Most do not, so one that cannot be had is no failure yet."""
    try:
        return await context.link.client()
    except GranvilleError:
        return None


async def _with_sound(context: Context, asked: Ask) -> Ask:
    """A path begins in the workflow's folder; a file that is small, or that the daemon cannot open, is sent."""
    if not context.folder.is_absolute():
        raise BadRequest("input: a run that came over the wire names no files; send the sound itself")
    path = context.folder / asked.fields["audio_path"]

    def read() -> bytes | None:
        with open(path, "rb", opener=_open_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise BadRequest(f"input: {path} is no regular file; expected the path of a sound file")
            if about.st_size > SENT_AS_PATH_BYTES and not context.link.address.startswith("tcp://"):
                return None
            data: bytes = file.read(MAX_SOUND_BYTES + 1)
        if len(data) > MAX_SOUND_BYTES:
            size = max(about.st_size, len(data))
            raise BadRequest(f"input: {path} has {size} bytes, and {MAX_SOUND_BYTES} are the most over TCP")
        return data

    try:
        sound: bytes | None = await context.hop(read)
    except (OSError, ValueError) as error:  # ValueError: a NUL, or half a character
        reason = getattr(error, "strerror", None) or error
        raise BadRequest(f"input: {path}: {reason}; expected the path of a sound file") from None
    fields = {name: value for name, value in asked.fields.items() if name != "audio_path"}
    if sound is None:
        return replace(asked, fields=fields | {"audio_path": str(path.absolute())})
    return replace(asked, fields=fields | {"audio": sound})


def _open_at_once(path: str, flags: int) -> int:
    """A FIFO would wait for its writer, and no run could be cancelled meanwhile."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

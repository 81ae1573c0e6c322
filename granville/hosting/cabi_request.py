"""A task as the structure and the JSON that an ABI v2 driver reads."""

from __future__ import annotations

import ctypes
from ctypes import c_int32
from dataclasses import asdict
from typing import Any

import msgspec

from granville.hosting import cabi_types as c
from granville.hosting.interface import Embed, Generate, Rerank, Score

Passable = Generate | Score | Embed | Rerank
"""What there is a structure for."""


def to_request(number: int, task: Passable, *, stops: bool) -> c.Request:
    """It keeps alive what it points to. `stops`: the driver looks for stop strings itself."""
    request = c.Request(struct_size=ctypes.sizeof(c.Request), job=number, kind=kind(task))
    text: str | None
    if isinstance(task, Generate):
        text, rest = task.messages[-1].content, _generate(task, stops=stops)
        request.max_tokens, request.urgency = task.max_tokens, task.urgency
        request.reset_cache, request.drop_oldest = task.reset_cache, task.drop_oldest
        if task.produced:
            request.produced = (c_int32 * len(task.produced))(*task.produced)
            request.produced_count = len(task.produced)
    elif isinstance(task, Score):
        text, rest = task.prompt, {"labels": task.labels}
    elif isinstance(task, Rerank):
        text, rest = task.query, {"documents": task.documents}
    else:
        text, rest = "", {"texts": task.texts}
    request.text, request.text_size = (data := text.encode()), len(data)
    request.json, request.json_size = (data := msgspec.json.encode(rest)), len(data)
    return request


def kind(task: Passable) -> int:
    return {Generate: c.GENERATE, Score: c.SCORE, Embed: c.EMBED, Rerank: c.RERANK}[type(task)]


def asked(task: Passable) -> int:
    """How many values its output has to have."""
    if isinstance(task, Generate):
        return 0
    return len(task.labels if isinstance(task, Score) else task.texts if isinstance(task, Embed) else task.documents)


def _generate(task: Generate, *, stops: bool) -> dict[str, Any]:
    rest: dict[str, Any] = {
        "messages": [
            {"role": one.role, "content": one.content} | ({"token_ids": one.token_ids} if one.token_ids else {})
            for one in task.messages
        ],
        "sampling": asdict(task.sampling),
        "stop": task.stop if stops else (),
    }
    if task.session is not None:
        rest["session"] = task.session
    if task.constraint is not None:
        rest["constraint"] = asdict(task.constraint)
    if task.tools:
        rest["tools"] = [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in task.tools
        ]
        rest["tool_choice"] = task.tool_choice
    return rest

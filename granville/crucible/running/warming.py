"""Telling Granville what comes: beginnings of prompts that a run will need, and sessions that it will go on with.

All of it is at best of use and never needed: what cannot be told is left out, and nobody waits for it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import trio

from granville.client import ChatMessage, Client
from granville.crucible.running.link import Link
from granville.crucible.running.request import told_tools
from granville.crucible.tools.interface import Toolbox
from granville.crucible.workflow.model import Step, Workflow
from granville.crucible.workflow.templates import is_template
from granville.errors import GranvilleError
from granville.wire.messages import Class

log = logging.getLogger(__name__)

TTL_MS = 60_000
AGAIN_S = 30.0
"""The same is not told twice within this."""
MAX_WAITING = 64
"""Hints that wait to be told; more are left out."""
MAX_REMEMBERED = 256
MAX_BEGINNINGS = 8
"""Of one run."""
MIN_CHARS = 80
"""Of a beginning that is worth it: a shorter one is read faster than it is told."""


@dataclass(frozen=True, slots=True)
class Hint:
    priority: Class
    system: str | None = None
    tools: tuple[str, ...] = ()
    tool_choice: str | None = None
    model_id: str | None = None
    session_id: str | None = None


def beginnings(workflow: Workflow, priority: Class) -> list[Hint]:
    """Of the prompts that the run will send later on, those that are known now: a system text without templates. What
    its first steps send, they send themselves at once."""
    priority = workflow.priority or priority
    first = {step.id for step in workflow.steps[:1]}
    found = dict.fromkeys(_hints(workflow.steps, priority, first))
    return list(found)[:MAX_BEGINNINGS]


def _hints(steps: Sequence[Step], priority: Class, left_out: set[str]) -> Iterator[Hint]:
    for step in steps:
        system = step.system
        if step.model_type == "inference" and step.id not in left_out and system is not None:
            choice = step.tool_choice or ""
            if len(system) >= MIN_CHARS and not is_template(system) and not is_template(choice):
                yield Hint(step.priority or priority, system, step.tools or (), choice or None, step.model_id)
        yield from _hints(step.steps or (), priority, set())
        if isinstance(step.workflow, Workflow):
            yield from _hints(step.workflow.steps, step.workflow.priority or priority, set())


class Warmer:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._tell, self._told = trio.open_memory_channel[tuple[Hint, Toolbox | None]](MAX_WAITING)
        self._last: OrderedDict[Hint, float] = OrderedDict()
        self._deaf: Client | None = None
        """A daemon that does not know of it, by its connection."""

    def tell(self, hint: Hint, toolbox: Toolbox | None = None) -> None:
        """Have Granville told, unless it was a moment ago, or too much waits to be told."""
        now = trio.current_time()
        if now - self._last.get(hint, -AGAIN_S) < AGAIN_S:
            return
        try:
            self._tell.send_nowait((hint, toolbox))
        except trio.WouldBlock:
            return
        self._last[hint] = now
        self._last.move_to_end(hint)
        if len(self._last) > MAX_REMEMBERED:
            self._last.popitem(last=False)

    async def run(self) -> None:
        """Started by: the runner. Ends when: never by itself. Cancelled by: the runner's end."""
        async for hint, toolbox in self._told:
            client: Client | None = None
            try:
                client = await self._link.client()
                if client is not self._deaf:
                    await _warm(client, hint, toolbox)
            except GranvilleError as error:
                log.debug("not warmed reason=%s", error)
                if error.code in (400, 422):
                    self._deaf = client


async def _warm(client: Client, hint: Hint, toolbox: Toolbox | None) -> None:
    tools = told_tools(hint.tools, toolbox.find) if hint.tools and toolbox is not None else None
    await client.warm(
        ttl_ms=TTL_MS,
        session_id=hint.session_id,
        messages=None if hint.system is None else [ChatMessage("system", hint.system)],
        model_id=hint.model_id,
        tools=tools,
        tool_choice=hint.tool_choice,
        priority=hint.priority,
    )

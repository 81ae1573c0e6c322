"""Prompts that are kept warm for requests to come (`warm`): on which model, for how long, and what its client is told.

Reading ahead, and room in memory, are the driver's; here is whose turn it would be and when it is over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from granville.errors import GranvilleError, Internal, ShuttingDown
from granville.hosting.floor import StepEvent
from granville.hosting.interface import Failed, Message, Output, Usage, Warm
from granville.nursery.tasks import to_error, to_warm
from granville.scheduling.job import Job
from granville.wire.messages import Control, Request

if TYPE_CHECKING:
    from granville.nursery.desk import Desk
    from granville.nursery.inference import Inference

log = logging.getLogger(__name__)

MAX_WARM = 32
"""Kept at a time, over all models: one more takes the place of the oldest."""
FEATURE = "warm"
KEY = "warm-"
"""Begins a driver's name for one; those of jobs are numbers."""

Reply = Callable[[dict[str, Any] | GranvilleError], None]


@dataclass(eq=False)
class _Wish:
    """One prompt that is kept warm, or will be."""

    key: str
    """The driver's name for it."""
    request: Request
    """What begins like those to come."""
    ends_at: float
    reply: Reply | None
    """How its client is told what became of it; None when it has been."""
    replaces: list[_Wish] = field(default_factory=list)
    """The same asked for before: kept until this one is."""
    model: Inference | None = None
    """None while a turn of its session is here: what that leaves is kept, and where is not known before."""
    model_id: str = ""
    """Where it is, or will be as far as is known."""
    over: trio.Event = field(default_factory=trio.Event)

    def answer(self, state: str, usage: Usage) -> dict[str, Any]:
        tokens = {"prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens}
        return {"ok": True, "model_id": self.model_id, "state": state, **tokens}

    def tell(self, outcome: dict[str, Any] | GranvilleError) -> None:
        reply, self.reply = self.reply, None
        if reply is not None:
            reply(outcome)


class Warming:
    """A task for each wish, beside the models' own, for as long as it is kept."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._wishes: dict[str, _Wish] = {}
        """By key, the oldest first."""
        self._asked = 0

    def ask(self, message: Control, reply: Reply) -> None:
        """A `warm`. `reply` is called once: before this returns, or, where the message wants to wait, later."""
        try:
            self._begin(message, reply)
        except GranvilleError as error:
            reply(error)
        except Exception:
            log.exception("nothing can be kept warm")
            reply(Internal("the daemon failed on this operation"))

    def turn_began(self, job: Job) -> None:
        """What was kept of a session for its next turn has been used."""
        session = job.request.session_id
        if session is not None and self._wishes:
            for wish in self._of(session):
                if wish.model is not None:
                    self._drop(wish)

    def turn_ended(self, job: Job) -> None:
        """Now it is known what the next turn goes on from."""
        session = job.request.session_id
        if session is not None and self._wishes and not self._desk.sessions.at_work(session):
            for wish in self._of(session):
                try:
                    is_kept = self._submit(wish)
                except GranvilleError as error:
                    wish.tell(error)
                    is_kept = False
                if not is_kept:
                    self._drop(wish)

    def take(self, event: StepEvent) -> bool:
        """Whether the event was about a wish."""
        if not event.id.startswith(KEY):
            return False
        wish = self._wishes.get(event.id)
        if wish is None or wish.model is None:
            return True
        if isinstance(event, Output):
            kept = event.value[0] if isinstance(event.value, list) and event.value else 0
            wish.tell(wish.answer("warm" if kept else "cold", event.usage))
            self._end_replaced(wish)
            if not kept:
                self._drop(wish)
        elif isinstance(event, Failed):
            log.info("nothing is kept warm model=%s error=%s", wish.model.entry.id, event.error)
            wish.tell(to_error(event))
            self._drop(wish)
        return True

    def model_ready(self, model: Inference) -> None:
        """It has been loaded again: what it kept is gone."""
        for wish in self._wishes.values():
            if wish.model is model:
                model.warm(self._task(wish, model))

    def model_gone(self, model: Inference) -> None:
        self._end_all([wish for wish in self._wishes.values() if wish.model is model])

    def status(self) -> dict[str, int]:
        stats = [model.stats() for model in self._desk.models]
        return {
            "kept": len(self._wishes),
            "bytes": sum(int(each.get("kv_warm_bytes", 0)) for each in stats),
            "hits": sum(int(each.get("warm_hits", 0)) for each in stats),
        }

    def _begin(self, message: Control, reply: Reply) -> None:
        """Raises the GranvilleError that the client is to be told."""
        desk, request = self._desk, message.prompt
        assert desk.pool is not None
        assert message.ttl_ms is not None
        if desk.admission.closed:
            raise ShuttingDown("the daemon is shutting down; it keeps nothing warm any more")
        self._asked += 1
        wish = _Wish(f"{KEY}{self._asked}", request, trio.current_time() + message.ttl_ms / 1000, reply)
        wish.replaces = [other for other in self._wishes.values() if other.request == request]
        if desk.sessions.at_work(request.session_id):
            wish.model_id = desk.admission.likely(request, FEATURE).id
        elif not self._submit(wish):
            wish.tell(wish.answer("cold", Usage()))
            return
        self._wishes[wish.key] = wish
        if not message.wait:
            wish.tell({"ok": True, "model_id": wish.model_id, "state": "warming"})
        desk.pool.nursery.start_soon(self._keep, wish)
        self._end_all(list(self._wishes.values())[: -MAX_WARM - len(wish.replaces)])

    async def _keep(self, wish: _Wish) -> None:
        """Started by: `ask`. Ends when: its time is over, or it was dropped before. Cancelled by: the kernel's end."""
        with trio.move_on_at(wish.ends_at):
            await wish.over.wait()
        self._drop(wish)

    def _submit(self, wish: _Wish) -> bool:
        """Whether there is anything to keep. Raises what Admission.likely raises."""
        entry = self._desk.admission.likely(wish.request, FEATURE)
        model = next(model for model in self._desk.models if model.entry is entry)
        wish.model_id = entry.id
        task = self._task(wish, model)
        if not task.messages:
            return False
        wish.model = model
        model.warm(task)
        return True

    def _task(self, wish: _Wish, model: Inference) -> Warm:
        request = wish.request
        if request.session_id is None:
            messages = tuple(Message(message.role, message.content) for message in request.messages or ())
        else:
            turns = self._desk.sessions.history(request.session_id, model.entry.id)
            messages = tuple(Message(turn.role, turn.content, turn.token_ids) for turn in turns)
        return to_warm(wish.key, request, messages)

    def _of(self, session: str) -> list[_Wish]:
        return [wish for wish in self._wishes.values() if wish.request.session_id == session]

    def _end_replaced(self, wish: _Wish) -> None:
        replaced, wish.replaces = wish.replaces, []
        self._end_all(replaced)

    def _end_all(self, wishes: list[_Wish]) -> None:
        for wish in list(wishes):
            self._drop(wish)

    def _drop(self, wish: _Wish) -> None:
        """Keep it no longer."""
        if self._wishes.pop(wish.key, None) is None:
            return
        wish.over.set()
        self._end_replaced(wish)
        wish.tell(wish.answer("cold", Usage()))
        if wish.model is not None:
            wish.model.cool(wish.key)

"""The models of the daemon: loaded at start and while it serves, unloaded, and given their share of the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import trio

from granville.errors import (
    BadRequest,
    Conflict,
    DoesNotFit,
    DriverFailed,
    GranvilleError,
    Internal,
    NoModel,
    QueueFull,
    ShuttingDown,
    StartupError,
    UnknownModel,
    Unsupported,
)
from granville.hosting.interface import DriverError
from granville.nursery.inference import Inference
from granville.nursery.stepper import Stepper
from granville.scheduling.memory import KEEPS_STATES, ModelMemory, share
from granville.scheduling.roster import ModelEntry

if TYPE_CHECKING:
    from granville.nursery.desk import Desk
    from granville.wire.messages import Control

log = logging.getLogger(__name__)

FORCE_S = 10.0
"""A model that is unloaded by force and does not end by then is left behind with its thread."""
MAX_OPERATIONS = 64
"""Loads and unloads under way at once."""

Outcome = dict[str, Any] | GranvilleError
Reply = Callable[[Outcome], None]


@dataclass(frozen=True)
class ModelPlan:
    """A model to serve: how it is listed, how it is made to step, and what it will take."""

    entry: ModelEntry
    make_stepper: Callable[[], Stepper]
    need: ModelMemory | None = None
    """None: not known, and not counted."""
    kv_disk_bytes: int = 0
    """Its share of `--kv-disk`."""


@dataclass(frozen=True)
class Order:
    """What `load` asks for. What was not said is None, and then as `serve` has it."""

    model: str
    """`[type:][id:]path[?driver=NAME]`."""
    slots: int | None = None
    context_size: int | None = None


class Planner(Protocol):
    """How a model that is named while the daemon serves becomes a plan; fetches nothing."""

    async def __call__(self, order: Order, kv_ram_bytes: int, kv_disk_bytes: int) -> ModelPlan:
        """Raises StartupError for what is wrong with the name, the file or the driver."""


@dataclass(eq=False)
class _Member:
    plan: ModelPlan
    inference: Inference
    loaded: trio.Event = field(default_factory=trio.Event)
    """Its first load has ended, well or with `failure`."""
    gone: trio.Event = field(default_factory=trio.Event)
    """It is in the roster no longer."""
    failure: GranvilleError | None = None
    unloading: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Pool:
    """One member a model. Its tasks live in the kernel's nursery for models, beside the models' own."""

    def __init__(self, desk: Desk, nursery: trio.Nursery, planner: Planner | None = None) -> None:
        self._desk = desk
        self.nursery = nursery
        self._planner = planner
        self._members: dict[str, _Member] = {}
        self._operations = 0
        desk.pool = self

    async def load_all(self, plans: Sequence[ModelPlan]) -> None:
        """Load the daemon's models, one after another. One that fails is tried again while others serve. Raises
        StartupError when none can be loaded, or when one does not fit into the memory."""
        members = [self._join(plan, persistent=len(plans) > 1) for plan in plans]
        for member in members:
            try:
                await self.nursery.start(self._keep, member)
            except DriverError as error:
                raise StartupError(_sentence(member, error)) from error
            member.loaded.set()
        ready = [member for member in members if member.inference.entry.state == "ready"]
        if members and not ready:
            reasons = "; ".join(_sentence(member, member.inference.entry.last_error) for member in members)
            raise StartupError(f"none of the models could be loaded: {reasons}")

    def ask(self, message: Control, reply: Reply) -> None:
        """A `load` or `unload`; `reply` is called once, when it is done or cannot be."""
        if self._operations >= MAX_OPERATIONS:
            reply(QueueFull(f"{MAX_OPERATIONS} models are being loaded or unloaded", retry_after_ms=1000))
            return
        self._operations += 1
        self.nursery.start_soon(self._operate, message, reply)

    def loaded(self, entry: ModelEntry) -> None:
        """A model is ready, for the first time or again."""
        self._desk.budget.correct(entry.id, entry.memory_bytes)
        self.share_out()

    def share_out(self) -> None:
        """Tell every model how much of cached states it may keep in memory now."""
        kv_ram_bytes = self._desk.cache_share()
        for model in self._desk.models:
            if model.entry.type in KEEPS_STATES:
                model.limit_cache(kv_ram_bytes)

    async def _operate(self, message: Control, reply: Reply) -> None:
        """Started by: `ask`, for a connection's operation. Ends when: it is done, and replied to. Cancelled by: the
        kernel's end."""
        outcome: Outcome
        try:
            outcome = await (self._load(message) if message.op == "load" else self._unload(message))
        except DoesNotFit as error:
            outcome = Unsupported(f"model: {error.message}")
        except StartupError as error:
            outcome = BadRequest(f"model: {error.message}")
        except GranvilleError as error:
            outcome = error
        except Exception:
            log.exception("an operation failed op=%s", message.op)
            outcome = Internal("the daemon failed on this operation")
        finally:
            self._operations -= 1
        reply(outcome)

    async def _load(self, message: Control) -> dict[str, Any]:
        """A model that is there, or is being loaded, is not loaded twice: all who ask for it get the answer."""
        if self._planner is None:
            raise Unsupported("op: this daemon loads no models while it serves")
        assert message.model is not None
        order = Order(message.model, message.slots, message.context_size)
        plan = await self._planner(order, *self._shares())
        if self._desk.admission.closed:
            raise ShuttingDown("the daemon is shutting down; it loads no more models")
        member = self._members.get(plan.entry.id)
        if member is not None:
            _require_same(member, plan, order)
            await member.loaded.wait()
        else:
            member = self._join(plan)
            await self._load_member(member)
        if member.failure is not None:
            raise member.failure
        if member.unloading:
            raise NoModel(f"the model {member.plan.entry.id} was unloaded while it was being loaded")
        return {"model": self._desk.listing(member.inference.entry)}

    async def _load_member(self, member: _Member) -> None:
        entry = member.inference.entry
        try:
            await self.nursery.start(self._keep, member)
        except DriverError as error:
            log.warning("model not loaded model=%s error=%s", entry.id, error)
            member.failure = DriverFailed(_sentence(member, error))
            self._part(member)
        finally:
            member.loaded.set()

    async def _unload(self, message: Control) -> dict[str, Any]:
        """Raises UnknownModel."""
        assert message.model_id is not None
        member = self._members.get(message.model_id)
        if member is None:
            known = ", ".join(self._members) or "none"
            raise UnknownModel(f"model_id: no model {message.model_id!r} here; there are: {known}")
        entry = member.inference.entry
        if not member.unloading:
            log.info("model unloading model=%s running=%d", entry.id, len(entry.running))
            member.unloading = True
            entry.drains = entry.state == "ready"
            entry.state = "unloading"
            self._desk.rescue.vacate(entry.id)
            self.nursery.start_soon(self._wind_up, member)
        if message.force:
            for job in member.inference.jobs():
                self._desk.end(job, NoModel(f"the model {entry.id} has been unloaded while this job was running"))
            with trio.move_on_after(FORCE_S):
                await member.gone.wait()
            if not member.gone.is_set():
                log.error("model left behind model=%s", entry.id)
                member.scope.cancel()
                member.inference.leave_behind()
        await member.gone.wait()
        return {"model_id": entry.id, "state": "unloaded"}

    async def _wind_up(self, member: _Member) -> None:
        """Started by: an unload. Ends when: the model's jobs have ended, and it is closed. Cancelled by: the kernel's
        end."""
        await member.inference.emptied()
        member.inference.close()

    async def _keep(self, member: _Member, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Started by: `load_all`, or a load. Ends when: the model is unloaded or the daemon ends; with DriverError when
        its first load fails. Cancelled by: the kernel's end."""
        with member.scope:
            await member.inference.run(task_status=task_status)
        if member.scope.cancelled_caught and not member.loaded.is_set():
            raise DriverError("it was unloaded by force while it was being loaded")
        if member.unloading:
            self._part(member)

    def _join(self, plan: ModelPlan, *, persistent: bool = False) -> _Member:
        """Raises DoesNotFit, and then nothing has changed."""
        entry = plan.entry
        if plan.need is not None:
            held = self._desk.admission.held.total_bytes
            self._desk.budget.reserve(entry.id, f"{entry.path} ({entry.id})", plan.need, held)
        inference = Inference(entry, self._desk, plan.make_stepper, persistent=persistent)
        member = self._members[entry.id] = _Member(plan, inference)
        self._desk.roster.add(entry)
        self._desk.models.append(inference)
        self._desk.channel.attach(inference)
        return member

    def _part(self, member: _Member) -> None:
        """The model is no more: out of every list, its memory given back."""
        entry = member.inference.entry
        entry.state = "stopped"
        del self._members[entry.id]
        self._desk.roster.remove(entry.id)
        self._desk.models.remove(member.inference)
        self._desk.channel.detach(member.inference)
        self._desk.budget.release(entry.id)
        self._desk.rescue.vacate(entry.id)
        self.share_out()
        member.gone.set()
        log.info("model gone model=%s", entry.id)

    def _shares(self) -> tuple[int, int]:
        """What one model more may keep, in memory and on disk. A share of the disk is a model's for life: one that is
        loaded later gets what others were not given."""
        keepers = 1 + sum(member.plan.entry.type in KEEPS_STATES for member in self._members.values())
        config = self._desk.config
        disk_left = config.kv_disk_bytes - sum(member.plan.kv_disk_bytes for member in self._members.values())
        return share(config.kv_ram_bytes, keepers), min(max(0, disk_left), share(config.kv_disk_bytes, keepers))


def _require_same(member: _Member, plan: ModelPlan, order: Order) -> None:
    """Raises Conflict when a model with the id is here that is not the one asked for."""
    entry = member.inference.entry
    if entry.state == "unloading":
        raise Conflict(f"model: {entry.id} is being unloaded; load it again when that is done")
    for what, have, want in (
        ("path", entry.path, plan.entry.path),
        ("type", entry.type, plan.entry.type),
        ("driver", entry.driver, plan.entry.driver),
        ("slots", entry.slots or None, order.slots),
        ("context_size", entry.context_size or None, order.context_size),
    ):
        if None not in (have, want) and have != want:
            raise Conflict(
                f"model: {entry.id} is loaded with the {what} {have}, not {want}; unload it first, or give this one "
                "another id, as in ID:PATH"
            )


def _sentence(member: _Member, error: object) -> str:
    path, text = member.inference.entry.path, str(error)
    return text if path in text else f"{path}: {text}"

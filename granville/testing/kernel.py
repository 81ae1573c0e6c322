"""A whole kernel in one process and in Trio's time: memory streams for clients, fake models behind it.

Under trio.testing.MockClock(autojump_threshold=0) an hour of inference takes no time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import trio
import trio.testing

from granville.config import ServeConfig
from granville.doors.peer import Peer
from granville.doors.senders import Senders
from granville.doors.transport import HttpxTransport
from granville.hosting.interface import ModelSpec
from granville.nursery.connection import Connection
from granville.nursery.desk import Desk
from granville.nursery.pool import ModelPlan, Order, Pool
from granville.scheduling.memory import ModelMemory
from granville.scheduling.roster import ModelEntry, Roster
from granville.testing.fake import FakeDriver, FakePlan, TrioStepper
from granville.wire.framing import MAX_REPLY_BYTES, FrameReader
from granville.wire.messages import ModelType


class Client:
    """A foreign client: it sends maps and collects what comes back."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._reader = FrameReader(MAX_REPLY_BYTES)
        self._received: list[dict[str, Any]] = []

    async def send(self, *messages: dict[str, Any]) -> None:
        await self.stream.send_all(b"".join(msgpack.packb(message) for message in messages))

    async def receive(self) -> dict[str, Any]:
        """The next message; an AssertionError when the connection has ended or nothing comes for an hour."""
        with trio.fail_after(3600):
            while not self._received:
                data = await self.stream.receive_some(65536)
                assert data, "the daemon closed the connection"
                for value in self._reader.feed(data):
                    assert isinstance(value, dict)
                    self._received.append(value)
        return self._received.pop(0)

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        await self.send(message)
        return await self.receive()

    async def terminal(self) -> dict[str, Any]:
        """The next result or error, deltas and ACKs passed over."""
        while True:
            message = await self.receive()
            if "tool_id" in message or "error" in message:
                return message


class Kernel:
    """The tree of nursery/kernel.py without its doors."""

    def __init__(
        self,
        nursery: trio.Nursery,
        config: ServeConfig,
        drivers: list[FakeDriver],
        slots: int,
        types: Sequence[ModelType],
    ) -> None:
        self.desk = Desk(config, Roster())
        self.drivers = drivers
        self.nursery = nursery
        self._slots = slots
        self._types = types
        self.senders = Senders(config, self.desk.counters, nursery, HttpxTransport())
        self.load_plan = FakePlan()
        """Of models that are loaded while it serves; their drivers are added to `drivers`."""

    async def start_models(self) -> None:
        numbered = enumerate(zip(self.drivers, self._types, strict=True))
        plans = [self._plan(f"fake-{n}", type, "fake.gguf", self._slots, driver) for n, (driver, type) in numbered]
        await Pool(self.desk, self.nursery, self._plan_order).load_all(plans)
        self.nursery.start_soon(self.desk.ranking.run)

    async def _plan_order(self, order: Order, kv_ram_bytes: int, kv_disk_bytes: int) -> ModelPlan:
        """`PATH` or `ID:PATH`, of type inference."""
        await trio.lowlevel.checkpoint()
        id, _, path = order.model.rpartition(":")
        driver = FakeDriver(self.load_plan, sleeps=False)
        self.drivers.append(driver)
        return self._plan(id or f"fake-{path}", "inference", path, order.slots or self._slots, driver)

    def _plan(self, id: str, type: ModelType, path: str, slots: int, driver: FakeDriver) -> ModelPlan:
        spec = ModelSpec(Path(path), slots=slots, type=type)
        stepper = partial(TrioStepper, partial(driver.load, spec))
        need = ModelMemory(driver.plan.weights_bytes) if driver.plan is not None else None
        return ModelPlan(ModelEntry(id, type, path, driver.name), stepper, need)

    def connect(self) -> Client:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._serve, theirs)
        return Client(ours)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        connection = Connection(stream, Peer(None), self.desk, self.senders)
        async with stream:
            await connection.run()

    @property
    def queue(self) -> int:
        return len(self.desk.backlog)


@asynccontextmanager
async def running_kernel(
    *, slots: int = 1, models: int = 1, types: Sequence[ModelType] = (), **settings: Any
) -> AsyncIterator[Kernel]:
    """A kernel for the length of the block, with a model of each of the types or else `models` that generate;
    `settings` are the fields of FakePlan and of ServeConfig."""
    types = types or ["inference"] * models
    plan_fields = {f.name for f in fields(FakePlan)}
    config_fields = {f.name for f in fields(ServeConfig)}
    unknown = settings.keys() - plan_fields - config_fields
    if unknown:
        raise TypeError(f"neither FakePlan nor ServeConfig has {', '.join(sorted(unknown))}")
    plan = FakePlan(**{name: value for name, value in settings.items() if name in plan_fields})
    config = ServeConfig(**{name: value for name, value in settings.items() if name in config_fields})
    async with trio.open_nursery() as nursery:  # the kernel's tasks, all of them
        kernel = Kernel(nursery, config, [FakeDriver(plan, sleeps=False) for _ in types], slots, types)
        await kernel.start_models()
        yield kernel
        nursery.cancel_scope.cancel()


def request(id: str, text: str = "one two three", **more: Any) -> dict[str, Any]:
    return {"id": id, "text": text, **more}

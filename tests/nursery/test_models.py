"""What a model may do to the kernel: fail, hang, load badly; and two models beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from granville.errors import StartupError
from granville.hosting.interface import DriverError, Model, ModelSpec, Task, Token
from granville.nursery.inference import Inference
from granville.nursery.stepper import EventSink
from granville.scheduling.roster import ModelEntry
from granville.testing.fake import FakeDriver, FakeModel, FakePlan
from granville.testing.kernel import request, running_kernel


async def test_a_failing_model_costs_what_was_streamed_and_comes_back() -> None:
    async with running_kernel(slots=2, decode_s=1.0, fault="raise", fault_after_steps=2) as k:
        client = k.connect()
        await client.send(request("streams", stream=True), request("runs"), request("waits", "a"))
        first = await client.terminal()
        assert (first["id"], first["error"], first["code"]) == ("streams", "driver_failed", 502)
        ends = [await client.terminal() for _ in range(2)]
        assert [(end["id"], end["tool_input_json"]) for end in ends] == [
            ("waits", '["a"]'),
            ("runs", '["one two three"]'),
        ]
        assert k.drivers[0].loads == 2
        (listing,) = (await client.ask({"op": "models"}))["models"]
        assert (listing["state"], listing["restarts"]) == ("ready", 1)


async def test_back_off_grows_between_failures() -> None:
    async with running_kernel(decode_s=1.0, fault="raise", fault_word="poison") as k:
        client = k.connect()
        gaps = []
        for n in range(4):
            await client.send(request(f"p{n}", "poison"))
            assert (await client.terminal())["code"] == 502
            lost_at = trio.current_time()
            await client.send(request(f"g{n}", "a"))
            assert (await client.terminal())["id"] == f"g{n}"
            gaps.append(trio.current_time() - lost_at)
        assert gaps[1] > gaps[0]
        assert gaps[3] > 2 * gaps[0]


async def test_other_models_go_on_while_one_is_down() -> None:
    async with running_kernel(models=2, decode_s=1.0, fault="raise", fault_word="poison") as k:
        client = k.connect()
        await client.send(request("bad", "poison", model_id="fake-0"), request("good", "a b c", model_id="fake-1"))
        ends = {(m := await client.terminal())["id"]: m for _ in range(2)}
        assert ends["bad"]["code"] == 502
        assert ends["good"]["model_id"] == "fake-1"
        assert k.desk.health()["healthy"] is True


async def test_the_least_busy_model_takes_the_job() -> None:
    async with running_kernel(models=2, slots=2, decode_s=1.0) as k:
        client = k.connect()
        await client.send(*(request(str(n), "a b c") for n in range(4)))
        ends = [await client.terminal() for _ in range(4)]
        assert sorted(end["model_id"] for end in ends) == ["fake-0", "fake-0", "fake-1", "fake-1"]


async def test_a_driver_can_fail_one_job_alone() -> None:
    async with running_kernel(slots=2, decode_s=1.0, fault="fail_job", fault_word="poison") as k:
        client = k.connect()
        await client.send(request("bad", "poison"), request("good", "a b"))
        ends = {(m := await client.terminal())["id"]: m for _ in range(2)}
        assert ends["bad"]["code"] == 502
        assert ends["good"]["tool_input_json"] == '["a b"]'
        assert k.drivers[0].loads == 1


async def test_a_hanging_model_is_not_healthy_and_its_clients_are_told() -> None:
    async with running_kernel(decode_s=1.0, fault="hang", fault_word="poison", stall_s=30, timeout_s=60) as k:
        client = k.connect()
        assert k.desk.health()["healthy"] is True
        await client.send(request("bad", "poison"))
        await client.receive()
        await trio.sleep(29)
        assert k.desk.health()["healthy"] is True
        await trio.sleep(2)
        health = k.desk.health()
        assert (health["healthy"], health["stalled"]) == (False, ["fake-0"])
        late = await client.receive()
        assert (late["id"], late["code"]) == ("bad", 408)


async def test_an_idle_model_is_healthy_however_long() -> None:
    async with running_kernel(stall_s=30) as k:
        await trio.sleep(10_000)
        assert k.desk.health()["healthy"] is True


async def test_a_model_that_cannot_be_loaded_cannot_start() -> None:
    with pytest.RaisesGroup(StartupError, flatten_subgroups=True, allow_unwrapped=True):
        async with running_kernel(load_error="this is no model"):
            pytest.fail("the kernel started")


async def test_text_that_cannot_be_sent_costs_its_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_kernel(slots=2, decode_s=1.0) as k:
        emit = FakeModel._emit

        def emit_half_a_character(self: FakeModel, job: Any, count: int) -> None:
            if job.words[0] == "bad":
                self._events.append(Token(job.request.id, "\ud800"))
            emit(self, job, count)

        monkeypatch.setattr(FakeModel, "_emit", emit_half_a_character)
        client = k.connect()
        await client.send(request("bad", "bad"), request("good", "a b"))
        ends = {(m := await client.terminal())["id"]: m for _ in range(2)}
        assert (ends["bad"]["error"], ends["bad"]["code"]) == ("internal", 500)
        assert ends["good"]["tool_input_json"] == '["a b"]'
        assert trio.current_time() < 10


async def test_a_driver_that_returns_nonsense_is_lost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_kernel(models=2, decode_s=1.0) as k:
        client = k.connect()
        monkeypatch.setattr(k.drivers[0].models[0], "step", lambda prefill_ms: [None])
        await client.send(request("bad", model_id="fake-0"), request("good", "a b", model_id="fake-1"))
        ends = {(m := await client.terminal())["id"]: m for _ in range(2)}
        assert (ends["bad"]["model_id"], ends["good"]["tool_input_json"]) == ("fake-0", '["a b"]')
        assert "NoneType" in str(k.desk.models[0].entry.last_error)
        assert [driver.loads for driver in k.drivers] == [2, 1]


async def test_a_control_operation_that_fails_costs_its_own_reply() -> None:
    async with running_kernel() as k:
        client = k.connect()
        k.desk.models[0].entry.path = "\udcff.gguf"  # a path that is not UTF-8, which no message can carry
        reply = await client.ask({"op": "models", "rid": 7})
        assert (reply["error"], reply["code"], reply["rid"]) == ("internal", 500, 7)
        assert (await client.ask({"op": "ping"}))["ok"] is True


@dataclass
class FailsAtItsEnd:
    """A stepper whose model is lost when it is to close."""

    lives: list[FailsAtItsEnd]
    closing: trio.Event = field(default_factory=trio.Event)

    async def run(self, on_events: EventSink, *, task_status: trio.TaskStatus[Model]) -> None:
        self.lives.append(self)
        task_status.started(FakeDriver(FakePlan(), sleeps=False).load(ModelSpec(Path("fake.gguf"))))
        await self.closing.wait()
        raise DriverError("lost while closing")

    def submit(self, request: Task) -> None: ...

    def cancel(self, id: str) -> None: ...

    def park(self, id: str) -> None: ...

    def resume(self, id: str) -> None: ...

    def limit_cache(self, kv_ram_bytes: int) -> None: ...

    def stats(self) -> Mapping[str, int | float | str]:
        return {}

    def close(self) -> None:
        self.closing.set()

    def stalled_s(self) -> float:
        return 0.0


async def test_a_model_that_fails_while_it_is_closed_is_not_loaded_again() -> None:
    lives: list[FailsAtItsEnd] = []
    async with running_kernel() as k, trio.open_nursery() as nursery:  # the model beside those of the kernel
        entry = ModelEntry("doomed", "inference", "fake.gguf", "fake")
        inference = Inference(entry, k.desk, partial(FailsAtItsEnd, lives))
        await nursery.start(inference.run)
        inference.close()
        await trio.sleep(100)
        assert len(lives) == 1

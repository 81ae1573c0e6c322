"""Several models: one that fails while others serve, rotation, loading and unloading while jobs come and go."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from granville.errors import StartupError
from granville.testing.fake import FakePlan
from granville.testing.kernel import Client, Kernel, request, running_kernel

GB = 1 << 30
Map = dict[str, Any]


async def ends(client: Client, count: int) -> dict[str, Map]:
    """The next results and errors by id."""
    return {(end := await client.terminal())["id"]: end for _ in range(count)}


async def listing(k: Kernel) -> dict[str, Map]:
    reply = await k.connect().ask({"op": "models"})
    return {model["id"]: model for model in reply["models"]}


def load(model: str, **more: object) -> Map:
    return {"op": "load", "model": model, "rid": model, **more}


def unload(id: str, **more: object) -> Map:
    return {"op": "unload", "model_id": id, "rid": id, **more}


def fail_first_load(kernel: Kernel, number: int, *, times: int | None) -> None:
    kernel.drivers[number].plan = FakePlan(load_error="no such luck", failing_loads=times, decode_s=1.0)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the drivers of the numbers given fail their first loads."""

    def break_them(failing: dict[int, int | None]) -> None:
        start = Kernel.start_models

        async def start_models(self: Kernel) -> None:
            for number, times in failing.items():
                fail_first_load(self, number, times=times)
            await start(self)

        monkeypatch.setattr(Kernel, "start_models", start_models)

    return break_them


async def test_a_model_that_does_not_load_at_start_is_tried_again_while_others_serve(broken: Any) -> None:
    broken({0: 3})
    async with running_kernel(models=2, decode_s=1.0) as k:
        client = k.connect()
        failed = (await listing(k))["fake-0"]
        assert (failed["state"], failed["last_error"]) == ("failed", "no such luck")
        await client.send(request("any"), request("named", model_id="fake-0"))
        got = await ends(client, 2)
        assert (got["any"]["model_id"], got["named"]["model_id"]) == ("fake-1", "fake-0")
        loaded = (await listing(k))["fake-0"]
        assert (loaded["state"], loaded["restarts"], k.drivers[0].loads) == ("ready", 3, 4)


async def test_no_daemon_without_a_model(broken: Any) -> None:
    broken({0: None, 1: None})
    with pytest.RaisesGroup(
        pytest.RaisesExc(StartupError, match="none of the models.*fake.gguf: no such luck; fake.gguf: no such luck"),
        flatten_subgroups=True,
    ):
        async with running_kernel(models=2):
            pytest.fail("the kernel started")


async def test_round_robin_is_strict_though_one_is_slower() -> None:
    async with running_kernel(models=3, slots=4, decode_s=1.0, strategy="round-robin") as k:
        client = k.connect()
        await client.send(*(request(str(n), "a b c") for n in range(7)))
        got = await ends(client, 7)
        assert [got[str(n)]["model_id"] for n in range(7)] == [f"fake-{n % 3}" for n in range(7)]


async def test_round_robin_passes_over_a_model_that_is_down_and_moves_what_waits_for_it() -> None:
    async with running_kernel(models=2, decode_s=1.0, fault="raise", fault_word="poison", strategy="round-robin") as k:
        client = k.connect()
        names = ["poison", "on-1", "waits-for-0", "waits-for-1"]
        await client.send(*(request(name, f"{name} b c") for name in names))
        got = await ends(client, 4)
        assert got["poison"]["code"] == 502
        assert {got[name]["model_id"] for name in names[1:]} == {"fake-1"}


async def test_a_job_that_was_on_a_lost_model_runs_again_and_costs_no_place() -> None:
    """With a queue of one that is taken, and more than once: the poison itself is told, its neighbours end well."""
    async with running_kernel(slots=3, decode_s=1.0, fault="raise", fault_word="poison", queue_size=1) as k:
        client = k.connect()
        for name in ("a", "poison", "b"):
            await client.send(request(name, f"{name} two three", priority="critical"))
            await client.receive()
        await client.send(request("waits", "w"))
        got = await ends(client, 4)
        assert got["poison"]["code"] == 502
        assert "second time" in got["poison"]["message"]
        assert [got[name]["tool_input_json"] for name in "ab"] == ['["a two three"]', '["b two three"]']
        assert got["waits"]["tool_input_json"] == '["w"]'
        assert k.desk.status()["queue"]["waiting"] == 0
        k.desk.backlog.limit = 1
        await client.send(request("last"))
        assert (await client.terminal())["id"] == "last"


async def test_a_waiting_job_that_names_a_model_waits_for_it_to_come_back() -> None:
    async with running_kernel(models=2, decode_s=1.0, fault="raise", fault_word="poison") as k:
        client = k.connect()
        await client.send(request("poison", "poison", model_id="fake-0"), request("named", "x", model_id="fake-0"))
        got = await ends(client, 2)
        assert (got["poison"]["code"], got["named"]["model_id"]) == (502, "fake-0")


async def test_a_job_may_be_cancelled_while_it_is_to_run_again() -> None:
    async with running_kernel(slots=3, decode_s=1.0, fault="raise", fault_after_steps=2) as k:
        client = k.connect()
        await client.send(*(request(name, "one two three") for name in "abc"))
        await trio.sleep(1.1)
        assert k.queue == 3
        for name in "ab":
            k.desk.cancel(name)
        got = await ends(client, 3)
        assert [got[name].get("code") for name in "abc"] == [499, 499, None]


async def test_concurrent_loads_of_a_model_load_it_once_and_all_are_answered() -> None:
    async with running_kernel(decode_s=1.0) as k:
        k.load_plan = FakePlan(load_s=5.0, decode_s=1.0)
        clients = [k.connect() for _ in range(3)]
        for client in clients:
            await client.send(load("second:m.gguf"))
        await trio.sleep(1)
        assert (await listing(k))["second"]["state"] == "loading"
        await clients[0].send(request("early", model_id="second"))
        assert (await clients[0].receive())["status"] == "accepted"
        replies = [await client.receive() for client in clients]
        assert {(reply["model"]["id"], reply["model"]["state"], reply["rid"]) for reply in replies} == {
            ("second", "ready", "second:m.gguf")
        }
        assert [driver.loads for driver in k.drivers[1:]].count(1) == 1
        assert (await clients[0].terminal())["model_id"] == "second"
        again = await clients[0].ask(load("second:m.gguf"))
        assert again["model"]["id"] == "second"


async def test_an_id_belongs_to_one_file() -> None:
    async with running_kernel() as k:
        client = k.connect()
        assert (await client.ask(load("second:m.gguf", slots=2)))["model"]["slots"] == 2
        for wrong in (load("second:other.gguf"), load("second:m.gguf", slots=3)):
            reply = await client.ask(wrong)
            assert (reply["error"], reply["code"], reply["rid"]) == ("conflict", 409, wrong["rid"])


async def test_a_model_that_cannot_be_loaded_is_told_and_leaves_no_trace() -> None:
    async with running_kernel(decode_s=1.0, memory_bytes=2 * GB) as k:
        k.load_plan = FakePlan(load_s=1.0, load_error="not today", weights_bytes=GB)
        client = k.connect()
        left = k.desk.budget.request_bytes_limit
        reply = await client.ask(load("bad:m.gguf"))
        assert (reply["error"], reply["code"]) == ("driver_failed", 502)
        assert "m.gguf: not today" in reply["message"]
        assert list(await listing(k)) == ["fake-0"]
        assert k.desk.budget.request_bytes_limit == left
        assert (await client.ask(request("x", model_id="bad")))["code"] == 404


async def test_a_model_that_does_not_fit_is_refused_with_the_figures() -> None:
    async with running_kernel(memory_bytes=GB) as k:
        k.load_plan = FakePlan(weights_bytes=GB)
        client = k.connect()
        reply = await client.ask(load("big:m.gguf"))
        assert (reply["error"], reply["code"]) == ("unsupported", 422)
        assert "weights 1.1 GB" in reply["message"]
        assert "--memory" in reply["message"]
        assert k.drivers[-1].loads == 0
        assert (await client.ask(request("x")))["status"] == "accepted"


async def test_unloading_lets_what_runs_finish_and_moves_what_waits() -> None:
    async with running_kernel(models=2, decode_s=1.0, strategy="round-robin") as k:
        client, other = k.connect(), k.connect()
        await client.send(*(request(str(n), "a b c") for n in range(4)), request("named", model_id="fake-0"))
        await trio.sleep(0.5)
        await other.send(unload("fake-0"))
        got = await ends(client, 1)
        assert (got["named"]["error"], got["named"]["code"]) == ("no_model", 503)
        refused = await k.connect().ask(request("new", model_id="fake-0"))
        assert (refused["error"], refused["code"]) == ("unknown_model", 404)
        assert (await listing(k))["fake-0"]["state"] == "unloading"
        got = await ends(client, 4)
        assert [got[str(n)]["model_id"] for n in range(4)] == ["fake-0", "fake-1", "fake-1", "fake-1"]
        assert await other.receive() == {"model_id": "fake-0", "state": "unloaded", "rid": "fake-0"}
        assert list(await listing(k)) == ["fake-1"]
        assert k.drivers[0].models[0].closed


async def test_unloading_by_force_ends_what_runs() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        await client.send(request("runs", "a b c"), request("waits"))
        await trio.sleep(0.5)
        await other.send(unload("fake-0"))
        await trio.sleep(0.1)
        await k.connect().send(unload("fake-0", force=True))
        got = await ends(client, 2)
        assert {end["error"] for end in got.values()} == {"no_model"}
        assert (await other.receive())["state"] == "unloaded"
        assert trio.current_time() < 5
        refused = await client.ask(request("none"))
        assert (refused["error"], refused["code"]) == ("no_model", 503)
        assert k.desk.health()["healthy"] is False
        assert (await client.ask(load("again:m.gguf")))["model"]["state"] == "ready"
        await client.send(request("served"))
        assert (await client.terminal())["model_id"] == "again"


@pytest.mark.parametrize("force", [False, True])
async def test_a_job_that_is_parked_ends_before_its_model_is_unloaded(force: bool) -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        await client.send(request("low", "a b c d", priority="low"))
        await trio.sleep(1.5)
        await client.send(request("critical", "v w x y z", priority="critical"))
        await trio.sleep(2.5)
        assert k.desk.job_status("low")["state"] == "parked"
        await other.send(unload("fake-0", force=force))
        got = await ends(client, 2)
        if force:
            assert {end["error"] for end in got.values()} == {"no_model"}
        else:
            assert [got[id]["tool_input_json"] for id in ("critical", "low")] == ['["v w x y z"]', '["a b c d"]']
        assert (await other.receive())["state"] == "unloaded"
        assert k.desk.admission.backlog.waiting() == []


async def test_a_model_that_hangs_can_be_unloaded_by_force() -> None:
    async with running_kernel(decode_s=1.0, fault="hang", fault_word="poison") as k:
        client = k.connect()
        await client.send(request("stuck", "poison"))
        await trio.sleep(5)
        await client.send(unload("fake-0", force=True))
        assert (await ends(client, 1))["stuck"]["error"] == "no_model"
        assert (await client.receive())["state"] == "unloaded"
        assert await listing(k) == {}


async def test_unloading_while_it_restarts_or_loads() -> None:
    async with running_kernel(models=2, decode_s=1.0, fault="raise", fault_word="poison") as k:
        client = k.connect()
        await client.send(request("bad", "poison", model_id="fake-0", stream=True))
        await ends(client, 1)
        await client.send(request("named", model_id="fake-0"))
        assert (await client.receive())["status"] == "accepted"
        await client.send(unload("fake-0"))
        assert (await ends(client, 1))["named"]["error"] == "no_model"
        assert (await client.receive())["state"] == "unloaded"
        k.load_plan = FakePlan(load_s=5.0)
        loading = k.connect()
        await loading.send(load("late:m.gguf"))
        await trio.sleep(1)
        assert (await client.ask(unload("late")))["state"] == "unloaded"
        assert (await loading.receive())["error"] == "no_model"
        assert list(await listing(k)) == ["fake-1"]


async def test_what_is_not_there_cannot_be_unloaded() -> None:
    async with running_kernel() as k:
        reply = await k.connect().ask(unload("nobody"))
        assert (reply["error"], reply["code"]) == ("unknown_model", 404)
        assert "fake-0" in reply["message"]


async def test_caches_shrink_as_requests_grow_and_then_new_work_is_refused() -> None:
    async with running_kernel(
        models=2, decode_s=1.0, context_size=10**6, memory_bytes=260 << 20, kv_ram_bytes=16 << 20
    ) as k:
        client = k.connect()
        room = k.desk.budget.request_bytes_limit
        await trio.sleep(0.01)
        limits = [driver.models[0].cache_limit for driver in k.drivers]
        assert limits == [8 << 20, 8 << 20]
        accepted = 0
        seen = set()
        while True:
            await client.send(request(f"big-{accepted}", "word " * 200_000))
            reply = await client.receive()
            await trio.sleep(2)
            seen.add(k.drivers[0].models[0].cache_limit)
            if "error" in reply:
                break
            accepted += 1
        assert (reply["error"], reply["code"]) == ("queue_full", 429)
        assert "memory" in reply["message"]
        assert k.desk.admission.held.total_bytes <= room
        assert len(seen) > 2
        assert min(seen) < 4 << 20
        for n in range(accepted):
            k.desk.cancel(f"big-{n}")
        await trio.sleep(2)
        assert k.drivers[0].models[0].cache_limit == 8 << 20
        assert k.desk.admission.held.total_bytes == 0


async def test_a_model_that_is_loaded_takes_only_what_it_can_do() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        await client.send(request("runs", "a b c d e"), request("turn", session_id="s"), request("single", "x"))
        await trio.sleep(0.5)
        k.load_plan = FakePlan(decode_s=1.0, messages=False)
        assert (await other.ask(load("plain:m.gguf")))["model"]["state"] == "ready"
        got = await ends(client, 3)
        assert [got[id]["model_id"] for id in ("runs", "turn", "single")] == ["fake-0", "fake-0", "plain"]


async def test_what_a_model_turns_out_not_to_be_able_to_do_is_told() -> None:
    async with running_kernel() as k:
        client, other = k.connect(), k.connect()
        k.load_plan = FakePlan(load_s=5.0, messages=False)
        await other.send(load("plain:m.gguf"))
        await trio.sleep(1)
        await client.send(request("turn", session_id="s", model_id="plain"))
        assert (await ends(client, 1))["turn"]["error"] == "unsupported"


async def test_the_turn_after_one_that_failed_goes_only_where_conversations_are_taken() -> None:
    async with running_kernel(decode_s=1.0) as k:
        client = k.connect()
        k.load_plan = FakePlan(decode_s=1.0, messages=False)
        await client.ask(load("plain:m.gguf"))
        await client.send(request("t1", "a b c", session_id="s", timeout_ms=1500), request("t2", "x", session_id="s"))
        got = await ends(client, 2)
        assert (got["t1"]["error"], got["t2"].get("model_id")) == ("deadline_exceeded", "fake-0")


async def test_all_turns_that_named_a_model_which_is_unloaded_are_told_the_same() -> None:
    async with running_kernel(models=2, decode_s=1.0) as k:
        client, other = k.connect(), k.connect()
        await client.send(request("runs", "a b c", model_id="fake-0"))
        await client.send(*(request(f"t{n}", "a b c", session_id="s", model_id="fake-0") for n in range(3)))
        await trio.sleep(0.5)
        await other.send(unload("fake-0"))
        got = await ends(client, 4)
        assert [got[f"t{n}"]["error"] for n in range(3)] == ["no_model"] * 3
        assert "tool_id" in got["runs"]


async def test_a_model_that_was_left_behind_leaves_no_task() -> None:
    async with running_kernel(models=2, decode_s=1.0, fault="hang", fault_word="poison") as k:
        client = k.connect()
        await client.send(request("stuck", "poison", model_id="fake-0"))
        await trio.sleep(5)
        before = {task.name for task in k.nursery.child_tasks}
        await client.send(unload("fake-0", force=True))
        assert (await ends(client, 1))["stuck"]["error"] == "no_model"
        assert (await client.receive())["state"] == "unloaded"
        await trio.testing.wait_all_tasks_blocked()
        assert {task.name for task in k.nursery.child_tasks} <= before


async def test_a_model_is_not_loaded_into_the_memory_of_held_requests() -> None:
    async with running_kernel(decode_s=1.0, memory_bytes=2 * GB, kv_ram_bytes=1 << 20) as k:
        k.load_plan = FakePlan(weights_bytes=GB)
        client, other = k.connect(), k.connect()
        k.desk.admission.held.total_bytes += GB
        reply = await other.ask(load("big:m.gguf"))
        assert (reply["error"], reply["code"]) == ("unsupported", 422)
        assert "1.1 GB for requests" in reply["message"]
        k.desk.admission.held.total_bytes -= GB
        assert (await client.ask(load("big:m.gguf")))["model"]["state"] == "ready"

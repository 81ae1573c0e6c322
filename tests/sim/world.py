"""A whole kernel with fake models, people who use it, and an operator who breaks it: one run for a seed.

Everything that is left to chance is drawn from the seed, Trio's own order of tasks too, so a seed is a run.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from contextlib import ExitStack
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

import trio
import trio.testing
from trio._core import _run as trio_run

from granville.config import ServeConfig
from granville.hosting.interface import ModelSpec
from granville.nursery.connection import Connection
from granville.nursery.kernel import _drain
from granville.nursery.pool import ModelPlan, Order, Pool
from granville.testing.fake import FakeDriver, FakeModel, FakePlan
from granville.testing.kernel import Kernel
from granville.wire.messages import Control
from tests.sim.people import Ask, Map, Person, Post, Repeatable
from tests.sim.scenario import FakeSpec, Scenario
from tests.sim.watch import Violation, Watch, WatchedModel

LOST_S = 1e6
"""Longer than anything may take in simulated time."""
REFUSED = ("unknown_job", "unsupported", "no_model", "shutting_down", "driver_failed")
"""Control operations, for a reason that is not theirs."""
GENERATE = ("inference", "ranker")
MAX_BREAKS = 4


class SimDriver(FakeDriver):
    model_class = WatchedModel

    def __init__(self, spec: FakeSpec, watch: Watch) -> None:
        super().__init__(FakePlan(**spec.plan), sleeps=False)
        self.spec = spec
        self.watch = watch

    def load(self, spec: ModelSpec) -> FakeModel:
        model = super().load(spec)
        assert isinstance(model, WatchedModel)
        model.watch = self.watch
        return model


class World(Kernel):
    def __init__(self, scenario: Scenario, nursery: trio.Nursery) -> None:
        super().__init__(nursery, ServeConfig(**scenario.config), [], 0, [])
        self.scenario = scenario
        self.rng = Random(f"{scenario.seed} operator")
        self.watch = Watch(scenario, self.desk)
        self.senders = self.post = Post(scenario, self, self.senders)
        self.asks: dict[str, list[Ask]] = defaultdict(list)
        self.ends: Counter[str] = Counter()
        """Results and errors that were read, by id."""
        self.lossy: set[str] = set()
        """Ids whose reader may have gone."""
        self.cancelled: set[str] = set()
        self.repeats: set[str] = set()
        self.repeatable: list[Repeatable] = []
        self.ending = False
        self.breaks: Counter[FakeDriver] = Counter()
        self.unloads = 0
        self.broken = False

    async def start_models(self) -> None:
        plans = []
        for n, spec in enumerate(self.scenario.models):
            driver = SimDriver(spec, self.watch)
            if n and "load" in self.scenario.faults:
                self._fail_loads(driver)
            self.drivers.append(driver)
            self._slots = spec.slots
            plans.append(self._plan(f"fake-{n}", spec.type, "fake.gguf", spec.slots, driver))
        await Pool(self.desk, self.nursery, self._plan_order).load_all(plans)
        self.nursery.start_soon(self.desk.ranking.run)
        if self.scenario.spare_bytes is not None:
            budget = self.desk.budget
            budget.limit_bytes = budget.fixed_bytes + self.scenario.spare_bytes
            assert self.desk.pool is not None
            self.desk.pool.share_out()

    async def _plan_order(self, order: Order, kv_ram_bytes: int, kv_disk_bytes: int) -> ModelPlan:
        await trio.sleep(self.rng.choice([0.0, 0.5]))
        id, _, path = order.model.rpartition(":")
        driver = SimDriver(self.rng.choice(self.scenario.models), self.watch)
        if "load" in self.scenario.faults and self.rng.random() < 0.3:
            self._fail_loads(driver)
        self.drivers.append(driver)
        return self._plan(id, driver.spec.type, path, driver.spec.slots, driver)

    def _fail_loads(self, driver: FakeDriver) -> None:
        assert driver.plan is not None
        driver.plan.load_error = "no such luck"
        driver.plan.failing_loads = driver.loads + self.rng.randint(1, 3)

    # What people ask and are told

    def expect(self, ask: Ask) -> None:
        self.asks[ask.id].append(ask)

    def some_id(self, rng: Random) -> str:
        return rng.choice([*self.asks, "nobody"])

    def check_refusal(self, ask: Ask, message: Map) -> None:
        scenario, error = self.scenario, message["error"]
        if error == "conflict":
            assert ask.conflicts or ask.id in self.repeats or any(other.conflicts for other in self.asks[ask.id])
        elif error == "queue_full":
            assert message["retry_after_ms"] > 0
        elif error in ("unknown_model", "no_model"):
            assert self.unloads, message
        elif error == "unsupported":
            assert not scenario.all_chat, message
        else:
            assert error == "shutting_down", message
            assert self.ending

    def check_end(self, ask: Ask, message: Map, deltas: str, streams: set[bool]) -> None:
        self.ends[ask.id] += 1
        if "error" in message:
            self._check_error(ask, message)
        else:
            self._check_result(ask, message)
        if ask.message.get("model_type") in ("embedding", "rerank"):
            assert not deltas
            return
        text = said_in(message) if "tool_id" in message else " ".join(ask.words)
        assert text.startswith(deltas), f"deltas of {ask.id}: {deltas!r} of {text!r}"
        if "tool_id" in message and len(streams) == 1:
            assert deltas == (text if True in streams else ""), f"deltas of {ask.id}: {deltas!r} of {text!r}"

    def check_delivery(self, message: Map, deltas: str) -> None:
        """At a callback. Several requests may have had the id there."""
        self.ends[message["id"]] += 1
        asks = [ask for ask in self.asks[message["id"]] if ask.message.get("callback")]
        if "error" in message:
            self._check_error(asks[0], message)
        elif len({id(ask.words) for ask in asks}) == 1:
            self._check_result(asks[0], message)
            if asks[0].message.get("model_type") not in ("embedding", "rerank"):
                assert deltas in ("", said_in(message))

    def _check_result(self, ask: Ask, message: Map) -> None:
        given = ask.message.get("priority")
        if given is not None or not ask.message.get("ranked"):
            assert message["priority"] == (given or "normal")
        type = ask.message.get("model_type", "inference")
        if type in GENERATE:
            said = ask.words[: ask.message.get("max_tokens", 256)]
            assert said_in(message) == " ".join(said)
            assert message["usage"]["completion_tokens"] == len(said)
            assert message["finish_reason"] == ("stop" if len(said) == len(ask.words) else "length")
        elif type == "embedding":
            texts = ask.message.get("documents") or [ask.message["text"]]
            vectors = [[float(len(text.split())), float(len(text))] for text in texts]
            assert message["output"] == (vectors if "documents" in ask.message else vectors[0])
        else:
            assert len(message["output"]) == len(ask.message["documents"])

    def _check_error(self, ask: Ask, message: Map) -> None:
        """There has to be a reason."""
        faults, error = self.scenario.faults, message["error"]
        reasons = {
            "deadline_exceeded": "timeout_ms" in ask.message,
            "cancelled": ask.id in self.cancelled or "too slow" in message["message"],
            "driver_failed": bool(faults),
            "no_model": bool(self.unloads),
            "shutting_down": self.ending,
            "prompt_too_long": self.scenario.small_contexts,
            "unsupported": not self.scenario.all_chat,  # its model was not loaded yet when it was accepted
        }
        assert reasons.get(error), message

    def check_reply(self, message: Map) -> None:
        if "error" in message:
            assert message["error"] in REFUSED, message
        elif "prompt_tokens" in message:
            assert message["state"] in ("warm", "cold"), message

    # What happens to the daemon

    async def operate(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Break things, load and unload models, and look at quiet moments whether all is well."""
        task_status.started()
        scenario, rng = self.scenario, self.rng
        while True:
            await trio.sleep(rng.expovariate(1 / max(0.3, scenario.pause_s)))
            for fault in sorted(scenario.faults):
                if rng.random() < 0.3:
                    self._break(fault)
            for op in sorted(scenario.operations):
                if rng.random() < 0.1:
                    self._order(op)
            if "hang" in scenario.faults:
                for id in self.desk.health()["stalled"]:
                    self._unload(id, force=True)
            if not self.broken:
                await trio.testing.wait_all_tasks_blocked()
                self.watch.check_quiet()

    def _break(self, fault: str) -> None:
        driver = self.rng.choice(self.drivers)
        if self.breaks[driver] == MAX_BREAKS:  # so that in the end everything gets done
            return
        self.breaks[driver] += 1
        assert driver.plan is not None
        if fault == "load":
            self._fail_loads(driver)
        elif fault == "poison":
            driver.plan.fault, driver.plan.fault_word = self.rng.choice(["raise", "fail_job"]), "poison"
            driver.plan.fault_after_steps = 0
        elif driver.plan.fault_word is None:
            driver.plan.fault = fault  # type: ignore[assignment]
            driver.plan.fault_after_steps = driver.steps + self.rng.randint(1, 4)

    def _order(self, op: str) -> None:
        pool = self.desk.pool
        assert pool is not None
        if op == "load":
            pool.ask(Control(op="load", model=f"more-{self.rng.randrange(3)}:more.gguf"), self._loaded)
        elif len(self.desk.models) > 1 or (self.desk.models and self.rng.random() < 0.03):
            self._unload(self.rng.choice(self.desk.models).entry.id, force=op == "force")

    def _unload(self, id: str, *, force: bool) -> None:
        assert self.desk.pool is not None
        self.unloads += 1
        self.desk.pool.ask(Control(op="unload", model_id=id, force=force), self._unloaded)

    def _loaded(self, outcome: Any) -> None:
        pass

    def _unloaded(self, outcome: Any) -> None:
        if isinstance(outcome, dict):
            assert outcome["model_id"] not in self.desk.roster or "load" in self.scenario.operations

    async def serve(self, person: Person) -> None:
        connection = Connection(person.theirs, person.peer, self.desk, self.senders)
        async with person.theirs:
            await connection.run()

    async def end(self) -> None:
        """As kernel.py does it, or only wait until nothing is left to do."""
        if self.scenario.ending != "quiet":
            await _drain(self.desk)
            assert all(job.outcome is not None for job in self.desk.admission.jobs())
        while len(self.desk.admission):  # noqa: ASYNC110 - nothing tells of it while the daemon is open
            await trio.sleep(1)

    def check_end_of_all(self) -> None:
        self.watch.check_rest()
        tasks = Counter(task.name.rpartition(".")[2] for task in self.nursery.child_tasks)
        unloading = sum(entry.state == "unloading" for entry in self.desk.roster)
        assert tasks["_wind_up"] <= unloading, tasks
        assert not tasks["deliver"] + tasks["serve"] + tasks["_send_deltas"], tasks
        for id, jobs in self.watch.accepted.items():
            callbacks = {ask.message.get("callback") for ask in self.asks[id]}
            if id in self.lossy or callbacks & self.post.shut:
                assert self.ends[id] <= len(jobs), id
            elif len(callbacks) == 1:
                assert self.ends[id] == len(jobs), f"{id}: {self.ends[id]} ends of {len(jobs)} jobs"


def said_in(message: Map) -> str:
    (text,) = json.loads(message["tool_input_json"])
    return str(text)


async def live(scenario: Scenario) -> World:
    with trio.fail_after(LOST_S):
        async with trio.open_nursery() as nursery:
            world = World(scenario, nursery)
            with world.watch.looking():
                await world.start_models()
                await _use(world)
                world.check_end_of_all()
            nursery.cancel_scope.cancel()
    return world


async def _use(world: World) -> None:
    scenario = world.scenario
    async with trio.open_nursery() as inner:  # the operator goes when everybody has been served
        await inner.start(world.operate)
        await trio.sleep(scenario.opens_s)
        async with trio.open_nursery() as people:
            for number, kind in enumerate(scenario.people):
                person = Person(world, number, kind)
                world.nursery.start_soon(world.serve, person)
                people.start_soon(person.run)
            if scenario.ending != "quiet":
                await trio.sleep(world.rng.uniform(0.3, 2) * (1 + scenario.pause_s * scenario.requests))
                world.ending = True
                if scenario.ending == "stop":
                    world.desk.stop()
                else:
                    world.desk.drain()
        await world.end()
        inner.cancel_scope.cancel()
    await trio.sleep(100)  # so long may a model be loaded and asked for its scores
    await trio.testing.wait_all_tasks_blocked()


def simulate(scenario: Scenario) -> World:
    """Raises what did not hold."""
    random.seed(scenario.seed)
    trio_run._r.seed(scenario.seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    with ExitStack() as stack:
        stack.enter_context(patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True))
        stack.enter_context(patch("granville.doors.outbox.HIGH_WATER_BYTES", scenario.high_water_bytes))
        stack.enter_context(patch("granville.scheduling.memory.REQUEST_FLOOR_BYTES", 0))
        Violation.first = None
        try:
            return trio.run(partial(live, scenario), clock=clock)
        except BaseException:
            if Violation.first is not None:
                raise Violation.first from Violation.first.__cause__
            raise

"""How many threads a model gets beside other programs, on a machine of made-up time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from granville_llama import LlamaDriver
from granville_llama.binding import Context, Decoded
from granville_llama.threads import MOST_PROBE_S, CpuSensor, Crew, ThreadGovernor

from granville.hosting.interface import ModelSpec
from tests.drivers.llama_jobs import job, load, run

STEP_S = 0.02
"""Of a step with two threads and two cores."""
ALONE_S = 0.038
"""Of one with a single thread."""
CROWDED_S = 0.1
"""Of one with two threads, one of which has no core."""


@dataclass
class Machine:
    """Two cores, a model that decodes without end, and others that use `foreign` cores (`others_count` or not)."""

    governor: ThreadGovernor = field(default_factory=lambda: ThreadGovernor(2))
    foreign: float | None = 0.05
    crowded: bool = False
    now: float = 100.0
    sampled: float = 100.0
    steps: list[tuple[float, int, float]] = field(default_factory=list)
    """(when it ended, threads, seconds)"""

    def run(self, seconds: float) -> list[tuple[float, int, float]]:
        first, end = len(self.steps), self.now + seconds
        while self.now < end:
            self.step()
        return self.steps[first:]

    def step(self) -> None:
        governor = self.governor
        threads = governor.before(self.now)
        took = ALONE_S if threads == 1 else CROWDED_S if self.crowded else STEP_S
        self.now += took
        self.steps.append((self.now, threads, took))
        expected = ALONE_S if governor.threads == 1 else STEP_S
        if governor.probing:
            governor.probed(self.now, took, expected)
            return
        slow = governor.is_slow(took, expected)
        if self.now - self.sampled >= (0.04 if slow else 0.1):
            governor.seen(self.now, self.foreign, slow=slow)
            self.sampled = self.now


def test_a_quiet_machine_keeps_all_threads() -> None:
    machine = Machine()
    assert {threads for _, threads, _ in machine.run(60)} == {2}


def test_one_slow_step_is_enough_when_others_have_the_core() -> None:
    machine = Machine()
    machine.run(2)
    machine.foreign, machine.crowded = 0.8, True
    slow, *later = machine.run(1)
    assert slow[1] == 2
    assert {threads for _, threads, _ in later} == {1}


def test_a_slow_step_on_a_free_machine_is_nobodys_doing() -> None:
    machine = Machine()
    machine.run(1)
    machine.crowded = True
    machine.run(0.1)
    machine.crowded = False
    assert {threads for _, threads, _ in machine.run(5)} == {2}


def test_a_core_that_others_use_is_left_without_a_slow_step() -> None:
    machine = Machine()
    machine.run(1)
    machine.foreign = 0.6
    machine.run(0.5)
    assert machine.governor.threads == 1


def test_a_moment_of_another_program_changes_nothing() -> None:
    machine = Machine()
    machine.run(1)
    machine.foreign = 0.6
    machine.run(0.1)
    machine.foreign = 0.05
    assert {threads for _, threads, _ in machine.run(5)} == {2}


def test_free_cores_are_taken_back_within_a_second() -> None:
    machine = Machine()
    machine.run(1)
    machine.foreign, machine.crowded = 1.0, True
    machine.run(20)
    machine.foreign, machine.crowded = 0.05, False
    machine.run(1)
    assert machine.governor.threads == 2


def test_a_neighbour_costs_a_twentieth_at_most_in_tries() -> None:
    machine = Machine()
    machine.run(1)
    machine.foreign, machine.crowded = 0.8, True
    machine.run(1)
    machine.foreign = 1.0
    tries = [took for _, threads, took in machine.run(4 * MOST_PROBE_S) if threads == 2]
    assert 3 <= len(tries) <= 12
    assert sum(tries) < 0.05 * 4 * MOST_PROBE_S


def test_nothing_is_tried_where_others_leave_no_core_at_all() -> None:
    machine = Machine()
    machine.run(1)
    machine.foreign, machine.crowded = 1.6, True
    machine.run(1)
    assert {threads for _, threads, _ in machine.run(100)} == {1}


def test_nothing_is_tried_before_it_is_known_what_others_do() -> None:
    machine = Machine()
    machine.run(1)
    machine.foreign, machine.crowded = 1.0, True
    machine.run(1)
    machine.governor.begin(1.0)
    machine.now += 100
    machine.step()
    assert machine.steps[-1][1] == 1


def test_one_that_comes_and_goes_makes_it_wait_longer() -> None:
    machine = Machine()
    for _ in range(30):
        machine.foreign, machine.crowded = 0.8, True
        machine.run(1)
        machine.foreign, machine.crowded = 0.05, False
        machine.run(1)
    changes = [
        later[0] for earlier, later in zip(machine.steps[:-1], machine.steps[1:], strict=True)
        if earlier[1] != later[1]
    ]  # fmt: skip
    assert len([when for when in changes if when > machine.now - 20]) <= 8
    machine.run(25)
    assert machine.governor.threads == 2


def test_a_neighbour_that_gives_way_is_found_out_by_trying() -> None:
    """Such as a program of the lowest priority, which has a whole core while we leave it."""
    machine = Machine()
    machine.governor.seen(machine.now, 1.0, slow=False)
    machine.governor.seen(machine.now + 0.1, 1.0, slow=False)
    machine.foreign = 1.0
    assert machine.governor.threads == 1
    machine.run(3)
    assert machine.governor.threads == 2
    assert {threads for _, threads, _ in machine.run(10)} == {2}
    machine.crowded = True
    machine.run(1)
    assert machine.governor.threads == 1, "until another comes"


def test_where_nothing_tells_of_others_slow_steps_and_trying_do() -> None:
    machine = Machine(foreign=None)
    machine.run(1)
    machine.crowded = True
    machine.run(10)
    assert machine.governor.threads == 1
    machine.crowded = False
    machine.run(20)
    assert machine.governor.threads == 2


def test_on_many_cores_only_those_in_use_are_left() -> None:
    governor = ThreadGovernor(8)
    governor.seen(1.0, 0.1, slow=False)
    governor.seen(1.1, 2.0, slow=True)
    assert governor.threads == 6
    governor = ThreadGovernor(8, cpus=16)
    governor.seen(1.0, 2.0, slow=True)
    assert governor.threads == 8, "there are hyper-threads for the others"


def test_after_a_pause_the_past_says_nothing() -> None:
    machine = Machine()
    machine.foreign = 0.34
    machine.run(2)
    machine.governor.begin(1.0)
    machine.governor.seen(machine.now, 0.9, slow=False)
    assert machine.governor.threads == 2, "one sample is not enough"


def test_an_idle_model_begins_with_few_threads_only_where_others_have_most_cores() -> None:
    for foreign, threads in ((None, 2), (0.1, 2), (1.0, 2), (1.5, 1)):
        governor = ThreadGovernor(2)
        governor.begin(foreign)
        assert governor.threads == threads


def test_what_others_slow_down_is_not_learnt_from() -> None:
    governor = ThreadGovernor(2)
    governor.seen(1.0, 0.1, slow=False)
    assert not governor.crowded
    governor = ThreadGovernor(2)
    governor.seen(1.0, 0.9, slow=False)
    assert (governor.threads, governor.crowded) == (2, True), "one sample is not enough to leave, but to doubt"
    governor.seen(1.1, 0.9, slow=False)
    assert (governor.threads, governor.crowded) == (1, False)


def test_the_sensor_counts_what_others_use_of_our_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, own = tmp_path / "stat", [0.0]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr("os.sysconf", lambda _: 100)

    def write(*ticks: int) -> None:
        lines = [f"cpu{cpu} {busy} 0 {busy} 999 7 0 0 0 0 0" for cpu, busy in enumerate(ticks)]
        stat.write_text("\n".join(["cpu  1 1 1 1 1 1 1 1 0 0", *lines, "intr 1 2 3", "ctxt 5"]))

    sensor = CpuSensor(stat, lambda: own[0])
    assert sensor.cpus == 2
    write(10, 10, 10)
    assert sensor.foreign(5.0) is None
    write(60, 500, 35)  # ours: 2 x (50 + 25) ticks in two seconds
    own[0] = 0.5
    assert sensor.peek(7.0) == pytest.approx((1.5 - 0.5) / 2)
    assert sensor.foreign(7.0) == pytest.approx((1.5 - 0.5) / 2)
    own[0] = 9.0
    assert sensor.foreign(8.0) == 0.0
    stat.unlink()
    assert sensor.foreign(9.0) is None
    assert sensor.foreign(10.0) is None


def test_a_pinned_number_stays() -> None:
    told: list[int] = []
    crew = Crew(2, told.append, pinned=True, interrupt=lambda: pytest.fail("cut short"))
    for _ in range(20):
        assert crew.before() == 2
        crew.guard(0.001)
        assert crew.after(100.0, 0.001)
    assert (crew.threads, told) == (2, [])
    crew.close()


def test_a_crew_tells_the_backend_and_learns_nothing_from_what_was_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    foreign = [0.0]
    monkeypatch.setattr(CpuSensor, "foreign", lambda sensor, now: foreign[0])
    told: list[int] = []
    crew = Crew(2, told.append, pinned=False)

    def step(seconds: float) -> bool:
        crew.before()
        now[0] += seconds
        return crew.after(seconds, 0.02)

    assert all(step(0.02) for _ in range(20))
    foreign[0] = 0.9
    assert not step(0.3)
    assert crew.threads == 1
    assert step(0.03)
    assert told == [1]
    foreign[0] = 0.0
    assert all(step(0.03) for _ in range(40))
    assert told == [1, 2]
    crew.close()


def test_a_step_cut_short_leaves_the_core_and_the_next_ones_are_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granville_llama.threads.SHORTEST_SAMPLE_S", 0.0)
    monkeypatch.setattr("granville_llama.threads.CUT_S", 0.0)
    monkeypatch.setattr(CpuSensor, "foreign", lambda sensor, now: 1.0)
    peeks = iter([0.1, 0.2, 1.0])
    monkeypatch.setattr(CpuSensor, "peek", lambda sensor, now: next(peeks))
    over = threading.Event()
    crew = Crew(2, lambda threads: None, pinned=False, interrupt=over.set)
    assert crew.before() == 2
    crew.guard(0.0001)
    assert over.wait(10)
    assert next(peeks, None) is None, "as long as nobody disturbs it, it goes on"
    assert not crew.after(None, 0.0001)
    assert crew.threads == 1
    for _ in range(50):
        assert crew.before() == 1
        crew.guard(0.0001)
        assert crew.after(0.0001, 0.0001), "one thread alone waits for nobody"
    assert not crew.after(None, 0.0001), "interrupted by somebody else"
    assert crew._patience == 1.0
    crew.close()


def test_a_step_that_takes_far_too_long_is_cut_short_and_at_last_let_go_on(
    noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = load(noise, context_size=512)
    expected = run(pinned, job("x", "the sea " * 30, 12))
    pinned.close()
    monkeypatch.setattr("granville_llama.loading.usable_cores", lambda: 2)
    monkeypatch.setattr("granville_llama.threads.CUT_S", 0.0)
    monkeypatch.setattr("granville_llama.pacing.Pacer.expect_decode", lambda pacer, streams, work: 1e-6)
    monkeypatch.setattr("granville_llama.pacing.Pacer.expect_prefill", lambda pacer, tokens, work: 1e-6)
    monkeypatch.setattr(CpuSensor, "foreign", lambda sensor, now: 0.0)
    monkeypatch.setattr(CpuSensor, "peek", lambda sensor, now: 1.0)
    codes: list[Decoded] = []
    decode = Context.decode

    def held_up(context: Context) -> Decoded:
        if not codes:
            assert blown.wait(10), "the first step lasts until it is cut short"
        codes.append(decode(context))
        return codes[-1]

    blown = threading.Event()
    interrupt = Context.interrupt

    def interrupted(context: Context) -> None:
        interrupt(context)
        blown.set()

    monkeypatch.setattr(Context, "decode", held_up)
    monkeypatch.setattr(Context, "interrupt", interrupted)
    model = LlamaDriver().load(ModelSpec(noise, slots=4, context_size=512))
    assert run(model, job("x", "the sea " * 30, 12)) == expected
    assert Decoded.ABORTED in codes
    model.close()


def test_answers_do_not_depend_on_the_threads_and_the_model_tells_them(
    noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(f"j{index}", "the sea " * (index * 11 % 40), 12) for index in range(4)]
    pinned = load(noise, context_size=512)
    expected = run(pinned, *jobs)
    assert pinned.stats()["threads"] == 1
    pinned.close()

    monkeypatch.setattr("granville_llama.loading.usable_cores", lambda: 2)
    changing = LlamaDriver().load(ModelSpec(noise, slots=4, context_size=512))
    assert changing.stats()["threads"] == 2
    told: list[int] = []
    set_threads = Context.set_threads

    def counted(context: Context, threads: int) -> None:
        told.append(threads)
        set_threads(context, threads)

    monkeypatch.setattr(Context, "set_threads", counted)
    monkeypatch.setattr(ThreadGovernor, "before", lambda governor, now: 1 + len(told) % 2)
    assert run(changing, *jobs, prefill_ms=0.0) == expected
    assert set(told) == {1, 2}
    changing.close()


def test_a_loaded_model_leaves_a_core_that_others_use(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granville_llama.loading.usable_cores", lambda: 2)
    monkeypatch.setattr("granville_llama.threads.SAMPLE_S", 0.0)
    monkeypatch.setattr("granville_llama.threads.CALM_S", 0.0)
    foreign = [1.0]
    monkeypatch.setattr(CpuSensor, "foreign", lambda sensor, now: foreign[0])
    model = LlamaDriver().load(ModelSpec(noise, slots=4, context_size=512))
    run(model, job("x", max_tokens=6))
    assert model.stats()["threads"] == 1
    foreign[0] = 0.0
    run(model, job("x", max_tokens=12))
    assert model.stats()["threads"] == 2
    model.close()

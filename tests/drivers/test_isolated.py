"""A driver in a process of its own does what it does in ours, and whatever ends that process is told in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from granville.errors import StartupError
from granville.hosting import isolated
from granville.hosting.interface import DriverError, Embed, Event, Failed, Finished, Generate, Message, ModelSpec, Token
from granville.hosting.isolated import IsolatedDriver, IsolatedLoad, IsolatedModel
from granville.hosting.locate import find_driver
from granville.testing.fake import FakeDriver
from tests.drivers.llama_jobs import job, run
from tests.e2e.harness import eventually, is_there

HERE = Path(__file__)
FAULTY = "tests.drivers.faulty:FaultyDriver"
FAKE = "granville.testing.fake:FakeDriver"


@contextmanager
def loaded(driver: str = FAULTY, step_timeout_s: float = 30.0, **options: object) -> Iterator[IsolatedModel]:
    model = IsolatedDriver(driver, step_timeout_s=step_timeout_s).load(ModelSpec(HERE, slots=4, options=options))
    try:
        yield model
    finally:
        model.close()
        assert not is_there(model.pid)


def steps(model: IsolatedModel, until: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    while not until(events):
        events += model.step(None)
    return events


def until_lost(model: IsolatedModel) -> tuple[list[Event], str]:
    """All that a model says before it is lost, and how it is."""
    events: list[Event] = []
    while True:
        try:
            events += model.step(None)
        except DriverError as lost:
            return events, str(lost)


def text_of(events: list[Event], id: str) -> str:
    return "".join(event.text for event in events if isinstance(event, Token) and event.id == id)


def test_it_says_what_it_would_say_here() -> None:
    jobs = [job(str(n), " ".join(f"w{n}-{i}" for i in range(3 + n)), max_tokens=8) for n in range(9)]
    options = {"decode_s": 0.001, "park": True}
    here = FakeDriver(sleeps=False).load(ModelSpec(HERE, slots=4, options=options))
    with loaded(FAKE, **options) as there:
        assert (there.slots, there.capabilities, there.info) == (here.slots, here.capabilities, here.info)
        assert run(there, *jobs) == run(here, *jobs)
        assert there.stats() == here.stats()


def test_driver_and_model_are_described_as_here() -> None:
    driver, here = IsolatedDriver("granville-llama"), find_driver("granville-llama")
    assert (driver.name, driver.version, driver.backend) == (here.name, here.version, here.backend)  # type: ignore[attr-defined]
    assert not hasattr(IsolatedDriver(FAULTY), "backend"), "its models cannot be tuned"
    driver.close()


def test_values_come_as_they_are() -> None:
    driver = IsolatedDriver(FAKE)
    model = driver.load(ModelSpec(HERE, slots=1, type="embedding"))
    model.submit(Embed("e", ("one two", "three")))
    (output,) = steps(model, bool)
    assert output.value == [[2.0, 7.0], [1.0, 5.0]]  # type: ignore[union-attr]
    model.close()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("abort", "was ended by SIGABRT"),
        ("segfault", "was ended by SIGSEGV"),
        ("kill", "was ended by SIGKILL"),
        ("exit", "ended with status 3"),
        ("quit", "ended with status 4"),
        ("garbage", "sent what cannot be read"),
        ("oversize", "a message of 4294967295 bytes"),
        ("close", "closed its pipe"),
        ("raise", "the driver raised ValueError: it was told to"),
        ("fail", "it was told to fail"),
    ],
)
def test_an_end_is_told_in_words_and_what_came_before_it_is_not_lost(fault: str, words: str) -> None:
    with loaded() as model:
        model.submit(job("other", "a"))
        model.submit(job("bad", f"b c {fault} d"))
        events, lost = until_lost(model)
    assert words in lost
    assert text_of(events, "bad") == "b c"
    assert [event.id for event in events if isinstance(event, Finished)] == ["other"]


@pytest.mark.parametrize("fault", ["hang", "sleep"])
def test_a_driver_that_hangs_is_ended(fault: str) -> None:
    with loaded(step_timeout_s=0.5) as model:
        model.submit(job("bad", f"a {fault}"))
        events, lost = until_lost(model)
    assert (text_of(events, "bad"), lost) == ("a", "the driver's process has made no step for 0.5 s; it was ended")


def test_a_hang_is_not_left_to_the_next_job(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with loaded(step_timeout_s=0.5, once=str(begun)) as model:
        model.submit(job("bad", "a hang"))
        steps(model, bool)
        eventually(begun.exists)
        with pytest.raises(DriverError, match="has made no step"):
            model.cancel("bad")


def test_long_steps_are_no_hang_while_there_are_steps() -> None:
    """Nor is silence: these are steps that bring nothing."""
    with loaded(FAKE, step_timeout_s=0.5, prefill_token_s=0.1, decode_s=0.001) as model:
        model.submit(job("long", "a " * 12))
        assert any(isinstance(event, Finished) for event in run_to_end(model))


def run_to_end(model: IsolatedModel) -> list[Event]:
    events: list[Event] = []
    while not any(isinstance(event, Finished) for event in events):
        events += model.step(100.0)
    return events


def test_a_driver_that_cannot_be_interrupted_may_take_its_time_until_its_job_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    monkeypatch.setattr(isolated, "RELEASE_S", 0.3)
    with loaded(step_timeout_s=0.1, interruptible=False, step_s=0.5) as model:
        model.submit(job("slow", "a b"))
        assert any(isinstance(event, Finished) for event in steps(model, lambda events: len(events) == 3))
    with loaded(step_timeout_s=0.1, interruptible=False, once=str(begun)) as model:
        model.submit(job("bad", "a sleep"))
        steps(model, bool)
        eventually(begun.exists)
        with pytest.raises(DriverError, match=r"has made no step for 0\.3 s"):
            model.cancel("bad")


@pytest.mark.parametrize("word", ["surrogate", "huge"])
def test_what_cannot_be_passed_on_ends_its_job_alone(word: str) -> None:
    with loaded(step_s=0.01) as model:
        model.submit(job("bad", f"a {word} b"))
        model.submit(job("good", "a b c d"))
        events = steps(model, lambda events: any(isinstance(event, Finished) for event in events))
    ends = [event for event in events if not isinstance(event, Token)]
    assert isinstance(ends[0], Failed)
    assert "cannot be passed on" in ends[0].message
    assert ([end.id for end in ends], text_of(events, "good")) == (["bad", "good"], "a b c d")


def test_a_job_that_cannot_be_passed_on_fails_alone() -> None:
    with loaded() as model:
        model.submit(Generate("bad", (Message("user", "\ud800"),)))
        model.submit(job("good", "a"))
        events = steps(model, lambda events: len(events) == 3)
    assert [type(event) for event in events if event.id == "bad"] == [Failed]


def test_an_end_between_jobs_is_noticed_without_one() -> None:
    told = threading.Event()
    with loaded() as model:
        model.when_ended(told.set)
        model.submit(job("x", "a"))
        steps(model, lambda events: len(events) == 2)
        model.check()
        model.limit_cache(1000)
        time.sleep(0.1)  # its answer lies there unread, before the end
        os.kill(model.pid, signal.SIGKILL)
        assert told.wait(20)
        with pytest.raises(DriverError, match="SIGKILL"):
            model.check()


def test_nothing_is_heard_of_a_cancelled_job() -> None:
    with loaded(step_s=0.001) as model:
        for n in range(5):
            model.submit(job(f"stays-{n}", "a b c"))
            model.submit(job(f"goes-{n}", "a b c d e f"))
            model.step(None)
            model.cancel(f"goes-{n}")
            for event in steps(model, lambda events: any(isinstance(event, Finished) for event in events)):
                assert event.id == f"stays-{n}"


def test_interrupt_reaches_a_step_under_way() -> None:
    with loaded(step_s=600.0) as model:
        model.submit(job("x", "a"))
        threading.Timer(0.2, model.interrupt).start()
        assert text_of(steps(model, bool), "x") == "a"


def test_a_step_that_waits_returns_when_woken() -> None:
    with loaded(step_s=0.5) as model:
        model.submit(job("x", "a"))
        model.wake()
        assert model.step(None) == []


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("refuse", "there is no such model"),
        ("miss", "the driver raised ModuleNotFoundError: No module named 'granville_that_is_not_there'"),
        ("abort", "the driver's process was ended by SIGABRT; it last said: about to abort"),
        ("exit", "the driver's process ended with status 3; it last said: about to exit"),
    ],
)
def test_a_load_that_fails(how: str, words: str) -> None:
    driver = IsolatedDriver(FAULTY)
    for _ in range(2):  # the first process, and one more
        with pytest.raises(DriverError) as failure:
            driver.load(ModelSpec(Path("x"), options={"load": how}))
        assert str(failure.value) == words


def test_a_driver_that_there_is_not() -> None:
    for name in ("no-such-driver", "tests.drivers.faulty:Nobody", "tests.drivers.faulty:PATIENCE_S", "./no/such.so"):
        with pytest.raises(StartupError) as here:
            find_driver(name)
        with pytest.raises(StartupError) as there:
            IsolatedDriver(name)
        assert str(here.value) == str(there.value)


def test_a_load_that_hangs_can_be_given_up() -> None:
    load = IsolatedLoad(IsolatedDriver(FAULTY), ModelSpec(Path("x"), options={"load": "hang"}))
    threading.Timer(0.3, load.give_up).start()
    with pytest.raises(DriverError, match="SIGKILL"):
        load()


def test_what_it_prints_is_passed_on_and_harms_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    driver = IsolatedDriver(FAULTY)
    model = IsolatedLoad(driver, ModelSpec(Path("x")), "llama-abc")()
    model.submit(job("x", "a raise"))
    until_lost(model)
    model.close()
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines
    assert all(line.startswith("llama-abc: ") for line in lines)
    assert "llama-abc: ValueError: it was told to" in lines


def test_it_has_no_descriptor_of_ours(tmp_path: Path) -> None:
    secret = os.open(tmp_path / "secret", os.O_CREAT | os.O_RDWR)
    os.set_inheritable(secret, True)
    with loaded() as model:
        links = [os.readlink(link) for link in Path(f"/proc/{model.pid}/fd").iterdir()]
        assert os.getsid(model.pid) == model.pid, "Ctrl-C is not for it"
        limits = Path(f"/proc/{model.pid}/limits").read_text()
        assert next(line.split()[4] for line in limits.splitlines() if "core file" in line) == "0"
    os.close(secret)
    assert not [link for link in links if "secret" in link]
    # Standard input, output and error; the socket, two pipes and the heartbeat.
    assert len(links) <= 7


def test_it_outlives_the_thread_that_started_it() -> None:
    models: list[IsolatedModel] = []
    thread = threading.Thread(target=lambda: models.append(IsolatedDriver(FAULTY).load(ModelSpec(Path("x"), slots=1))))
    thread.start()
    thread.join()
    time.sleep(0.2)
    (model,) = models
    model.submit(job("x", "a b"))
    assert text_of(steps(model, lambda events: len(events) == 3), "x") == "a b"
    model.close()


KERNEL = """
import sys
from pathlib import Path
from granville.hosting.interface import Generate, Message, ModelSpec
from granville.hosting.isolated import IsolatedDriver
model = IsolatedDriver("tests.drivers.faulty:FaultyDriver").load(ModelSpec(Path("x"), options={"step_s": 0.01}))
model.submit(Generate("x", (Message("user", sys.argv[1]),)))
model.step(None)
print(model.pid, flush=True)
while True:
    model.step(None)
"""


@pytest.mark.parametrize("text", ["a " * 50_000, "a hang", "a sleep"])
def test_it_ends_with_the_kernel_even_with_kill_9(text: str) -> None:
    """While it steps; while it keeps the interpreter to itself, when no thread of it can run; and while it is in a
    call."""
    with subprocess.Popen([sys.executable, "-c", KERNEL, text], stdout=subprocess.PIPE, text=True) as kernel:
        assert kernel.stdout is not None
        pid = int(kernel.stdout.readline())
        assert is_there(pid)
        kernel.kill()
        kernel.wait()
        eventually(lambda: not is_there(pid))


def test_signals_for_all_processes_of_the_daemon_are_the_daemons() -> None:
    with loaded(step_s=0.05) as model:
        model.submit(job("x", "a b c d"))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(model.pid, number)
        assert text_of(steps(model, lambda events: any(isinstance(e, Finished) for e in events)), "x") == "a b c d"


def test_a_job_goes_on_in_the_next_life(tmp_path: Path) -> None:
    driver = IsolatedDriver(FAULTY)
    spec = ModelSpec(Path("x"), slots=1, options={"once": str(tmp_path / "once")})
    first = driver.load(spec)
    first.submit(job("x", "a b abort c"))
    events, _ = until_lost(first)
    first.close()
    said = tuple(id for event in events if isinstance(event, Token) for id in event.token_ids)
    second = driver.load(spec)
    second.submit(Generate("x", (Message("user", "a b abort c"),), produced=said))
    events += steps(second, lambda events: any(isinstance(event, Finished) for event in events))
    second.close()
    assert text_of(events, "x") == "a b abort c"

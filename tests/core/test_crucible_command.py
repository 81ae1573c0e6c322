"""The parts of `crucible run` and `runs` that need no daemon: the board of steps, bars, the microphone."""

from __future__ import annotations

import io
import sys
import types
import wave
from typing import Any, Self

import pytest

from granville.cli.crucible import microphone
from granville.cli.crucible.board import MAX_CHILDREN, Board
from granville.cli.crucible.inputs import gather
from granville.cli.crucible.outputs import deliver
from granville.cli.crucible.progress import Progress
from granville.cli.crucible.show import BAR_CHARS, bar
from granville.crucible.running.events import DeltaEvent, StepEvent, StepState
from granville.crucible.workflow.model import Input, Step, Workflow
from granville.errors import BadRequest, StartupError


def step(key: str, state: StepState = "running", at: float = 0.0, **more: Any) -> StepEvent:
    return StepEvent(run_id="r", step=key, kind="inference", state=state, at=at, **more)


def test_steps_lie_below_the_groups_that_they_are_in() -> None:
    board = Board()
    for key in ("each", "first", "each[0]", "each[1]", "each[1].say", "each[0].say", "sub", "sub/answer"):
        board.take(step(key))
    assert [(depth, row.key) for depth, row in board.shown()] == [
        (0, "each"), (1, "each[0]"), (2, "each[0].say"), (1, "each[1]"), (2, "each[1].say"), (0, "first"), (0, "sub"),
        (1, "sub/answer"),
    ]  # fmt: skip


def test_of_a_long_list_those_that_have_finished_are_counted() -> None:
    board = Board()
    board.take(step("each"))
    for number in range(1000):
        board.take(step(f"each[{number}]"))
        if number < 998:
            board.take(step(f"each[{number}]", "finished", 1.0))
    shown = [row for _, row in board.shown()]
    assert [row.key for row in shown] == ["each", "each[998]", "each[999]"]
    assert shown[0].hidden == 998
    assert len(shown) <= MAX_CHILDREN + 1


def test_a_step_is_timed_and_counted_anew_at_each_attempt() -> None:
    board = Board()
    board.take(step("a", at=10.0))
    board.take(DeltaEvent(run_id="r", step="a", delta="x"))
    board.take(step("a", "failed", 12.0, error="no", retry_in_s=0.5))
    board.take(step("a", at=13.0, attempt=2))
    row = board.rows["a"]
    assert (row.tokens, row.tail, row.error, row.attempt, row.seconds(15.0)) == (0, "", None, 2, 2.0)
    board.take(step("a", "finished", 17.0, attempt=2, duration_s=4.0, usage={"completion_tokens": 8}))
    assert (row := board.rows["a"]).rate(99.0) == 2.0
    assert row.seconds(99.0) == 4.0


def test_without_a_terminal_each_end_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.take(step("a"))
        progress.take(step("a", "failed", 1.0, duration_s=1.0, error="went\nwrong\x1b[31m", retry_in_s=0.5))
        progress.take(step("a", "skipped", 2.0))
    assert capsys.readouterr() == ("", "a  failed  1.0 s  went wrong[31m, again in 0.5 s\na  skipped\n")


def test_a_step_that_waits_says_why_and_is_timed_from_its_start(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board()
    board.take(step("a", at=10.0))
    board.take(DeltaEvent(run_id="r", step="a", delta="half of it"))
    board.take(step("a", at=12.0, waits="no daemon"))
    row = board.rows["a"]
    assert (row.waits, row.tail, row.tokens, row.seconds(15.0)) == ("no daemon", "", 0, 5.0)
    board.take(step("a", at=14.0))
    assert (board.rows["a"].waits, board.rows["a"].seconds(15.0)) == (None, 5.0)
    with Progress() as progress:
        progress.take(step("a"))
        progress.take(step("a", waits="no daemon"))
        progress.take(step("a"))
    said = capsys.readouterr().err
    assert said.startswith("a  running  ")
    assert said.endswith("  waits: no daemon\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("start", "stop", "shown"), [(0, 10, (0, 24, 0)), (0, 0, (0, 1, 23)), (10, 10, (23, 1, 0)), (5, 10, (12, 12, 0))]
)
def test_a_bar_says_where_in_the_run_a_step_lies(start: float, stop: float, shown: tuple[int, int, int]) -> None:
    left, whole, right = shown
    assert bar(start, stop, 10.0) == "·" * left + "█" * whole + "·" * right
    assert len(bar(start, stop, 10.0)) == BAR_CHARS


FLOW = Workflow(
    name="flow",
    inputs={"text": Input(type="text"), "number": Input(type="number"), "sound": Input(type="audio")},
    steps=(Step(id="a", model_type="inference", input="x"),),
)


def test_a_value_is_read_as_its_kind() -> None:
    given = gather(FLOW, inputs=["text=3", "number=3"], recorded=b"wav")
    assert given == {"text": "3", "number": 3, "sound": b"wav"}
    with pytest.raises(BadRequest, match="--microphone: flow takes no sound"):
        gather(FLOW, inputs=["sound=x.wav"], recorded=b"wav")


def test_a_vector_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    deliver("r", {"vector": [0.5, 1.0], "names": ["a", "b"]}, (), json=False)
    assert capsys.readouterr().out == 'vector: [0.5,1.0]\nnames:\n[\n  "a",\n  "b"\n]\n'


def test_how_to_give_what_is_missing_is_said() -> None:
    with pytest.raises(BadRequest, match=r"^inputs\.number: missing; give it by --input number=NUMBER$"):
        gather(FLOW, inputs=["text=x"])
    with pytest.raises(BadRequest, match=r"^inputs\.sound: missing; give it by --audio FILE, or --microphone SECONDS$"):
        gather(FLOW, inputs=["text=x", "number=3"])


class PretendedStream:
    """Gives two blocks of silence as soon as it is opened."""

    def __init__(self, callback: Any, **settings: Any) -> None:
        assert settings == {"samplerate": 16_000, "channels": 1, "dtype": "int16"}
        self.callback = callback

    def __enter__(self) -> Self:
        for _ in range(2):
            self.callback(b"\0\0" * 800, 800, None, None)
        return self

    def __exit__(self, *_: object) -> None:
        pass


def sounddevice(stream: Any) -> types.ModuleType:
    module = types.ModuleType("sounddevice")
    module.RawInputStream = stream  # type: ignore[attr-defined]
    module.PortAudioError = OSError  # type: ignore[attr-defined]
    return module


def test_the_microphone_gives_a_wav(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(PretendedStream))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with wave.open(io.BytesIO(microphone.record(0.01))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (
            16_000,
            1,
            2,
            1600,
        )
    assert "listening for 0.01 s" in capsys.readouterr().err


def test_a_microphone_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def none(**_: Any) -> Any:
        raise OSError("no default input device")

    monkeypatch.setitem(sys.modules, "sounddevice", sounddevice(none))
    with pytest.raises(StartupError, match="no microphone can be opened: no default input device"):
        microphone.record(1)
    with pytest.raises(StartupError, match="stdin is no terminal"):
        microphone.record(0)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(StartupError, match=r"pip install 'granville\[microphone\]'"):
        microphone.record(1)

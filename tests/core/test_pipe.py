"""The words between the kernel and a driver's process: whatever can be said comes out as it went in, cut anywhere."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.hosting.interface import (
    Audio,
    Constraint,
    Embed,
    Event,
    Failed,
    Finished,
    Generate,
    Message,
    ModelSpec,
    Output,
    Parked,
    Rerank,
    Sampling,
    Score,
    Speak,
    Task,
    Token,
    Tool,
    ToolCall,
    Transcribe,
    Usage,
)
from granville.hosting.pipe import (
    MAX_FRAME_BYTES,
    Batch,
    Frames,
    Load,
    PipeError,
    events_of,
    frame,
    raw,
    submit,
    task_of,
    to_driver,
    to_kernel,
)
from granville.hosting.pipe import (
    Message as Frame,
)

TASKS: list[Task] = [
    Generate(
        "1", (Message("system", "s"), Message("assistant", "ß", (1, 2))), 7, Sampling(seed=3), ("a", "b"), 0, "session",
        True, Constraint("gbnf", 'root ::= "a"'), (Tool("t", "d", {"type": "object", "properties": {}}),), "t",
        True, (5, 6),
    ),
    Score("2", "prompt", ("a", "b")),
    Embed("3", ("one", "two")),
    Rerank("4", "query", ("one",)),
    Transcribe("5", bytes(range(256)), None, "de", True),
    Transcribe("6", None, Path("/sounds/\udcff.wav")),
    Speak("7", "ü", "amy", 0.5),
]  # fmt: skip
EVENTS: list[Event] = [
    Token("1", "ü", (1, 2)),
    Token("1", ""),
    Finished("1", "tool", Usage(1, 2, 3), ToolCall("t", "{}")),
    Output("2", [0.5, -1.0], Usage()),
    Output("3", [[0.5], [1.0]], Usage(4)),
    Output("5", {"language": "de", "duration_s": 1.5, "segments": [{"start": 0.0, "end": 1.5, "text": "ü"}]}, Usage()),
    Audio("7", bytes(range(256)), 22_050),
    Failed("4", "bad_request", "why"),
    Parked("5"),
]
SPEC = ModelSpec(Path("/models/\udcff.gguf"), 3, 512, options={"a": [1, {"b": None}], "c": True}, kv_dir=Path("/kv"))


def whole(*data: bytes) -> list[bytes]:
    frames = Frames()
    for part in data:
        frames.feed(part)
    return list(frames.whole)


def test_tasks_events_and_settings_come_out_as_they_went_in() -> None:
    said: list[Frame] = [Load(SPEC), *map(submit, TASKS)]
    load, *tasks = map(to_driver, whole(*map(frame, said)))
    assert load == Load(SPEC)
    assert [task_of(task) for task in tasks] == TASKS  # type: ignore[arg-type]  # each is a Submit
    (data,) = whole(frame(Batch([(type(event).__name__, raw(event)) for event in EVENTS], 9, {"threads": 2})))
    batch = to_kernel(data)
    assert isinstance(batch, Batch)
    assert (events_of(batch), batch.done, batch.stats) == (EVENTS, 9, {"threads": 2})


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_a_stream_may_be_cut_anywhere(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    parts = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert whole(*parts) == bodies


@given(st.binary(max_size=60))
def test_what_is_no_message_is_refused_and_nothing_else_happens(data: bytes) -> None:
    for read in (to_kernel, to_driver):
        try:
            message = read(data)
            if isinstance(message, Batch):
                events_of(message)
        except PipeError:
            continue


def test_a_frame_that_is_too_long_is_refused_before_it_has_come_and_after_what_was_before_it() -> None:
    frames = Frames()
    with pytest.raises(PipeError, match=f"{MAX_FRAME_BYTES} is the most"):
        frames.feed(b"\x01\0\0\0x" + struct.pack("<I", MAX_FRAME_BYTES + 1))
    assert list(frames.whole) == [b"x"]


def test_what_cannot_be_said_is_refused() -> None:
    for event in (Token("1", "\ud800"), Token("1", "x", (object(),))):  # type: ignore[arg-type]
        with pytest.raises(PipeError):
            raw(event)

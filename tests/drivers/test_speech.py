"""What the drivers for sound share: texts cut into pieces, jobs that take turns, options."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from granville_speech.options import about, check_spec, read_options, schema_of
from granville_speech.pieces import pieces
from granville_speech.turns import Job, JobError, TurnModel
from hypothesis import given
from hypothesis import strategies as st

from granville.hosting.interface import (
    Audio,
    Driver,
    DriverError,
    Event,
    Failed,
    ModelInfo,
    ModelSpec,
    Output,
    Speak,
    Transcribe,
    Usage,
)
from granville.hosting.locate import find_driver
from granville.hosting.options import schema_of as checked_schema_of
from granville.testing.conformance import check_driver

DRIVERS = {"granville-whisper": "stt", "granville-piper": "tts", "granville-espeak": "tts"}
BACKENDS = ("faster_whisper", "ctranslate2", "av", "piper", "onnxruntime", "espeakng_loader", "numpy")


@given(st.text(alphabet=st.sampled_from("ab .,;!?\n。、"), max_size=300), st.integers(1, 40))
def test_pieces_are_bounded_and_lose_nothing(text: str, most_chars: int) -> None:
    found = list(pieces(text, most_chars))
    assert all(piece.strip() and len(piece) <= most_chars for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_pieces_end_where_a_voice_would_pause() -> None:
    assert list(pieces("One two. Three, four five. Six", 28)) == ["One two. Three, four five.", "Six"]
    assert list(pieces("One two three, four five six seven", 20)) == ["One two three,", "four five six seven"]
    assert list(pieces("A first paragraph.\n\nA second. Third.", 30)) == ["A first paragraph.", "A second. Third."]
    assert next(pieces("word " * 30, 52)) == "word word word word word word word word word word"
    assert list(pieces("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(pieces(" \n\t", 10)) == []


def counting(request: Speak) -> Job:
    """As many steps as its text says; it fails at a text that is no number."""
    if not request.text.isdecimal():
        raise JobError("bad_request", "text: expected a number")
    for _ in range(int(request.text)):
        yield [Audio(request.id, b"", 1)]
    yield [Output(request.id, {}, Usage())]


def turn_model(slots: int = 3) -> TurnModel[Speak]:
    return TurnModel(
        Speak,
        counting,
        serves="tts",
        slots=slots,
        info=ModelInfo("counting", 0, 0),
        stats=dict,
        close=lambda: None,
        interruptible=True,
    )


def test_a_step_is_the_next_piece_of_the_next_job() -> None:
    model = turn_model()
    for id, text in (("a", "3"), ("b", "1"), ("c", "no")):
        model.submit(Speak(id, text))
    told = [[(type(event).__name__, event.id) for event in model.step(None)] for _ in range(7)]
    assert told == [
        [("Audio", "a")],
        [("Audio", "b")],
        [("Failed", "c")],
        [("Audio", "a")],
        [("Output", "b")],
        [("Audio", "a")],
        [("Output", "a")],
    ]
    assert model.step(None) == []


def test_a_job_frees_what_it_holds_however_it_ends() -> None:
    freed: list[str] = []

    def holding(request: Speak) -> Generator[list[Event], None, None]:
        try:
            yield from counting(request)
        finally:
            freed.append(request.id)

    model = TurnModel(
        Speak,
        holding,
        serves="tts",
        slots=4,
        info=ModelInfo("holding", 0, 0),
        stats=dict,
        close=lambda: freed.append("model"),
        interruptible=True,
    )
    for id, text in (("done", "0"), ("failed", "?"), ("cancelled", "9"), ("closed", "9")):
        model.submit(Speak(id, text))
    for _ in range(4):
        model.step(None)
    model.cancel("cancelled")
    assert freed == ["done", "failed", "cancelled"]
    model.close()
    assert freed[3:] == ["closed", "model"]


def test_a_turn_model_refuses_what_it_cannot_take() -> None:
    model = turn_model(slots=1)
    model.submit(Transcribe("wrong", b""))
    (event,) = model.step(None)
    assert isinstance(event, Failed)
    assert event.error == "unsupported"
    model.submit(Speak("a", "1"))
    with pytest.raises(DriverError, match="slots"):
        model.submit(Speak("b", "1"))
    model.cancel("a")
    model.submit(Speak("b", "1"))
    with pytest.raises(DriverError, match="here already"):
        model.submit(Speak("b", "1"))


class Some(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    size: Annotated[int, about("a whole number from 1 to 3", 1, 3)] = 1


def test_options_are_read_by_their_schema() -> None:
    assert read_options("granville-some", Some, {"size": 2}) == Some(size=2)
    with pytest.raises(DriverError, match="option size: got 4; it is a whole number from 1 to 3"):
        read_options("granville-some", Some, {"size": 4})
    with pytest.raises(DriverError, match="granville-some has no option 'sizes'; it has size"):
        read_options("granville-some", Some, {"sizes": 4})
    assert schema_of(Some)["properties"]["size"]["maximum"] == 3
    with pytest.raises(DriverError, match="slots: must be 1 or more, got 0"):
        check_spec("granville-some", ModelSpec(Path("x"), slots=0, type="tts"), "tts")


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_is_found_by_its_name_and_its_options_can_be_checked(name: str) -> None:
    driver = find_driver(name)
    assert isinstance(driver, Driver)
    assert driver.name == name
    schema = checked_schema_of(driver)
    assert schema is not None
    assert all("description" in one for one in schema.properties.values())


def test_backends_are_imported_with_the_first_model_only() -> None:
    """They are extras, and two of them are under the GPL: knowing a driver costs none of them."""
    code = f"""
import sys
from granville.hosting.locate import find_driver
for name in {list(DRIVERS)}:
    assert find_driver(name).config_schema
loaded = [name for name in {BACKENDS} if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", DRIVERS)
def test_the_options_are_those_of_the_page(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "speech.md").read_text()
    table = page.split(f"| option of {name} |")[1].split("\n\n")[0]
    schema = find_driver(name).config_schema  # type: ignore[attr-defined]  # each of them has one
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(schema["properties"])


@pytest.mark.parametrize(
    ("name", "model", "only"),
    [
        ("granville-espeak", None, ()),
        ("granville-piper", "piper_joe", ("speaks", "cancel", "close-running")),
        ("granville-whisper", "whisper_tiny", ("hears", "cancel", "close-running")),
    ],
)
def test_it_keeps_to_the_interface(
    name: str, model: str | None, only: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    path = Path("espeak") if model is None else request.getfixturevalue(model)
    report = check_driver(name, model=path, type=DRIVERS[name], rounds=0, only=only)
    assert report.passed, report.text()

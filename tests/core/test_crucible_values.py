"""A run's inputs."""

from __future__ import annotations

from typing import Any

import pytest

from granville.crucible.workflow.model import Input, Kind, Workflow
from granville.crucible.workflow.reading import workflow_from
from granville.crucible.workflow.values import check_inputs, from_text
from granville.errors import BadRequest


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("text", "12", "12"),
        ("any", "12", "12"),
        ("audio", "a.wav", "a.wav"),
        ("integer", " 12 ", 12),
        ("integer", "12.0", 12),
        ("number", "1.5", 1.5),
        ("number", "3", 3),
        ("boolean", "Yes", True),
        ("boolean", "0", False),
        ("list", '[1, "a"]', [1, "a"]),
        ("object", '{"a": null}', {"a": None}),
    ],
)
def test_words_of_a_command_line(kind: Kind, text: str, value: Any) -> None:
    read = from_text(kind, text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("integer", "1.5", "expected a whole number, got 1.5"),
        ("integer", "9" * 30, "64 bits"),
        ("number", "nan", "no number that a value can hold"),
        ("number", "twelve", "expected a number, got 'twelve'"),
        ("boolean", "maybe", "expected true or false, got 'maybe'"),
        ("list", "{}", "expected a list, got {}"),
        ("list", "[1", "expected a list as JSON"),
        ("object", "[" * 100_000, "expected a map as JSON"),
    ],
)
def test_wrong_words(kind: Kind, text: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        from_text(kind, text)
    assert words in caught.value.message


def workflow(**inputs: Input) -> Workflow:
    return workflow_from(Workflow(name="w", inputs=inputs, steps=workflow_from("steps: [{id: a, tool: t}]").steps))


def test_defaults_and_what_may_be_missing() -> None:
    one = workflow(
        who=Input(type="text"),
        often=Input(type="integer", default=3),
        maybe=Input(type="list", required=False),
    )
    assert check_inputs(one, {"who": "Ada"}) == {"who": "Ada", "often": 3, "maybe": None}
    assert check_inputs(one, {"who": "Ada", "often": 4.0, "maybe": []}) == {"who": "Ada", "often": 4, "maybe": []}
    assert check_inputs(one, {"who": "Ada", "often": None})["often"] == 3


def test_all_that_is_wrong_is_told_at_once() -> None:
    one = workflow(
        who=Input(type="text", description="whom to greet"),
        often=Input(type="integer", default=3),
        sound=Input(type="audio", required=False),
        yes=Input(type="boolean", required=False),
    )
    with pytest.raises(BadRequest) as caught:
        check_inputs(one, {"whom": "Ada", "often": 1.5, "sound": 3, "yes": 1})
    assert caught.value.message == (
        "w has no input 'whom'; did you mean who?; the input 'who' (whom to greet) is missing: a text; "
        "the input 'often': expected a whole number, got 1.5; the input 'sound': expected audio, got 3; "
        "the input 'yes': expected true or false, got 1"
    )
    assert check_inputs(one, {"who": "", "sound": b"RIFF"})["sound"] == b"RIFF"
    with pytest.raises(BadRequest, match="the input 'who': expected a text, got audio"):
        check_inputs(one, {"who": b"RIFF"})
    with pytest.raises(BadRequest, match="w has no input 'x'; it takes none"):
        check_inputs(workflow(), {"x": 1})
    with pytest.raises(BadRequest, match="object is no value"):
        check_inputs(workflow(a=Input()), {"a": object()})

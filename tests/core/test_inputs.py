"""What requests of each type bring, and what is said of what they cannot bring."""

from __future__ import annotations

from typing import Any

import pytest

from granville.errors import BadRequest
from granville.scheduling.job import SOUND_TOKEN_BYTES, expected_cost
from granville.wire.messages import Request, parse_message

STT = {"id": "r", "model_type": "stt"}
TTS = {"id": "r", "model_type": "tts"}


@pytest.mark.parametrize(
    "value",
    [
        {**STT, "audio": b"x"},
        {**STT, "audio_path": "/a.wav", "language": "de", "words": True, "stream": True},
        {**TTS, "text": "Good morning.", "voice": "amy", "speed": 0.25},
        {**STT, "audio": b"x", "language": "en-GB"},
        {**TTS, "text": "!", "speed": 4},
    ],
)
def test_sound_is_asked_for(value: dict[str, Any]) -> None:
    request, unknown = parse_message(dict(value))
    assert isinstance(request, Request)
    assert unknown == 0
    assert all(getattr(request, name) == given for name, given in value.items())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (STT, "audio: missing; give `audio`"),
        ({**STT, "audio": b"x", "audio_path": "/a.wav"}, "audio_path: give either"),
        ({**STT, "audio": b""}, "audio: it is empty"),
        ({**STT, "audio": "UklGRg=="}, "audio: expected `bytes | null`, got `str`"),
        ({**STT, "audio": b"x", "text": "hello"}, "text: not with model_type stt"),
        ({**STT, "audio": b"x", "session_id": "s"}, "session_id: not with model_type stt"),
        ({**STT, "audio": b"x", "grammar": 'root ::= "a"'}, "grammar: not with model_type stt"),
        ({**STT, "audio": b"x", "reset_cache": True}, "reset_cache: not with"),
        ({**STT, "audio": b"x", "voice": "amy"}, "voice: not with"),
        ({**STT, "audio": b"x", "language": "English"}, "language: expected a code of ISO 639-1 such as en"),
        ({**STT, "audio": b"x", "words": 1}, "words: expected `bool`"),
        (TTS, "text: missing; give what is to be spoken"),
        ({**TTS, "text": " \n"}, "text: it is empty"),
        ({**TTS, "text": "a", "audio": b"x"}, "audio: not with model_type tts"),
        ({**TTS, "text": "a", "words": True}, "words: not with"),
        ({**TTS, "text": "a", "tools": [{"name": "t"}]}, "tools: not with model_type tts"),
        ({**TTS, "text": "a", "speed": 0.2}, "speed: expected `float` >= 0.25"),
        ({**TTS, "text": "a", "speed": 5}, "speed: expected"),
        ({**TTS, "text": "a", "speed": float("nan")}, "speed: expected"),
        ({**TTS, "messages": [{"role": "user", "content": "a"}]}, "messages: not with model_type tts"),
    ],
)
def test_what_is_wrong_is_named(value: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_message(dict(value))
    assert caught.value.message.startswith(said)
    assert caught.value.id == "r"


def test_sound_costs_what_it_takes_to_hear_and_to_say_it() -> None:
    """A minute of sound is some thousands of tokens, however it comes, and no megabytes of text."""
    minute = Request(id="r", model_type="stt", audio=bytes(60 * 32_000))
    assert expected_cost(minute, 60 * 32_000) == 60 * 50
    by_path = Request(id="r", model_type="stt", audio_path="/a.wav", max_tokens=9999)
    assert expected_cost(by_path, 60, 10 * SOUND_TOKEN_BYTES) == 10
    text = Request(id="r", model_type="tts", text="a" * 40, max_tokens=9999)
    assert expected_cost(text, 100) == 25 + 10

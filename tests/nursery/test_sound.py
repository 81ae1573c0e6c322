"""Speech in a kernel: what is spoken comes whole or in pieces, what is heard comes as text, and nothing is lost."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio

from granville.errors import BadRequest
from granville.hosting.interface import Audio, Event, Output, Task, Token, Usage
from granville.nursery.recordings import recording_bytes
from granville.testing.fake import FakeDriver, FakeModel
from granville.testing.kernel import Client, request, running_kernel
from granville.testing.sound import RATE, heard, spoken
from granville.wire import wav
from granville.wire.messages import ModelType

TYPES: tuple[ModelType, ...] = ("inference", "stt", "tts")
TEXT = "the harbour at seven"


def say(id: str, text: str = TEXT, **more: Any) -> dict[str, Any]:
    return {"id": id, "model_type": "tts", "text": text, **more}


def hear(id: str, text: str = TEXT, **more: Any) -> dict[str, Any]:
    return {"id": id, "model_type": "stt", "audio": wav.wav(spoken(text), RATE), **more}


async def deltas_and_end(client: Client) -> tuple[list[Any], dict[str, Any]]:
    deltas = []
    while True:
        message = await client.receive()
        if "delta" in message:
            deltas.append(message["delta"])
        elif "status" not in message:
            return deltas, message


async def test_a_text_is_spoken_and_heard() -> None:
    async with running_kernel(types=TYPES) as k:
        client = k.connect()
        await client.send(
            request("chat", "one two"), say("say", priority="HIGH"), hear("hear", words=True, language="de")
        )
        ends = {(end := await client.terminal())["id"]: end for _ in range(3)}
    assert {id: end["model_id"] for id, end in ends.items()} == {"chat": "fake-0", "say": "fake-2", "hear": "fake-1"}
    nothing = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
    assert ends["say"] == {
        "id": "say", "model_id": "fake-2", "tool_id": "__audio__", "tool_input_json": "[]", "priority": "high",
        "finish_reason": "stop", "usage": nothing, "output": wav.wav(spoken(TEXT), RATE),
    }  # fmt: skip
    output = ends["hear"].pop("output")
    assert ends["hear"] == {
        "id": "hear", "model_id": "fake-1", "tool_id": "__transcript__", "tool_input_json": f'["{TEXT}"]',
        "priority": "normal", "finish_reason": "stop", "usage": nothing,
    }  # fmt: skip
    assert (output["language"], output["duration_s"]) == ("de", len(TEXT) / RATE)
    (segment,) = output["segments"]
    assert segment["text"] == TEXT
    assert [word["word"] for word in segment["words"]] == TEXT.split()


async def test_silence_is_a_transcript_without_words() -> None:
    async with running_kernel(types=TYPES) as k:
        client = k.connect()
        await client.send(hear("hear", ""))
        end = await client.terminal()
    assert (end["tool_input_json"], end["output"]["segments"]) == ('[""]', [])


async def test_voice_and_speed_reach_the_driver() -> None:
    async with running_kernel(types=TYPES) as k:
        client = k.connect()
        await client.send(say("say", "hello", voice="amy", speed=2))
        assert (await client.terminal())["output"] == wav.wav(spoken("amy: hello"), 2 * RATE)


async def test_what_the_client_got_wrong_is_told_at_the_results_place() -> None:
    async with running_kernel(types=TYPES) as k:
        client = k.connect()
        await client.send(say("say", voice="nobody"), hear("hear") | {"audio": b"no recording"})
        ends = {(end := await client.terminal())["id"]: end for _ in range(2)}
    assert {id: (end["code"], end["message"].partition(":")[0]) for id, end in ends.items()} == {
        "say": (400, "voice"), "hear": (400, "audio")
    }  # fmt: skip


async def test_a_stream_of_sound_joins_to_a_wav_stream_and_one_of_text_to_the_text() -> None:
    async with running_kernel(types=TYPES, decode_s=0.1) as k:
        client = k.connect()
        await client.send(say("say", stream=True))
        deltas, end = await deltas_and_end(client)
        assert len(deltas) == len(TEXT.split()), "as it is made"
        assert b"".join(deltas) == wav.header(RATE) + spoken(TEXT)
        assert end["output"] == wav.wav(spoken(TEXT), RATE)
        await client.send(hear("hear", stream=True))
        deltas, end = await deltas_and_end(client)
        assert ("".join(deltas), end["tool_input_json"]) == (TEXT, f'["{TEXT}"]')


async def test_asked_again_it_is_sent_from_the_start() -> None:
    """The same request on another connection, in the middle of the stream: that begins with a header too."""
    async with running_kernel(types=TYPES, decode_s=1.0) as k:
        first, second = k.connect(), k.connect()
        await first.send(say("say", stream=True))
        await trio.sleep(2.5)
        await second.send(say("say", stream=True))
        deltas, end = await deltas_and_end(second)
    assert b"".join(deltas) == wav.header(RATE) + spoken(TEXT)
    assert end["output"] == wav.wav(spoken(TEXT), RATE)


class Wrong(FakeModel):
    """Gives what was not asked for: the event that its class has for each kind of job."""

    pieces: ClassVar[dict[str, Event]] = {}

    def submit(self, request: Task) -> None:
        self._events.append(replace(self.pieces[type(request).__name__], id=request.id))
        super().submit(request)


def wrong(monkeypatch: pytest.MonkeyPatch, spoken: Event, heard: Event) -> None:
    monkeypatch.setattr(Wrong, "pieces", {"Speak": spoken, "Transcribe": heard})
    monkeypatch.setattr(FakeDriver, "model_class", Wrong)


@pytest.mark.parametrize(
    ("event", "of", "said"),
    [
        (Token("", "text"), "say", "text where sound was"),
        (Audio("", b"a", RATE), "say", "16-bit"),
        (Audio("", b"ab", RATE + 1), "say", "Hz"),
        (Output("", {"duration_s": 0.0}, Usage()), "say", "without any sound"),
        (Audio("", b"ab", RATE), "hear", "sound where text was"),
        (Output("", {"language": "en"}, Usage()), "hear", "duration_s"),
        (Output("", [0.5], Usage()), "hear", "no transcript"),
    ],
)
async def test_what_was_not_asked_for_is_the_drivers_fault(
    monkeypatch: pytest.MonkeyPatch, event: Event, of: str, said: str
) -> None:
    wrong(monkeypatch, event, event)
    async with running_kernel(types=("stt", "tts")) as k:
        client = k.connect()
        await client.send(say("say") if of == "say" else hear("hear"))
        end = await client.terminal()
    assert (end["code"], end["error"]) == (502, "driver_failed")
    assert said in end["message"]


async def test_an_answer_that_grows_over_the_bound_ends_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wav, "MAX_SOUND_BYTES", 2 * len(TEXT))
    async with running_kernel(types=TYPES, decode_s=0.1) as k:
        client = k.connect()
        await client.send(say("long", f"{TEXT} {TEXT}"), say("after"))
        ends = {(end := await client.terminal())["id"]: end for _ in range(2)}
        assert (ends["long"]["code"], ends["long"]["error"]) == (413, "too_large")
        assert heard(ends["after"]["output"]) == TEXT


async def test_what_is_lost_is_spoken_again_unless_somebody_heard_some_of_it() -> None:
    async with running_kernel(types=TYPES, slots=3, decode_s=0.1, fault="raise", fault_after_steps=3) as k:
        client = k.connect()
        await client.send(say("say"), say("stream", stream=True), hear("hear"))
        ends = {(end := await client.terminal())["id"]: end for _ in range(3)}
        assert k.desk.admission.held.total_bytes == 0
    assert (ends["stream"]["code"], "failed while" in ends["stream"]["message"]) == (502, True)
    assert ends["say"]["output"] == wav.wav(spoken(TEXT), RATE)
    assert ends["hear"]["tool_input_json"] == f'["{TEXT}"]'


async def test_sound_counts_as_held_until_it_is_delivered() -> None:
    async with running_kernel(types=TYPES, decode_s=1.0) as k:
        client = k.connect()
        await client.send(say("say", "word " * 4))
        await trio.sleep(0.5)
        before = k.desk.admission.held.total_bytes
        await trio.sleep(2)
        assert k.desk.admission.held.total_bytes > before
        await client.terminal()
        assert k.desk.admission.held.total_bytes == 0


async def test_cancelled_and_late_speech_frees_its_slot() -> None:
    async with running_kernel(types=TYPES, decode_s=1.0) as k:
        client = k.connect()
        await client.send(say("gone"), say("late", timeout_ms=1500), hear("heard"))
        await client.send({"op": "cancel", "id": "gone"})
        ends = {(end := await client.terminal())["id"]: end.get("code") for _ in range(3)}
        assert ends == {"gone": 499, "late": 408, "heard": None}
        await client.send(say("after"))
        assert "output" in await client.terminal()


async def test_files_are_named_with_care(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(wav.wav(spoken(TEXT), RATE))
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, (2 << 30) + 1)
    wrong = {
        "a.wav": "not absolute", str(tmp_path): "not a regular file", str(tmp_path / "link"): "no link",
        str(tmp_path / "empty"): "is empty", str(tmp_path / "fifo"): "not a regular file", "/dev/zero": "not a regular",
        str(tmp_path / "none"): "No such file", "/a\0b": "NUL", str(huge): "are the most",
    }  # fmt: skip
    async with running_kernel(types=TYPES) as k:
        client = k.connect()
        for path, said in wrong.items():
            refused = await client.ask({"id": "x", "model_type": "stt", "audio_path": path})
            assert (refused["code"], refused["message"].startswith("audio_path: ")) == (400, True)
            assert said in refused["message"]
        await client.send({"id": "x", "model_type": "stt", "audio_path": str(file)})
        assert (await client.terminal())["tool_input_json"] == f'["{TEXT}"]'


async def test_a_file_of_another_user_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(b"x")
    with pytest.raises(BadRequest, match="another user's"):
        recording_bytes(str(file), os.getuid() + 1)


async def test_messages_may_be_larger_while_something_hears() -> None:
    """From the next message on: also on a connection that was there before the model."""
    big = {"id": "x", "model_type": "stt", "audio": wav.wav(b"a" * 2956, RATE)}
    settings = {"max_request_bytes": 2048, "max_sound_request_bytes": 4096}
    async with running_kernel(types=TYPES, **settings) as k:
        client = k.connect()
        await client.send(big)
        assert (await client.terminal())["tool_input_json"] == '["3000 bytes of sound"]'
        refused = await client.ask({**big, "audio": bytes(5000)})
        assert (refused["code"], "4096" in refused["message"]) == (413, True)
    async with running_kernel(types=("inference", "stt"), **settings) as k:
        k.desk.roster["fake-1"].state = "unloading"
        client = k.connect()
        await client.ask({"op": "ping"})
        k.desk.roster["fake-1"].state = "ready"
        await client.send(big)
        assert "output" in await client.terminal()
    async with running_kernel(types=("inference", "tts"), **settings) as k:
        refused = await k.connect().ask(big)
        assert (refused["code"], "2048" in refused["message"]) == (413, True)


@pytest.mark.parametrize(
    ("fields", "code"), [({"language": "de"}, 422), ({"speed": 2}, 422), ({"words": True}, 422), ({"voice": "a"}, 422)]
)
async def test_a_model_that_answers_is_asked_for_no_sound(fields: dict[str, Any], code: int) -> None:
    async with running_kernel(types=TYPES) as k:
        refused = await k.connect().ask(request("x", "a", **fields))
        assert (refused["code"], refused["message"].partition(":")[0]) == (code, next(iter(fields)))

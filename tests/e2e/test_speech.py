"""Ears and a voice in a daemon of its own: over the socket and from the command line."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from granville.client import Request, connect, new_id
from granville.errors import BadRequest
from granville.testing.sound import RATE, spoken
from granville.wire import wav
from tests.e2e.harness import DRIVER, GRANVILLE, Daemon, granville, running

TEXT = "the harbour at seven"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path:
        folder = Path(path)
        (folder / "model.txt").write_text("a model")
        models = ",".join(f"{type}:{type}-1:{folder / 'model.txt'}" for type in ("stt", "tts"))
        flags = ("--tcp", "127.0.0.1:0", "--driver-config", "decode_s=0.01")
        with running(folder, *flags, model=models, driver=DRIVER) as daemon:
            yield daemon
            assert daemon.stop() == 0
            assert "level=ERROR" not in daemon.log


def recording(folder: Path) -> Path:
    path = folder / "question.wav"
    path.write_bytes(wav.wav(spoken(TEXT), RATE))
    return path


def test_the_sdk_speaks_and_hears(daemon: Daemon, tmp_path: Path) -> None:
    """The drivers live in processes of their own: sound goes there and comes back."""

    async def main() -> None:
        async with connect(str(daemon.socket)) as client:
            sound = await client.speak(TEXT, voice="amy", speed=2)
            assert sound == wav.wav(spoken(f"amy: {TEXT}"), 2 * RATE)
            heard = await client.transcribe(sound, words=True)
            assert heard.text == f"amy: {TEXT}"
            assert [word.word for word in heard.heard.segments[0].words] == heard.text.split()  # type: ignore[union-attr]
            assert (await client.transcribe(path=recording(tmp_path), language="de")).heard.language == "de"
            async with client.stream(Request(id=new_id(), model_type="tts", text=TEXT)) as answer:
                pieces = [piece async for piece in answer.sound()]
            assert len(pieces) > 1
            assert b"".join(pieces) == wav.header(RATE) + spoken(TEXT)
            assert answer.result.output == wav.wav(spoken(TEXT), RATE)
            async with client.stream(Request(id=new_id(), model_type="tts", text=TEXT)) as answer:
                assert [text async for text in answer] == []
            with pytest.raises(BadRequest, match=r"^voice: no voice 'nobody'"):
                await client.speak(TEXT, voice="nobody")
            big = wav.wav(bytes(8 << 20), RATE)
            assert (await client.transcribe(big)).text == ""

    trio.run(main)


def test_over_tcp_a_file_cannot_be_named(daemon: Daemon, tmp_path: Path) -> None:

    async def main() -> None:
        async with connect(f"tcp://{daemon.ready['tcp']}") as client:
            with pytest.raises(BadRequest, match=r"^audio_path: a file can be named over the Unix socket alone"):
                await client.transcribe(path=recording(tmp_path))
            assert (await client.transcribe(recording(tmp_path).read_bytes())).text == TEXT

    trio.run(main)


def test_the_command_line(daemon: Daemon, tmp_path: Path) -> None:
    at = ("-s", str(daemon.socket))
    out = tmp_path / "said.wav"
    said = granville(tmp_path, "speak", TEXT, "--out", str(out), *at)
    assert (said.returncode, said.stdout) == (0, ""), said.stderr
    assert out.read_bytes() == wav.wav(spoken(TEXT), RATE)
    assert os.listdir(tmp_path) == ["said.wav"]
    heard = granville(tmp_path, "transcribe", str(out), *at)
    assert (heard.returncode, heard.stdout) == (0, f"{TEXT}\n"), heard.stderr
    whole = granville(tmp_path, "transcribe", str(out), "--json", "--words", *at)
    assert '"__transcript__"' in whole.stdout
    assert '"probability"' in whole.stdout
    streamed = subprocess.run(
        [GRANVILLE, "speak", "-", *at], input=TEXT.encode(), capture_output=True, timeout=60, check=True
    )
    assert streamed.stdout == wav.header(RATE) + spoken(TEXT)
    piped = subprocess.run(
        [GRANVILLE, "transcribe", "-", *at], input=streamed.stdout, capture_output=True, timeout=60, check=True
    )
    assert piped.stdout.decode() == f"{TEXT}\n"


def test_the_command_line_says_what_is_wrong(daemon: Daemon, tmp_path: Path) -> None:
    at = ("-s", str(daemon.socket))
    (tmp_path / "empty").touch()
    for arguments, words in (
        (("transcribe", str(tmp_path / "none.wav")), "No such file"),
        (("transcribe", str(tmp_path / "empty")), "it is empty"),
        (("transcribe", __file__), "no WAV file"),
        (("speak", TEXT, "--speed", "9", "--out", str(tmp_path / "a.wav")), "speed: expected"),
        (("speak", TEXT, "--out", str(tmp_path / "no" / "a.wav")), "cannot be written"),
    ):
        done = granville(tmp_path, *arguments, *at)
        assert done.returncode != 0
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_voice_is_loaded_by_its_kind_while_others_are_served(daemon: Daemon, tmp_path: Path) -> None:
    """It is no voice, as its driver says; the daemon's own driver would have taken any file."""
    voice = tmp_path / "amy.onnx"
    voice.write_bytes(b"no voice")
    voice.with_name("amy.onnx.json").write_bytes(b"{}")
    done = granville(tmp_path, "load", f"tts:{voice}", "-s", str(daemon.socket))
    assert done.returncode != 0
    assert "amy.onnx" in done.stderr
    assert {model["id"] for model in daemon.ask({"op": "models"})["models"]} == {"stt-1", "tts-1"}


def test_models_of_sound_by_their_names(tmp_path: Path) -> None:
    """Which driver a model gets without being told; what that driver says of a model that is none is its own."""
    voice = tmp_path / "amy.onnx"
    voice.write_bytes(b"no voice")
    voice.with_name("amy.onnx.json").write_bytes(b"{}")
    done = granville(tmp_path, "serve", f"tts:{voice}", "--no-http", "-s", str(tmp_path / "g.sock"))
    assert done.returncode != 0
    assert "amy.onnx" in done.stderr
    assert "Traceback" not in done.stderr

"""The installed `granville` command against a live daemon: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from granville import __version__
from tests.e2e.harness import (
    GRANVILLE,
    PATIENCE_S,
    Client,
    Daemon,
    environment,
    eventually,
    granville,
    is_ack,
    running,
    serve_command,
    text_of,
    words,
)

FLAGS = ("--tcp", "127.0.0.1:0", "--slots", "1", "-q", "2")
CONFIG = {"context_size": 4000}


def one_line(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The line on stderr of a command that failed with this exit status and printed nothing else."""
    assert done.returncode == status, done
    assert done.stdout == ""
    assert done.stderr.startswith("granville: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@contextmanager
def occupied(daemon: Daemon, waiting: int = 0) -> Iterator[None]:
    """The daemon's one slot taken, and so many jobs behind it."""
    with daemon.connect() as client:
        for n in range(1 + waiting):
            assert is_ack(client.ask({"id": f"occupied-{n}", "text": words(3000), "max_tokens": 3000}))
            eventually(lambda: daemon.counts()["running"] == 1)
        yield
    eventually(lambda: daemon.counts()["running"] == 0)


def test_who_has_no_model_that_speaks_or_hears_is_told_how_to_get_one(daemon: Daemon, folder: Path) -> None:
    (folder / "sound").write_bytes(b"RIFF")
    for arguments, command in (
        (("speak", "hi", "--out", str(folder / "a.wav")), "`granville load tts:joe`"),
        (("transcribe", str(folder / "sound")), "`granville load stt:whisper-tiny.en`"),
    ):
        said = one_line(granville(folder, *arguments, "-s", str(daemon.socket)), 9)
        assert "is loaded; have the daemon serve one" in said
        assert command in said


def test_version(folder: Path) -> None:
    for arguments in (["version"], ["--version"]):
        done = granville(folder, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"granville {__version__}\n", "")


def test_as_a_module(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "granville", "version"], env=environment(folder), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.decode()) == (0, f"granville {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]])
def test_help(folder: Path, arguments: list[str]) -> None:
    done = granville(folder, *arguments)
    assert done.returncode == 0
    assert "USAGE" in done.stdout
    for command in ("serve", "submit", "chat", "status", "download", "models", "help", "version"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", ["serve", "submit", "chat", "status", "download", "models"])
def test_help_of_a_command(folder: Path, command: str) -> None:
    done = granville(folder, "help", command)
    assert done.returncode == 0
    assert f"granville {command}" in done.stdout
    assert granville(folder, command, "--help").stdout == done.stdout


def test_a_wrong_command_line(folder: Path) -> None:
    assert "did you mean `granville submit`?" in one_line(granville(folder, "sumbit", "x"), 2)
    assert "granville help" in one_line(granville(folder, "xyzzy"), 2)
    assert "--colour" in one_line(granville(folder, "submit", "x", "--colour", "blue"), 2)
    assert "urgent" in one_line(granville(folder, "submit", "x", "--priority", "urgent"), 2)
    assert "granville submit --help" in one_line(granville(folder, "submit"), 2)


def test_submit(daemon: Daemon, folder: Path) -> None:
    done = granville(folder, "submit", "a question of five words", "-s", str(daemon.socket))
    assert (done.returncode, done.stdout, done.stderr) == (0, "a question of five words\n", "")


def test_submit_streams(daemon: Daemon, folder: Path) -> None:
    done = granville(folder, "submit", "a question of five words", "--stream", "-s", str(daemon.socket))
    assert (done.returncode, done.stdout, done.stderr) == (0, "a question of five words\n", "")


def test_the_daemon_is_named_by_the_environment(daemon: Daemon, folder: Path) -> None:
    variables = {"GRANVILLE_SOCKET": str(daemon.socket), "GRANVILLE_MAX_TOKENS": "2"}
    assert granville(folder, "submit", "one two three", **variables).stdout == "one two\n"
    assert granville(folder, "submit", "one two three", "--max-tokens", "1", **variables).stdout == "one\n"


def test_submit_over_tcp(daemon: Daemon, folder: Path) -> None:
    done = granville(folder, "submit", "over tcp", "-s", f"tcp://{daemon.ready['tcp']}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "over tcp\n", "")


def test_submit_takes_a_text_from_stdin(daemon: Daemon, folder: Path) -> None:
    text = f"two lines,\nthe second is long {'x' * 100_000}"
    done = granville(folder, "submit", "-", "-s", str(daemon.socket), stdin=text)
    assert done.returncode == 0
    assert done.stdout.split() == text.split()


def test_submit_prints_json(daemon: Daemon, folder: Path) -> None:
    arguments = ("submit", "as json", "--json", "--priority", "high", "-s", str(daemon.socket))
    result = json.loads(granville(folder, *arguments).stdout)
    assert text_of(result) == "as json"
    assert result["priority"] == "high"
    assert result["model_id"] == daemon.ready["model"]
    *deltas, last = map(json.loads, granville(folder, *arguments, "--stream").stdout.splitlines())
    assert "".join(delta["delta"] for delta in deltas) == text_of(last) == "as json"


def test_submit_goes_on_with_a_session(daemon: Daemon, folder: Path) -> None:
    def prompt_tokens(text: str) -> int:
        done = granville(folder, "submit", text, "--session", "s", "--json", "-s", str(daemon.socket))
        tokens: int = json.loads(done.stdout)["usage"]["prompt_tokens"]
        return tokens

    assert prompt_tokens("one two") == 2
    assert prompt_tokens("three") == 2 + 2 + 1


def test_what_submit_says_of_errors(daemon: Daemon, folder: Path) -> None:
    at = ("-s", str(daemon.socket))
    assert "4001" in one_line(granville(folder, "submit", "-", *at, stdin=words(4001)), 3)
    assert "no-such-model" in one_line(granville(folder, "submit", "x", "--model", "no-such-model", *at), 4)
    with occupied(daemon):
        assert "deadline" in one_line(granville(folder, "submit", "x", "--timeout", "0.2", *at), 5)
    with occupied(daemon, waiting=2):
        assert "try again in" in one_line(granville(folder, "submit", "x", *at), 6)
    nowhere = str(folder / "nowhere.sock")
    assert nowhere in one_line(granville(folder, "submit", "x", "-s", nowhere), 9)
    assert "--max-tokens" in one_line(granville(folder, "submit", "x", "--max-tokens", "many", *at), 2)


def test_what_submit_says_when_the_driver_fails(folder: Path) -> None:
    config = {"decode_s": 0.005, "fault": "fail_job", "fault_word": "poison"}
    with running(folder, "--no-http", config=config) as daemon:
        done = granville(folder, "submit", "poison", "-s", str(daemon.socket))
    assert "told to fail this job" in one_line(done, 8)


def test_ctrl_c_cancels_the_job(daemon: Daemon, folder: Path) -> None:
    cancelled = daemon.counts()["cancelled"]
    command = [str(GRANVILLE), "submit", "-", "--stream", "--max-tokens", "3000", "-s", str(daemon.socket)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(folder)
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(words(3000).encode())
        process.stdin.close()
        assert process.stdout.read(4) == b"word"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr.read() == b""
    eventually(lambda: daemon.counts()["cancelled"] == cancelled + 1)
    eventually(lambda: daemon.counts()["running"] == 0)


def test_a_person_who_ends_the_daemon_is_told_what_it_waits_for(folder: Path) -> None:
    outside, inside = os.openpty()
    command = serve_command(folder, "--no-http", "--grace", "45", config={"decode_s": 0.01})
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=inside, env=environment(folder)) as process:
        os.close(inside)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"granville ready")
        with socket.socket(socket.AF_UNIX) as connection, Client(connection) as client:
            connection.connect(str(folder / "g.sock"))
            assert is_ack(client.ask({"id": "runs", "text": words(3000), "max_tokens": 3000}))
            eventually(lambda: client.ask({"op": "status"})["jobs"]["running"] == 1)
            process.send_signal(signal.SIGINT)
            said = b""
            while not said.endswith(b"at once\r\n"):
                said += os.read(outside, 4096)
            assert b"granville: finishing what runs (1), for 45 s at most; Ctrl-C ends at once" in said
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 128 + signal.SIGINT
    os.close(outside)


def test_a_reader_that_has_enough(daemon: Daemon, folder: Path) -> None:
    """As `granville submit … | head -c 4` does."""
    reading, writing = os.pipe()
    command = [str(GRANVILLE), "submit", "-", "--stream", "--max-tokens", "3000", "-s", str(daemon.socket)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE, env=environment(folder)
    ) as process:
        os.close(writing)
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(words(3000).encode())
        process.stdin.close()
        assert os.read(reading, 4) == b"word"
        os.close(reading)
        assert process.wait(PATIENCE_S) == 141
        assert process.stderr.read() == b""
    eventually(lambda: daemon.counts()["running"] == 0)


def test_status(daemon: Daemon, folder: Path) -> None:
    at = ("-s", str(daemon.socket))
    with occupied(daemon, waiting=1):
        shown = granville(folder, "status", *at).stdout
        assert "1 of 2 waiting (1 normal" in shown
        assert daemon.ready["model"] in shown
        assert "1/1" in shown
        reply = json.loads(granville(folder, "status", "--json", *at).stdout)
        assert reply["queue"]["waiting"] == 1
        assert reply["pid"] == daemon.process.pid
        assert "waiting" in granville(folder, "status", "occupied-1", *at).stdout
        job = json.loads(granville(folder, "status", "occupied-0", "--json", *at).stdout)
        assert (job["id"], job["state"]) == ("occupied-0", "running")
    assert "occupied-0" in one_line(granville(folder, "status", "occupied-0", *at), 4)
    assert "nowhere.sock" in one_line(granville(folder, "status", "-s", str(folder / "nowhere.sock")), 9)


def test_chat_with_turns_from_a_pipe(daemon: Daemon, folder: Path) -> None:
    done = granville(folder, "chat", "-s", str(daemon.socket), stdin="one two\nthree\n/clear\nfour\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["one two", "three", "four"]


def test_chat_goes_on_without_its_oldest_turns_when_told_to(folder: Path) -> None:
    """Echoes of five words, in a context of thirty: there is room for twenty-three beside an answer."""
    turns = "".join(f"{word} {word} {word} {word} {word}\n" for word in ("one", "two", "three", "four"))
    with running(folder, config={"context_size": 30}) as daemon:
        at = ("-s", str(daemon.socket))
        done = granville(folder, "chat", *at, stdin=turns)
        assert done.returncode == 3
        assert "35 tokens and the context 30" in done.stderr
        done = granville(folder, "chat", "--drop-oldest", *at, stdin=turns)
        assert done.returncode == 0
        assert done.stdout.splitlines() == turns.splitlines()
        assert done.stderr == "[the conversation is long: its 4 oldest turns are left out from here on]\n"
        for word in ("one", "two", "three"):
            done = granville(folder, "submit", *at, "--session", "s", "--drop-oldest", "--json", f"{word} " * 8)
            assert done.returncode == 0
        assert json.loads(done.stdout)["usage"]["dropped_turns"] == 2


def test_models_of_an_empty_store(folder: Path) -> None:
    done = granville(folder, "models")
    assert done.returncode == 0
    assert "not fetched: granville download smollm2" in done.stdout


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("smolm2", "smollm2"),
        ("/no/such/file.gguf", "/no/such/file.gguf"),
        ("https://127.0.0.1:1/model.gguf", "sha256"),
        ("pypi://nothing", "pypi://"),
        ("ftp://127.0.0.1/model.gguf", "ftp"),
    ],
)
def test_what_download_refuses(folder: Path, reference: str, says: str) -> None:
    assert says in one_line(granville(folder, "download", reference), 1)


def test_download_checks_the_hash_of_a_file(folder: Path) -> None:
    (folder / "m.gguf").write_bytes(b"not what it should be")
    line = one_line(granville(folder, "download", str(folder / "m.gguf"), "--sha256", "0" * 64), 1)
    assert "m.gguf" in line

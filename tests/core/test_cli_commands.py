"""submit, chat and status as a person runs them, against a daemon that a thread plays on a real socket."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from granville.cli.exits import BROKEN_PIPE
from granville.cli.main import main
from granville.cli.terminal import printable

Map = dict[str, Any]
STATUS: Map = {
    "version": "0.1.0", "pid": 4711, "uptime_s": 3725.0, "state": "serving",
    "queue": {
        "waiting": 7, "limit": 1000, "by_class": {"critical": 0, "high": 2, "normal": 5, "low": 0},
        "oldest_wait_ms": 1500, "service_rate_per_s": 3.25,
    },
    "jobs": {
        "accepted": 40, "running": 3, "delivering": 1, "finished": 29, "failed": 0, "cancelled": 0, "expired": 0,
        "rejected": 2,
    },
    "models": [{
        "id": "llama-a1b2c3", "type": "inference", "path": "/models/a.gguf", "busy": True, "state": "ready",
        "slots": 8, "running": 3, "waiting": 7, "driver": "granville-llama", "architecture": "llama",
        "context_size": 2048, "memory_bytes": 334_000_000, "tokens_per_s": 87.5, "stalled_s": 2.04,
    }],
    "warm": {"kept": 3, "bytes": 12_000_000, "hits": 7},
    "connections": {"open": 4, "limit": 4096},
    "callbacks": {"delivered": 29, "failed": 0, "senders": 1},
    "unknown_fields": 0,
}  # fmt: skip


def result(id: str, text: str, finish_reason: str = "stop") -> Map:
    return {
        "id": id, "model_id": "llama-a1b2c3", "tool_id": "__chat__", "tool_input_json": json.dumps([text]),
        "priority": "normal", "finish_reason": finish_reason,
        "usage": {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": 2},
    }  # fmt: skip


class Daemon(socketserver.ThreadingUnixStreamServer):
    """Answers what it is asked by echoing it in two deltas. Texts with a meaning: `fail ERROR CODE`, and `hang`,
    which gives one delta and then waits to be cancelled."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Connection)
        self.path = path
        self.requests: list[Map] = []
        self.cancelled: list[str] = []
        self.hanging = threading.Event()


class Connection(socketserver.BaseRequestHandler):
    server: Daemon

    def handle(self) -> None:
        unpacker = msgpack.Unpacker()
        while data := self.request.recv(65536):
            unpacker.feed(data)
            for message in unpacker:
                self.control(message) if "op" in message else self.answer(message)

    def control(self, message: Map) -> None:
        if message["op"] == "cancel":
            self.server.cancelled.append(message["id"])
            reply: Map = {"id": message["id"], "state": "cancelled"}
        elif message["op"] in ("load", "unload"):
            self.server.requests.append(message)
            reply = {"model": {**STATUS["models"][0], "id": "loaded"}, "model_id": message.get("model_id")}
        elif message["op"] == "models":
            reply = {"models": STATUS["models"]}
        elif message.get("id") == "unknown":
            reply = {"id": "unknown", "error": "unknown_job", "code": 404, "message": "no job 'unknown' here"}
        elif "id" in message:
            reply = {"id": message["id"], "state": "waiting", "position": 3, "eta_ms": 4200}
        else:
            reply = STATUS
        self.send(self.request, {**reply, "rid": message["rid"]})

    def answer(self, message: Map) -> None:
        self.server.requests.append(message)
        id = message["id"]
        if "model_type" in message:
            value = [0.5, -1.0] if message["model_type"] == "embedding" else [-2.0, 1.25]
            end = result(id, "") | {"tool_id": f"__{message['model_type']}__", "tool_input_json": "[]", "output": value}
            with socket.socket(socket.AF_UNIX) as callback:
                callback.connect(message["callback"])
                self.send(self.request, {"id": id, "status": "accepted"})
                self.send(callback, end)
            return
        text = message.get("text") or message["messages"][-1]["content"]
        if text.startswith("fail"):
            _, name, code = text.split()
            self.send(self.request, {"id": id, "error": name, "code": int(code), "message": f"because {name}"})
            return
        self.send(self.request, {"id": id, "status": "accepted"})
        with socket.socket(socket.AF_UNIX) as callback:
            out = self.request
            if "callback" in message:
                callback.connect(message["callback"])
                out = callback
            if text == "hang":
                self.send(out, {"id": id, "delta": "one moment"})
                self.server.hanging.set()
                return
            if message.get("stream"):
                self.send(out, {"id": id, "delta": "you said "}, {"id": id, "delta": text})
            self.send(out, result(id, f"you said {text}", "length" if text == "long" else "stop"))

    @staticmethod
    def send(connection: socket.socket, *messages: Map) -> None:
        connection.sendall(b"".join(msgpack.packb(message) for message in messages))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(str(tmp_path / "d.sock")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def granville(daemon: Daemon, *arguments: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run(
        [sys.executable, "-m", "granville", *arguments],
        env={**os.environ, "GRANVILLE_SOCKET": daemon.path},
        input=data,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_submit_sends_what_was_asked_and_prints_the_answer(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--priority high --session s --model llama-a1b2c3 --max-tokens 9 --temperature 0 --seed 7 --timeout 1.5"
    assert main(["submit", "hi", "-s", daemon.path, *options.split(), "--stop", "a b", "--stop", "\n"]) == 0
    assert capsys.readouterr() == ("you said hi\n", "")
    (request,) = daemon.requests
    assert len(request.pop("id")) == 32
    assert not os.path.exists(request.pop("callback"))
    assert request == {
        "text": "hi",
        "priority": "high",
        "session_id": "s",
        "model_id": "llama-a1b2c3",
        "max_tokens": 9,
        "temperature": 0.0,
        "seed": 7,
        "timeout_ms": 1500,
        "stop": ["a b", "\n"],
    }


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_submit_asks_for_values(daemon: Daemon, capsys: pytest.CaptureFixture[str], stream: list[str]) -> None:
    assert main(["submit", "a question", "-s", daemon.path, "--type", "embedding", *stream]) == 0
    assert capsys.readouterr().out == "[0.5,-1.0]\n"
    documents = ["--document", "far off", "--document", "the answer"]
    assert main(["submit", "a question", "-s", daemon.path, "--type", "rerank", *documents, *stream]) == 0
    assert capsys.readouterr().out == "1.2500\tthe answer\n-2.0000\tfar off\n"
    assert [(request["model_type"], request.get("documents")) for request in daemon.requests] == [
        ("embedding", None),
        ("rerank", ["far off", "the answer"]),
    ]
    assert main(["submit", "a question", "-s", daemon.path, "--type", "rerank"]) == 3
    assert "documents: missing" in capsys.readouterr().err


def test_submit_leaves_to_the_daemon_what_was_not_asked(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "hi", "-s", daemon.path]) == 0
    assert daemon.requests[0].keys() == {"id", "text", "callback"}


def test_submit_can_have_its_text_ranked(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "hi", "-s", daemon.path, "--ranked"]) == 0
    assert daemon.requests[0]["ranked"] is True


def test_submit_streams(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "hi", "-s", daemon.path, "--stream"]) == 0
    assert capsys.readouterr().out == "you said hi\n"
    assert daemon.requests[0]["stream"] is True


def test_submit_prints_messages_as_json_lines(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "hi", "-s", daemon.path, "--json", "--stream"]) == 0
    *deltas, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    id = daemon.requests[0]["id"]
    assert {delta["id"] for delta in deltas} == {id}
    assert "".join(delta["delta"] for delta in deltas) == "you said hi"
    assert end == result(id, "you said hi")


def test_submit_reads_stdin(daemon: Daemon) -> None:
    assert granville(daemon, "submit", "-", stdin="zwei\nZeilen ü\n").stdout == "you said zwei\nZeilen ü\n"
    wrong = granville(daemon, "submit", "-", stdin=b"\xff\xfe")
    assert (wrong.returncode, wrong.stderr) == (3, "granville: stdin: not valid UTF-8\n")


def test_what_a_locale_cannot_show_is_escaped(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    done = granville(daemon, "submit", "-", stdin="a bullet: \u2022")
    assert (done.returncode, done.stdout, done.stderr) == (0, "you said a bullet: \\u2022\n", "")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("fail queue_full 429", 6),
        ("fail deadline_exceeded 408", 5),
        ("fail shutting_down 503", 9),
        ("fail of_tomorrow 599", 1),
    ],
)
def test_submit_exits_by_the_error(daemon: Daemon, text: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", text, "-s", daemon.path]) == status
    assert capsys.readouterr() == ("", f"granville: because {text.split()[1]}\n")


@contextmanager
def running(
    *arguments: str, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    command = subprocess.Popen(
        [sys.executable, "-m", "granville", *arguments], text=True, stdin=stdin, stdout=stdout, stderr=stderr
    )
    try:
        yield command
    finally:
        if command.poll() is None:
            command.kill()
        command.communicate()


def test_ctrl_c_cancels_the_submitted_job(daemon: Daemon) -> None:
    asked = ("submit", "hang", "--stream", "-s", daemon.path)
    with running(*asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert daemon.hanging.wait(30)
        assert command.stdout is not None
        assert command.stdout.read(10) == "one moment"
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)
    assert (command.returncode, out, err) == (130, "\n", "")
    assert daemon.cancelled == [daemon.requests[0]["id"]]


def test_chat_sends_the_whole_conversation_each_turn(daemon: Daemon) -> None:
    done = granville(
        daemon, "chat", "--system", "Be brief.", "--temperature", "0", stdin="hi\n\nand then?\n/exit\nno\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "you said hi\nyou said and then?\n", "")
    first, second = daemon.requests
    assert first["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "you said hi"},
        {"role": "user", "content": "and then?"},
    ]
    assert second["stream"] is True
    assert not {"session_id", "callback", "text"} & second.keys()


def test_chat_clears_and_ends_with_its_input(daemon: Daemon) -> None:
    done = granville(daemon, "chat", "--system", "Be brief.", stdin="hi\n/clear\nagain")
    assert done.returncode == 0
    assert [m["content"] for m in daemon.requests[1]["messages"]] == ["Be brief.", "again"]


def test_chat_says_when_an_answer_was_cut_off(daemon: Daemon) -> None:
    assert "--max-tokens" in granville(daemon, "chat", stdin="long\n").stderr


def test_submit_says_when_the_usual_length_has_cut_an_answer_off(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "[cut off after 2 tokens; --max-tokens gives more room]\n"
    for flags, note in ((), said), (("--stream",), said), (("--max-tokens", "2"), ""), (("--json",), ""):
        assert main(["submit", "long", "-s", daemon.path, *flags]) == 0
        assert capsys.readouterr().err == note


def test_a_piped_chat_ends_with_the_first_error(daemon: Daemon) -> None:
    done = granville(daemon, "chat", stdin="hi\nfail queue_full 429\nmore\n")
    assert (done.returncode, done.stdout, done.stderr) == (6, "you said hi\n", "granville: because queue_full\n")


def read_until(terminal: int, text: str) -> str:
    seen = ""
    while text not in seen:
        seen += os.read(terminal, 4096).decode()
    return seen


def interrupt_until_heard(command: subprocess.Popen[str], terminal: int) -> None:
    """Between showing the prompt and waiting for a key, readline keeps a signal until the next key or signal."""
    command.send_signal(signal.SIGINT)
    while not select.select([terminal], [], [], 1)[0]:
        command.send_signal(signal.SIGINT)


def test_in_a_terminal_ctrl_c_cancels_the_answer_and_the_conversation_goes_on(daemon: Daemon) -> None:
    ours, theirs = os.openpty()
    with running("chat", "-s", daemon.path, stdin=theirs, stdout=theirs, stderr=theirs) as command:
        os.close(theirs)
        assert "llama-a1b2c3" in read_until(ours, "> ")
        os.write(ours, b"hang\n")
        read_until(ours, "one moment")
        command.send_signal(signal.SIGINT)
        assert "cancelled" in read_until(ours, "> ")
        os.write(ours, b"fail queue_full 429\n")
        assert "because queue_full" in read_until(ours, "]\r\n> ")
        interrupt_until_heard(command, ours)  # at the prompt: no answer to cancel, and no reason to end
        assert "/exit" in read_until(ours, "> ")
        os.write(ours, b"hello\n")
        assert "you said hello" in read_until(ours, "> ")
        os.write(ours, b"/help\n")
        assert "/clear and /exit" in read_until(ours, "]\r\n> ")
        os.write(ours, b"/clear\n")
        assert "begins afresh" in read_until(ours, "]\r\n> ")
        os.write(ours, b"/etc/hosts is what?\n")
        assert "you said /etc" in read_until(ours, "what?\r\n> ")
        os.write(ours, b"\x04")
        assert command.wait(30) == 0
    os.close(ours)
    assert daemon.cancelled == [daemon.requests[0]["id"]]
    assert [request["messages"] for request in daemon.requests[-2:]] == [
        [{"role": "user", "content": "hello"}],
        [{"role": "user", "content": "/etc/hosts is what?"}],
    ]


def test_status_shows_the_daemon_and_its_models(daemon: Daemon) -> None:
    done = granville(daemon, "status")
    assert (done.returncode, done.stderr) == (0, "")
    for shown in (
        "0.1.0, serving, up 1 h 02 min, pid 4711", "7 of 1000 waiting (2 high, 5 normal), the oldest for 1.5 s",
        "3.25 jobs/s", "29 finished", "4 of 4096", "29 delivered", "llama-a1b2c3", "ready", "granville-llama",
        "3/8", "87.5", "2048", "334 MB", "2.0 s ago",
        "3 prompts, 12 MB; 7 requests found theirs",
    ):  # fmt: skip
        assert shown in done.stdout


def test_status_shows_several_models_and_what_is_wrong_with_one(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = STATUS["models"][0]
    broken = {**sound, "id": "broken", "state": "failed", "restarts": 7, "last_error": "broken.gguf: cut \x1b[2Joff"}
    monkeypatch.setitem(STATUS, "models", [sound, broken])
    assert main(["status", "-s", daemon.path]) == 0
    out = capsys.readouterr().out
    for shown in ("llama-a1b2c3", "broken", "failed", "7", "broken: broken.gguf: cut [2Joff"):
        assert shown in out


def test_load_names_a_file_in_full_and_shows_the_model(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m,1.gguf").touch()
    monkeypatch.chdir(tmp_path)
    cases = {
        r"ranker:tiny:m\,1.gguf?driver=d": rf"ranker:tiny:{tmp_path}/m\,1.gguf?driver=d",
        "second:smollm2": "second:smollm2",
        "pypi://p==1/a.gguf": "pypi://p==1/a.gguf",
    }
    for typed, sent in cases.items():
        assert main(["load", typed, "--slots", "2", "-s", daemon.path]) == 0
        assert "loaded" in capsys.readouterr().out
        request = daemon.requests.pop()
        assert (request["model"], request["slots"], "context_size" in request) == (sent, 2, False)


def test_unload(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unload", "tiny", "--force", "-s", daemon.path]) == 0
    assert capsys.readouterr() == ("", "")
    assert {"op": "unload", "model_id": "tiny", "force": True}.items() <= daemon.requests[0].items()


def test_a_reader_of_the_status_that_has_left_is_no_traceback(daemon: Daemon) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with running("status", "-s", daemon.path, stdout=writing, stderr=subprocess.PIPE) as command:
        os.close(writing)
        _, err = command.communicate(timeout=30)
    assert (command.returncode, err) == (BROKEN_PIPE, "")


def test_status_of_one_job(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "job-1", "-s", daemon.path]) == 0
    out = capsys.readouterr().out
    assert [line.strip().split(maxsplit=1) for line in out.replace("expected in", "expected").splitlines()] == [
        ["job", "job-1"],
        ["state", "waiting"],
        ["position", "3"],
        ["expected", "4.2 s"],
    ]
    assert main(["status", "unknown", "-s", daemon.path]) == 4
    assert capsys.readouterr() == ("", "granville: no job 'unknown' here\n")


def test_status_as_json_is_the_reply(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json", "-s", daemon.path]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_a_models_escape_sequences_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x9b1mc\r\x07\x7f\tü\n") == "a[2Jb1mc\tü\n"

"""A daemon in a process of its own, and a foreign client that knows `socket` and `msgpack` and nothing of ours."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import msgpack

Map = dict[str, Any]

GRANVILLE = Path(sysconfig.get_path("scripts"), "granville")
HERE = Path(__file__).parent
PATIENCE_S = 20.0
"""How long anything may take on a busy machine before the test gives up."""
DRIVER = "granville.testing.fake:FakeDriver"


class Client:
    """One connection. Every wait is bounded by PATIENCE_S."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self.sock = sock
        self._unpacker = msgpack.Unpacker(max_buffer_size=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *messages: object) -> None:
        self.sock.sendall(b"".join(map(msgpack.packb, messages)))

    def receive(self) -> Map:
        """The next message. Raises EOFError at the end of the stream."""
        while True:
            for message in self._unpacker:
                assert isinstance(message, dict)
                return message
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._unpacker.feed(data)

    def ask(self, message: object) -> Map:
        self.send(message)
        return self.receive()

    def rest(self) -> list[Map]:
        """All messages up to the end of the stream."""
        messages = []
        while True:
            try:
                messages.append(self.receive())
            except EOFError:
                return messages

    def terminals(self, count: int) -> dict[str, Map]:
        """The next `count` results and errors by id, whatever else comes between them."""
        ended: dict[str, Map] = {}
        while len(ended) < count:
            message = self.receive()
            if is_terminal(message):
                assert message["id"] not in ended, f"two terminal messages: {message}"
                ended[message["id"]] = message
        return ended

    def end_of(self, id: str) -> Map:
        """The result or error of one job; what comes before it is dropped."""
        while True:
            message = self.receive()
            if message["id"] == id and is_terminal(message):
                return message


def is_terminal(message: Map) -> bool:
    return "tool_id" in message or "error" in message


def is_ack(message: Map) -> bool:
    return message == {"id": message.get("id"), "status": "accepted"}


def text_of(result: Map) -> str:
    """The chat answer in a result."""
    (text,) = json.loads(result["tool_input_json"])
    assert isinstance(text, str)
    return text


class Callback:
    """A client's own socket, to which the daemon brings results."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self.sock = sock

    @classmethod
    def at(cls, path: Path) -> Self:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def messages(self) -> list[Map]:
        """All that comes on the next connection, which is one job's."""
        connection, _ = self.sock.accept()
        with Client(connection) as client:
            return client.rest()


class Daemon:
    """`granville serve`, started with `arguments`. `ready` is its ready line's words by name."""

    def __init__(self, process: subprocess.Popen[str], socket: Path, log: Path, ready: str) -> None:
        self.process = process
        self.socket = socket
        self._log = log
        self.ready_line = ready
        self.ready = dict(word.split("=", 1) for word in ready.split() if "=" in word)

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text()

    def connect(self) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.socket))
        return Client(sock)

    def connect_tcp(self) -> Client:
        host, _, port = self.ready["tcp"].rpartition(":")
        return Client(socket.create_connection((host, int(port))))

    def ask(self, message: object) -> Map:
        """The first reply to one message on a connection of its own."""
        with self.connect() as client:
            return client.ask(message)

    def status(self) -> Map:
        return self.ask({"op": "status"})

    def counts(self) -> Map:
        counts: Map = self.status()["jobs"]
        return counts

    def answer(self, text: str, **fields: object) -> str:
        """Ask once and return the answer: that the daemon serves."""
        id = f"answer-{time.monotonic_ns()}"
        with self.connect() as client:
            assert client.ask({"id": id, "text": text, **fields}) == {"id": id, "status": "accepted"}
            return text_of(client.receive())

    def get(self, path: str, **headers: str) -> tuple[int, Map | str]:
        """(status, body) of a GET; the body is decoded when it is JSON."""
        port = int(self.ready["http"].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read().decode()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(body) if is_json else body
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit status."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()


def environment(home: Path) -> dict[str, str]:
    """This process's environment without settings of Granville, with a home of its own; test drivers can be found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRANVILLE_", "CRUCIBLE_"))}
    path = os.pathsep.join(filter(None, (str(HERE), kept.get("PYTHONPATH"))))
    return kept | {"GRANVILLE_HOME": str(home), "PYTHONPATH": path}


def serve_command(
    folder: Path,
    *flags: str,
    model: Path | str | None = None,
    driver: str = DRIVER,
    config: Mapping[str, object] | None = None,
    socket_path: Path | None = None,
) -> list[str]:
    """`granville serve` on a socket in `folder`, on free ports; `config` goes to the driver."""
    if model is None:
        model = folder / "model.bin"
        model.write_bytes(b"a model for a driver that needs none")
    command = [str(GRANVILLE), "serve", str(model), "-d", driver, "-s", str(socket_path or folder / "g.sock")]
    if "-p" not in flags and "--no-http" not in flags:
        command += ["-p", "0"]
    for key, value in (config or {}).items():
        command += ["--driver-config", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return [*command, *flags]


@contextmanager
def running(folder: Path, *flags: str, **options: Any) -> Iterator[Daemon]:
    """A daemon that is ready. It is ended by pid afterwards, with SIGTERM unless it has ended by itself."""
    command = serve_command(folder, *flags, **options)
    log_path = folder / f"stderr-{time.monotonic_ns()}"
    with log_path.open("w") as log, launched(command, folder, log) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("granville ready "), f"not ready: {line!r} {log_path.read_text()}"
        daemon = Daemon(process, Path(command[command.index("-s") + 1]), log_path, line)
        yield daemon
        if process.poll() is None:
            daemon.stop()
        assert "Traceback" not in daemon.log


@contextmanager
def launched(command: list[str], folder: Path, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is surely gone afterwards, with its stdout as a pipe."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=environment(folder)
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def granville(folder: Path, *arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of the installed command line, run to its end."""
    return subprocess.run(
        [str(GRANVILLE), *arguments],
        env=environment(folder) | variables,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def eventually(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait until something outside this process has come true."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "it did not come true in time"
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    """Whether a process runs; one that only waits to be waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def words(count: int) -> str:
    """A text that the fake driver takes `count` decodes to answer."""
    return " ".join(["word"] * count)

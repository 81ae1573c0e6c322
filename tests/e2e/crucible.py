"""`crucible serve` in a process of its own, above a Granville whose driver is fake, and workflows for it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.harness import PATIENCE_S, Daemon, Map, environment, launched

CRUCIBLE = Path(sysconfig.get_path("scripts"), "crucible")
HELLO = """\
crucible: 1
name: hello
inputs:
  who: {type: text}
steps:
  - {id: greet, model_type: inference, input: "greet {{ who }}", output: greeting}
  - {id: answer, model_type: inference, input: "answer to {{ greeting }}"}
outputs: {greeting: greeting, answer: answer}
"""


def slow(steps: int = 4, words: int = 10) -> str:
    """A workflow of steps that wait for each other; the fake driver takes a decode a word."""
    lines = ["crucible: 1", "name: slow", "steps:"]
    said = " ".join(["word"] * words)
    for number in range(steps):
        needs = f", needs: [s{number - 1}]" if number else ""
        lines.append(f'  - {{id: s{number}, model_type: inference, input: "{number} {said}"{needs}}}')
    return "\n".join([*lines, f"outputs: {{last: s{steps - 1}}}", ""])


class Crucible(Daemon):
    def post(self, path: str, body: object = None, **headers: str) -> tuple[int, Map, dict[str, str]]:
        """(status, JSON, headers) of a POST, of JSON unless the body is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request("POST", path, data, {"content-type": "application/json"} | headers)
            response = connection.getresponse()
            text = response.read().decode()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(text) if is_json else {"text": text}, dict(response.headers)
        finally:
            connection.close()

    def start(self, workflow: str, **inputs: object) -> str:
        """A run that is started over HTTP; its id."""
        status, reply, _ = self.post("/runs", {"workflow": workflow, "inputs": inputs})
        assert status == 202, reply
        return str(reply["id"])

    def run_of(self, id: str) -> Map:
        status, shown = self.get(f"/runs/{id}")
        assert status == 200
        assert isinstance(shown, dict)
        run: Map = shown["run"]
        return run

    @property
    def port(self) -> int:
        return int(self.ready["http"].rpartition(":")[2])

    @contextmanager
    def stream(self, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            yield connection.getresponse()
        finally:
            connection.close()


def server_events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str, Map]]:
    """(id, event, data) of each, until the stream ends."""
    fields: dict[str, str] = {}
    while line := response.readline().decode():
        name, _, value = line.rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}


@contextmanager
def crucible_serving(folder: Path, granville: Path, *flags: str) -> Iterator[Crucible]:
    """A daemon that is ready, ended by its pid afterwards; its home, and so its journal, is `folder`."""
    port = () if "-p" in flags or "--no-http" in flags else ("-p", "0")
    command = [str(CRUCIBLE), "serve", "-s", str(folder / "c.sock"), "--granville", str(granville), *port, *flags]
    log_path = folder / f"stderr-{time.monotonic_ns()}"
    with log_path.open("w") as log, launched(command, folder, log) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("crucible ready "), f"not ready: {line!r} {log_path.read_text()}"
        daemon = Crucible(process, folder / "c.sock", log_path, line)
        yield daemon
        if process.poll() is None:
            daemon.stop()
        assert "Traceback" not in daemon.log


def crucible(folder: Path, *arguments: str, stdin: str | bytes = b"", **more: Any) -> subprocess.CompletedProcess[str]:
    """A command of the installed command line, run to its end."""
    done = subprocess.run(
        [str(CRUCIBLE), *arguments],
        env=environment(folder) | more,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

"""How a daemon begins and how it ends: what cannot start says so in one line, and nothing keeps it from ending."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.harness import (
    DRIVER,
    PATIENCE_S,
    Callback,
    Daemon,
    environment,
    eventually,
    granville,
    is_ack,
    launched,
    running,
    serve_command,
    text_of,
    words,
)


def refused(folder: Path, *command: str) -> str:
    """The line on stderr of a daemon that must not start."""
    done = subprocess.run(
        command, env=environment(folder), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("granville: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_no_model(folder: Path) -> None:
    done = granville(folder, "serve")
    assert done.returncode == 1
    assert "a model is required, for example `granville serve smollm2`" in done.stderr


def test_a_missing_model_file(folder: Path) -> None:
    line = refused(folder, *serve_command(folder, model=folder / "not-there.gguf"))
    assert "not-there.gguf" in line


def test_a_model_file_that_is_none(folder: Path) -> None:
    model = folder / "text.gguf"
    model.write_text("this is not a model")
    assert "text.gguf" in refused(folder, *serve_command(folder, model=model, driver="granville-llama"))


@pytest.mark.parametrize("kept_bytes", [10_000, 5_000_000])
def test_a_model_file_that_is_cut_off(folder: Path, smollm2: Path, kept_bytes: int) -> None:
    model = folder / "cut.gguf"
    with smollm2.open("rb") as whole:
        model.write_bytes(whole.read(kept_bytes))
    assert "cut.gguf" in refused(folder, *serve_command(folder, model=model, driver="granville-llama"))


def test_a_driver_that_cannot_load_the_model(folder: Path) -> None:
    line = refused(folder, *serve_command(folder, config={"load_error": "the weights are upside down"}))
    assert "model.bin: the weights are upside down" in line


def test_an_unknown_driver(folder: Path) -> None:
    line = refused(folder, *serve_command(folder, driver="granville-abacus"))
    assert "granville-abacus" in line
    assert "granville-llama" in line


def test_a_wrong_value(folder: Path) -> None:
    assert "--queue-size" in refused(folder, *serve_command(folder, "-q", "0"))
    assert "--tcp" not in refused(folder, *serve_command(folder, "--grace", "-1"))
    assert "not a loopback address" in refused(folder, *serve_command(folder, "--tcp", "0.0.0.0:9000"))


def test_a_socket_path_that_is_too_long(folder: Path) -> None:
    line = refused(folder, *serve_command(folder, socket_path=folder / (108 * "s")))
    assert "107" in line
    longest = folder / ("s" * (107 - len(str(folder)) - 1))
    with running(folder, "--no-http", socket_path=longest) as daemon:
        assert daemon.answer("the longest path") == "the longest path"


def test_a_socket_in_a_folder_that_is_not_there(folder: Path) -> None:
    path = folder / "no" / "g.sock"
    assert str(path) in refused(folder, *serve_command(folder, socket_path=path))


def test_a_socket_path_with_a_file_in_the_way(folder: Path) -> None:
    path = folder / "g.sock"
    path.write_text("precious")
    assert "not a socket" in refused(folder, *serve_command(folder, socket_path=path))
    assert path.read_text() == "precious"


def test_a_socket_that_a_daemon_serves(folder: Path) -> None:
    with running(folder) as daemon:
        assert "another daemon" in refused(folder, *serve_command(folder))
        assert daemon.answer("still here") == "still here"


def test_a_socket_that_another_program_serves(folder: Path) -> None:
    with Callback.at(folder / "g.sock"):
        assert "another program" in refused(folder, *serve_command(folder))


def test_an_http_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}" in refused(folder, *serve_command(folder, "-p", port))
    assert not (folder / "g.sock").exists()


def test_a_tcp_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"--tcp {address}" in refused(folder, *serve_command(folder, "--tcp", address))


def test_the_socket_is_for_its_owner_and_goes_with_the_daemon(folder: Path) -> None:
    with running(folder) as daemon:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE((folder / "g.sock.lock").stat().st_mode) == 0o600
        assert daemon.stop() == 0
    assert not daemon.socket.exists()
    assert not (folder / "g.sock.lock").exists()


def test_killed_and_started_again(folder: Path) -> None:
    with running(folder, "--no-http") as daemon:
        daemon.signal(signal.SIGKILL)
        assert daemon.wait() == -signal.SIGKILL
    assert daemon.socket.exists()
    with running(folder, "--no-http") as daemon:
        assert daemon.answer("once more") == "once more"


def test_two_daemons_at_the_same_instant(folder: Path) -> None:
    """On a stale socket, which either might take for its own to replace."""
    with Callback.at(folder / "g.sock"):
        pass
    command = serve_command(folder, "--no-http", config={"load_s": 0.5})
    with ExitStack() as stack:
        logs = [stack.enter_context((folder / f"{n}.log").open("w+")) for n in range(2)]
        both = [stack.enter_context(launched(command, folder, log)) for log in logs]
        lines = [process.stdout.readline() for process in both if process.stdout is not None]
        assert sorted(line.startswith("granville ready") for line in lines) == [False, True]
        survivor = 0 if lines[0] else 1
        assert both[1 - survivor].wait(PATIENCE_S) == 1
        logs[1 - survivor].seek(0)
        assert "another daemon" in logs[1 - survivor].read()
        daemon = Daemon(both[survivor], folder / "g.sock", folder / f"{survivor}.log", lines[survivor])
        assert daemon.answer("one survives") == "one survives"
        assert daemon.stop() == 0


def test_sigterm_in_the_middle_of_an_answer(folder: Path) -> None:
    """What runs is finished, what waits gets 503, and new work is refused."""
    flags = ("--slots", "1", "--grace", "15")
    with running(folder, *flags, config={"decode_s": 0.01}) as daemon, daemon.connect() as client:
        with Callback.at(folder / "c.sock") as callback:
            client.send({"id": "runs", "text": words(100), "stream": True}, {"id": "waits", "text": "x"})
            client.send({"id": "waits-too", "text": "x", "callback": str(folder / "c.sock")})
            eventually(lambda: daemon.counts()["running"] == 1)
            daemon.signal(signal.SIGTERM)
            ended = client.end_of("waits")
            assert (ended["error"], ended["code"]) == ("shutting_down", 503)
            (ended,) = callback.messages()
            assert (ended["id"], ended["error"], ended["code"]) == ("waits-too", "shutting_down", 503)
        status, health = daemon.get("/health")
        assert status == 503
        assert isinstance(health, dict)
        assert health["status"] == "draining"
        late = daemon.ask({"id": "late", "text": "x"})
        assert (late["id"], late["error"], late["code"]) == ("late", "shutting_down", 503)
        assert text_of(client.end_of("runs")) == words(100)
        assert client.rest() == []
        assert daemon.wait() == 0


def test_sigterm_after_drain_lets_what_runs_finish(folder: Path) -> None:
    flags = ("--slots", "1", "--grace", "15", "--no-http")
    with running(folder, *flags, config={"decode_s": 0.01}) as daemon, daemon.connect() as client:
        client.send({"id": "runs", "text": words(100), "stream": True}, {"id": "waits", "text": "x"})
        eventually(lambda: daemon.counts()["running"] == 1)
        assert daemon.ask({"op": "drain"})["state"] == "draining"
        daemon.signal(signal.SIGTERM)
        assert client.end_of("waits")["error"] == "shutting_down"
        assert text_of(client.end_of("runs")) == words(100)
        assert daemon.wait() == 0


def test_the_grace_has_an_end(folder: Path) -> None:
    flags = ("--slots", "1", "--grace", "0.3", "--no-http")
    with running(folder, *flags, config={"decode_s": 0.01}) as daemon, daemon.connect() as client:
        assert is_ack(client.ask({"id": "runs", "text": words(3000), "max_tokens": 3000}))
        eventually(lambda: daemon.counts()["running"] == 1)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 5
        (ended,) = client.rest()
        assert (ended["id"], ended["error"], ended["code"]) == ("runs", "shutting_down", 503)


def test_clients_that_are_only_connected_do_not_hold_it_up(folder: Path) -> None:
    """Idle, in the middle of a message, and in the middle of an HTTP request."""
    with running(folder) as daemon, daemon.connect() as idle, daemon.connect() as halfway, ExitStack() as stack:
        assert idle.ask({"op": "ping"})["ok"] is True
        halfway.sock.sendall(b"\x82\xa2id")
        port = int(daemon.ready["http"].rpartition(":")[2])
        for sent in (b"", b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /sta"):
            browser = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            browser.sendall(sent)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 5
        assert idle.rest() == []


def test_a_hung_driver_cannot_keep_the_daemon_alive(folder: Path) -> None:
    flags = ("--grace", "0.1", "--no-http")
    with running(folder, *flags, driver="stuck:StuckDriver") as daemon, daemon.connect() as client:
        assert is_ack(client.ask({"id": "stuck", "text": "x"}))
        eventually(lambda: daemon.counts()["running"] == 1)
        assert daemon.stop() == 0
        (ended,) = client.rest()
        assert (ended["id"], ended["code"]) == ("stuck", 503)
    assert not daemon.socket.exists()


@pytest.mark.parametrize("driver", [DRIVER, "stuck:StuckDriver"])
def test_ctrl_c_twice_ends_at_once(folder: Path, driver: str) -> None:
    config = {"decode_s": 0.01} if driver == DRIVER else None
    with running(folder, "--no-http", driver=driver, config=config) as daemon, daemon.connect() as client:
        assert is_ack(client.ask({"id": "runs", "text": words(3000), "max_tokens": 3000}))
        eventually(lambda: daemon.counts()["running"] == 1)
        daemon.signal(signal.SIGINT)
        eventually(lambda: daemon.status()["state"] == "draining")
        began = time.monotonic()
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 128 + signal.SIGINT
        assert time.monotonic() - began < 3
    assert not daemon.socket.exists()
    assert daemon.log == ""


def test_a_signal_while_the_model_loads(folder: Path) -> None:
    command = serve_command(folder, "--no-http", config={"load_s": 60})
    with (folder / "log").open("w+") as log, launched(command, folder, log) as process:
        # Its own thread, the one that passes the driver's words on, and the model's.
        eventually(lambda: len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        log.seek(0)
        assert log.read() == ""
    assert not (folder / "g.sock").exists()

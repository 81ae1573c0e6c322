"""`crucible run` and `crucible runs`: what goes in, what comes out, what goes wrong, and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.crucible import CRUCIBLE, HELLO, crucible, crucible_serving, slow
from tests.e2e.harness import PATIENCE_S, Daemon, environment, eventually

CONFIG = {"decode_s": 0.005}
PYTHON = """\
from granville.crucible.workflow.model import Input, Step, Workflow

workflow = Workflow(
    name="python",
    inputs={"who": Input(type="text")},
    steps=(Step(id="greet", model_type="inference", input="from python to {{ who }}"),),
)
number = 3
"""
ECHO = """\
name: echo
inputs:
  count: {type: integer, default: 2}
  names: {type: list, default: []}
  sound: {type: audio, required: false}
steps:
  - {id: say, model_type: inference, input: "{{ count }} {{ names }}"}
outputs: {said: say, count: count, names: names, back: sound}
"""
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(range(256))


@pytest.fixture
def flows(folder: Path) -> Path:
    """A folder with the workflows; it is the home of the commands, too."""
    (folder / "hello.yaml").write_text(HELLO)
    (folder / "echo.yaml").write_text(ECHO)
    (folder / "slow.yaml").write_text(slow(30))
    (folder / "flows.py").write_text(PYTHON)
    return folder


def test_a_run_shows_its_steps_and_prints_its_outputs(daemon: Daemon, flows: Path) -> None:
    done = crucible(flows, "run", str(flows / "hello.yaml"), "-i", "who=Ann", "-s", str(daemon.socket))
    assert (done.returncode, done.stdout) == (0, "greeting: greet Ann\nanswer: answer to greet Ann\n")
    first, second = done.stderr.splitlines()
    assert first.startswith("greet  finished  ")
    assert second.startswith("answer  finished  ")
    assert "4 tokens" in second


def test_json_is_all_there_is_on_stdout(daemon: Daemon, flows: Path) -> None:
    path, socket = str(flows / "hello.yaml"), str(daemon.socket)
    done = crucible(flows, "run", path, "-i", "who=Ann", "--json", "-q", CRUCIBLE_GRANVILLE=socket)
    assert json.loads(done.stdout) == {"greeting": "greet Ann", "answer": "answer to greet Ann"}
    assert done.stderr == ""


def test_a_workflow_in_python(daemon: Daemon, flows: Path) -> None:
    path = str(flows / "flows.py")
    done = crucible(flows, "run", f"{path}:workflow", "-i", "who=Ann", "-q", GRANVILLE_SOCKET=str(daemon.socket))
    assert (done.returncode, done.stdout, done.stderr) == (0, "from python to Ann\n", "")
    for file, said in (
        (path, f"crucible: {path}: name the workflow in it, for example {path}:workflow\n"),
        (f"{path}:number", f"crucible: {path}:number: {path} has no workflow called 'number'; it has workflow\n"),
        (f"{flows}/none.py:workflow", f"crucible: {flows}/none.py: no such file\n"),
    ):
        done = crucible(flows, "run", file)
        assert (done.returncode, done.stderr) == (1, said)


def test_inputs_are_of_the_kind_that_is_declared(daemon: Daemon, flows: Path) -> None:
    (flows / "names.json").write_text('["Ann", "Bo"]')
    (flows / "in.wav").write_bytes(WAV)
    arguments = ["run", str(flows / "echo.yaml"), "-s", str(daemon.socket), "-q", "--json"]
    for sound in (["--audio", str(flows / "in.wav")], ["--audio", "-"], ["--input-file", f"sound={flows}/in.wav"]):
        out = str(flows / "out.wav")
        names = f"names=@{flows}/names.json"
        done = crucible(flows, *arguments, "-i", "count=3", "--input-json", names, *sound, "--out", out, stdin=WAV)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {
            "said": '3 ["Ann","Bo"]', "count": 3, "names": ["Ann", "Bo"], "back": {"bytes": len(WAV), "file": out}
        }  # fmt: skip
        assert (flows / "out.wav").read_bytes() == WAV
        os.unlink(out)


def test_sound_goes_to_a_pipe_and_not_to_a_terminal(daemon: Daemon, flows: Path) -> None:
    (flows / "in.wav").write_bytes(WAV)
    command = [
        str(CRUCIBLE), "run", str(flows / "echo.yaml"), "-s", str(daemon.socket), "--audio", str(flows / "in.wav"),
        "--out", "-",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(flows), capture_output=True, timeout=60, check=True)
    assert done.stdout == WAV
    leader, follower = pty.openpty()
    asked = daemon.counts()["accepted"]
    refused = subprocess.run(command, env=environment(flows), stdout=follower, stderr=subprocess.PIPE, check=False)
    os.close(leader)
    os.close(follower)
    assert refused.returncode == 3
    assert b"sound is not for a terminal" in refused.stderr
    assert daemon.counts()["accepted"] == asked, "nothing was run"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["hello.yaml"], 3, "inputs.who: missing; give it by --input who=TEXT, or --input-file who=PATH"),
        (["hello.yaml", "-i", "wo=x"], 3, "--input wo: no such input; hello has who"),
        (["hello.yaml", "-i", "who"], 3, "--input who: expected NAME=VALUE"),
        (["hello.yaml", "-i", "who=a", "-i", "who=b"], 3, "--input who: given twice"),
        (["hello.yaml", "--audio", "x.wav"], 3, "--audio: hello takes no sound"),
        (["echo.yaml", "-i", "count=many"], 3, "--input count: expected a whole number"),
        (["echo.yaml", "--input-json", "count=1.5"], 3, "inputs.count: expected a whole number"),
        (["echo.yaml", "--input-file", "names=nothere"], 3, "--input-file: nothere cannot be read"),
        (["echo.yaml", "--audio", "nothere.wav"], 3, "--audio: nothere.wav cannot be read"),
        (["echo.yaml", "--input-file", "names=-", "--audio", "-"], 3, "stdin is taken by --input-file"),
        (["echo.yaml", "--out", "no/folder/x.wav"], 3, "the folder no/folder does not exist"),
        (["hello.yaml", "-i", "who=x", "--timeout", "0"], 3, "--timeout: must be more than 0"),
        (["hello.yaml", "-i", "who=x", "--id", "a/b"], 3, "a/b"),
        (["nothere.yaml"], 3, "nothere.yaml: cannot be read"),
        (["hello.yaml", "--bogus"], 2, "--bogus"),
        ([], 2, "FILE"),
        (["hello.yaml", "-i", "who=x", "--tools", "nothere.py"], 1, "nothere.py"),
        (["echo.yaml", "--microphone", "400"], 1, "--microphone: expected 0 to 300 seconds"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_run(
    flows: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, said: str
) -> None:
    monkeypatch.chdir(flows)
    done = crucible(flows, "run", *arguments, "-s", str(flows / "none.sock"))
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("crucible: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert done.stdout == ""


def test_all_that_is_wrong_with_a_workflow_is_said(flows: Path) -> None:
    (flows / "wrong.yaml").write_text(HELLO.replace("input:", "imput:").replace("outputs:", "outptus:"))
    done = crucible(flows, "run", str(flows / "wrong.yaml"), "-i", "who=x")
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith(f"crucible: {flows}/wrong.yaml:") for line in lines)


def test_a_granville_that_is_away_is_waited_for_and_then_missed(flows: Path) -> None:
    done = crucible(
        flows, "run", str(flows / "hello.yaml"), "-i", "who=x", "-s", str(flows / "none.sock"),
        "--wait-for-granville", "0.2",
    )  # fmt: skip
    assert done.returncode == 9
    assert "no daemon is listening" in done.stderr
    assert "crucible runs resume" in done.stderr


def test_a_run_that_takes_too_long(daemon: Daemon, flows: Path) -> None:
    done = crucible(flows, "run", str(flows / "slow.yaml"), "-s", str(daemon.socket), "--timeout", "0.3", "-q")
    assert done.returncode == 5


@pytest.fixture
def stopped(daemon: Daemon, flows: Path) -> str:
    """The id of a run that Ctrl-C has stopped in its course."""
    command = [str(CRUCIBLE), "run", str(flows / "slow.yaml"), "-s", str(daemon.socket), "--id", "mine"]
    with subprocess.Popen(command, env=environment(flows), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for _ in range(3):
            assert "finished" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(PATIENCE_S) == 130
    assert "`crucible runs resume mine` goes on" in said
    assert "Traceback" not in said
    return "mine"


def test_ctrl_c_stops_a_run_which_then_goes_on_where_it_was(daemon: Daemon, flows: Path, stopped: str) -> None:
    eventually(lambda: daemon.counts()["running"] == 0)
    none = ("-s", str(flows / "none.sock"))
    listed = json.loads(crucible(flows, "runs", "list", "--json", *none).stdout)
    assert [(run["id"], run["state"]) for run in listed] == [(stopped, "interrupted")]
    before = listed[0]["steps_done"]
    assert before >= 3
    asked = daemon.counts()["accepted"]
    done = crucible(flows, "runs", "resume", stopped, "--granville", str(daemon.socket), *none)
    assert (done.returncode, done.stdout) == (0, "29 " + " ".join(["word"] * 10) + "\n")
    assert daemon.counts()["accepted"] - asked == 30 - before
    again = crucible(flows, "runs", "resume", stopped, *none)
    assert (again.returncode, again.stdout) == (0, done.stdout), "it has finished, and is told again"


def test_show_list_and_cancel_from_the_journal(daemon: Daemon, flows: Path, stopped: str) -> None:
    none = ("-s", str(flows / "none.sock"))
    shown = crucible(flows, "runs", "show", stopped, *none).stdout
    assert "mine, slow" in shown
    assert re.search(r"interrupted, began \S+ \S+ *$", shown, re.MULTILINE), "nobody was there to say how long"
    assert " cut short " in shown
    assert " running " not in shown
    assert "0 word word" in shown
    assert "█" in shown
    full = json.loads(crucible(flows, "runs", "show", stopped, "--full", "--json", *none).stdout)
    assert full["steps"][0]["output"] == "0 " + " ".join(["word"] * 10)
    assert "mine" in crucible(flows, "runs", *none).stdout
    assert crucible(flows, "runs", "list", "--state", "finished", *none).stderr == "[no runs]\n"
    done = crucible(flows, "runs", "cancel", stopped, *none)
    assert (done.returncode, done.stdout) == (0, "mine cancelled\n")
    done = crucible(flows, "runs", "resume", stopped, *none)
    assert done.returncode == 3
    assert "cancelled" in done.stderr
    for command in ("show", "cancel", "resume"):
        done = crucible(flows, "runs", command, "r-nope", *none)
        assert (done.returncode, done.stderr.count("\n")) == (4, 1)
        assert "r-nope: no such run" in done.stderr


def test_the_same_commands_by_way_of_a_daemon(daemon: Daemon, flows: Path, stopped: str) -> None:
    with crucible_serving(flows, daemon.socket) as serving:
        at = ("-s", str(serving.socket))
        assert "mine" in crucible(flows, "runs", "list", *at).stdout
        done = crucible(flows, "runs", "resume", stopped, *at)
        assert (done.returncode, done.stdout) == (0, "29 " + " ".join(["word"] * 10) + "\n")
        assert "s29  finished" in done.stderr
        assert serving.run_of(stopped)["state"] == "finished"
        shown = json.loads(crucible(flows, "runs", "show", stopped, "--json", *at).stdout)
        assert len(shown["steps"]) == 30
        busy = serving.start(slow(200))
        assert crucible(flows, "runs", "cancel", busy, *at).stdout == f"{busy} cancelled\n"


def test_on_a_terminal_the_lines_change_in_place(daemon: Daemon, flows: Path) -> None:
    leader, follower = pty.openpty()
    command = [str(CRUCIBLE), "run", str(flows / "hello.yaml"), "-i", "who=Ann", "-s", str(daemon.socket)]
    with subprocess.Popen(
        command, env=environment(flows) | {"TERM": "xterm"}, stdout=subprocess.PIPE, stderr=follower
    ) as process:
        os.close(follower)
        written = b""
        try:
            while part := os.read(leader, 1 << 16):
                written += part
        except OSError:  # the other side is closed
            pass
        assert process.stdout is not None
        assert process.stdout.read() == b"greeting: greet Ann\nanswer: answer to greet Ann\n"
    os.close(leader)
    assert "✓ answer".encode() in written
    assert b"\x1b[" in written

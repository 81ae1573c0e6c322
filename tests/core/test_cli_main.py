"""The command line: finding the command, the page, exit statuses, and one line for everything that goes wrong."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from granville import __version__
from granville.cli import exits
from granville.cli.commands import Command
from granville.cli.help import COMMANDS
from granville.cli.main import main
from granville.cli.program import guarded
from granville.errors import (
    WIRE_ERRORS,
    ConnectionLost,
    FramingLost,
    GranvilleError,
    NoDaemon,
    QueueFull,
    StartupError,
)


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_version_answers_without_loading_what_it_does_not_need(argument: str) -> None:
    script = (
        "import sys; from granville.cli.main import main; status = main(sys.argv[1:]); "
        "assert not {'cyclopts', 'trio', 'rich', 'msgspec', 'llama_cpp'} & sys.modules.keys(); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"granville {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"], ["help", "help"], ["version", "--help"]])
def test_help_is_the_page(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    page = capsys.readouterr().out
    assert "USAGE" in page
    for command in COMMANDS:
        assert f"  {command.name} " in page
        assert command.summary in page
    for error in WIRE_ERRORS:
        assert error in page  # every one has an exit status
    assert max(len(line) for line in page.splitlines()) <= 100


@pytest.mark.parametrize("command", [command.name for command in COMMANDS if command.function])
def test_every_command_exists_and_helps(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, function = next(c.function for c in COMMANDS if c.name == command).partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert main(["help", *command.split()]) == 0
    by_help = capsys.readouterr().out
    assert main([*command.split(), "--help"]) == 0
    assert capsys.readouterr().out == by_help
    assert f"granville {command}" in by_help


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.function], ids=lambda c: c.name)
def test_the_help_of_a_command_is_what_its_function_says(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    module, _, function = command.function.partition(":")
    said = getattr(importlib.import_module(module), function).__doc__
    main([*command.name.split(), "--help"])
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: granville {command.name} {command.arguments}".rstrip() + " [OPTIONS]\n")

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text)

    _, _, below = page.partition("\n")
    assert words(below)[: len(words(said))] == words(said)
    if "MODEL" in command.arguments:
        assert "MODEL is one of" in page
        assert "pypi://package==version/path/in/wheel" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chatt"], "unknown command 'chatt'; did you mean `granville chat`?"),
        (["zzz"], "unknown command 'zzz'; see `granville help`"),
        (["--sock", "x"], "unknown option '--sock'"),
        (["version", "now"], "takes no arguments"),
        (["submit"], "TEXT"),
        (["submit", "two", "words"], "unexpected argument 'words' (words that belong together need quotes)"),
        (["submit", "hi", "--bogus"], "--bogus"),
        (["submit", "--bogus"], "echo --bogus | granville submit -"),
        (["submit", "hi", "--priority", "soon"], 'Choose from: "critical", "high", "normal", "low"'),
        (["submit", "hi", "--max-tokens", "many"], '"many"'),
        (["status", "--bogus"], "--bogus"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == exits.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("granville: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit", "hi", "--max-tokens", "-1"], "max_tokens: expected `int` >= 1"),
        (["submit", "hi", "--seed", "99999999999999999999"], "seed"),
        (["submit", "hi", "--timeout", "0"], "timeout_ms"),
        (["submit", "hi", "--timeout", "inf"], "--timeout: expected a number of seconds, got inf"),
        (["submit", "hi", "--timeout", "nan"], "--timeout: expected a number of seconds, got nan"),
        (["submit", "hi", "--timeout", "1e30"], "timeout_ms"),
        (["submit", ""], "text: it is empty"),
        (["submit", " \n"], "text: it is empty"),
        (["submit", "hi", "-s", ""], "expected a socket's path, or tcp://host:port"),
        (["status", "-s", "http://127.0.0.1:8080"], "expected a socket's path, or tcp://host:port"),
        (["submit", "hi", "--stop", ""], "stop"),
        (["submit", "hi", "-s", "tcp://nowhere"], "expected tcp://host:port"),
    ],
)
def test_a_request_that_cannot_be_is_named_by_its_field(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 3
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["submit", "hi"], ["status"], ["status", "job-1"], ["chat"]])
def test_a_missing_daemon_is_one_line_that_says_how_to_start_it(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.sock"
    assert main([*command, "-s", str(path)]) == 9
    assert capsys.readouterr().err == (
        f"granville: no daemon is listening on {path}; start one with `granville serve smollm2 -s {path}`\n"
    )


def test_a_socket_path_that_is_too_long_is_told_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("x" * 200)
    assert main(["status", "-s", str(path)]) == 9
    assert capsys.readouterr().err == f"granville: {path}: AF_UNIX path too long\n"


def test_flags_come_from_the_environment_and_the_command_line_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRANVILLE_SOCKET", str(tmp_path / "from-environment"))
    main(["status"])
    assert f"{tmp_path}/from-environment" in capsys.readouterr().err
    main(["status", "--socket", str(tmp_path / "from-flag")])
    assert f"{tmp_path}/from-flag" in capsys.readouterr().err
    monkeypatch.setenv("GRANVILLE_PRIORITY", "soon")
    assert main(["submit", "hi"]) == exits.USAGE
    assert "GRANVILLE_PRIORITY" in capsys.readouterr().err


def test_the_environment_is_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRANVILLE_TEXT", "hi")
    assert main(["submit", "-s", str(tmp_path / "none")]) == exits.USAGE
    assert "TEXT" in capsys.readouterr().err


def raises(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def test_every_wire_error_has_an_exit_status_of_its_own_kind() -> None:
    statuses = {name: exits.status_of(kind("x")) for name, kind in WIRE_ERRORS.items()}
    assert set(statuses.values()) == {3, 4, 5, 6, 7, 8, 9}
    assert statuses["queue_full"] == 6
    assert statuses["unknown_model"] == statuses["unknown_job"] == 4
    assert exits.status_of(NoDaemon("x")) == exits.status_of(ConnectionLost("x")) == 9
    assert exits.status_of(FramingLost("x")) == statuses["bad_request"] == 3
    assert exits.status_of(StartupError("x")) == exits.status_of(GranvilleError("x")) == exits.FAILED


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (StartupError("no such file: a.gguf"), 1, "granville: no such file: a.gguf\n"),
        (StartupError("two\n  lines"), 1, "granville: two lines\n"),
        (QueueFull("1000 jobs wait", retry_after_ms=1500), 6, "granville: 1000 jobs wait; try again in 1.5 s\n"),
        (NoDaemon(""), 9, "granville: no_daemon\n"),
        (ExceptionGroup("g", [ExceptionGroup("h", [StartupError("port in use")])]), 1, "granville: port in use\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), StartupError("too")]), 130, ""),
    ],
)
def test_what_is_meant_for_a_person_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raises(error)) == status
    assert capsys.readouterr() == ("", line)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(raises(ZeroDivisionError()))
    with pytest.raises(ExceptionGroup, match="g"):
        guarded(raises(ExceptionGroup("g", [StartupError("x"), ZeroDivisionError()])))


def test_a_reader_that_has_left_is_no_traceback() -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "granville", "help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    command.stdout.close()
    command.stdout = None
    _, err = command.communicate()
    assert (command.returncode, err) == (exits.BROKEN_PIPE, "")

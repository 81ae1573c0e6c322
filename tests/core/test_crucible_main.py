"""`crucible`: its page, its commands, and what it says to a wrong command line."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys

import pytest

from granville import __version__
from granville.cli import exits
from granville.cli.commands import Command
from granville.cli.crucible.help import COMMANDS
from granville.cli.crucible.main import main
from granville.errors import WIRE_ERRORS

CALLED = [one for one in COMMANDS if one.function]


@pytest.mark.parametrize("argument", ["version", "--version"])
def test_version_answers_without_loading_what_it_does_not_need(argument: str) -> None:
    script = (
        "import sys; from granville.cli.crucible.main import main; status = main(sys.argv[1:]); "
        "assert not {'cyclopts', 'trio', 'rich', 'msgspec', 'jinja2'} & sys.modules.keys(); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"crucible {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"], ["help", "help"], ["version", "--help"]])
def test_help_is_the_page(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    page = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"  {command.name} .*{re.escape(command.summary)}", page)
    for error in WIRE_ERRORS:
        assert error in page  # every one has an exit status
    assert max(len(line) for line in page.splitlines()) <= 100


@pytest.mark.parametrize("command", CALLED, ids=lambda command: command.name)
def test_every_command_exists_and_helps(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, function = command.function.partition(":")
    said = getattr(importlib.import_module(module), function).__doc__
    assert main(["help", *command.name.split()]) == 0
    by_help = capsys.readouterr().out
    assert main([*command.name.split(), "--help"]) == 0
    assert capsys.readouterr().out == by_help
    first, _, below = by_help.partition("\n")
    assert first == " ".join(filter(None, ("Usage: crucible", command.name, command.arguments, "[OPTIONS]")))
    words = re.findall(r"\w+", said)
    assert re.findall(r"\w+", below)[: len(words)] == words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runn"], "unknown command 'runn'; did you mean `crucible run`?"),
        (["zzz"], "unknown command 'zzz'; see `crucible help`"),
        (["runs", "shw"], "unknown command 'runs shw'; did you mean `crucible runs show`?"),
        (["--sock", "x"], "unknown option '--sock'"),
        (["version", "now"], "`crucible version` takes no arguments"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == exits.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("crucible: ")
    assert err.count("\n") == 1
    assert said in err

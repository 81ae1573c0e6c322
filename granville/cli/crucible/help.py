"""The commands, and the page that `crucible help` shows of them."""

from __future__ import annotations

from granville.cli.commands import Command, command_table, status_table
from granville.config import DEFAULT_CRUCIBLE_HTTP_PORT, DEFAULT_CRUCIBLE_SOCKET, DEFAULT_SOCKET

COMMANDS = (
    Command("run", "FILE", "Run a workflow here, and watch it.", "granville.cli.crucible.run:run"),
    Command("check", "FILE...", "Say what is wrong with a workflow, and where.", "granville.cli.crucible.check:check"),
    Command("graph", "FILE", "Draw what waits for what.", "granville.cli.crucible.graph:graph"),
    Command("new", "NAME", "Write a workflow to start from.", "granville.cli.crucible.new:new"),
    Command("index", "FOLDER", "Index a folder's documents for search.", "granville.cli.crucible.index:index"),
    Command(
        "serve", "", "Start the daemon that runs workflows for other programs.", "granville.cli.crucible.serve:serve"
    ),
    Command("runs", "COMMAND", "Runs that were started here: the next lines.", "granville.cli.crucible.runs:runs"),
    Command("runs list", "", "List them, the latest first.", "granville.cli.crucible.runs:list_runs"),
    Command(
        "runs show",
        "ID",
        "Show a run's steps, what went in and what came out.",
        "granville.cli.crucible.show:show_run",
    ),
    Command("runs cancel", "ID", "End a run.", "granville.cli.crucible.runs:cancel"),
    Command(
        "runs resume", "ID", "Go on with a run at the step it had reached.", "granville.cli.crucible.resume:resume"
    ),
    Command("help", "[COMMAND]", "Show this page, or a command's options."),
    Command("version", "", "Show the version."),
)


def page() -> str:
    """The whole page, as text."""
    return f"""\
Crucible: workflows over the models that Granville serves, run to the end.

USAGE
  crucible COMMAND [OPTIONS]
  crucible COMMAND --help           the options of a command

COMMANDS
{command_table(COMMANDS)}

EXAMPLES
  granville serve smollm2           the models come from Granville
  crucible new hello                write hello.yaml, a workflow of two steps
  crucible check hello.yaml         what is wrong with it, with line and column
  crucible run hello.yaml --input who=world
  crucible run voice.yaml --audio question.wav --out answer.wav
  crucible run voice.yaml --microphone 5 --out answer.wav
  git diff | crucible run review.yaml --input-file diff=- --json
  crucible run flows.py:workflow    a workflow that is a Python object
  crucible run agent.yaml --input task=... --allow shell:git,read_file
  crucible serve -p 8081            runs by socket and HTTP, with a page to watch them
  crucible runs show r-4k2m9x1c7q0z

A RUN
  is kept step by step in a journal. After Ctrl-C, a crash, or a failure,
  `crucible runs resume ID` goes on where it was: steps that had finished are
  not run again. `crucible serve` does so by itself with its own runs when it
  starts.

ENVIRONMENT
  Every option has a variable of its name; the command line goes before it.
  CRUCIBLE_SOCKET       --socket, where `crucible serve` listens ({DEFAULT_CRUCIBLE_SOCKET})
  CRUCIBLE_PORT         --port of its HTTP on 127.0.0.1 ({DEFAULT_CRUCIBLE_HTTP_PORT})
  CRUCIBLE_GRANVILLE    --granville, where the models are ({DEFAULT_SOCKET}, or GRANVILLE_SOCKET)
  CRUCIBLE_JOURNAL      --journal, the file that keeps the runs, and so on
  GRANVILLE_HOME        where the journal is kept (~/.granville)

EXIT STATUS
{status_table()}
  A run that failed ends with 1, one that was cancelled with 7.
"""

"""The `granville` command: finds the command, and turns every way to fail into one line and an exit status."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from granville import __version__

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import ArgumentCollection

# Imports wait for the command that needs them: `granville version` and `granville help` answer at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` when none is given) and return the exit status of granville.cli.exits."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An answer may hold a character that the person's locale cannot show: as on stderr, it is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments in (["version"], ["--version"]):
        print(f"granville {__version__}")
        return 0
    return guarded(lambda: _run(arguments))


def guarded(command: Callable[[], int]) -> int:
    """The exit status of a command; what it raises for a person becomes a line on stderr and a status."""
    from granville.errors import GranvilleError

    try:
        status = command()
        sys.stdout.flush()
    except (GranvilleError, KeyboardInterrupt, BrokenPipeError, BaseExceptionGroup) as error:
        return _explain(error)
    return status


def _run(arguments: list[str]) -> int:
    from granville.cli.help import COMMANDS, page

    if len(arguments) > 1 and any(command.name == " ".join(arguments[:2]) for command in COMMANDS):
        return _call(arguments)
    match arguments:
        case (
            []
            | ["help"]
            | ["--help" | "-h", *_]
            | ["help" | "version", "--help" | "-h"]
            | [
                "help",
                "help" | "version",
            ]
        ):
            print(page())
            return 0
        case ["help", *words]:
            return _run([*words, "--help"])
        case ["version" | "--version", extra, *_]:
            return _usage(f"`granville version` takes no arguments, got {extra}")
        case [name, word, *_] if f"{name} COMMAND" in {f"{c.name} {c.arguments}" for c in COMMANDS} and word[:1] != "-":
            return _unknown(f"{name} {word}")
        case [name, *_] if name not in {command.name for command in COMMANDS}:
            return _unknown(name)
    return _call(arguments)


def _call(arguments: list[str]) -> int:
    from cyclopts import CycloptsError, UnusedCliTokensError

    from granville.cli.help import COMMANDS

    name = next((two for two in (" ".join(arguments[:2]),) if any(c.name == two for c in COMMANDS)), arguments[0])
    words = [_token(name), *arguments[len(name.split()) :]]
    try:
        returned = _app()(
            words,
            print_error=False,
            exit_on_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        if isinstance(error, UnusedCliTokensError) and any(c.name.startswith(f"{name} ") for c in COMMANDS):
            return _unknown(" ".join(arguments[:2]))
        return _usage(f"{_sentence(error)}; see `granville {name} --help`")
    return returned if isinstance(returned, int) else 0


def _app() -> App:
    """The commands, none of them imported yet. Every flag has an environment variable: --max-tokens is
    GRANVILLE_MAX_TOKENS. Arguments without a flag have none: a text is what a person has typed."""
    from copy import copy

    from cyclopts import App, Parameter
    from cyclopts.config import Env

    from granville.cli.help import COMMANDS

    environment = Env("GRANVILLE_", command=False, show=False)

    def flags_from_environment(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        flags = copy(arguments)
        flags[:] = [argument for argument in arguments if argument.name.startswith("-")]
        environment(app, commands, flags)

    app = App(
        name="granville",
        version_flags=[],
        config=flags_from_environment,
        default_parameter=Parameter(negative_iterable=(), negative_none=(), show_env_var=False),
        suppress_keyboard_interrupt=False,
    )
    for command in COMMANDS:
        if command.function:
            usage = " ".join(filter(None, ("Usage: granville", command.name, command.arguments, "[OPTIONS]")))
            app.command(command.function, name=_token(command.name), usage=usage)
    return app


def _token(name: str) -> str:
    """The one word that stands for a command of two."""
    return name.replace(" ", "-")


def _sentence(error: Exception) -> str:
    from cyclopts import UnusedCliTokensError

    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"unexpected argument {error.unused_tokens[0]!r} (words that belong together need quotes)"
    return " ".join(str(error).split()).rstrip(".")


def _unknown(name: str) -> int:
    import difflib

    from granville.cli.help import COMMANDS

    close = difflib.get_close_matches(name, [command.name for command in COMMANDS], n=1)
    hint = f"did you mean `granville {close[0]}`?" if close else "see `granville help`"
    kind = "option" if name.startswith("-") else "command"
    return _usage(f"unknown {kind} {name!r}; {hint}")


def _usage(sentence: str) -> int:
    from granville.cli import exits

    print(f"granville: {sentence}", file=sys.stderr)
    return exits.USAGE


def _explain(error: BaseException) -> int:
    """The exit status for what a command raised, its line on stderr. Raises what is not meant for a person."""
    from granville.cli import exits
    from granville.errors import GranvilleError

    causes = list(_leaves(error))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return exits.INTERRUPTED
    if all(isinstance(cause, BrokenPipeError) for cause in causes):
        _forget_stdout()
        return exits.BROKEN_PIPE
    for cause in causes:
        if not isinstance(cause, GranvilleError):
            raise error
    for cause in causes:
        if isinstance(cause, GranvilleError):
            print(f"granville: {describe(cause)}", file=sys.stderr)
            return exits.status_of(cause)
    raise error


def describe(error: BaseException) -> str:
    """An error as one line for a person."""
    from granville.errors import GranvilleError

    line = " ".join(str(error).split()) or (error.error if isinstance(error, GranvilleError) else type(error).__name__)
    if isinstance(error, GranvilleError) and error.retry_after_ms is not None:
        line += f"; try again in {error.retry_after_ms / 1000:.1f} s"
    return line


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _forget_stdout() -> None:
    """Python flushes stdout once more as it ends: nobody reads there any longer (docs.python.org, `signal`)."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())

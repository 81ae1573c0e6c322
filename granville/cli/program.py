"""A command-line program of several commands: finds the command, and turns every way to fail into one line and an exit
status."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from granville import __version__

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import ArgumentCollection

    from granville.cli.commands import Command

# Imports wait for the command that needs them: `version` and `help` answer at once.


class Program:
    def __init__(self, name: str, help_module: str) -> None:
        """The module has `COMMANDS` and `page()`. Every flag has an environment variable: of `granville`, --max-tokens
        is GRANVILLE_MAX_TOKENS. Arguments without a flag have none: a text is what a person has typed."""
        self.name = name
        self._help_module = help_module

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line (`sys.argv` when none is given) and return the exit status of granville.cli.exits."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # An answer may hold a character that the person's locale cannot show: as on stderr, it is escaped.
            sys.stdout.reconfigure(errors="backslashreplace")
        arguments = sys.argv[1:] if argv is None else list(argv)
        if arguments in (["version"], ["--version"]):
            print(f"{self.name} {__version__}")
            return 0
        return guarded(lambda: self._run(arguments), self.name)

    @property
    def commands(self) -> tuple[Command, ...]:
        commands: tuple[Command, ...] = importlib.import_module(self._help_module).COMMANDS
        return commands

    def _run(self, arguments: list[str]) -> int:
        commands = self.commands
        if len(arguments) > 1 and any(command.name == " ".join(arguments[:2]) for command in commands):
            return self._call(arguments)
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
                print(importlib.import_module(self._help_module).page())
                return 0
            case ["help", *words]:
                return self._run([*words, "--help"])
            case ["version" | "--version", extra, *_]:
                return self._usage(f"`{self.name} version` takes no arguments, got {extra}")
            case [name, word, *_] if (
                f"{name} COMMAND" in {f"{c.name} {c.arguments}" for c in commands} and word[:1] != "-"
            ):
                return self._unknown(f"{name} {word}")
            case [name, *_] if name not in {command.name for command in commands}:
                return self._unknown(name)
        return self._call(arguments)

    def _call(self, arguments: list[str]) -> int:
        from cyclopts import CycloptsError, UnusedCliTokensError

        names = [command.name for command in self.commands]
        name = next((two for two in (" ".join(arguments[:2]),) if two in names), arguments[0])
        words = [_token(name), *arguments[len(name.split()) :]]
        try:
            returned = self._app()(
                words,
                print_error=False,
                exit_on_error=False,
                result_action="return_value",
            )
        except CycloptsError as error:
            if isinstance(error, UnusedCliTokensError) and any(one.startswith(f"{name} ") for one in names):
                return self._unknown(" ".join(arguments[:2]))
            return self._usage(f"{_sentence(error)}; see `{self.name} {name} --help`")
        return returned if isinstance(returned, int) else 0

    def _app(self) -> App:
        """The commands, none of them imported yet."""
        from copy import copy

        from cyclopts import App, Parameter
        from cyclopts.config import Env

        environment = Env(f"{self.name.upper()}_", command=False, show=False)

        def flags_from_environment(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
            flags = copy(arguments)
            flags[:] = [argument for argument in arguments if argument.name.startswith("-")]
            environment(app, commands, flags)

        app = App(
            name=self.name,
            version_flags=[],
            config=flags_from_environment,
            default_parameter=Parameter(negative_iterable=(), negative_none=(), show_env_var=False),
            suppress_keyboard_interrupt=False,
        )
        for command in self.commands:
            if command.function:
                usage = " ".join(filter(None, ("Usage:", self.name, command.name, command.arguments, "[OPTIONS]")))
                app.command(command.function, name=_token(command.name), usage=usage)
        return app

    def _unknown(self, name: str) -> int:
        import difflib

        close = difflib.get_close_matches(name, [command.name for command in self.commands], n=1)
        hint = f"did you mean `{self.name} {close[0]}`?" if close else f"see `{self.name} help`"
        kind = "option" if name.startswith("-") else "command"
        return self._usage(f"unknown {kind} {name!r}; {hint}")

    def _usage(self, sentence: str) -> int:
        from granville.cli import exits

        print(f"{self.name}: {sentence}", file=sys.stderr)
        return exits.USAGE


def guarded(command: Callable[[], int], program: str = "granville") -> int:
    """The exit status of a command; what it raises for a person becomes a line on stderr and a status."""
    from granville.errors import GranvilleError

    try:
        status = command()
        sys.stdout.flush()
    except (GranvilleError, KeyboardInterrupt, BrokenPipeError, BaseExceptionGroup) as error:
        return _explain(error, program)
    return status


def _token(name: str) -> str:
    """The one word that stands for a command of two."""
    return name.replace(" ", "-")


def _sentence(error: Exception) -> str:
    from cyclopts import UnusedCliTokensError

    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"unexpected argument {error.unused_tokens[0]!r} (words that belong together need quotes)"
    return " ".join(str(error).split()).rstrip(".")


def _explain(error: BaseException, program: str) -> int:
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
            print(f"{program}: {describe(cause)}", file=sys.stderr)
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

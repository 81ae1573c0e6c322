"""What a program's commands are called, and the tables of its help page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from granville.cli.exits import EXITS


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    arguments: str
    summary: str
    function: str = ""
    """`module:function`, imported when the command is called; empty for what the program answers itself."""


def command_table(commands: Iterable[Command]) -> str:
    return table((f"{command.name} {command.arguments}".rstrip(), command.summary) for command in commands)


def status_table() -> str:
    """What each exit status means."""
    return table(
        (
            str(exit.status),
            f"{exit.meaning}: {', '.join(e.error for e in exit.errors)}" if exit.errors else exit.meaning,
        )
        for exit in EXITS
    )


def table(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in rows)

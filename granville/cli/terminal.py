"""What the commands share about the person's side: text that is safe to show, notes, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from granville.client import Answer, Result
from granville.client.background import Background

_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)))
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def printable(text: str) -> str:
    """Text without control characters: a model may write escape sequences, and a terminal would obey them."""
    return text.translate(_CONTROLS)


def show(text: str, end: str = "") -> None:
    """Write to stdout at once; as it is to a pipe or a file, without control characters to a terminal."""
    print(printable(text) if sys.stdout.isatty() else text, end=end, flush=True)


async def show_answer(answer: Answer) -> Result:
    """An answer's text as it comes, and the end of its line however it ends. Raises the error that it ends with."""
    begun = False
    try:
        async for text in answer:
            show(text)
            begun = True
        return answer.result
    finally:
        if begun:
            show("", end="\n")


def note(sentence: str) -> None:
    """Words of ours, apart from the model's: on stderr, in brackets."""
    print(f"[{printable(sentence)}]", file=sys.stderr)


def note_if_cut_off(result: Result) -> None:
    if result.finish_reason == "length":
        note(f"cut off after {result.usage.completion_tokens} tokens; --max-tokens gives more room")


@asynccontextmanager
async def cancel_on_interrupt() -> AsyncIterator[trio.CancelScope]:
    """Ctrl-C or SIGTERM cancels the body (`cancelled_caught` of the scope says so afterwards) instead of raising
    between any two lines of it, so that it can still tell the daemon. A second one raises KeyboardInterrupt."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with Background() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_watch, signals, scope)
                yield scope


async def _watch(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """Started by: `cancel_on_interrupt`. Ends when: the second signal comes. Cancelled by: the body's end."""
    await anext(signals)
    scope.cancel()
    await anext(signals)
    raise KeyboardInterrupt

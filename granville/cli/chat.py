"""`granville chat`: a conversation in the terminal. The history is kept here and sent whole with every turn."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from typing import Annotated

import trio
from cyclopts import Parameter

from granville.cli.options import DropOldest, ModelId, Socket, Temperature, make_request
from granville.cli.program import describe
from granville.cli.terminal import cancel_on_interrupt, note, note_if_cut_off, show_answer
from granville.client import ChatMessage, Request, Result, connect
from granville.client.address import DEFAULT_ADDRESS
from granville.errors import BadRequest, GranvilleError, PromptTooLong
from granville.scheduling.sessions import without_oldest

PROMPT = "> "
_COMMAND = re.compile(r"/[a-z]+")
"""What a person means as a command, and not for the model: one word, with no second slash as a path has."""


def chat(
    *,
    socket: Socket = DEFAULT_ADDRESS,
    model: ModelId = None,
    system: Annotated[str | None, Parameter(help="How the model is to behave.")] = None,
    max_tokens: Annotated[int, Parameter(help="Tokens of one answer at most.")] = 512,
    temperature: Temperature = None,
    drop_oldest: DropOldest = False,
) -> None:
    """Talk with a model in the terminal.

    Ctrl-C cancels an answer, and the turn is forgotten. /clear begins afresh; /exit or Ctrl-D ends. Turns may also be
    piped in, one a line; then the first error ends the conversation.
    """
    interactive = sys.stdin.isatty()
    models = trio.run(_models, socket)
    if interactive:
        _prepare_terminal(models)
    opening = [] if system is None else [ChatMessage("system", system)]
    history = opening.copy()
    for line in _lines(interactive):
        if line == "/clear":
            history = opening.copy()
            if interactive:
                note("the conversation begins afresh")
            continue
        if interactive and _COMMAND.fullmatch(line):
            note(f"{line} is no command; there are /clear and /exit")
            continue
        turn = ChatMessage("user", line)
        try:
            request = make_request(
                messages=[{"role": message.role, "content": message.content} for message in (*history, turn)],
                model_id=model,
                max_tokens=max_tokens,
                temperature=temperature,
                stream=True,
                overflow="drop_oldest" if drop_oldest else None,
            )
            result = _answer_or_none(socket, request)
        except GranvilleError as error:
            if not interactive:
                raise
            note(_advice(error))
            continue
        if result is None:
            note("cancelled; the conversation goes on as if this turn had not been")
            continue
        note_if_cut_off(result)
        if dropped_turns := result.usage.dropped_turns or 0:
            note(f"the conversation is long: its {dropped_turns} oldest turns are left out from here on")
        history = [*without_oldest([*history, turn], dropped_turns), ChatMessage("assistant", result.text)]


async def _models(address: str) -> list[str]:
    async with connect(address) as client:
        return [str(model["id"]) for model in await client.models()]


def _answer_or_none(address: str, request: Request) -> Result | None:
    try:
        return trio.run(_answer, address, request)
    except KeyboardInterrupt:  # before it was the answer's to receive, such as while connecting
        return None


async def _answer(address: str, request: Request) -> Result | None:
    """The answer, shown as it comes; None after Ctrl-C."""
    async with connect(address) as client, cancel_on_interrupt(), client.start(request) as answer:
        return await show_answer(answer)
    return None


def _lines(interactive: bool) -> Iterator[str]:
    """What the person says, until the end of input or /exit."""
    while True:
        try:
            line = input(PROMPT if interactive else "").strip()
        except EOFError:
            if interactive:
                print()
            return
        except UnicodeDecodeError:
            raise BadRequest("stdin: not valid UTF-8") from None
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            note("Ctrl-D or /exit ends the conversation")
            continue
        if line == "/exit":
            return
        if line:
            yield line


def _prepare_terminal(models: list[str]) -> None:
    if importlib.util.find_spec("readline"):
        # input() edits lines, and remembers them, once this module has been imported.
        importlib.import_module("readline")
    note(f"{', '.join(models) or 'no model is loaded'}. Ctrl-C cancels an answer; /clear, /exit or Ctrl-D.")


def _advice(error: GranvilleError) -> str:
    return describe(error) + (
        "; /clear begins afresh, and --drop-oldest goes on" if isinstance(error, PromptTooLong) else ""
    )

"""`granville submit`: one question, one answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Literal

import msgspec
import trio
from cyclopts import Parameter
from msgspec import UNSET

from granville.cli.exits import INTERRUPTED, OK
from granville.cli.forms import Grammar, JsonSchema, ToolChoice, Tools, call_line, form_fields
from granville.cli.options import DropOldest, ModelId, Priority, Socket, Temperature, make_request
from granville.cli.terminal import cancel_on_interrupt, note_if_cut_off, show, show_answer
from granville.client import Request, Result, connect, listen_for_results
from granville.client.address import DEFAULT_ADDRESS, is_tcp
from granville.errors import BadRequest, TooLarge
from granville.wire.messages import Delta

MAX_STDIN_BYTES = 64 << 20


def _not_an_option(_: object, text: str) -> None:
    if text.startswith("-") and text != "-" and not any(character.isspace() for character in text):
        raise ValueError(f"it looks like an option; to ask just that: echo {text} | granville submit -")


def submit(
    text: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True, validator=_not_an_option, help="What to ask. A single - takes it from stdin."
        ),
    ],
    /,
    *,
    socket: Socket = DEFAULT_ADDRESS,
    priority: Annotated[Priority | None, Parameter(help="Who goes first; normal unless given.")] = None,
    ranked: Annotated[
        bool,
        Parameter(
            negative=(), show_default=False, help="Without --priority: the daemon judges how urgent the text is."
        ),
    ] = False,
    stream: Annotated[bool, Parameter(negative=(), show_default=False, help="Print the answer as it is made.")] = False,
    session: Annotated[
        str | None, Parameter(help="Go on with the conversation of this name, kept by the daemon.")
    ] = None,
    drop_oldest: DropOldest = False,
    model: ModelId = None,
    type: Annotated[
        Literal["inference", "embedding", "rerank"] | None,
        Parameter(help="What to ask for: an answer (unless given), the text's vector, or scores of documents for it."),
    ] = None,
    document: Annotated[
        tuple[str, ...],
        Parameter(show_default=False, help="With --type rerank: how well does this answer the text? May be repeated."),
    ] = (),
    max_tokens: Annotated[int | None, Parameter(help="Tokens of answer at most; 256 unless given.")] = None,
    temperature: Temperature = None,
    seed: Annotated[int | None, Parameter(help="The same seed gives the same answer.")] = None,
    stop: Annotated[
        tuple[str, ...], Parameter(show_default=False, help="End the answer before this text. May be repeated.")
    ] = (),
    json_schema: JsonSchema = None,
    grammar: Grammar = None,
    tools: Tools = None,
    tool_choice: ToolChoice = None,
    timeout: Annotated[
        float | None, Parameter(help="Seconds to wait and to answer; the daemon's --timeout unless given.")
    ] = None,
    json: Annotated[
        bool,
        Parameter(
            negative=(),
            show_default=False,
            help="Print the result's whole message as JSON; with --stream a line for each delta too.",
        ),
    ] = False,
) -> int:
    """Ask the daemon once, and print the answer.

    Ctrl-C cancels the job at the daemon. `granville help` has the meaning of the exit status.
    """
    if text == "-":
        text = _stdin()
    request = make_request(
        text=text,
        priority=priority,
        ranked=ranked,
        stream=stream,
        session_id=session,
        overflow="drop_oldest" if drop_oldest else None,
        model_id=model,
        model_type=type,
        documents=list(document) or None,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        stop=list(stop) or None,
        timeout_ms=None if timeout is None else _milliseconds(timeout),
        **form_fields(json_schema, grammar, tools, tool_choice),
    )
    if not text.strip():
        raise BadRequest("text: it is empty, and there is nothing to ask")
    result = trio.run(_ask, socket, request, json)
    if result is None:
        return INTERRUPTED
    if json:
        show(msgspec.json.encode(result).decode(), end="\n")
    elif result.output is not UNSET:
        _show_value(result, document)
    elif result.finish_reason == "tool":
        show(call_line(result), end="\n")
    elif not stream:
        show(result.text, end="\n")
    if max_tokens is None and not json:
        note_if_cut_off(result)
    return OK


async def _ask(address: str, request: Request, json: bool) -> Result | None:
    """The result, delivered to a callback socket of our own where there can be one; None after Ctrl-C."""
    # A daemon takes no callback to a local path from a request that came over TCP.
    own_callback = nullcontext() if is_tcp(address) else listen_for_results()
    async with (
        connect(address) as client,
        own_callback as mailbox,
        cancel_on_interrupt(),
        client.start(request, mailbox) as answer,
    ):
        if not json:
            return await show_answer(answer)
        async for text in answer:
            show(msgspec.json.encode(Delta(request.id, text)).decode(), end="\n")
        return answer.result
    return None


def _show_value(result: Result, documents: Sequence[str]) -> None:
    """A vector as JSON; documents best first, each behind its score."""
    if result.tool_id != "__rerank__":
        show(msgspec.json.encode(result.output).decode(), end="\n")
        return
    for score, document in sorted(zip(result.output, documents, strict=True), reverse=True):
        show(f"{score:.4f}\t{document}", end="\n")


def _milliseconds(seconds: float) -> int:
    try:
        return round(seconds * 1000)
    except (OverflowError, ValueError):  # infinity, and what is not a number
        raise BadRequest(f"--timeout: expected a number of seconds, got {seconds}") from None


def _stdin() -> str:
    text = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(text) > MAX_STDIN_BYTES:
        raise TooLarge(f"stdin: more than {MAX_STDIN_BYTES} bytes")
    try:
        return text.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise BadRequest("stdin: not valid UTF-8") from None

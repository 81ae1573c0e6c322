"""`granville transcribe` and `granville speak`: ears and a voice at the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
import trio
from cyclopts import Parameter

from granville.cli.exits import INTERRUPTED, OK
from granville.cli.files import write_whole
from granville.cli.options import ModelId, Priority, Socket, make_request
from granville.cli.terminal import cancel_on_interrupt, show, show_answer
from granville.client import Answer, Request, Result, connect
from granville.client.address import DEFAULT_ADDRESS, is_tcp
from granville.errors import BadRequest, NoModel, StartupError, TooLarge

BY_PATH_BYTES = 1 << 20
"""A larger file the daemon reads itself, where it can."""
EXAMPLES = {
    "stt": "have the daemon serve one that hears, such as `granville load stt:whisper-tiny.en`",
    "tts": "have the daemon serve one that speaks, such as `granville load tts:joe`",
}
"""What to do where there is no model of a type."""
MAX_SENT_BYTES = 31 << 20
"""Of a file that is sent: with the rest of its request it has to fit into a message of 32 MiB."""


def transcribe(
    file: Annotated[str, Parameter(allow_leading_hyphen=True, help="A recording: WAV, FLAC, MP3, …; - is stdin.")],
    /,
    *,
    language: Annotated[str | None, Parameter(help="What is spoken, such as en; to be found out unless given.")] = None,
    words: Annotated[
        bool, Parameter(negative=(), show_default=False, help="With --json: times of words besides those of segments.")
    ] = False,
    model: ModelId = None,
    priority: Annotated[Priority | None, Parameter(help="Who goes first; normal unless given.")] = None,
    socket: Socket = DEFAULT_ADDRESS,
    json: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Print the result's whole message as JSON.")
    ] = False,
) -> int:
    """Have a recording transcribed, and print the text as it is understood.

    The daemon has to serve a model that hears: `granville serve stt:whisper-tiny.en`. A large file of yours it reads
    itself, a small one and stdin are sent. Ctrl-C cancels the job.
    """
    request = make_request(
        model_type="stt",
        **_recording(file, by_path=not is_tcp(socket)),
        language=language,
        words=words or None,
        model_id=model,
        priority=priority,
        stream=not json,
    )
    result = trio.run(_ask, socket, request, _finish if json else show_answer)
    if result is None:
        return INTERRUPTED
    if json:
        show(msgspec.json.encode(result).decode(), end="\n")
    return OK


def speak(
    text: Annotated[str, Parameter(allow_leading_hyphen=True, help="What to say. A single - takes it from stdin.")],
    /,
    *,
    out: Annotated[
        str | None, Parameter(help="The WAV file to write; - or no --out is stdout, for a player behind a pipe.")
    ] = None,
    voice: Annotated[str | None, Parameter(help="By the driver's name for it; its first unless given.")] = None,
    speed: Annotated[float | None, Parameter(help="2 is twice as fast; 0.25 to 4.")] = None,
    model: ModelId = None,
    priority: Annotated[Priority | None, Parameter(help="Who goes first; normal unless given.")] = None,
    socket: Socket = DEFAULT_ADDRESS,
) -> int:
    """Have a text spoken, into a WAV file or to a player.

    The daemon has to serve a model that speaks: `granville serve tts:joe`. To stdout sound goes as it is made, so that
    `granville speak "Good morning." | aplay` begins at once; a file is written when it is whole.
    """
    if text == "-":
        text = sys.stdin.buffer.read().decode(errors="replace")
    to_stdout = out in (None, "-")
    if to_stdout and sys.stdout.isatty():
        raise StartupError("sound is nothing for a terminal; --out FILE.wav, or a player behind it: | aplay")
    request = make_request(
        model_type="tts",
        text=text,
        voice=voice,
        speed=speed,
        model_id=model,
        priority=priority,
        stream=to_stdout or None,
    )
    consume = partial(_play, sys.stdout.buffer) if to_stdout else _finish
    result = trio.run(_ask, socket, request, consume)
    if result is None:
        return INTERRUPTED
    if out is not None and not to_stdout:
        _write(Path(out), result.output)
    return OK


async def _ask(address: str, request: Request, consume: Callable[[Answer], object]) -> Result | None:
    """None after Ctrl-C."""
    async with connect(address) as client, cancel_on_interrupt(), client.start(request) as answer:
        try:
            await consume(answer)  # type: ignore[misc]  # each is async
        except NoModel as error:
            raise NoModel(f"{error.message}; {EXAMPLES[request.model_type]}") from None
        return answer.result
    return None


async def _finish(answer: Answer) -> Result:
    return await answer.finish()


async def _play(out: BinaryIO, answer: Answer) -> None:
    async for sound in answer.sound():
        out.write(sound)
        out.flush()


def _recording(file: str, *, by_path: bool) -> dict[str, object]:
    """The fields of a request that bring a recording. Raises StartupError or TooLarge."""
    if file == "-":
        return {"audio": _bounded(sys.stdin.buffer, "stdin")}
    path = Path(file).expanduser()
    try:
        status = path.stat()
        if by_path and status.st_size > BY_PATH_BYTES and status.st_uid == os.getuid():
            return {"audio_path": str(path.resolve())}
        with path.open("rb") as opened:
            return {"audio": _bounded(opened, file)}
    except OSError as error:
        raise StartupError(f"{file}: cannot be read: {error.strerror}") from None


def _bounded(file: BinaryIO, name: str) -> bytes:
    data = file.read(MAX_SENT_BYTES + 1)
    if len(data) > MAX_SENT_BYTES:
        raise TooLarge(f"{name}: more than {MAX_SENT_BYTES} bytes, which cannot be sent; a file of yours can be larger")
    if not data:
        raise BadRequest(f"{name}: it is empty, and there is nothing to hear")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise StartupError(f"{path}: cannot be written: {error.strerror}") from None

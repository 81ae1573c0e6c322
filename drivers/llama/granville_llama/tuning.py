"""What a model is on this machine: rewritten in another format, read for its perplexity, timed.

    python -m granville_llama.tuning '{"op": "speed", "path": "model.gguf", ...}'

One command a process, because some code of llama.cpp may be wrong for a processor and end the process that runs it.
The command is a JSON object, its `op` the name of a function below and its other keys the function's arguments. Lines
of JSON come out: `{"done": 1, "of": 8}` any number of times, then `{"result": {...}}` or `{"error": "..."}`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granville.hosting.interface import DriverError
from granville_llama.binding import BUILT_WITH_AMX, Context, Decoded, Weights
from granville_llama.quantise import MIXED, TYPES
from granville_llama.quantise import quantise as write_as
from granville_llama.threads import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = ("alice.txt", "constitution.txt", "as-you-like-it.txt", "paradise-lost.txt")
"""In `texts/`, each the beginning of a work in the public domain: a tale (Lewis Carroll, Alice's Adventures in
Wonderland, 1865), a law (the Constitution of the United States, 1787), a play (Shakespeare, As You Like It) and a poem
(Milton, Paradise Lost). What a format loses differs from one text to another by more than the chance of its words: one
kind of text would judge it by that kind."""
WINDOW_TOKENS = 512
CONTEXT_STEP_TOKENS = 256
READING_BATCH_TOKENS = 128
PREFIX_TOKENS = 32
"""What a sequence has before its decoding is timed."""
WARM_UP_STEPS = 2
MAX_TIMING_S = 8.0
"""A timing that takes longer ends early: with another program on the cores a batch may take seconds."""

Progress = Callable[[int, int], None]


def describe(progress: Progress) -> dict[str, Any]:
    """The threads that a model gets by itself, and the formats that can be written."""
    return {"threads": usable_cores(), "types": [*TYPES, *MIXED]}


def quantise(progress: Progress, *, source: str, target: str, type: str) -> dict[str, Any]:
    """Write the model anew. The result is the size in bytes."""
    write_as(Path(source), Path(target), type, usable_cores(), progress)
    return {"size_bytes": os.path.getsize(target)}


def perplexity(progress: Progress, *, path: str, tokens: int) -> dict[str, Any]:
    """Read the texts in windows of 512 tokens that know nothing of each other, a window of each in turn, and at least
    so many `tokens` of them (a text that is too short is read from its beginning again). The result is the loss at each
    token but the windows' first: the negative logarithm of the probability that the model gave it; perplexity is e to
    their mean."""
    import numpy as np

    with _weights(path) as weights:
        texts = [_text(weights, name) for name in TEXTS]
        beginning = [weights.bos] if weights.adds_bos else []
        size = min(WINDOW_TOKENS, weights.trained_context) - len(beginning)
        batch_tokens = READING_BATCH_TOKENS
        windows = -(-tokens // size)
        losses: list[float] = []
        with _context(weights, 1, WINDOW_TOKENS, batch_tokens, usable_cores(), "f16", batch_tokens) as context:
            for window in range(windows):
                context.trim(0, 0)
                turn, which = divmod(window, len(texts))
                run = beginning + _stretch(texts[which], turn * size, size)
                for start in range(0, len(run), batch_tokens):
                    part = run[start : start + batch_tokens]
                    context.add(part, start, 0, True)
                    context.want_all_logits()
                    _decode(context)
                    for index, token in enumerate(run[start + 1 : start + len(part) + 1]):
                        if start + index >= len(beginning):
                            row = np.ctypeslib.as_array(context.logits(index), (weights.vocabulary_size,))
                            top = float(row.max())
                            losses.append(
                                top + float(np.log(np.exp(row - top).sum(dtype=np.float64))) - float(row[token])
                            )
                    progress(window * len(run) + start + len(part), windows * len(run))
    return {"losses": [round(loss, 5) for loss in losses]}


def speed(
    progress: Progress,
    *,
    path: str,
    settings: Sequence[Mapping[str, Any]],
    prefill_tokens: int,
    steps: int,
    sequences: Sequence[int],
) -> dict[str, Any]:
    """Load the model once and time it with each of the settings (`threads`, `batch_tokens`, `kv_type`; threads 0 for
    all cores). The result is the seconds of loading, the most memory that the process had, and for each setting
    tokens a second of prefill and of decoding with so many `sequences` at once, which a setting may have of its own."""
    began = time.perf_counter()
    speeds = []
    with _weights(path) as weights:
        load_s = time.perf_counter() - began
        most = max(sequences)
        room = max(prefill_tokens, PREFIX_TOKENS + WARM_UP_STEPS + steps)
        text = _stretch(_text(weights, TEXTS[0]), 0, room + most)
        for index, setting in enumerate(settings):
            batch_tokens = max(int(setting["batch_tokens"]), most)
            threads = int(setting["threads"]) or usable_cores()
            with _context(weights, most, room, batch_tokens, threads, str(setting["kv_type"])) as context:
                counts = setting.get("sequences", sequences)
                for sequence in range(max(counts, default=1)):
                    _prefill(context, text[sequence : sequence + PREFIX_TOKENS], sequence, batch_tokens)
                decode = {str(count): _decoding(context, text, count, steps) for count in counts}
                prefill = _prefill(context, text[:prefill_tokens], 0, batch_tokens)
                speeds.append({"prefill": prefill, "decode": decode})
            progress(index + 1, len(settings))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"load_s": load_s, "memory_bytes": memory, "speeds": speeds}


def _text(weights: Weights, name: str) -> list[int]:
    return weights.tokenize(files(__package__).joinpath("texts", name).read_text("utf-8"), control=False)


def _stretch(text: Sequence[int], start: int, size: int) -> list[int]:
    """So many tokens from there on, as if the text had no end."""
    return list(islice(cycle(text), start, start + size))


def _prefill(context: Context, tokens: Sequence[int], sequence: int, batch_tokens: int) -> float:
    """Tokens a second of reading these as the sequence's beginning."""
    context.trim(sequence, 0)
    began = time.perf_counter()
    for start in range(0, len(tokens), batch_tokens):
        part = list(tokens[start : start + batch_tokens])
        context.add(part, start, sequence, start + len(part) == len(tokens))
        _decode(context)
        seconds = time.perf_counter() - began
        if seconds > MAX_TIMING_S:
            break
    return (start + len(part)) / seconds


def _decoding(context: Context, text: Sequence[int], count: int, steps: int) -> float:
    """Tokens a second of so many decodes of `count` sequences, which have PREFIX_TOKENS each before and after."""
    began, seconds = time.perf_counter(), 0.0
    for step in range(-WARM_UP_STEPS, steps):
        if step == 0:
            began = time.perf_counter()
        position = PREFIX_TOKENS + WARM_UP_STEPS + step
        for sequence in range(count):
            context.add([text[position + sequence]], position, sequence, True)
        _decode(context)
        seconds = time.perf_counter() - began
        if step >= 0 and seconds > MAX_TIMING_S:
            break
    for sequence in range(count):
        context.trim(sequence, PREFIX_TOKENS)
    return count * (step + 1) / seconds


def _decode(context: Context) -> None:
    if (code := context.decode()) is not Decoded.OK:
        raise DriverError(f"llama.cpp could not compute a batch: {code.name}")


@contextmanager
def _weights(path: str) -> Iterator[Weights]:
    """Loaded as `loading` does when no option says otherwise."""
    weights = Weights(Path(path), gpu_layers=0, repack=not BUILT_WITH_AMX, verbose=False)
    try:
        if not weights.generates:
            raise DriverError(
                f"{path}: a model of type {weights.architecture} generates no text, so it cannot be tuned"
            )
        yield weights
    finally:
        weights.close()


@contextmanager
def _context(
    weights: Weights, slots: int, tokens: int, batch_tokens: int, threads: int, kv_type: str, outputs: int = 0
) -> Iterator[Context]:
    """As the engine makes one: see `loading`."""
    context = Context(
        weights,
        slots=slots,
        context_size=-(-tokens // CONTEXT_STEP_TOKENS) * CONTEXT_STEP_TOKENS,
        batch_tokens=batch_tokens,
        threads=threads,
        flash_attention=False,
        kv_type=kv_type,
        gpu=False,
        outputs=outputs,
    )
    try:
        yield context
    finally:
        context.close()


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "describe": describe,
    "quantise": quantise,
    "perplexity": perplexity,
    "speed": speed,
}


def main(arguments: Sequence[str]) -> int:
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C at the terminal comes here too, and is the parent's to explain
    command = json.loads(arguments[0])

    def say(**line: object) -> None:
        print(json.dumps(line), flush=True)

    try:
        result = COMMANDS[command.pop("op")](lambda done, of: say(done=done, of=of), **command)
    except DriverError as error:
        say(error=str(error))
        return 1
    say(result=result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Sessions: what later turns still read, before and after a restart, and what a thousand of them do to memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import msgspec

from benchmarks.clients import start_load
from benchmarks.peers import Peers
from benchmarks.processes import BenchError, Child, granville, llama_server
from benchmarks.report import Figure, Goal
from benchmarks.serving import PEER
from benchmarks.settings import Settings
from benchmarks.talk import Turn

CONVERSATIONS = 12
TURNS = 4
SLOTS = 8
LAST_TOKEN = 1
"""The last token of an answer was said and not read: the turn after it reads it."""
CHURN_SESSIONS = 1000
CHURN_MEMORY_MIB = 700
CHURN_TIMEOUT_S = 3600
"""A thousand turns asked for at once: the last of them waits for minutes."""
LOOK_EVERY_S = 0.5


def sessions(peers: Peers, settings: Settings) -> list[Figure]:
    """Twelve conversations of four turns over eight slots, and a fifth turn after the daemon was restarted."""
    more: dict[str, list[float]] = {}
    restarted: list[float] = []
    first: dict[str, list[float]] = {}
    for number in range(settings.rounds):
        with tempfile.TemporaryDirectory(prefix="granville-bench-kv-") as folder:
            arguments = [str(peers.model), "--slots", str(SLOTS), "--kv-dir", folder, *settings.driver_flags]
            with granville(arguments, "granville-sessions") as server:
                turns = _talk(["--socket", server.address], number, range(TURNS))
            _note(more, first, "granville", turns)
            with granville(arguments, "granville-restarted") as server:
                later = _talk(["--socket", server.address], number, range(TURNS, TURNS + 1))
            restarted.append(_read_again(turns + later, {TURNS}))
        with llama_server(
            peers,
            slots=SLOTS,
            context_size=settings.context_size,
            threads=settings.threads,
            arguments=settings.peer_flags,
            name="llama-server",
        ) as server:
            _note(more, first, PEER, _talk(["--port", server.address], number, range(TURNS)))
    scenario = f"{CONVERSATIONS} conversations of {TURNS} turns over {SLOTS} slots"
    return [
        Figure(
            scenario=scenario,
            name="tokens read again in later turns, in all",
            unit="tokens",
            values=more,
            goals=[Goal(0, "at most")],
        ).conclude(),
        Figure(
            scenario=scenario,
            name="the same in a turn after a restart",
            unit="tokens",
            values={"granville": restarted},
            goals=[Goal(0, "at most")],
        ).conclude(),
        Figure(scenario=scenario, name="time to first token of later turns, p50", unit="ms", values=first).conclude(),
    ]


def _note(more: dict[str, list[float]], first: dict[str, list[float]], name: str, turns: Sequence[Turn]) -> None:
    more.setdefault(name, []).append(_read_again(turns, set(range(1, TURNS))))
    ordered = sorted(turn.first_ms for turn in turns if turn.turn)
    first.setdefault(name, []).append(ordered[len(ordered) // 2])


def _read_again(turns: Iterable[Turn], which: set[int]) -> float:
    """Over all conversations: tokens prefilled in these turns, less those that were new."""
    talks: dict[int, list[Turn]] = {}
    for turn in sorted(turns, key=lambda turn: turn.turn):
        talks.setdefault(turn.conversation, []).append(turn)
    again = 0
    for talk in talks.values():
        for before, turn in pairwise(talk):
            if turn.turn in which:
                new = turn.prompt_tokens - before.prompt_tokens - before.completion_tokens + LAST_TOKEN
                again += max(0, turn.prompt_tokens - turn.cached_tokens - new)
    return float(again)


def _talk(where: Sequence[str], number: int, turns: range) -> list[Turn]:
    return _wait(_start_talk(where, f"rock {number}", turns, CONVERSATIONS, minutes=0.0))


def _start_talk(
    where: Sequence[str], name: str, turns: range, conversations: int, minutes: float
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.talk", *where, "--name", name]
    command += ["--conversations", str(conversations), "--minutes", str(minutes)]
    return start_load([*command, "--turns", str(len(turns)), "--first-turn", str(turns.start)])


def _wait(process: subprocess.Popen[bytes]) -> list[Turn]:
    output, errors = process.communicate()
    if process.returncode != 0:
        raise BenchError(f"a conversation failed: {errors[-800:].decode()}")
    return msgspec.json.decode(output, type=list[Turn])


def churn(peers: Peers, settings: Settings) -> list[Figure]:
    """A thousand sessions over eight slots under a memory budget: the most that the daemon took."""
    minutes = settings.churn_minutes
    with tempfile.TemporaryDirectory(prefix="granville-bench-kv-") as folder:
        arguments = [str(peers.model), "--slots", str(SLOTS), "--kv-dir", folder, *settings.driver_flags]
        arguments += ["--memory", f"{CHURN_MEMORY_MIB}M", "--timeout", str(CHURN_TIMEOUT_S)]
        with granville(arguments, "granville-churn") as server, _highest_rss(server) as highest:
            talk = _start_talk(["--socket", server.address], "churn", range(2), CHURN_SESSIONS, minutes)
            turns = _wait(talk)
    return [
        Figure(
            scenario=f"{CHURN_SESSIONS} sessions over {SLOTS} slots for {minutes:g} minutes",
            name="highest RSS",
            unit="MiB",
            values={"granville": [highest[0] / (1 << 20)], "the budget": [float(CHURN_MEMORY_MIB)]},
            goals=[Goal(1.1, "at most", "the budget")],
            note=f"{len(turns)} turns were answered.",
        ).conclude()
    ]


@contextmanager
def _highest_rss(server: Child) -> Iterator[list[int]]:
    """Looks at the server's memory twice a second for as long as the block lasts."""
    highest = [0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_EVERY_S):
            highest[0] = max(highest[0], server.memory_bytes()[0])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield highest
    finally:
        ended.set()
        thread.join()

"""Ranking: how often a rank is right, on requests that nobody tuned it with, and how long it takes."""

from __future__ import annotations

import tomllib
import uuid
from collections import Counter
from functools import partial
from typing import Any, get_args

import trio

from benchmarks.peers import ROOT, Peers
from benchmarks.processes import BenchError, granville
from benchmarks.report import Figure, Goal
from benchmarks.settings import Settings
from granville.client.connection import Client, connect
from granville.testing.latency import percentile
from granville.wire.messages import Class, Request

SENTENCES = ROOT / "tests" / "ranking"
CLASSES: tuple[Class, ...] = get_args(Class)
SETS = {"held-out": "fresh.toml", "tuned with": "sentences.toml"}
CALIBRATED_WITHIN_S = 120.0
RANK_MS = 10_000.0
"""Ranks are judged here, not the machine: none is given up."""

Confusion = Counter[tuple[str, str]]
"""How often (class, rank) came."""


def ranking(peers: Peers, settings: Settings) -> list[Figure]:
    """Every request once a round, one after another, on a daemon that has nothing else to do."""
    sets = {name: tomllib.loads((SENTENCES / file).read_text())["requests"] for name, file in SETS.items()}
    confusions: dict[str, list[Confusion]] = {name: [] for name in SETS}
    p50, p95 = [], []
    arguments = [str(peers.model), "--rank-ms", str(RANK_MS), *settings.driver_flags]
    with granville(arguments, "granville-ranking") as server:
        for _ in range(settings.rounds):
            took: list[float] = []
            for name, confusion in trio.run(partial(_judge, server.address, sets, took)).items():
                confusions[name].append(confusion)
            p50.append(percentile(sorted(took), 50))
            p95.append(percentile(sorted(took), 95))
    scenario = "Ranking by the main model"
    figures = []
    for each in SETS:
        held_out = each == "held-out"
        figures += [
            Figure(
                scenario=scenario,
                name=f"right, {each}",
                unit="%",
                values={"granville": [_exact(confusion) for confusion in confusions[each]]},
                goals=[Goal(55)] if held_out else [],
            ),
            Figure(
                scenario=scenario,
                name=f"critical ones found, {each}",
                unit="%",
                values={"granville": [_recall(confusion) for confusion in confusions[each]]},
                goals=[Goal(85)] if held_out else [],
            ),
        ]
    figures += [
        Figure(
            scenario=scenario,
            name="held for it, p50",
            unit="ms",
            values={"granville": p50},
            goals=[Goal(100, "at most")],
        ),
        Figure(
            scenario=scenario,
            name="held for it, p95",
            unit="ms",
            values={"granville": p95},
            note=" ".join(_in_words(name, confusions[name][-1]) for name in SETS),
        ),
    ]
    return [figure.conclude() for figure in figures]


async def _judge(address: str, sets: dict[str, list[dict[str, str]]], took: list[float]) -> dict[str, Confusion]:
    confusions: dict[str, Confusion] = {name: Counter() for name in sets}
    async with connect(address) as client:
        await _calibrated(client)
        for name, sentence in ((name, sentence) for name, sentences in sets.items() for sentence in sentences):
            result = await client.submit(
                Request(id=uuid.uuid4().hex, text=sentence["text"], ranked=True, max_tokens=1, temperature=0.0)
            )
            took.append((await _status(client))["last_ms"])
            confusions[name][sentence["class"], result.priority] += 1
        late = await _status(client)
        if late["late"] or late["unranked"]:
            raise BenchError(f"some requests were not ranked: {late}")
    return confusions


async def _calibrated(client: Client) -> None:
    with trio.move_on_after(CALIBRATED_WITHIN_S):
        while (await _status(client))["model"] is None:  # noqa: ASYNC110 - in another process
            await trio.sleep(0.1)
        return
    raise BenchError(f"no model could rank after {CALIBRATED_WITHIN_S:g} s")


async def _status(client: Client) -> dict[str, Any]:
    ranking = (await client.status())["ranking"]
    assert isinstance(ranking, dict)
    return ranking


def _exact(confusion: Confusion) -> float:
    return 100 * sum(confusion[each, each] for each in CLASSES) / confusion.total()


def _recall(confusion: Confusion) -> float:
    return 100 * confusion["critical", "critical"] / sum(confusion["critical", rank] for rank in CLASSES)


def _in_words(name: str, confusion: Confusion) -> str:
    rows = (f"{each} {'/'.join(str(confusion[each, rank]) for rank in CLASSES)}" for each in CLASSES)
    return f"Ranked {'/'.join(CLASSES)}, {name}: {', '.join(rows)}."

"""The embedded model as a user gets it and tunes it, against the peer with the same file as it was fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from benchmarks.clients import ours, peer
from benchmarks.peers import Peers, original_model
from benchmarks.processes import BenchError, granville, llama_server
from benchmarks.report import Figure, Goal
from benchmarks.serving import PEER, pick, turn
from benchmarks.settings import Settings
from granville.models.tune import Tuning
from granville.models.tuned import read_tuning
from granville.testing.latency import Summary, summarise

CLIENTS = 8
MAX_LOSS_PERCENT = 0.5


def tuned(peers: Peers, settings: Settings) -> list[Figure]:
    """Eight clients with unique questions; and what the tuned file loses."""
    model = _beside(peers.folder / "tuned", original_model())
    tuning = _tune(model)
    size = {"slots": CLIENTS, "context_size": settings.context_size, "threads": settings.threads}
    summaries: dict[str, list[Summary]] = {}
    with ExitStack() as stack:
        enter = stack.enter_context
        first = enter(granville([str(model), "--slots", str(CLIENTS), *settings.driver_flags], "granville-tuned"))
        flags = settings.peer_flags
        second = enter(llama_server(replace(peers, file=model), **size, arguments=flags, name="llama-server-original"))
        subjects = [ours(first), peer(second, "--cache-prompt", name=PEER)]
        for subject in subjects:
            subject.load(clients=CLIENTS, requests=CLIENTS, max_tokens=[8])
        for number in range(settings.rounds):
            for subject in turn(subjects, number):
                requests = CLIENTS * settings.requests_per_client
                records = subject.load(clients=CLIENTS, requests=requests, max_tokens=[settings.max_tokens])
                summaries.setdefault(subject.name, []).append(summarise(records))
    scenario = f"The embedded model tuned, {CLIENTS} clients"
    figures = [
        Figure(
            scenario=scenario,
            name="throughput",
            unit="tokens/s",
            values={name: [s.tokens_per_s for s in rounds] for name, rounds in summaries.items()},
            goals=[Goal(1.5, of=PEER)],
            note=_what(tuning),
        ),
        *(
            Figure(
                scenario=scenario,
                name=f"time to first token {percent}",
                unit="ms",
                values={name: [pick(s.first_ms, percent) for s in rounds] for name, rounds in summaries.items()},
                goals=[Goal(0.6, "at most", PEER)],
            )
            for percent in ("p50", "p99")
        ),
        Figure(
            scenario=scenario,
            name="perplexity above the original's",
            unit="%",
            values={"granville": [_loss(tuning)]},
            goals=[Goal(MAX_LOSS_PERCENT, "at most")],
        ),
    ]
    return [figure.conclude() for figure in figures]


def _beside(folder: Path, model: Path) -> Path:
    """The model in a folder of its own, so that the user's stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / model.name
    if not path.exists():
        try:
            os.link(model, path)
        except OSError:  # another file system
            shutil.copyfile(model, path)
    return path


def _tune(model: Path) -> Tuning:
    """Anew each time: what is fastest here may have changed."""
    command = [sys.executable, "-m", "granville", "models", "tune", str(model), "--yes", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"the model could not be tuned: {done.stderr.strip()}")
    tuning = read_tuning(model)
    if tuning is None or tuning != msgspec.json.decode(done.stdout, type=Tuning):
        raise BenchError("the tuning that was kept is not the one that was shown")
    return tuning


def _loss(tuning: Tuning) -> float:
    if tuning.tuned is None:
        return 0.0
    loss = next(one.loss_percent for one in tuning.candidates if one.type == tuning.tuned.type)
    if loss is None:
        raise BenchError("the chosen file's perplexity is not known")
    return loss


def _what(tuning: Tuning) -> str:
    kind = tuning.tuned.type if tuning.tuned else f"{tuning.original.type}, as it was"
    settings = tuning.settings
    return f"Ours runs {kind}, in batches of {settings.batch_tokens} tokens with KV in {settings.kv_type}."

"""Ranking on SmolLM2, from the command line's daemon to the result's `priority`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.e2e.harness import eventually, is_ack, running

FLAGS = ("--slots", "2", "--context-size", "512", "--threads", "1", "--rank-ms", "20000")
"""Time enough for a machine that has much else to do."""


def test_the_main_model_ranks_a_request_that_asks_for_it(smollm2: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="granville-", dir="/tmp") as path,
        running(Path(path), *FLAGS, model=smollm2, driver="granville-llama") as daemon,
    ):
        eventually(lambda: daemon.status()["ranking"]["model"] is not None)
        ranks = {}
        with daemon.connect() as client:
            for id, text in (("fire", "Help, the house is on fire!"), ("joke", "Some day, tell me a joke.")):
                assert is_ack(client.ask({"id": id, "text": text, "ranked": True, "max_tokens": 2}))
                ranks[id] = client.end_of(id)["priority"]
        assert ranks["fire"] == "critical"
        assert ranks["joke"] in ("normal", "low")
        ranking = daemon.status()["ranking"]
        assert (ranking["ranked"], ranking["late"], ranking["unranked"]) == (2, 0, 0)
        assert daemon.stop() == 0

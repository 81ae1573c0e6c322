"""`granville bench`: what it asks for, and what it shows."""

from __future__ import annotations

import pytest
from rich.console import Console

from granville.cli import exits
from granville.cli.bench import LOADS, SLOTS, bench_table
from granville.cli.main import main


def test_the_loads_are_of_one_client_and_more_and_of_one_prefix() -> None:
    assert [load.clients for load in LOADS] == [1, 4, 8, 8]
    assert max(load.clients for load in LOADS) <= SLOTS
    prompts = [load.text.replace("{n}", "000001") for load in LOADS]
    assert all(prompt != load.text for prompt, load in zip(prompts, LOADS, strict=True)), "no two requests are the same"
    shared = LOADS[-1].text.index("{n}")
    assert shared > 1000, "they begin alike"


def test_a_row_has_rates_and_latencies() -> None:
    spread = {"count": 1, "p50": 10.4, "p90": 1, "p99": 20.6, "max": 1}
    rows = [
        {"name": "1 client", "clients": 1, "tokens_per_s": 99.6, "first_ms": spread, "gap_ms": spread},
        {"name": "no text", "clients": 1, "tokens_per_s": 0, "first_ms": None, "gap_ms": None},
    ]
    console = Console(width=100, record=True)
    console.print(bench_table("m[x].gguf", rows))
    lines = console.export_text().splitlines()
    assert any(line.split() == ["1", "client", "100", "10", "ms", "21", "ms", "10", "ms", "21", "ms"] for line in lines)
    assert any(line.split() == ["no", "text", "0"] for line in lines)


@pytest.mark.parametrize(("flag", "value"), [("--requests", "0"), ("--max-tokens", "-1")])
def test_a_wrong_number_is_named(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "smollm2", flag, value]) == exits.FAILED
    assert f"{flag}: must be at least 1, got {value}" in capsys.readouterr().err

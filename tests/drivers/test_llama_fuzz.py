"""Whatever a kernel does to a model, each job says what it says alone. `python -m tests.drivers.test_llama_fuzz FIRST
COUNT` tries other seeds."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drivers import tiny_gguf
from tests.drivers.llama_fuzz import Machine, Plan, Reference

ACTS = 250
PLENTY = 1 << 30
PLANS = {
    "roomy": Plan(PLENTY, interrupts=True),
    "disk": Plan(PLENTY, PLENTY, restarts=True),
    "tight": Plan(300_000, limits=True, interrupts=True),
    "tight disk": Plan(150_000, 1_000_000, limits=True, restarts=True),
    "bad disk": Plan(150_000, 400_000, limits=True, restarts=True, bad_disk=True, interrupts=True),
    "disk alone": Plan(0, PLENTY, restarts=True),
    "nothing": Plan(0, interrupts=True),
}


@pytest.fixture(scope="module")
def reference(noise: Path) -> Iterator[Reference]:
    reference = Reference(noise)
    yield reference
    reference.close()


def disturb(seed: int, name: str, path: Path, reference: Reference, kv_dir: Path, acts: int = ACTS) -> Machine:
    plan = PLANS[name]
    machine = Machine(seed, path, reference, plan, kv_dir if plan.kv_disk_bytes else None)
    try:
        for _ in range(acts):
            machine.act()
        machine.finish()
    except BaseException as error:
        error.add_note(f"plan={name!r} seed={seed} acts={acts}")
        raise
    return machine


@pytest.mark.parametrize("name", PLANS)
def test_whatever_happens_each_job_says_what_it_says_alone(
    name: str, noise: Path, reference: Reference, tmp_path: Path
) -> None:
    compared = exact_turns = 0
    for seed in range(3):
        machine = disturb(seed, name, noise, reference, tmp_path / str(seed))
        compared += machine.compared
        exact_turns += machine.exact_turns
    assert compared > 30
    assert exact_turns > 5


def main() -> None:
    first, count = map(int, sys.argv[1:3])
    make = tiny_gguf.noise if len(sys.argv) < 4 else getattr(tiny_gguf, sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder) / "tiny.gguf")
        reference = Reference(path)
        for seed in range(first, first + count):
            for name in PLANS:
                try:
                    machine = disturb(seed, name, path, reference, Path(folder) / f"{seed} {name}")
                except Exception as error:
                    import traceback

                    traceback.print_exc(limit=-4)
                    continue
                print(seed, name, machine.compared, machine.turns, machine.exact_turns, flush=True)


if __name__ == "__main__":
    main()

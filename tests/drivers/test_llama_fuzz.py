"""Whatever a kernel does to a model, each job says what it says alone. `python -m tests.drivers.test_llama_fuzz FIRST
COUNT noise` tries other seeds."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from granville_llama.binding import Decoded

from tests.drivers import tiny_gguf
from tests.drivers.llama_fuzz import TALK, Machine, Plan, Reference, load
from tests.drivers.llama_jobs import job, run

ACTS = 200
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


def disturb(seed: int, name: str, path: Path, reference: Reference, kv_dir: Path, acts: int = ACTS) -> Machine:
    plan = PLANS[name]
    machine = Machine(seed, path, reference, plan, kv_dir if plan.kv_disk_bytes else None)
    try:
        for _ in range(acts):
            machine.act()
        machine.finish()
    except BaseException as error:
        error.add_note(f"model={path.stem} plan={name!r} seed={seed} acts={acts}")
        raise
    return machine


@pytest.mark.parametrize("name", PLANS)
def test_whatever_happens_each_job_says_what_it_says_alone(name: str, noise: Path, tmp_path: Path) -> None:
    reference = Reference(noise)
    machines = [disturb(seed, name, noise, reference, tmp_path / str(seed)) for seed in range(2)]
    assert sum(machine.compared for machine in machines) > 15
    assert sum(machine.exact_turns for machine in machines) > 1
    assert sum(machine.wished for machine in machines) > 1
    assert sum(machine.warmed for machine in machines) > 1 or PLANS[name].kv_ram_bytes < PLENTY
    reference.close()


@pytest.mark.parametrize("name", ["roomy", "tight", "bad disk"])
def test_a_model_that_cannot_forget_a_part_of_what_it_read(name: str, models: Path, tmp_path: Path) -> None:
    path = tiny_gguf.recurrent(models / "recurrent.gguf")
    reference = Reference(path)
    machine = disturb(0, name, path, reference, tmp_path / "kv", 120)
    assert machine.compared > 5
    reference.close()


def test_what_a_recurrent_model_has_forgotten_is_not_taken_for_a_beginning(models: Path) -> None:
    """The prompt of the turn that was on the slot would be saved for others, but cannot be told apart from the answer
    any more: the state goes. Nothing of it is left for the next prompt, which begins alike."""
    path = tiny_gguf.recurrent(models / "recurrent.gguf")
    turn = replace(job("turn", f"{TALK[:100]} and so on", 20), session="s")
    other = job("other", f"{TALK[:30]} in a way", 12)
    alone = Reference(path)
    expected = alone.answer(other)[0]
    alone.close()
    model = load(path, Plan(1), None, slots=1)
    run(model, turn)
    answer = run(model, other)["other"]
    assert answer.tokens == expected.tokens
    assert answer.cached_tokens == 0
    model.close()


def test_an_empty_sequence_has_nothing_left_however_it_is_shortened(models: Path) -> None:
    for path in (tiny_gguf.recurrent(models / "recurrent.gguf"), tiny_gguf.noise(models / "noise.gguf")):
        model = load(path, Plan(0), None)
        context = model._context
        assert context.trim(0, 4) == 0
        context.add([5, 6, 7, 8], 0, 0, True)
        assert context.decode() is Decoded.OK
        assert context.trim(0, 4) == 4
        assert context.trim(0, 2) == (0 if model._weights.recurrent else 2)
        assert context.trim(0, 3) == 0
        model.close()


def test_an_interrupt_does_not_harm_the_neighbours_of_a_recurrent_model(models: Path) -> None:
    """What it cuts short would be the moving of their states."""
    path = tiny_gguf.recurrent(models / "recurrent.gguf")
    jobs = [job(f"j{index}", f"{index} and so on " * (index + 1), 12) for index in range(4)]
    alone = Reference(path)
    expected = {each.id: alone.answer(each)[0].tokens for each in jobs}
    alone.close()
    model = load(path, Plan(0), None)
    decode = model._context.decode

    def interrupted() -> Decoded:
        model.interrupt()
        return decode()

    model._context.decode = interrupted  # type: ignore[method-assign]
    answers = run(model, *jobs)
    assert {id: answer.tokens for id, answer in answers.items()} == expected
    model.close()


def main() -> None:
    """For as long as it takes: arguments are the first seed, how many, and the model, `noise` or `recurrent`."""
    first, count = map(int, sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        path: Path = getattr(tiny_gguf, sys.argv[3])(Path(folder) / f"{sys.argv[3]}.gguf")
        reference = Reference(path)
        for seed in range(first, first + count):
            for name in PLANS:
                machine = disturb(seed, name, path, reference, Path(folder) / f"{seed} {name}")
                print(seed, name, machine.compared, machine.turns, machine.exact_turns, flush=True)


if __name__ == "__main__":
    main()

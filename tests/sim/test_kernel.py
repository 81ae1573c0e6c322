"""The whole kernel under thousands of small misfortunes. `python -m tests.sim.test_kernel 17` replays seed 17, and with
`1000 3000` it runs those from 1000 on.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter

import pytest

from tests.sim.scenario import draw
from tests.sim.watch import Violation
from tests.sim.world import simulate

SEEDS = 80
BATCH = 20


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_whatever_happens_every_job_ends_once_and_rightly(first: int) -> None:
    for seed in range(first, first + BATCH):
        try:
            simulate(draw(seed))
        except BaseException as error:
            error.add_note(f"replay with: python -m tests.sim.test_kernel {seed}")
            raise


def main(first: int, end: int) -> None:
    logging.disable()
    failed: Counter[str] = Counter()
    for seed in range(first, end):
        try:
            simulate(draw(seed))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            error = error.__cause__ if isinstance(error, Violation) and error.__cause__ else error
            frame = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} {frame.name}:{frame.lineno} {str(error)[:150]}"
            failed[what.split(" ")[1]] += 1
            print(f"seed {seed}: {what}", flush=True)
            if end - first == 1:
                traceback.print_exception(error)
    print(f"{end - first} seeds, {sum(failed.values())} failed {dict(failed)}")


if __name__ == "__main__":
    begin = int(sys.argv[1])
    main(begin, int(sys.argv[2]) if len(sys.argv) > 2 else begin + 1)

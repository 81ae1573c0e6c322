"""The sample drivers' sources: in a checkout at their place, in an installed package its own copies."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

SampleAbi = Literal["c1", "c2", "python"]
SAMPLES: dict[SampleAbi, str] = {
    "c1": "v1/echo_v1.c",
    "c2": "v2/echo_v2.c",
    "python": "python/echo_driver.py",
}
"""Below drivers/echo."""


def sample_path(abi: SampleAbi) -> Path:
    here = Path(__file__).resolve().parent
    packaged = here / "samples" / SAMPLES[abi]
    return packaged if packaged.exists() else here.parents[1] / "drivers" / "echo" / SAMPLES[abi]

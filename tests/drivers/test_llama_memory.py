"""What the kernel reckons that a model takes, before it is loaded, is what the driver says when it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from granville_llama.loading import load

from granville.hosting.interface import ModelSpec
from granville.models.memory import estimate


def test_weights_and_kv_are_foreseen(smollm2: Path) -> None:
    model = load(ModelSpec(smollm2, slots=2, context_size=300, threads=1))
    try:
        need = estimate(smollm2, "inference", 2, 300)
        assert need.kv_bytes == 2 * 512 * 23_040
        assert need.weights_bytes + need.kv_bytes == pytest.approx(model.info.memory_bytes, rel=0.05)
    finally:
        model.close()

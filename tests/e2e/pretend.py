"""granville-llama with speeds that are said and not measured, so that a test knows which file wins."""

from __future__ import annotations

from granville_llama import LlamaDriver


class PretendDriver(LlamaDriver):
    """Its Q4_0 files are twice as fast."""

    tuning_module = "tests.drivers.pretend_tuning"

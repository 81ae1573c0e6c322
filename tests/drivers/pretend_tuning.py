"""The driver's tuning commands, with speeds that are said and not measured: a Q4_0 file is twice as fast."""

from __future__ import annotations

import sys
from typing import Any

from granville_llama import tuning


def speed(progress: tuning.Progress, *, path: str, settings: list[dict[str, Any]], **_: object) -> dict[str, Any]:
    rate = 200.0 if "Q4_0" in path else 100.0
    speeds = [{"prefill": rate, "decode": {str(n): rate for n in one["sequences"]}} for one in settings]
    return {"load_s": 0.1, "memory_bytes": 1, "speeds": speeds}


if __name__ == "__main__":
    tuning.COMMANDS["speed"] = speed
    sys.exit(tuning.main(sys.argv[1:]))

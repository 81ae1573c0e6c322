"""A driver whose step never returns, whatever it is told."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from granville.hosting.interface import Capabilities, Event, ModelInfo, ModelSpec, Task


class StuckModel:
    capabilities = Capabilities()
    info = ModelInfo("stuck", context_size=4096, memory_bytes=0)

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def submit(self, request: Task) -> None: ...

    def step(self, prefill_ms: float | None) -> list[Event]:
        threading.Event().wait()
        return []

    def cancel(self, id: str) -> None: ...

    def park(self, id: str) -> None: ...

    def resume(self, id: str) -> None: ...

    def limit_cache(self, kv_ram_bytes: int) -> None: ...

    def stats(self) -> Mapping[str, int | float | str]:
        return {}

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


class StuckDriver:
    name = "stuck"
    version = "1"

    def load(self, spec: ModelSpec) -> StuckModel:
        return StuckModel(spec.slots)

"""A model of an ABI v2 driver: jobs go in as structures, and what comes out of a step is checked before it counts."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from ctypes import byref
from typing import Any

import msgspec

from granville.hosting import cabi_types as c
from granville.hosting.cabi_events import Job, Reader
from granville.hosting.cabi_request import Passable, asked, kind, to_request
from granville.hosting.interface import (
    Capabilities,
    DriverError,
    Event,
    Failed,
    Finished,
    Generate,
    ModelInfo,
    ModelSpec,
    Task,
    Usage,
)
from granville.hosting.stops import StopText

FIRST_STATS_BYTES = 16 << 10

Functions = Mapping[str, Callable[..., Any]]


class V2Model:
    """A job has a number in C, and here the name that the kernel gave it. `unload` frees the handle."""

    def __init__(
        self, driver: str, functions: Functions, unload: Callable[[int], None], handle: int, info: c.ModelInfo,
        spec: ModelSpec,
    ) -> None:  # fmt: skip
        self.slots = info.slots
        self.capabilities = capabilities(info, spec.type)
        self.info = ModelInfo(
            architecture=info.architecture.decode(errors="replace") or driver,
            context_size=info.context_size,
            memory_bytes=info.memory_bytes,
            description=info.description.decode(errors="replace"),
        )
        self._sees_stops = bool(info.capabilities & c.CAN_STOP)
        self._driver = driver
        self._functions = functions
        self._unload = unload
        self._handle = handle
        self._open = threading.Lock()
        """Held by calls from other threads, and while the handle is taken away."""
        self._last_number = 0
        self._jobs: dict[int, Job] = {}
        self._numbers: dict[str, int] = {}
        self._refused: list[Failed] = []
        """Jobs that the driver did not take: the next step tells."""
        self._reader = Reader(driver, self._jobs)

    def submit(self, request: Task) -> None:
        if not isinstance(request, Passable):
            self._refused.append(Failed(request.id, "unsupported", "drivers in C take no sound and make none"))
            return
        self._last_number += 1
        number = self._last_number
        passed = to_request(number, request, stops=self._sees_stops)
        error = c.Error()
        status = self._functions["submit"](self._handle, byref(passed), byref(error))
        if status != c.OK:
            text = c.reason(error) or "the driver did not take it, and does not say why"
            self._refused.append(Failed(request.id, c.STATUS_ERRORS.get(status, "driver_failed"), text))
            return
        job = Job(request.id, kind(request), asked(request))
        if isinstance(request, Generate):
            job.calls = bool(request.tools)
            job.stops = StopText(request.stop) if request.stop and not self._sees_stops else None
        self._jobs[number] = job
        self._numbers[request.id] = number

    def step(self, prefill_ms: float | None) -> list[Event]:
        events: list[Event] = list(self._refused)
        self._refused.clear()
        if all(job.state == "parked" for job in self._jobs.values()):
            return events
        batch = c.Events(struct_size=ctypes.sizeof(c.Events))
        error = c.Error()
        budget_ms = -1.0 if prefill_ms is None else prefill_ms
        if self._functions["step"](self._handle, budget_ms, byref(batch), byref(error)) != c.OK:
            raise DriverError(f"{self._driver}: {c.reason(error) or 'step failed, and does not say why'}")
        events += self._reader.read(batch)
        # The batch is the driver's, and valid until the next call: only now may jobs be ended.
        for number in [number for number, job in self._jobs.items() if job.stopped]:
            job = self._jobs.pop(number)
            self._functions["cancel"](self._handle, number)
            events.append(Finished(job.id, "stop", Usage(0, 0, job.sampled)))
        if len(self._numbers) > len(self._jobs):
            self._numbers = {job.id: number for number, job in self._jobs.items()}
        return events

    def cancel(self, id: str) -> None:
        self._refused = [one for one in self._refused if one.id != id]
        number = self._numbers.pop(id, None)
        if number is not None:
            del self._jobs[number]
            self._functions["cancel"](self._handle, number)

    def park(self, id: str) -> None:
        number = self._numbers.get(id)
        if number is not None:
            self._jobs[number].state = "parking"
            self._call("park", number)

    def resume(self, id: str) -> None:
        number = self._numbers[id]
        self._jobs[number].state = "running"
        self._call("resume", number)

    def limit_cache(self, kv_ram_bytes: int) -> None:
        if "limit_cache" in self._functions:
            self._functions["limit_cache"](self._handle, kv_ram_bytes)

    def stats(self) -> Mapping[str, int | float | str]:
        """Figures that cannot be read are told as such, under `error`: a status is not worth a model."""
        if "stats" not in self._functions:
            return {}
        room = FIRST_STATS_BYTES
        while room <= c.MAX_STATS_BYTES:
            buffer = ctypes.create_string_buffer(room)
            with self._open:
                if not self._handle:
                    return {}
                size = self._functions["stats"](self._handle, buffer, room)
            if size <= room:
                try:
                    return msgspec.json.decode(buffer.raw[:size], type=dict[str, int | float | str])
                except msgspec.DecodeError as error:
                    return {"error": f"stats: {error}"}
            room = size if size > room else c.MAX_STATS_BYTES + 1
        return {"error": f"stats: more than {c.MAX_STATS_BYTES} bytes"}

    def interrupt(self) -> None:
        with self._open:
            if self._handle and self.capabilities.interruptible:
                self._functions["interrupt"](self._handle)

    def close(self) -> None:
        with self._open:
            handle, self._handle = self._handle, 0
        if handle:
            self._unload(handle)

    def _call(self, name: str, number: int) -> None:
        error = c.Error()
        if self._functions[name](self._handle, number, byref(error)) != c.OK:
            raise DriverError(f"{self._driver}: {name} failed: {c.reason(error) or 'it does not say why'}")


def capabilities(info: c.ModelInfo, type: str) -> Capabilities:
    """As the kernel knows them. Bits that are not known here are of a newer header, and nothing is asked of them."""
    can = info.capabilities
    return Capabilities(
        types=frozenset({type}),
        interruptible=bool(can & c.CAN_INTERRUPT),
        messages=bool(can & c.CAN_MESSAGES),
        sampling=bool(can & c.CAN_SAMPLE),
        park=bool(can & c.CAN_PARK),
        constrain=bool(can & c.CAN_CONSTRAIN),
        tools=bool(can & c.CAN_TOOLS),
        score=bool(can & c.CAN_SCORE),
        drop_oldest=bool(can & c.CAN_DROP),
        resume=bool(can & c.CAN_RESUME),
    )

"""ABI v1: a driver whose one call gives a whole answer, as a model of one slot whose step that call is.

What the driver has to keep to stands in drivers/include/granville_driver.h.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Mapping
from ctypes import c_bool, c_char_p, c_uint32, c_void_p
from typing import Any

from granville.errors import StartupError
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
    Token,
    Usage,
)
from granville.hosting.library import MAX_TEXT_BYTES, Context, Library, c_string, refuse_type
from granville.hosting.stops import StopText

log = logging.getLogger(__name__)

VTABLE = "granville_driver_vtable"
PREFIX = "granville_driver_"
BYTES_A_TOKEN = 4
"""A v1 driver does not count its tokens; elsewhere too a text costs so much (scheduling/job.py)."""
TYPES = ("inference", "ranker")

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "init": ctypes.CFUNCTYPE(c_void_p),
    "deinit": ctypes.CFUNCTYPE(None, c_void_p),
    "load_model": ctypes.CFUNCTYPE(c_void_p, c_void_p, c_char_p),
    "unload_model": ctypes.CFUNCTYPE(None, c_void_p, c_void_p),
    # Right for the shape with four arguments too: the header says why.
    "generate": ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_char_p, c_uint32, c_bool),
    "free_string": ctypes.CFUNCTYPE(None, c_void_p),
    "get_name": ctypes.CFUNCTYPE(c_void_p),
    "get_version": ctypes.CFUNCTYPE(c_void_p),
}
"""In the order of the vtable."""


def find_functions(library: Library) -> dict[str, Callable[..., Any]] | None:
    """The eight functions by name, from the vtable or else by their symbols; None when the library has nothing of v1.
    Raises StartupError when it has only some."""
    vtable = library.address(VTABLE)
    if vtable is not None:
        pointers = (c_void_p * len(_FUNCTIONS)).from_address(vtable)
        addresses = dict(zip(_FUNCTIONS, pointers, strict=True))
        for index, (name, address) in enumerate(addresses.items(), 1):
            if not address:
                raise StartupError(
                    f"{library.path}: {VTABLE} has NULL for {name}, its pointer {index} of {len(_FUNCTIONS)}; "
                    "all of them have to be there"
                )
    else:
        addresses = {name: library.address(PREFIX + name) for name in _FUNCTIONS}
        missing = [PREFIX + name for name, address in addresses.items() if address is None]
        if len(missing) == len(_FUNCTIONS):
            return None
        if missing:
            raise StartupError(
                f"{library.path}: lacks {', '.join(missing)}; a driver exports {VTABLE}, or all the "
                f"{len(_FUNCTIONS)} functions of granville_driver.h"
            )
    return {name: prototype(addresses[name]) for name, prototype in _FUNCTIONS.items()}


class V1Driver:
    """Models of it share one context. Raises StartupError when its name or version is no text."""

    abi = "c1"

    def __init__(self, library: Library, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.library = library
        self.functions = functions
        self.name = library.text(functions["get_name"](), "what granville_driver_get_name returns")
        self.version = library.text(functions["get_version"](), "what granville_driver_get_version returns")
        self._context = library.contexts.setdefault(self.abi, Context(self._init, functions["deinit"]))

    def load(self, spec: ModelSpec) -> V1Model:
        refuse_type(self.name, spec.type, TYPES)
        if spec.options:
            raise DriverError(f"{', '.join(spec.options)}: {self.name} takes no settings; it is of ABI v1")
        if not spec.path.exists():
            raise DriverError(f"there is no file {spec.path}")
        for setting, value in (("threads", spec.threads), ("context_size", spec.context_size)):
            if value:
                log.warning("setting has no effect driver=%s abi=c1 setting=%s", self.name, setting)
        with self._context.lock:
            context = self._context.take()
            handle = self.functions["load_model"](context, os.fsencode(spec.path))
            if not handle:
                self._context.give_back()
                raise DriverError(f"{self.name}: granville_driver_load_model returned NULL for {spec.path}")
        return V1Model(self, context, handle)

    def unload(self, context: int, handle: int) -> None:
        with self._context.lock:
            self.functions["unload_model"](context, handle)
            self._context.give_back()

    def _init(self) -> int:
        context = self.functions["init"]()
        if not context:
            raise DriverError(f"{self.name}: granville_driver_init returned NULL")
        return int(context)


class V1Model:
    """One job at a time, whole in one step."""

    slots = 1
    capabilities = Capabilities(types=frozenset(TYPES), interruptible=False, messages=False, sampling=False)

    def __init__(self, driver: V1Driver, context: int, handle: int) -> None:
        self.info = ModelInfo(driver.name, context_size=0, memory_bytes=0, description="ABI v1")
        self._driver = driver
        self._context = context
        self._handle = handle
        self._job: Generate | None = None

    def submit(self, request: Task) -> None:
        assert isinstance(request, Generate), "its capabilities name no other kind of work"
        assert self._job is None, "it has one slot"
        self._job = request

    def step(self, prefill_ms: float | None) -> list[Event]:
        request, self._job = self._job, None
        if request is None:
            return []
        prompt = request.messages[-1].content
        if (at := prompt.find("\0")) >= 0:
            return [Failed(request.id, "bad_request", f"text: character {at} is NUL, where this driver's texts end")]
        try:
            answer = self._generate(prompt, request)
        except DriverError as error:
            return [Failed(request.id, "driver_failed", str(error))]
        shown = StopText(request.stop)
        text, stopped = shown.feed(answer)
        if not stopped:
            text += shown.rest()
        return [Token(request.id, text), Finished(request.id, "stop", Usage(_tokens(prompt), 0, _tokens(answer)))]

    def cancel(self, id: str) -> None:
        """Of a job that has not begun: what runs cannot be stopped."""
        if self._job is not None and self._job.id == id:
            self._job = None

    def park(self, id: str) -> None:
        raise DriverError(f"{self._driver.name} cannot park")

    def resume(self, id: str) -> None:
        raise DriverError(f"{self._driver.name} cannot park")

    def limit_cache(self, kv_ram_bytes: int) -> None:
        """What such a driver keeps is its own."""

    def stats(self) -> Mapping[str, int | float | str]:
        return {"abi": self._driver.abi}

    def interrupt(self) -> None:
        """It is not interruptible."""

    def close(self) -> None:
        handle, self._handle = self._handle, 0
        if handle:
            self._driver.unload(self._context, handle)

    def _generate(self, prompt: str, request: Generate) -> str:
        """Raises DriverError when there is no answer, or none that can be believed."""
        functions = self._driver.functions
        address = functions["generate"](
            self._context, self._handle, prompt.encode(), request.max_tokens, request.reset_cache
        )
        if not address:
            raise DriverError("the driver gave no answer: granville_driver_generate returned NULL")
        try:
            data = c_string(address, MAX_TEXT_BYTES)
        finally:
            functions["free_string"](address)
        if data is None:
            raise DriverError(f"the driver's answer has more than {MAX_TEXT_BYTES} bytes")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise DriverError(f"the driver's answer is not UTF-8, at byte {error.start}") from None


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_A_TOKEN)

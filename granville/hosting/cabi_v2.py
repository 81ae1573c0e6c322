"""ABI v2: a driver in C that is stepped, as drivers/include/granville_driver.h has it. Its models: cabi_model.py."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import POINTER, byref, c_double, c_size_t, c_uint64, c_void_p
from typing import Any

import msgspec

from granville import __version__
from granville.errors import StartupError
from granville.hosting import cabi_types as c
from granville.hosting.cabi_model import V2Model
from granville.hosting.interface import DriverError, ModelSpec
from granville.hosting.library import Context, Library, refuse_type

VTABLE = "granville_driver_vtable_v2"
ABI_VERSION = 2

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "create": ctypes.CFUNCTYPE(c.Status, POINTER(c.Host), POINTER(c_void_p), POINTER(c.Error)),
    "destroy": ctypes.CFUNCTYPE(None, c_void_p),
    "load": ctypes.CFUNCTYPE(
        c.Status, c_void_p, POINTER(c.Load), POINTER(c_void_p), POINTER(c.ModelInfo), POINTER(c.Error)
    ),
    "unload": ctypes.CFUNCTYPE(None, c_void_p),
    "submit": ctypes.CFUNCTYPE(c.Status, c_void_p, POINTER(c.Request), POINTER(c.Error)),
    "step": ctypes.CFUNCTYPE(c.Status, c_void_p, c_double, POINTER(c.Events), POINTER(c.Error)),
    "cancel": ctypes.CFUNCTYPE(None, c_void_p, c_uint64),
    "park": ctypes.CFUNCTYPE(c.Status, c_void_p, c_uint64, POINTER(c.Error)),
    "resume": ctypes.CFUNCTYPE(c.Status, c_void_p, c_uint64, POINTER(c.Error)),
    "interrupt": ctypes.CFUNCTYPE(None, c_void_p),
    "stats": ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_size_t),
    "limit_cache": ctypes.CFUNCTYPE(None, c_void_p, c_uint64),
}
_OPTIONAL = {
    "park": ("CAN_PARK", c.CAN_PARK),
    "resume": ("CAN_PARK", c.CAN_PARK),
    "interrupt": ("CAN_INTERRUPT", c.CAN_INTERRUPT),
    "stats": ("", 0),
    "limit_cache": ("", 0),
}
"""What may be NULL, and the capability with which it may not."""


def find_vtable(library: Library) -> c.Driver | None:
    """A copy of the driver's table, checked; None when the library has none. Raises StartupError."""
    address = library.address(VTABLE)
    if address is None:
        return None
    where = f"{library.path}: {VTABLE}"
    size, version = (ctypes.c_uint32 * 2).from_address(address)
    if version != ABI_VERSION:
        what = "a newer Granville is needed" if version > ABI_VERSION else "no such version was ever published"
        raise StartupError(
            f"{where}.abi_version is {version}, and this Granville speaks {ABI_VERSION}: {what}, "
            "or a driver built with this one's granville_driver.h"
        )
    if not ctypes.sizeof(c.Driver) <= size <= c.MAX_STRUCT_BYTES:
        raise StartupError(
            f"{where}.struct_size is {size}; it has to be sizeof(struct granville_driver_v2), "
            f"{ctypes.sizeof(c.Driver)} or more"
        )
    table = c.Driver.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(c.Driver)))
    missing = [name for name in _FUNCTIONS if name not in _OPTIONAL and not getattr(table, name)]
    if missing:
        raise StartupError(f"{where} has NULL for {', '.join(missing)}, which every driver has to have")
    return table


class V2Driver:
    """Models of it share one context. Raises StartupError when its name or version is no text."""

    abi = "c2"

    def __init__(self, library: Library, table: c.Driver) -> None:
        self.library = library
        self.name = library.text(table.name, f"{VTABLE}.name")
        self.version = library.text(table.version, f"{VTABLE}.version")
        addresses = {name: getattr(table, name) for name in _FUNCTIONS}
        self.functions = {name: _FUNCTIONS[name](address) for name, address in addresses.items() if address}
        self._context = library.contexts.setdefault(self.abi, Context(self._create, self.functions["destroy"]))

    def load(self, spec: ModelSpec) -> V2Model:
        refuse_type(self.name, spec.type, tuple(c.TYPES))
        config = msgspec.json.encode(dict(spec.options))
        wanted = c.Load(
            struct_size=ctypes.sizeof(c.Load),
            type=c.TYPES[spec.type],
            path=os.fsencode(spec.path),
            slots=spec.slots,
            context_size=spec.context_size,
            threads=spec.threads,
            verbose=spec.verbose,
            kv_ram_bytes=spec.kv_ram_bytes,
            kv_disk_bytes=spec.kv_disk_bytes,
            kv_dir=None if spec.kv_dir is None else os.fsencode(spec.kv_dir),
            fingerprint=spec.fingerprint.encode(),
            config=config,
            config_size=len(config),
        )
        info = c.ModelInfo(struct_size=ctypes.sizeof(c.ModelInfo))
        handle = c_void_p()
        error = c.Error()
        with self._context.lock:
            context = self._context.take()
            try:
                status = self.functions["load"](context, byref(wanted), byref(handle), byref(info), byref(error))
                if status != c.OK:
                    raise DriverError(c.reason(error) or f"{self.name} cannot load {spec.path}, and does not say why")
                if not handle.value:
                    raise DriverError(f"{self.name}: load returned GRANVILLE_OK and set no model")
                try:
                    self._check(info, spec)
                    return V2Model(self.name, self.functions, self.unload, handle.value, info, spec)
                except DriverError:
                    self.functions["unload"](handle.value)
                    raise
            except BaseException:
                self._context.give_back()
                raise

    def unload(self, handle: int) -> None:
        with self._context.lock:
            self.functions["unload"](handle)
            self._context.give_back()

    def _create(self) -> int:
        host = c.Host(ctypes.sizeof(c.Host), ABI_VERSION, __version__.encode())
        handle = c_void_p()
        error = c.Error()
        if self.functions["create"](byref(host), byref(handle), byref(error)) != c.OK:
            raise DriverError(f"{self.name} cannot start: {c.reason(error) or 'it does not say why'}")
        if not handle.value:
            raise DriverError(f"{self.name}: create returned GRANVILLE_OK and set no driver")
        return handle.value

    def _check(self, info: c.ModelInfo, spec: ModelSpec) -> None:
        """Raises DriverError for what a model cannot be."""
        if not 1 <= info.slots <= min(spec.slots, c.MAX_SLOTS):
            raise DriverError(
                f"{self.name}: load gave slots {info.slots}; {spec.slots} were wanted, and 1 is the least"
            )
        for function, (name, bit) in _OPTIONAL.items():
            if info.capabilities & bit and function not in self.functions:
                raise DriverError(f"{self.name}: load gave GRANVILLE_{name}, and {VTABLE}.{function} is NULL")
        if info.capabilities & c.CAN_RESUME and not info.capabilities & c.CAN_STOP:
            raise DriverError(f"{self.name}: load gave GRANVILLE_CAN_RESUME without GRANVILLE_CAN_STOP, which it needs")

"""Checks of drivers in C alone: what the library exports, and calls that the kernel keeps from it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from granville.hosting.cabi_v1 import PREFIX, VTABLE, V1Driver
from granville.hosting.cabi_v2 import V2Driver
from granville.testing.conformance.checks import Fail, Skip, Warn, check
from granville.testing.conformance.rig import Rig, answered, words

UNKNOWN_JOB = 1 << 40


def _library(rig: Rig, *abis: str) -> Any:
    """The driver, when it is one in C of such an ABI. Skips otherwise."""
    driver = rig.driver
    if rig.abi not in abis or not isinstance(driver, V1Driver | V2Driver):
        raise Skip("of drivers in C, ABI " + " and ".join(abi.replace("c", "v") for abi in abis))
    return driver


@check(
    "c-symbols",
    group="loading",
    right="the vtable is complete; functions that are exported by name as well are those of the vtable",
    where="granville_driver.h: DriverVTable, struct granville_driver_v2",
    needs=("driver",),
    text=False,
)
def c_symbols(rig: Rig) -> str:
    """What the library exports"""
    driver = _library(rig, "c1", "c2")
    if rig.abi == "c2":
        return f"granville_driver_vtable_v2 with {', '.join(driver.functions)}"
    named = [name for name in driver.functions if driver.library.address(PREFIX + name) is not None]
    if driver.library.address(VTABLE) is None:
        return f"all {len(named)} functions by name, and no {VTABLE}"
    return f"{VTABLE} with {len(driver.functions)} functions, {len(named)} of them by name as well"


@check(
    "c-load",
    group="loading",
    right="granville_driver_load_model returns NULL for a path where nothing is, and init can come again after deinit",
    where="granville_driver.h: granville_driver_load_model, granville_driver_init",
    needs=("driver",),
    text=False,
)
def c_load(rig: Rig) -> str:
    """load_model of a path where nothing is, which the kernel looks at before"""
    functions: Mapping[str, Callable[..., Any]] = _library(rig, "c1").functions
    with tempfile.TemporaryDirectory(prefix="granville-check-") as folder:
        path = os.fsencode(Path(folder, "nothing-here.model"))
        for _ in range(2):
            context = rig.call("granville_driver_init()", functions["init"])
            if not context:
                raise Fail("granville_driver_init() returned NULL")
            model = rig.call("granville_driver_load_model(path where nothing is)",
                             lambda context=context: functions["load_model"](context, path))  # type: ignore[misc]  # fmt: skip
            if model:
                rig.call("granville_driver_unload_model()",
                         lambda context=context, model=model: functions["unload_model"](context, model))  # type: ignore[misc]  # fmt: skip
            rig.call("granville_driver_deinit()", lambda context=context: functions["deinit"](context))  # type: ignore[misc]
            if model:
                raise Warn("granville_driver_load_model returned a model for a path where nothing is")
    return "NULL, twice, with a deinit in between"


@check(
    "c-cancel",
    group="jobs",
    right="cancel of a job that is not known does nothing",
    where="granville_driver.h: struct granville_driver_v2, cancel",
    needs=("answer",),
    text=False,
)
def c_cancel(rig: Rig) -> str:
    """cancel of unknown jobs, which the kernel keeps from the driver"""
    functions: Mapping[str, Callable[..., Any]] = _library(rig, "c2").functions
    model = rig.model
    handle = getattr(model.raw, "_handle")  # noqa: B009  # what the kernel's side keeps to itself
    running = model.submit(rig.task(words(12)))
    for number in (UNKNOWN_JOB, 0, UNKNOWN_JOB):
        rig.call(f"cancel({number})", lambda number=number: functions["cancel"](handle, number))  # type: ignore[misc]
    answered(model.until_ended(running)[0])
    return "three times, beside a job that runs"

"""From what was typed for a model to a plan that the kernel can load: its file, its id, its driver, its memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from granville.config import ServeConfig
from granville.errors import StartupError
from granville.hosting.interface import Driver, ModelSpec
from granville.hosting.isolated import PROCESS_BYTES, IsolatedDriver, IsolatedLoad
from granville.hosting.locate import find_driver, is_name, naming
from granville.hosting.options import SPEC_OPTIONS, Layer, built_in, merge_options
from granville.hosting.store import hold_named
from granville.models.catalogue import Catalogue
from granville.models.gguf import read_header
from granville.models.identity import fingerprint
from granville.models.kinds import TYPES as TYPES_OF_KINDS
from granville.models.kinds import driver_for, kind_of
from granville.models.memory import estimate
from granville.models.pool import TYPES, Wanted, ids, parse_model
from granville.models.spec import parse_ref
from granville.models.store import ModelStore
from granville.models.tuned import with_tuning
from granville.nursery.pool import ModelPlan, Order
from granville.nursery.stepper import ThreadStepper
from granville.scheduling.memory import KEEPS_STATES, share
from granville.scheduling.roster import ModelEntry
from granville.wire.messages import ModelType


@dataclass(eq=False)
class Planner:
    """`spec` has the settings that all models share, `driver_name` the driver of those that name none. Called, it plans
    a model that a client wants loaded while the daemon serves."""

    config: ServeConfig
    spec: ModelSpec
    driver_name: str
    layers: Sequence[Layer] = ()
    """Drivers' options for all models, the first goes before the others; a model's own come between `layers` and
    `defaults`."""
    defaults: Sequence[Layer] = ()
    tuned: bool = True
    """Take a model's tuned file and settings where there are any (`granville models tune`)."""
    steppers: list[ThreadStepper] = field(default_factory=list)
    """All that were made: whether one of them hangs decides how the process ends."""
    _drivers: dict[str, Driver] = field(default_factory=dict)
    _finding: trio.Lock = field(default_factory=trio.Lock)
    """Held by who finds a driver while the daemon serves: two that look for one at once get the same."""

    def driver(self, one: Wanted) -> Driver:
        """That of a model: its own, or one for models of its kind, or else `driver_name`; one object a name. Raises
        StartupError when it is not installed."""
        name = one.driver or self._usual_driver(one) or self.driver_name
        if name not in self._drivers:
            hold_named(name)
            isolate, limit_s = self.config.isolate, self.config.stall_s
            self._drivers[name] = IsolatedDriver(name, step_timeout_s=limit_s) if isolate else find_driver(name)
        return self._drivers[name]

    def _usual_driver(self, one: Wanted) -> str | None:
        type, entry = type_of(one), Catalogue().find(one.ref)
        if entry is not None:
            return entry.driver
        if type not in ("stt", "tts"):
            return None
        return driver_for(type, ModelStore().whereabouts(one.ref)) or next(iter(naming(type)), None)

    def drivers_of(self, wanted: Sequence[Wanted]) -> None:
        """Find every driver that these models need and check its options, before anything is fetched. Raises
        StartupError."""
        for one in wanted:
            self.driver(one)
        for one in wanted:
            self._configured(one)

    def _configured(self, one: Wanted) -> ModelSpec:
        """The shared settings with the options of this model's driver. Raises StartupError for a wrong one."""
        driver = self.driver(one)
        layers = [*self.layers, *([one.config] if one.config else []), *self.defaults, *built_in(driver)]
        options = merge_options(driver, layers, list(self._drivers.values()))
        spec = self.spec if one.slots is None else replace(self.spec, slots=one.slots)
        fields = {key: value for key in SPEC_OPTIONS if (value := options.pop(key, None)) is not None}
        return replace(spec, options=options, **fields)  # type: ignore[arg-type]  # whole numbers, as checked

    def plan_all(self, wanted: Sequence[Wanted], paths: Sequence[Path]) -> list[ModelPlan]:
        """The models of the command line, each with its file. Raises StartupError."""
        known = [
            (one, self._architecture(one, path), fingerprint(path)) for one, path in zip(wanted, paths, strict=True)
        ]
        types = [type_of(one) for one in wanted]
        keepers = sum(type in KEEPS_STATES for type in types)
        kv_ram, kv_disk = share(self.config.kv_ram_bytes, keepers), share(self.config.kv_disk_bytes, keepers)
        return [
            self._plan(one, path, id, type, self._configured(one), kv_ram, kv_disk)
            for one, path, id, type in zip(wanted, paths, ids(known), types, strict=True)
        ]

    async def __call__(self, order: Order, kv_ram_bytes: int, kv_disk_bytes: int) -> ModelPlan:
        wanted = parse_model(order.model)
        if wanted.driver is not None and not is_name(wanted.driver) and wanted.driver != self.driver_name:
            raise StartupError(f"?driver={wanted.driver}: give the name of an installed driver")
        found = await ModelStore().resolve(parse_ref(wanted.ref))
        if not isinstance(found, Path):
            raise StartupError(f"{wanted.ref} is not on this disk; `granville download {wanted.ref}` fetches it")
        # A driver that is new here is started, and a file's head and blocks are read; others are served meanwhile.
        async with self._finding:
            spec = await trio.to_thread.run_sync(self._configured, wanted)
        spec = replace(
            spec,
            slots=order.slots or spec.slots,
            context_size=spec.context_size if order.context_size is None else order.context_size,
        )
        return await trio.to_thread.run_sync(self._plan_one, wanted, found, spec, kv_ram_bytes, kv_disk_bytes)

    def _plan_one(self, wanted: Wanted, path: Path, spec: ModelSpec, kv_ram: int, kv_disk: int) -> ModelPlan:
        (id,) = ids([(wanted, self._architecture(wanted, path), fingerprint(path))])
        return self._plan(wanted, path, id, type_of(wanted), spec, kv_ram, kv_disk)

    def _plan(
        self, wanted: Wanted, path: Path, id: str, type: ModelType, spec: ModelSpec, kv_ram: int, kv_disk: int
    ) -> ModelPlan:
        driver = self.driver(wanted)
        keeps = type in KEEPS_STATES
        folder = self.config.kv_dir
        spec = replace(
            spec,
            path=path,
            type=type,
            kv_ram_bytes=kv_ram if keeps else 0,
            kv_disk_bytes=kv_disk if keeps else 0,
            kv_dir=folder / f"model-{id}" if keeps and kv_disk and folder is not None else None,
        )
        if self.tuned:
            spec = with_tuning(spec, driver)
        if keeps:
            spec = replace(spec, fingerprint=fingerprint(spec.path))
        entry = ModelEntry(
            id,
            type,
            os.fsencode(path).decode(errors="replace"),
            driver.name,
            isolated=isinstance(driver, IsolatedDriver),
        )
        need = estimate(spec.path, type, spec.slots, spec.context_size, spec.options.get("kv_type"))
        if isinstance(driver, IsolatedDriver):
            need = replace(need, overhead_bytes=need.overhead_bytes + PROCESS_BYTES)
        return ModelPlan(entry, lambda: self._stepper(driver, spec, id), need, spec.kv_disk_bytes)

    def _stepper(self, driver: Driver, spec: ModelSpec, id: str) -> ThreadStepper:
        if isinstance(driver, IsolatedDriver):
            load = IsolatedLoad(driver, spec, id)
            stepper = ThreadStepper(load, self.config.prefill_ms, give_up=load.give_up)
        else:
            stepper = ThreadStepper(lambda: driver.load(spec), self.config.prefill_ms)
        self.steppers.append(stepper)
        return stepper

    def _architecture(self, wanted: Wanted, path: Path) -> str:
        """As the file's head has it, or its kind is called. Another file may suit the driver all the same; its loading
        tells."""
        kind = kind_of(path)
        if kind not in (None, "gguf"):
            return kind
        try:
            return read_header(path).architecture
        except StartupError:
            return self.driver(wanted).name


def type_of(wanted: Wanted) -> ModelType:
    """As it was given, else as the catalogue has it, else as its kind is, else inference."""
    if wanted.type is not None:
        return wanted.type
    entry = Catalogue().find(wanted.ref)
    if entry is None:
        path = ModelStore().whereabouts(wanted.ref)
        kind = None if path is None else kind_of(path)
        return "inference" if kind is None else TYPES_OF_KINDS.get(kind, "inference")
    return next((known for known in TYPES if entry is not None and known == entry.type), "inference")

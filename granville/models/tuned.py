"""The outcome of a tuning beside its model: `NAME.tuned.json`, and `NAME.tuned.gguf` where another file won.

A tuned file is used only when it is whole and the tuning holds here. Part of it is read at each start
(`identity.fingerprint`), and all of it, for its SHA-256, where that takes less than a second; a larger one is trusted
to the file system.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec

from granville.hosting.interface import Driver, ModelSpec, Tunable
from granville.models.identity import fingerprint
from granville.models.tune import DEFAULTS, Machine, Settings, Tuning, why_not

SUFFIX = ".tuned.gguf"
MAX_TUNING_BYTES = 1 << 20
MAX_HASHED_BYTES = 512 << 20
"""Half a second at 1 GB/s, which a processor with SHA instructions exceeds."""

log = logging.getLogger(__name__)


def tuned_path(original: Path) -> Path:
    return original.with_name(original.stem + SUFFIX)


def tuning_path(original: Path) -> Path:
    return original.with_name(original.stem + ".tuned.json")


def is_tuned_file(path: Path) -> bool:
    """Whether a file is the tuned form of another, and so no model of its own."""
    return path.name.endswith(SUFFIX) and tuning_path(path.with_name(path.name.removesuffix(SUFFIX) + ".gguf")).exists()


def read_tuning(original: Path) -> Tuning | None:
    """What is kept beside a model; None when nothing is. Raises ValueError for what is no tuning, OSError for a file
    that cannot be read."""
    path = tuning_path(original)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TUNING_BYTES)
    except FileNotFoundError:
        return None
    return msgspec.json.decode(data, type=Tuning)


def with_tuning(spec: ModelSpec, driver: Driver) -> ModelSpec:
    """The spec with the tuned file of `spec.path` and the settings that were found best, where there are any that hold
    here; what the user has set himself stays. Why a tuning is not used is one line in the log."""
    if spec.type != "inference" or not isinstance(driver, Tunable):
        return spec
    try:
        tuning = read_tuning(spec.path)
        if tuning is None:
            return spec
        problem = _problem(tuning, spec.path, driver)
    except (OSError, ValueError) as error:
        problem = f"it cannot be read: {error}"
    if problem is not None or tuning is None:
        log.warning("tuning ignored model=%s reason=%r hint=%r", spec.path.name, problem, "granville models tune")
        return spec
    if tuning.tuned is None:
        path, print_of = spec.path, spec.fingerprint
    else:
        path, print_of = spec.path.with_name(tuning.tuned.name), tuning.tuned.fingerprint
    log.info("tuning used model=%s file=%s settings=%s", spec.path.name, path.name, tuning.settings)
    same_cores = tuning.machine.cores == this_machine().cores
    options = {**_options(tuning.settings, same_cores=same_cores), **spec.options}
    if spec.threads:
        options.pop("most_threads", None)
    return replace(spec, path=path, fingerprint=print_of, options=options)


def _options(settings: Settings, *, same_cores: bool) -> dict[str, object]:
    """What differs from the driver's defaults. A number of threads holds for the cores that it was found on, and is the
    most that the driver takes: it may take fewer while other programs compute."""
    options: dict[str, object] = {}
    if settings.threads and same_cores:
        options["most_threads"] = settings.threads
    if settings.batch_tokens != DEFAULTS.batch_tokens:
        options["batch_tokens"] = settings.batch_tokens
    if settings.kv_type != DEFAULTS.kv_type:
        options["kv_type"] = settings.kv_type
    return options


def _problem(tuning: Tuning, original: Path, driver: Tunable) -> str | None:
    problem = why_not(tuning, fingerprint(original), driver.name, driver.backend, this_machine())
    if problem is not None or tuning.tuned is None:
        return problem
    file = tuning.tuned
    if file.name != tuned_path(original).name:
        return f"it names the file {file.name}"
    path = original.with_name(file.name)
    if not path.is_file():
        return f"{file.name} is missing"
    if path.stat().st_size != file.size_bytes or fingerprint(path) != file.fingerprint:
        return f"{file.name} is not the file that was made"
    if file.size_bytes <= MAX_HASHED_BYTES and sha256(path) != file.sha256:
        return f"{file.name} is damaged: its SHA-256 is another"
    return None


def sha256(path: Path) -> str:
    """Hex, of the whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def this_machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(_processor(), cores)


def _processor() -> str:
    """As the system names it: /proc/cpuinfo on Linux, sysctl on macOS, else the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Hardware", "cpu model"):
                return value.strip()
    except OSError:  # no /proc here
        return _mac_processor() or platform.machine()
    return platform.machine()


def _mac_processor() -> str:
    try:
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    except OSError:  # not macOS either
        return ""
    return done.stdout.strip()

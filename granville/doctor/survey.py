"""This machine, read for the probes. Whatever asks another program has a time limit, and what is not there is a
finding, not an error."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import msgspec

from granville import __version__
from granville.config import DEFAULT_SLOTS, ServeConfig, home
from granville.doctor import graphics, place, processor, room
from granville.doctor.finding import Finding
from granville.errors import StartupError
from granville.hosting.accel import ACCELS, PACKAGE, Built, pinned_version, probe
from granville.hosting.locate import GROUP
from granville.hosting.toolchain import Host, missing_tools
from granville.hosting.watched import run_watched
from granville.models.memory import group_limits, machine_memory
from granville.models.store import ModelStore

TOOL_S = 5.0
PROBE_S = 60.0
"""To load llama.cpp; a GPU's driver may take its time."""
KV_DISK_BYTES = ServeConfig.kv_disk_bytes


Ask = Callable[[Sequence[str]], str | None]
"""What a command prints; None when it is not there, fails or takes too long."""


def ask(command: Sequence[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TOOL_S,
            check=False,
            stdin=subprocess.DEVNULL,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True, slots=True)
class Wish:
    """How `granville serve` is to be started."""

    socket: str | None
    """The path where it is to listen; None for none."""
    slots: int = DEFAULT_SLOTS
    context_size: int = 0
    """0: the driver's choice."""
    memory_bytes: int | None = None
    """None: its own choice."""
    kv_dir: Path | None = None


def survey(wish: Wish, daemon: Finding) -> list[Finding]:
    """All findings, in the order in which they are shown. `daemon` is what is known of one that runs."""
    built, failure = _build()
    cpu = read_cpu(ask)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpu.logical
    budget = wish.memory_bytes or machine_memory()
    info = processor.parse_system_info(built.system_info) if built else {}
    return [
        *_versions(built, failure),
        *_drivers(),
        *processor.cores(cpu, allowed, built.usable_cores if built else allowed),
        *(processor.vectors(cpu, info) if built else []),
        *graphics.gpus(read_gpus(ask), msgspec.to_builtins(built) if built else None),
        *_memory(budget),
        *room.disk(_folders(wish.kv_dir or home() / "kv")),
        *room.models(_models(), wish.slots, wish.context_size, budget),
        *([place.socket(_socket(wish.socket))] if wish.socket else []),
        _open_files(),
        daemon,
    ]


def read_cpu(ask: Ask, cpuinfo: Path = Path("/proc/cpuinfo")) -> processor.Cpu:
    try:
        return processor.parse_cpuinfo(cpuinfo.read_text(errors="replace"))
    except OSError:  # no /proc here
        said = ask(["sysctl", "machdep.cpu", "hw"])
    return processor.parse_sysctl(said) if said else processor.Cpu(platform.machine(), set(), 0, os.cpu_count() or 1)


def read_gpus(ask: Ask, dri: Path = Path("/dev/dri"), drm: Path = Path("/sys/class/drm")) -> graphics.Seen:
    nodes = sorted(str(path) for path in dri.glob("renderD*"))
    return graphics.Seen(
        nvidia_smi=ask(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]),
        vulkaninfo=ask(["vulkaninfo", "--summary"]),
        displays=ask(["system_profiler", "SPDisplaysDataType"]) if sys.platform == "darwin" else None,
        render_nodes=nodes,
        unreadable_nodes=[node for node in nodes if not os.access(node, os.R_OK | os.W_OK)],
        vendors=[path.read_text().strip() for path in sorted(drm.glob("card?/device/vendor"))],
    )


def _build() -> tuple[Built | None, str]:
    try:
        return probe(run_watched, {}, limit_s=PROBE_S), ""
    except StartupError as error:
        return None, error.message


def _versions(built: Built | None, failure: str) -> list[Finding]:
    try:
        llama = version(PACKAGE)
    except PackageNotFoundError:
        llama = None
    host = Host.this()
    buildable = [accel for accel in ACCELS if not missing_tools(accel, host)]
    return [
        *place.versions(__version__, sys.version_info[:3], llama, pinned_version()),
        *place.build(built.backends if built else None, failure, buildable),
    ]


def _drivers() -> list[Finding]:
    names = sorted(point.name for point in entry_points(group=GROUP))
    broken = []
    folder = home() / "drivers"
    for one in sorted(folder.iterdir()) if folder.is_dir() else []:
        if one.name.startswith("."):
            continue
        if (one / "driver.json").is_file():
            names.append(one.name)
        else:
            broken.append((one.name, f"{one} has no driver.json"))
    return place.drivers(names, broken)


def _memory(budget: int) -> list[Finding]:
    page = os.sysconf("SC_PAGE_SIZE")
    return room.memory(
        page * os.sysconf("SC_PHYS_PAGES"),
        parse_available(Path("/proc/meminfo")),
        group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")),
        budget,
    )


def parse_available(meminfo: Path) -> int | None:
    """Bytes that programs can have without swapping, as Linux estimates it."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:  # not Linux
        return None
    values = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(values[0][1]) << 10 if values else None


def _folders(kv_dir: Path) -> list[room.Folder]:
    return [
        folder("home", home(), room.LOW_DISK_BYTES),
        folder("models", home() / "models", room.LOW_DISK_BYTES),
        folder("states", kv_dir, KV_DISK_BYTES),
    ]


def folder(name: str, path: Path, wanted_bytes: int) -> room.Folder:
    """A folder, or what it would be made in."""
    there = next((one for one in (path, *path.parents) if one.exists()), path)
    try:
        free: int | None = shutil.disk_usage(there).free
    except OSError:
        free = None
    return room.Folder(name, path, free, there.is_dir() and os.access(there, os.W_OK | os.X_OK), wanted_bytes)


def _models() -> list[room.ModelOnDisk]:
    return [
        room.ModelOnDisk(file.name, file.path, "embedding" if _reads(file.header) else "inference", file.problem)
        for file in ModelStore().files()
        if file.path is not None
    ]


def _reads(header: object) -> bool:
    """Whether a model gives vectors, by its kind."""
    return "bert" in str(getattr(header, "architecture", ""))


def _socket(path: str) -> place.SocketPlace:
    parent = Path(path).parent
    mode = parent.stat().st_mode if parent.is_dir() else 0
    there = Path(path)
    return place.SocketPlace(
        path,
        parent_exists=bool(mode),
        parent_writable=os.access(parent, os.W_OK | os.X_OK),
        others_may_replace=bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX,
        is_socket=there.is_socket() if there.exists() else None,
    )


def _open_files() -> Finding:
    soft, hard = (None if one == resource.RLIM_INFINITY else one for one in resource.getrlimit(resource.RLIMIT_NOFILE))
    return place.open_files(soft, hard, ServeConfig().open_files)

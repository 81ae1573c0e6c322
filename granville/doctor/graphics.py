"""GPUs: what the system has, what llama.cpp sees of them, and how one is put to use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from granville.doctor.finding import Finding

SECTION = "GPU"
INSTALL = "granville driver install granville-llama --accel "
VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
"""PCI ids, as /sys/class/drm has them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the system's own tools say; None for a tool that is not there or did not answer."""

    nvidia_smi: str | None = None
    """`nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader`."""
    vulkaninfo: str | None = None
    """`vulkaninfo --summary`."""
    displays: str | None = None
    """`system_profiler SPDisplaysDataType`, on macOS."""
    render_nodes: Sequence[str] = ()
    """/dev/dri/renderD*."""
    unreadable_nodes: Sequence[str] = ()
    """Those of them that this user may not open."""
    vendors: Sequence[str] = ()
    """PCI vendors of the cards in /sys/class/drm."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """By the `--accel` that would use them."""

    by_accel: Mapping[str, Sequence[str]] = field(default_factory=dict)


def parse(seen: Seen) -> Gpus:
    found: dict[str, Sequence[str]] = {}
    if seen.nvidia_smi:
        rows = [[part.strip() for part in line.split(",")] for line in seen.nvidia_smi.splitlines()]
        names = [f"{row[0]}, {row[1]}, driver {row[2]}" for row in rows if len(row) == 3]
        if names:
            found["cuda"] = names
    if seen.displays:
        chips = re.findall(r"Chipset Model: (.+)", seen.displays)
        if chips and re.search(r"Metal( Support| Family)?: (Supported|Metal)", seen.displays):
            found["metal"] = chips
    if seen.vulkaninfo:
        devices = re.findall(r"deviceType\s*=\s*(\S+)\s+deviceName\s*=\s*(.+)", seen.vulkaninfo)
        real = [name.strip() for kind, name in devices if not kind.endswith(("_CPU", "_OTHER"))]
        if real:
            found["vulkan"] = real
    return Gpus(found)


def gpus(seen: Seen, build: Mapping[str, Any] | None) -> list[Finding]:
    """`build`: what the installed llama.cpp says of itself (`granville_llama.devices`), None where it does not run."""
    here = parse(seen)
    found = [Finding(SECTION, accel, "; ".join(names), "ok") for accel, names in here.by_accel.items()]
    if not found and seen.render_nodes:
        makers = ", ".join(sorted({VENDORS.get(one, one) for one in seen.vendors})) or "unknown make"
        found.append(
            Finding(SECTION, "render nodes", f"{', '.join(seen.render_nodes)} ({makers}); no tool tells more", "note",
                    "`apt install vulkan-tools`, and ask again")
        )  # fmt: skip
    if seen.unreadable_nodes:
        found.append(
            Finding(SECTION, "access", f"{', '.join(seen.unreadable_nodes)} cannot be opened by this user", "warn",
                    "usermod -aG render,video $USER, and log in again")
        )  # fmt: skip
    if not found:
        return [Finding(SECTION, "found", "none; models run on the CPU")]
    return [*found, *_use(here, build)] if build is not None else found


def _use(here: Gpus, build: Mapping[str, Any]) -> list[Finding]:
    devices = build["gpus"]
    if devices:
        names = "; ".join(f"{one['description']}, {one['free_bytes'] / 1e9:.1f} GB free" for one in devices)
        return [
            Finding(SECTION, "llama.cpp", f"computes on {names}", "ok",
                    "all layers go there unless --driver-config gpu_layers=N says how many; 0 is the CPU alone")
        ]  # fmt: skip
    others = [name for name in build["backends"] if name not in ("CPU", "BLAS")]
    if others:
        return [
            Finding(SECTION, "llama.cpp", f"was built with {', '.join(others)} and finds no device", "warn",
                    "the GPU's driver may be older than the build, or kept from this container (docker run --gpus all)")
        ]  # fmt: skip
    if not here.by_accel:
        return []
    best = next(accel for accel in ("cuda", "metal", "vulkan") if accel in here.by_accel)
    return [Finding(SECTION, "llama.cpp", "was built for the CPU alone; the GPU stays idle", "warn", INSTALL + best)]

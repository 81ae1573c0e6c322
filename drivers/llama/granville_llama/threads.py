"""How many threads a model gets when nobody says: the physical cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(cpus: Path = CPUS, quota: Path = QUOTA) -> int:
    """Cores under the process's affinity, hyper-threads counted once (they share the units that matter here), and
    no more than the cgroup's quota pays for."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(cpus, cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota(quota) or len(cores)))


def _siblings(cpus: Path, cpu: int) -> str:
    try:
        return (cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:  # not Linux, or a container without sysfs: count every one
        return str(cpu)


def _quota(path: Path) -> int | None:
    """Whole CPUs of a cgroup v2 `cpu.max` ("quota period" in microseconds), None for no limit."""
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2 here
        return None

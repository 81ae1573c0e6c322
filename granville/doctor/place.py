"""Where Granville runs: versions, drivers, the socket, what the system lets it open, and whether a daemon is up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from granville.config import MAX_SOCKET_PATH_BYTES
from granville.doctor.finding import Finding, Verdict

SECTION = "Daemon"
LEAST_PYTHON = (3, 11)
FEW_FILES = 256
"""With fewer a daemon cannot serve more than a handful of connections."""


@dataclass(frozen=True, slots=True)
class SocketPlace:
    path: str
    parent_exists: bool
    parent_writable: bool
    others_may_replace: bool
    """Anybody may write to the folder, and it is not sticky."""
    is_socket: bool | None
    """None: nothing is there."""


def versions(granville: str, python: tuple[int, int, int], llama: str | None, pinned: str) -> list[Finding]:
    """`llama`: the llama-cpp-python that is installed, None for none."""
    shown = ".".join(map(str, python))
    old = python[:2] < LEAST_PYTHON
    found = [
        Finding("Versions", "granville", granville, "ok"),
        Finding("Versions", "python", shown, "problem" if old else "ok", "Python 3.11 or later" if old else ""),
    ]
    if llama is None:
        found.append(
            Finding(
                "Versions", "llama-cpp-python", "not installed", "problem", f"pip install llama-cpp-python=={pinned}"
            )
        )
    elif llama != pinned:
        found.append(
            Finding("Versions", "llama-cpp-python", f"{llama}, and this Granville is made for {pinned}: its bindings "
                    "may not fit", "problem", f"pip install llama-cpp-python=={pinned}")
        )  # fmt: skip
    else:
        found.append(Finding("Versions", "llama-cpp-python", llama, "ok"))
    return found


def build(backends: Sequence[str] | None, failure: str, buildable: Sequence[str]) -> list[Finding]:
    """The llama.cpp that is here, `backends` None where it does not run; `buildable` are the accelerations whose tools
    are installed."""
    fix = f"granville driver install granville-llama --accel {'|'.join(buildable)}" if buildable else ""
    if backends is None:
        return [Finding("Versions", "llama.cpp", failure, "problem", fix or "a compiler, and pip, to build it again")]
    return [
        Finding(
            "Versions",
            "llama.cpp",
            f"runs; built for {', '.join(backends)}",
            "ok",
            f"{fix} builds another" if fix else "",
        )
    ]


def drivers(names: Sequence[str], broken: Sequence[tuple[str, str]]) -> list[Finding]:
    """`broken`: folders in the drivers' folder that are none, each with what is wrong."""
    found = [Finding("Drivers", "installed", ", ".join(names) or "none", "ok" if names else "problem",
                     "" if names else "install granville again: granville-llama is part of it")]  # fmt: skip
    found += [Finding("Drivers", name, problem, "warn", f"granville driver remove {name}") for name, problem in broken]
    return found


def socket(place: SocketPlace) -> Finding:
    """Whether a daemon can listen there."""
    size = len(place.path.encode())
    other = "-s PATH, or GRANVILLE_SOCKET, for another place"
    if size > MAX_SOCKET_PATH_BYTES:
        problem = f"the path has {size} bytes, {MAX_SOCKET_PATH_BYTES} are the most"
    elif not place.parent_exists:
        problem = f"there is no folder {Path(place.path).parent}"
    elif not place.parent_writable:
        problem = f"{Path(place.path).parent} cannot be written to by this user"
    elif place.is_socket is False:
        problem = f"{place.path} is there and is no socket; it would not be replaced"
    elif place.others_may_replace:
        return Finding(SECTION, "socket", f"anybody may replace what is in {Path(place.path).parent}", "warn",
                       f"chmod +t {Path(place.path).parent}, or {other}")  # fmt: skip
    else:
        return Finding(SECTION, "socket", place.path, "ok")
    return Finding(SECTION, "socket", problem, "problem", other)


def open_files(soft: int | None, hard: int | None, wanted: int) -> Finding:
    """None is no limit. A daemon raises its soft limit to what it wants, as far as the hard one goes."""
    if soft is None or soft >= wanted:
        return Finding(SECTION, "open files", "any number" if soft is None else str(soft), "ok")
    if hard is None or hard >= wanted:
        return Finding(SECTION, "open files", f"{soft}, raised to {wanted} by the daemon", "ok")
    verdict: Verdict = "problem" if hard < FEW_FILES else "warn"
    connections = max(1, hard // 2)
    return Finding(SECTION, "open files", f"{hard} at the most, and {wanted} are wanted", verdict,
                   f"ulimit -Hn {wanted} (LimitNOFILE= of a service), or --max-connections {connections}")  # fmt: skip


def daemon(address: str, said: str | None, problem: str | None) -> Finding:
    """`said`: the version of the daemon that answered; `problem`: what else was there instead."""
    if said is not None:
        return Finding(SECTION, "running", f"version {said} on {address}", "ok", "granville status")
    if problem is not None:
        return Finding(SECTION, "running", problem, "warn", "end what holds the socket, or -s PATH for another")
    return Finding(SECTION, "running", f"none on {address}", "note", "granville serve smollm2")

"""llama.cpp built for what this machine has: `granville driver install granville-llama --accel cpu|cuda|metal|vulkan`.

The pinned llama-cpp-python is compiled into a wheel in a folder of its own, unpacked beside the environment, and tried
in a child process; only then does pip put it in the place of the build that is here. Until that last step nothing of
the environment is touched, so a build that fails, or does not run, costs nothing but its time.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import requires
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from granville.config import home
from granville.errors import StartupError
from granville.hosting.toolchain import Host, missing_tools, nvcc
from granville.hosting.watched import Runner, run_watched

Accel = Literal["cpu", "cuda", "metal", "vulkan"]
ACCELS: tuple[Accel, ...] = get_args(Accel)
PACKAGE = "llama-cpp-python"
PROBE = "granville_llama.devices"
FLAGS: dict[Accel, tuple[str, ...]] = {
    "cpu": ("-DGGML_NATIVE=on",),
    "cuda": ("-DGGML_CUDA=on",),
    "metal": ("-DGGML_METAL=on",),
    "vulkan": ("-DGGML_VULKAN=on",),
}
BACKENDS: dict[Accel, str] = {"cpu": "CPU", "cuda": "CUDA", "metal": "MTL", "vulkan": "Vulkan"}
"""What llama.cpp calls each."""
BUILD_BYTES: dict[Accel, int] = {"cpu": 2 << 30, "cuda": 8 << 30, "metal": 2 << 30, "vulkan": 3 << 30}
"""Room for the sources, the objects and the wheel; generous."""
BUILD_S = 4 * 3600.0
INSTALL_S = 600.0
TRIAL_S = 300.0
"""To load the libraries and the model, and to say a few words. The first use of a GPU compiles its kernels."""
ERROR_CHARS = 300
_STEP = re.compile(r"\s*\[(\d+)/(\d+)\] ")
"""ninja's counter."""
_ERROR = re.compile(r"\berror ?:|CMake Error|No space left")
"""What a compiler, cmake or the disk says; not an option such as -Werror=, nor pip's own last words."""

Show = Callable[[str, float | None], None]
"""Called with what is being done, and the share of it that is done where that is known."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build would do, before anything of it is done."""

    accel: Accel
    version: str
    variables: Mapping[str, str]
    """Set for the build, beside the environment's own."""
    folder: Path
    missing: tuple[str, ...] = ()
    """What the machine lacks, each with the package that brings it."""

    @property
    def build(self) -> list[str]:
        return [
            *_PIP, "wheel", "--verbose", "--no-deps", "--no-cache-dir", "--no-binary", PACKAGE, "--wheel-dir",
            str(self.folder), f"{PACKAGE}=={self.version}",
        ]  # fmt: skip

    def install(self, wheel: str) -> list[str]:
        return [*_PIP, "install", "--force-reinstall", "--no-deps", "--no-index", wheel]

    def lines(self) -> list[str]:
        """For a person: the commands, as a shell would take them."""
        variables = " ".join(f'{name}="{value}"' for name, value in self.variables.items())
        return [
            *(f"first:   {one}" for one in self.missing),
            f"build:   {variables} {' '.join(self.build)}",
            f"try:     {sys.executable} -m {PROBE}  (with the new build unpacked beside this environment)",
            f"install: {' '.join(self.install('THE_WHEEL'))}",
        ]


class Built(msgspec.Struct, frozen=True):
    """What the probe says of a build."""

    backends: list[str]
    gpus: list[dict[str, Any]]
    can_offload: bool
    system_info: str
    library: str
    usable_cores: int = 1
    """Threads that a model takes by itself."""
    trial: dict[str, Any] | None = None


_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Builder:
    """`run` carries out a command; `proc` is where processes are looked for."""

    run: Runner = run_watched
    host: Host = field(default_factory=Host.this)
    proc: Path = Path("/proc")
    library_folder: Path | None = None
    """Of the build that is here; found out unless given."""
    free: Callable[[Path], int] = free_bytes

    def plan(self, accel: str, folder: Path) -> Plan:
        """Raises StartupError for a name that is none."""
        known = next((one for one in ACCELS if one == accel), None)
        if known is None:
            raise StartupError(f"--accel: expected {', '.join(ACCELS)}, got {accel!r}")
        own = self.host.variables.get("CMAKE_ARGS", "")
        variables = {"CMAKE_ARGS": " ".join([*filter(None, [own]), *FLAGS[known]]), "FORCE_CMAKE": "1"}
        if "CMAKE_BUILD_PARALLEL_LEVEL" not in self.host.variables:
            variables["CMAKE_BUILD_PARALLEL_LEVEL"] = str(self.host.cores)
        compiler = nvcc(self.host) if known == "cuda" else None
        if compiler is not None:
            variables["CUDACXX"] = compiler
        return Plan(known, pinned_version(), variables, folder, tuple(missing_tools(known, self.host)))

    def install(self, accel: str, show: Show, *, model: Path | None = None) -> Built:
        """Build, try and install. `model` is what the new build is tried with. Raises StartupError; then the build that
        was here still is, and the message says where all of the output lies."""
        with tempfile.TemporaryDirectory(prefix="granville-build-") as name:
            folder = Path(name)
            plan = self.plan(accel, folder / "wheel")
            self.check(plan, folder)
            log = home() / "logs" / f"build-{plan.accel}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("w", encoding="utf-8", errors="backslashreplace") as output:
                wheel = self._build(plan, show, output.write, log)
                show("trying the new build", None)
                built = self.try_wheel(wheel, folder / "unpacked", plan.accel, model)
                self._check_unused()
                show("installing", None)
                code = self.run(plan.install(str(wheel)), {}, output.write, INSTALL_S)
            if code != 0:
                raise StartupError(f"pip could not install {wheel.name} (status {code}); its output is in {log}")
            return built

    def check(self, plan: Plan, folder: Path) -> None:
        """That the build can be done, and put in its place. Raises StartupError."""
        if plan.missing:
            raise StartupError(f"--accel {plan.accel}: {'; '.join(plan.missing)}")
        self._check_unused()
        free = self.free(folder)
        if free < BUILD_BYTES[plan.accel]:
            raise StartupError(
                f"--accel {plan.accel}: building takes up to {BUILD_BYTES[plan.accel] >> 30} GiB in {folder.parent}, "
                f"and {free / 2**30:.1f} GiB are free there; TMPDIR can name another folder"
            )

    def _check_unused(self) -> None:
        users = users_of(self.library_folder or _library_folder(), self.proc)
        if users:
            shown = ", ".join(f"{pid} ({name})" for pid, name in users)
            raise StartupError(f"this build of llama.cpp is in use by process {shown}; end it first")

    def _build(self, plan: Plan, show: Show, write: Callable[[str], object], log: Path) -> Path:
        errors: list[str] = []
        last = ""

        def hear(line: str) -> None:
            nonlocal last
            write(line)
            last = line.strip() or last
            if _ERROR.search(line):
                errors.append(line.strip())
            if (step := _STEP.match(line)) and int(step[2]):
                show(f"compiling {step[1]} of {step[2]}", int(step[1]) / int(step[2]))

        show(f"fetching and configuring {PACKAGE} {plan.version}", None)
        code = self.run(plan.build, plan.variables, hear, BUILD_S)
        wheels = sorted(plan.folder.glob("*.whl")) if plan.folder.is_dir() else []
        if code == 0 and len(wheels) == 1:
            return wheels[0]
        what = "was given up: it took too long" if code is None else f"failed (status {code})"
        said = errors[0] if errors else last
        raise StartupError(
            f"the build {what}: {said[:ERROR_CHARS]}; all of its output is in {log}; the build that was here still is"
        )

    def try_wheel(self, wheel: Path, folder: Path, accel: Accel, model: Path | None) -> Built:
        """Unpack a wheel and see in a child process that it loads, has the backend and answers. Raises StartupError."""
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, OSError) as error:
            raise StartupError(f"{wheel.name} cannot be unpacked: {error}") from None
        path = os.pathsep.join(filter(None, (str(folder), self.host.variables.get("PYTHONPATH"))))
        built = probe(self.run, {"PYTHONPATH": path}, model)
        if not Path(built.library).resolve().is_relative_to(folder.resolve()):
            raise StartupError(f"the new build was not what was tried: {built.library} was; nothing was installed")
        if BACKENDS[accel] not in built.backends:
            raise StartupError(
                f"the new build has no {accel} backend but {', '.join(built.backends)}; CMAKE_ARGS may switch it off; "
                "nothing was installed"
            )
        return built


def probe(run: Runner, variables: Mapping[str, str], model: Path | None = None, limit_s: float = TRIAL_S) -> Built:
    """What a build says of itself, in a process of its own, that a crash may end. Raises StartupError."""
    lines: list[str] = []
    command = [sys.executable, "-m", PROBE, *([str(model)] if model else [])]
    code = run(command, variables, lines.append, limit_s)
    said = [line.strip() for line in lines if line.strip()]
    if code == 0:
        for line in reversed(said):
            try:
                return msgspec.json.decode(line, type=Built)
            except msgspec.DecodeError:
                continue  # a library's own words among ours
    how = f"no answer within {limit_s:g} s" if code is None else f"it ended with {code}"
    raise StartupError(f"llama.cpp does not work: {how}{': ' + said[-1][:ERROR_CHARS] if said else ''}")


def pinned_version() -> str:
    """The llama-cpp-python that this Granville is made for."""
    for line in requires("granville") or []:
        if match := re.match(rf"{PACKAGE}==([^;\s]+)", line):
            return match[1]
    raise StartupError(f"this Granville does not say which {PACKAGE} it needs; install it by pip")


def users_of(folder: Path, proc: Path) -> list[tuple[int, str]]:
    """Processes other than this one, of those that may be looked at, that have a library out of the folder loaded.
    Where there is no /proc nothing can be told, and nobody is found."""
    found = []
    for maps in proc.glob("[0-9]*/maps"):
        pid = int(maps.parent.name)
        try:
            used = pid != os.getpid() and f"{folder}{os.sep}" in maps.read_text(errors="replace")
            words = (maps.parent / "cmdline").read_text(errors="replace").split("\0") if used else []
        except OSError:  # another user's, or it has just ended
            continue
        if used:
            found.append((pid, " ".join(words).strip()[:60]))
    return sorted(found)


def _library_folder() -> Path:
    import importlib.util

    found = importlib.util.find_spec("llama_cpp")
    places = list(found.submodule_search_locations or []) if found else []
    return Path(places[0] if places else sys.prefix, "lib")

"""What a build of llama.cpp needs of the machine, and which package brings what is not there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

CUDA_FOLDERS = ("/usr/local/cuda", "/opt/cuda")
INCLUDES = ("/usr/include", "/usr/local/include")


@dataclass(frozen=True)
class Host:
    """What is asked of a machine, so that a test can be another one."""

    system: str
    """As `sys.platform` has it."""
    variables: Mapping[str, str]
    which: Callable[[str], str | None]
    exists: Callable[[Path], bool]
    cores: int
    has_pip: bool

    @classmethod
    def this(cls) -> Host:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        has_pip = importlib.util.find_spec("pip") is not None
        return cls(sys.platform, os.environ, shutil.which, Path.exists, cores, has_pip)


def missing_tools(accel: str, host: Host) -> list[str]:
    """A sentence for everything that a build with this acceleration lacks. cmake and ninja are not among them: pip
    fetches them for the build where they are not installed."""
    missing = []
    if not host.has_pip:
        missing.append(f"this Python has no pip: `{sys.executable} -m ensurepip` brings it")
    if not _compiler(host):
        how = (
            "`xcode-select --install`"
            if host.system == "darwin"
            else "`apt install build-essential` or `dnf install gcc-c++`"
        )
        missing.append(f"a C and C++ compiler is missing: {how} brings one")
    if accel == "metal" and host.system != "darwin":
        missing.append("metal is for macOS; here there are cuda and vulkan")
    if accel == "cuda":
        if host.system == "darwin":
            missing.append("cuda is not for macOS; here there is metal")
        elif nvcc(host) is None:
            missing.append(
                "CUDA's compiler nvcc is missing, on PATH and in /usr/local/cuda: `apt install nvidia-cuda-toolkit`, "
                "or the toolkit of https://developer.nvidia.com/cuda-downloads, brings it (CUDACXX can name it)"
            )
    if accel == "vulkan":
        missing += _missing_vulkan(host)
    return missing


def nvcc(host: Host) -> str | None:
    """The path of CUDA's compiler."""
    named = host.variables.get("CUDACXX") or host.which("nvcc")
    if named:
        return named
    folders = [host.variables[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in host.variables]
    places = [Path(folder, "bin", "nvcc") for folder in (*folders, *CUDA_FOLDERS)]
    return next((str(place) for place in places if host.exists(place)), None)


def _compiler(host: Host) -> bool:
    c = host.variables.get("CC") or next(filter(host.which, ("cc", "gcc", "clang")), None)
    cxx = host.variables.get("CXX") or next(filter(host.which, ("c++", "g++", "clang++")), None)
    return bool(c and cxx)


def _missing_vulkan(host: Host) -> list[str]:
    sdk = host.variables.get("VULKAN_SDK")
    includes = [Path(folder) for folder in ([str(Path(sdk, "include"))] if sdk else []) + list(INCLUDES)]
    wants = [
        ("the shader compiler glslc", "glslc", host.which("glslc") or (sdk and host.exists(Path(sdk, "bin", "glslc")))),
        ("a header of Vulkan", "libvulkan-dev", any(host.exists(one / "vulkan" / "vulkan.h") for one in includes)),
        ("a header of SPIR-V", "spirv-headers", any(host.exists(one / "spirv") for one in includes)),
    ]
    return [
        f"{what} is missing: `apt install {package}`, or https://vulkan.lunarg.com's SDK and VULKAN_SDK, brings it"
        for what, package, there in wants
        if not there
    ]

"""The processor: how many cores there are to use, and whether llama.cpp was compiled for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from granville.doctor.finding import Finding

SECTION = "Processor"
REBUILD = "granville driver install granville-llama --accel cpu"

X86_FEATURES = {
    "avx": "AVX", "avx2": "AVX2", "f16c": "F16C", "fma": "FMA", "bmi2": "BMI2", "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI",
    "amx_int8": "AMX_INT8",
}  # fmt: skip
ARM_FEATURES = {
    "asimd": "NEON", "fphp": "FP16_VA", "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE", "sme": "SME",
}  # fmt: skip
"""The system's name for a vector extension to llama.cpp's."""
MAC_FEATURES = {
    "AdvSIMD": "asimd", "FEAT_FP16": "fphp", "FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_SME": "sme",
}  # fmt: skip
"""`sysctl hw.optional.arm`, in Linux's names."""


@dataclass(frozen=True, slots=True)
class Cpu:
    model: str
    flags: Set[str]
    """In Linux's names."""
    physical: int
    """0: not known."""
    logical: int


def parse_cpuinfo(text: str) -> Cpu:
    """/proc/cpuinfo, of x86 or ARM. A processor that does not tell its cores counts none."""
    model, flags, logical = "", frozenset[str](), 0
    cores: set[tuple[str, str]] = set()
    package = "0"
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor":
            logical += 1
        elif name in ("model name", "Hardware", "cpu model") and not model:
            model = value
        elif name in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
        elif name == "physical id":
            package = value
        elif name == "core id":
            cores.add((package, value))
    return Cpu(model or "unknown", flags, len(cores), logical)


def parse_sysctl(text: str) -> Cpu:
    """`sysctl machdep.cpu hw`, of macOS on Intel or Apple silicon."""
    values = {
        name.strip(): value.strip()
        for name, colon, value in (line.partition(":") for line in text.splitlines())
        if colon
    }
    names = " ".join(values.get(f"machdep.cpu.{part}", "") for part in ("features", "leaf7_features"))
    flags = {name.lower().replace(".", "_").replace("avx1_0", "avx") for name in names.split()}
    flags |= {
        linux
        for mac, linux in MAC_FEATURES.items()
        if values.get(f"hw.optional.arm.{mac}", values.get(f"hw.optional.{mac}")) == "1"
    }
    counts = (int(values.get(name, "0")) for name in ("hw.physicalcpu", "hw.logicalcpu"))
    return Cpu(values.get("machdep.cpu.brand_string", "unknown"), frozenset(flags), *counts)


def parse_system_info(text: str) -> dict[str, bool]:
    """llama.cpp's own words, `CPU : AVX = 1 | AVX2 = 1 | CUDA : ARCHS = 890 | ...`: what it was compiled with."""
    return {name: value != "0" for name, value in re.findall(r"(\w+) = (\w+)", text)}


def cores(cpu: Cpu, allowed: int, usable: int) -> list[Finding]:
    """`allowed` logical processors are this process's to use; `usable` is what a model takes by itself: physical cores,
    and no more than the control group's quota pays for."""
    physical = f"{cpu.physical} cores, " if cpu.physical else ""
    found = [Finding(SECTION, "model", cpu.model), Finding(SECTION, "cores", f"{physical}{cpu.logical} logical", "ok")]
    if allowed < cpu.logical:
        found.append(
            Finding(SECTION, "affinity", f"this process may use {allowed} of {cpu.logical} logical processors", "warn",
                    "taskset or the container's cpuset gives more")
        )  # fmt: skip
    limit = min(allowed, cpu.physical or allowed)
    if usable < limit:
        found.append(
            Finding(SECTION, "quota", f"its control group pays for {usable} of {limit} cores", "warn",
                    f"raise the group's cpu.max (docker run --cpus {limit}); --threads cannot")
        )  # fmt: skip
    found.append(
        Finding(SECTION, "threads", f"a model takes {usable}, fewer while other programs compute", "ok",
                "--threads N pins another number; `granville models tune MODEL` finds the best")
    )  # fmt: skip
    return found


def vectors(cpu: Cpu, built_with: Mapping[str, bool]) -> list[Finding]:
    """What the processor can do and the build does not use, and the other way round."""
    known = {linux: ours for table in (X86_FEATURES, ARM_FEATURES) for linux, ours in table.items()}
    has = {ours for linux, ours in known.items() if linux in cpu.flags}
    uses = {name for name in known.values() if built_with.get(name)}
    if not has:
        return [Finding(SECTION, "vector units", "the system does not tell what there is")]
    found = []
    beyond = sorted(uses - has)
    if beyond:
        found.append(
            Finding(SECTION, "vector units", f"llama.cpp was built with {', '.join(beyond)}, which this processor "
                    "lacks: it will end with an illegal instruction", "problem", REBUILD)
        )  # fmt: skip
    unused = sorted(has - uses - {"AMX_INT8", "BMI2"})
    if unused and built_with:
        found.append(
            Finding(SECTION, "vector units", f"{', '.join(unused)} of this processor is not used by this build of "
                    "llama.cpp, which is slower for it", "warn", REBUILD)
        )  # fmt: skip
    if not found:
        found.append(Finding(SECTION, "vector units", f"llama.cpp uses {', '.join(sorted(uses & has))}", "ok"))
    if "AMX_INT8" in uses & has:
        found.append(
            Finding(SECTION, "AMX", "the build has it; GCC 12 compiles its code wrongly, so it is left alone", "note",
                    "built with GCC 13 or later: --driver-config repack=true uses it")
        )  # fmt: skip
    return found

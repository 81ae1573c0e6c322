"""What `granville doctor` says of other machines than this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from granville.doctor import graphics, place, processor, room, survey
from granville.doctor.finding import Finding, worst
from tests.drivers import tiny_gguf

ZEN4 = """\
processor\t: 0
model name\t: AMD EPYC 9R14
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 avx avx2 f16c fma bmi2 avx512f avx512vbmi avx512_vnni avx512_bf16

processor\t: 1
model name\t: AMD EPYC 9R14
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 avx avx2 f16c fma bmi2 avx512f avx512vbmi avx512_vnni avx512_bf16

processor\t: 2
model name\t: AMD EPYC 9R14
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu
"""
GRAVITON = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd fphp asimddp i8mm sve

processor\t: 1
Features\t: fp asimd
"""
APPLE = """\
machdep.cpu.brand_string: Apple M2
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.AdvSIMD: 1
"""
INTEL_MAC = """\
machdep.cpu.brand_string: Intel(R) Core(TM) i5
machdep.cpu.features: FPU SSE AVX1.0 FMA F16C
machdep.cpu.leaf7_features: AVX2 BMI2
hw.physicalcpu: 4
hw.logicalcpu: 8
"""
BUILT = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | LLAMAFILE = 1 | "
AVX512 = "AVX512 = 1 | AVX512_VBMI = 1 | AVX512_VNNI = 1 | AVX512_BF16 = 1 |"
NVIDIA = "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15\nNVIDIA L4, 23034 MiB, 550.54.15\n"
VULKAN = """\
GPU0:
\tdeviceType         = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName         = AMD Radeon RX 7600 (RADV NAVI33)
GPU1:
\tdeviceType         = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName         = llvmpipe (LLVM 15.0.7)
"""
CPU_BUILD: dict[str, Any] = {"backends": ["CPU"], "gpus": []}


def one(findings: Sequence[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def vectors(cpuinfo: str, built: str) -> list[Finding]:
    return processor.vectors(processor.parse_cpuinfo(cpuinfo), processor.parse_system_info(built))


def test_processors_of_several_kinds() -> None:
    zen = processor.parse_cpuinfo(ZEN4)
    assert (zen.model, zen.physical, zen.logical) == ("AMD EPYC 9R14", 2, 3)
    arm = processor.parse_cpuinfo(GRAVITON)
    assert (arm.model, arm.physical, arm.logical, "i8mm" in arm.flags) == ("unknown", 0, 2, True)
    apple = processor.parse_sysctl(APPLE)
    assert (apple.model, apple.physical, apple.flags) == ("Apple M2", 8, {"asimd", "asimddp", "i8mm"})
    intel = processor.parse_sysctl(INTEL_MAC)
    assert intel.flags >= {"avx", "avx2", "fma", "f16c", "bmi2"}
    assert processor.parse_cpuinfo("").logical == 0


def test_a_build_that_fits_the_processor() -> None:
    (found,) = vectors(ZEN4, BUILT + AVX512)
    assert found.verdict == "ok"
    assert "AVX512_BF16" in found.value


def test_a_build_that_leaves_vector_units_unused() -> None:
    (found,) = vectors(ZEN4, BUILT)
    assert (found.verdict, found.fix) == ("warn", processor.REBUILD)
    assert found.value.startswith("AVX512, AVX512_BF16, AVX512_VBMI, AVX512_VNNI of this processor is not used")
    (found,) = vectors(GRAVITON, "CPU : NEON = 1 | FP16_VA = 1 | DOTPROD = 1 |")
    assert found.value.startswith("MATMUL_INT8, SVE of this")


def test_a_build_that_would_die_here() -> None:
    (found,) = vectors(ZEN4.replace("avx512", "x"), BUILT + AVX512)
    assert found.verdict == "problem"
    assert "AVX512_VNNI" in found.value
    assert "illegal instruction" in found.value


def test_amx_is_left_alone() -> None:
    found = vectors(ZEN4.replace("fpu", "fpu amx_int8"), BUILT + AVX512 + " AMX_INT8 = 1 |")
    assert one(found, "AMX").verdict == "note"
    assert "repack=true" in one(found, "AMX").fix
    assert [finding.verdict for finding in vectors(ZEN4.replace("fpu", "fpu amx_int8"), BUILT + AVX512)] == ["ok"]


def test_a_processor_that_tells_nothing() -> None:
    assert [finding.verdict for finding in vectors("processor : 0\n", BUILT)] == ["note"]


@pytest.mark.parametrize(
    ("allowed", "usable", "warned"), [(3, 2, []), (2, 2, ["affinity"]), (3, 1, ["quota"]), (1, 1, ["affinity"])]
)
def test_cores_that_may_not_be_used(allowed: int, usable: int, warned: list[str]) -> None:
    found = processor.cores(processor.parse_cpuinfo(ZEN4), allowed, usable)
    assert [finding.name for finding in found if finding.verdict == "warn"] == warned
    assert all(finding.fix for finding in found if finding.verdict == "warn")
    assert f"a model takes {usable}" in one(found, "threads").value


def test_a_gpu_that_stays_idle() -> None:
    found = graphics.gpus(graphics.Seen(nvidia_smi=NVIDIA), CPU_BUILD)
    assert one(found, "cuda").value.startswith("NVIDIA H100 80GB HBM3, 81559 MiB, driver 550.54.15; NVIDIA L4")
    assert one(found, "llama.cpp").fix == "granville driver install granville-llama --accel cuda"
    found = graphics.gpus(graphics.Seen(vulkaninfo=VULKAN), CPU_BUILD)
    assert one(found, "vulkan").value == "AMD Radeon RX 7600 (RADV NAVI33)"
    assert one(found, "llama.cpp").fix.endswith("--accel vulkan")
    found = graphics.gpus(graphics.Seen(displays="Chipset Model: Apple M2\n  Metal Support: Metal 3\n"), CPU_BUILD)
    assert one(found, "llama.cpp").fix.endswith("--accel metal")


def test_a_gpu_in_use() -> None:
    gpu = {"name": "CUDA0", "description": "NVIDIA H100", "kind": "gpu", "free_bytes": 80e9, "total_bytes": 85e9}
    found = graphics.gpus(graphics.Seen(nvidia_smi=NVIDIA), {"backends": ["CUDA", "CPU"], "gpus": [gpu]})
    assert one(found, "llama.cpp").value == "computes on NVIDIA H100, 80.0 GB free"
    assert "gpu_layers" in one(found, "llama.cpp").fix


def test_a_build_for_a_gpu_that_it_does_not_find() -> None:
    found = graphics.gpus(graphics.Seen(nvidia_smi=NVIDIA), {"backends": ["CUDA", "CPU"], "gpus": []})
    assert (one(found, "llama.cpp").verdict, "CUDA" in one(found, "llama.cpp").value) == ("warn", True)


def test_no_gpu_and_one_that_only_the_kernel_knows() -> None:
    (none,) = graphics.gpus(graphics.Seen(vulkaninfo=VULKAN.split("GPU1")[1]), CPU_BUILD)
    assert (none.verdict, none.value) == ("note", "none; models run on the CPU")
    node = "/dev/dri/renderD128"
    seen = graphics.Seen(render_nodes=[node], unreadable_nodes=[node], vendors=["0x1002"])
    found = graphics.gpus(seen, CPU_BUILD)
    assert "AMD" in one(found, "render nodes").value
    assert "usermod -aG render" in one(found, "access").fix


def test_memory() -> None:
    gb = 10**9
    assert [finding.verdict for finding in room.memory(16 * gb, 12 * gb, [], 12 * gb)] == ["ok", "ok"]
    found = room.memory(16 * gb, 3 * gb, [8 * gb, 64 * gb], 6 * gb)
    assert "8.0 GB" in one(found, "control group").value
    found = room.memory(16 * gb, 2 * gb, [], 12 * gb)
    assert (one(found, "budget").verdict, one(found, "budget").fix.split(",")[0]) == ("warn", "--memory 1907M")


def test_disk(tmp_path: Path) -> None:
    found = room.disk(
        [
            room.Folder("home", tmp_path, 5 << 30, True, 1 << 30),
            room.Folder("models", tmp_path, 5 << 30, False, 1 << 30),
            room.Folder("states", tmp_path, 1 << 30, True, 4 << 30),
            room.Folder("other", tmp_path, None, True, 1),
        ]
    )
    assert [finding.verdict for finding in found] == ["ok", "problem", "warn", "note"]
    assert "GRANVILLE_HOME" in found[1].fix
    assert found[2].fix.startswith("--kv-disk 512M")


def test_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    made = survey.folder("home", tmp_path / "a/b", 1)
    assert made.writable
    assert made.free_bytes
    (tmp_path / "file").touch()
    assert not survey.folder("home", tmp_path / "file/b", 1).writable


def test_models_that_fit_and_that_do_not(tmp_path: Path) -> None:
    path = tiny_gguf.noise(tmp_path / "noise.gguf")
    model = room.ModelOnDisk("noise", path, "inference")
    mib = 1 << 20

    def says(budget: int) -> Finding:
        (found,) = room.models([model], 8, 0, budget)
        return found

    assert says(1024 * mib).value.startswith("fits: ")
    assert "8 x 4096 tokens" in says(1024 * mib).value
    fewer = says(202 * mib)
    assert (fewer.verdict, fewer.fix) == ("warn", "granville serve noise --slots 4")
    never = says(100 * mib)
    assert "does not fit: it takes" in never.value
    broken = room.models([room.ModelOnDisk("x", path, "inference", "cut off")], 8, 0, 1 << 30)
    assert broken[0].verdict == "warn"
    assert room.models([], 8, 0, 1 << 30)[0].fix == "granville download smollm2"


def test_versions_and_builds() -> None:
    found = place.versions("0.1.0", (3, 11, 7), "0.3.36", "0.3.36")
    assert worst(found) == "ok"
    assert worst(place.versions("0.1.0", (3, 10, 1), "0.3.36", "0.3.36")) == "problem"
    other = place.versions("0.1.0", (3, 11, 7), "0.3.1", "0.3.36")
    assert one(other, "llama-cpp-python").fix == "pip install llama-cpp-python==0.3.36"
    assert worst(place.versions("0.1.0", (3, 11, 7), None, "0.3.36")) == "problem"
    (broken,) = place.build(None, "llama.cpp does not work: it ended with -4", ["cpu", "cuda"])
    assert (broken.verdict, "--accel cpu|cuda" in broken.fix) == ("problem", True)
    assert place.build(["CPU"], "", [])[0].fix == ""
    assert worst(place.drivers([], [])) == "problem"
    assert place.drivers(["a"], [("b", "no driver.json")])[1].verdict == "warn"


@pytest.mark.parametrize(
    ("where", "verdict", "words"),
    [
        (place.SocketPlace("/tmp/g.sock", True, True, False, None), "ok", ""),
        (place.SocketPlace("/tmp/g.sock", True, True, False, True), "ok", ""),
        (place.SocketPlace("/x/g.sock", False, False, False, None), "problem", "no folder /x"),
        (place.SocketPlace("/x/g.sock", True, False, False, None), "problem", "cannot be written"),
        (place.SocketPlace("/x/g.sock", True, True, False, False), "problem", "no socket"),
        (place.SocketPlace("/x/g.sock", True, True, True, None), "warn", "anybody may replace"),
        (place.SocketPlace("/" + "x" * 200, True, True, False, None), "problem", "201 bytes"),
    ],
)
def test_where_a_daemon_would_listen(where: place.SocketPlace, verdict: str, words: str) -> None:
    found = place.socket(where)
    assert (found.verdict, words in found.value, bool(found.fix)) == (verdict, True, verdict != "ok")


@pytest.mark.parametrize(
    ("soft", "hard", "verdict"),
    [(1024, 4096, "warn"), (1024, None, "ok"), (None, None, "ok"), (9000, 9000, "ok"), (64, 128, "problem")],
)
def test_open_files(soft: int | None, hard: int | None, verdict: str) -> None:
    found = place.open_files(soft, hard, 4352)
    assert found.verdict == verdict
    assert ("ulimit -Hn 4352" in found.fix) == (verdict != "ok")


def test_the_daemon() -> None:
    assert place.daemon("/s", "0.1.0", None).verdict == "ok"
    assert place.daemon("/s", None, None).fix == "granville serve smollm2"
    assert place.daemon("/s", None, "permission denied").verdict == "warn"


def test_what_is_asked_of_other_programs(tmp_path: Path) -> None:
    assert survey.ask(["no-such-program-anywhere"]) is None
    assert survey.ask(["false"]) is None
    assert survey.ask(["echo", "x"]) == "x\n"
    asked: list[str] = []

    def ask(command: Sequence[str]) -> str | None:
        asked.append(command[0])
        return APPLE if command[0] == "sysctl" else None

    assert survey.read_cpu(ask, tmp_path / "none").model == "Apple M2"
    assert survey.read_cpu(lambda command: None, tmp_path / "none").physical == 0
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri/renderD128").touch()
    (tmp_path / "drm/card0/device").mkdir(parents=True)
    (tmp_path / "drm/card0/device/vendor").write_text("0x10de\n")
    seen = survey.read_gpus(ask, tmp_path / "dri", tmp_path / "drm")
    assert (seen.vendors, seen.render_nodes) == (["0x10de"], [str(tmp_path / "dri/renderD128")])
    assert {"nvidia-smi", "vulkaninfo"} <= set(asked)


def test_a_tool_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "TOOL_S", 0.1)
    assert survey.ask(["sleep", "60"]) is None


def test_available_memory(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:      50 kB\n")
    assert survey.parse_available(tmp_path / "meminfo") == 50 << 10
    assert survey.parse_available(tmp_path / "none") is None


def test_the_worst_of_them() -> None:
    assert worst([]) == "ok"
    assert (
        worst([Finding("a", "b", "c", "warn"), Finding("a", "b", "c", "problem"), Finding("a", "b", "c")]) == "problem"
    )

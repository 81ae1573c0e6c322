"""Builds of llama.cpp: what is asked of pip, what is missing, and that nothing is replaced by what does not work. No
compiler runs here: a stub plays pip and the child that tries the new build."""

from __future__ import annotations

import json
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from granville.errors import StartupError
from granville.hosting.accel import ACCELS, BACKENDS, PACKAGE, PROBE, Builder, pinned_version, probe, users_of
from granville.hosting.toolchain import Host, missing_tools
from granville.hosting.watched import run_watched


def host(*tools: str, system: str = "linux", files: tuple[str, ...] = (), **variables: str) -> Host:
    there = {"cc", "c++", *tools}
    return Host(
        system,
        variables,
        lambda name: f"/bin/{name}" if name in there else None,
        lambda path: str(path) in files,
        4,
        True,
    )


NVCC_FAILS = ("  [2/9] g++ -Werror=x\n", "x.cu(3): error: no\n", "ERROR: late\n")


@dataclass
class Pip:
    """Plays pip and the probe. What they say and how they end can be set."""

    backends: tuple[str, ...] = ("CUDA", "CPU")
    output: tuple[str, ...] = ("  [1/4] g++ -Werror=x\n", "  [4/4] Linking\n")
    build_status: int | None = 0
    probe_status: int | None = 0
    install_status: int = 0
    makes_wheel: bool = True
    library: str | None = None
    commands: list[str] = field(default_factory=list)
    variables: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def __call__(
        self, command: Sequence[str], variables: Mapping[str, str], hear: Callable[[str], object], limit_s: float
    ) -> int | None:
        assert limit_s > 0
        name = next(word for word in ("wheel", "install", PROBE) if word in command)
        self.commands.append(name)
        self.variables[name] = dict(variables)
        if name == "wheel":
            for line in self.output:
                hear(line)
            if self.makes_wheel:
                folder = Path(command[command.index("--wheel-dir") + 1])
                folder.mkdir()
                with zipfile.ZipFile(folder / "llama_cpp_python-1-py3-none-any.whl", "w") as wheel:
                    wheel.writestr("llama_cpp/lib/libllama.so", "")
            return self.build_status
        if name == "install":
            hear("Successfully installed\n")
            return self.install_status
        library = self.library or f"{variables['PYTHONPATH'].split(os.pathsep)[0]}/llama_cpp/lib/libllama.so"
        said = {"backends": self.backends, "gpus": [], "can_offload": False, "system_info": "", "library": library}
        hear("ggml_cuda_init: found 0 devices\n")
        hear(f"{json.dumps(said)}\n" if self.probe_status == 0 else "Illegal instruction\n")
        return self.probe_status


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRANVILLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def builder(pip: Pip, tmp_path: Path, on: Host | None = None) -> Builder:
    return Builder(pip, on or host("nvcc"), tmp_path / "proc", tmp_path / "lib", lambda folder: 10 << 30)


def install(pip: Pip, tmp_path: Path, accel: str = "cuda") -> list[str]:
    shown: list[str] = []
    builder(pip, tmp_path).install(accel, lambda what, share: shown.append(what if share is None else f"{share:.2f}"))
    return shown


def why(pip: Pip, tmp_path: Path, accel: str = "cuda") -> str:
    with pytest.raises(StartupError) as caught:
        install(pip, tmp_path, accel)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_built_tried_installed(tmp_path: Path, home: Path) -> None:
    pip = Pip()
    shown = install(pip, tmp_path)
    assert pip.commands == ["wheel", PROBE, "install"]
    assert shown == [
        f"fetching and configuring {PACKAGE} {pinned_version()}", "0.25", "1.00", "trying the new build", "installing",
    ]  # fmt: skip
    assert pip.variables["wheel"] == {
        "CMAKE_ARGS": "-DGGML_CUDA=on", "FORCE_CMAKE": "1", "CMAKE_BUILD_PARALLEL_LEVEL": "4", "CUDACXX": "/bin/nvcc",
    }  # fmt: skip
    assert "[4/4] Linking" in (home / "logs/build-cuda.log").read_text()


def test_the_commands_are_for_the_pinned_version_and_this_python(tmp_path: Path) -> None:
    plan = builder(Pip(), tmp_path, host(CMAKE_ARGS="-DX=1", CMAKE_BUILD_PARALLEL_LEVEL="1")).plan("cpu", tmp_path)
    assert plan.variables == {"CMAKE_ARGS": "-DX=1 -DGGML_NATIVE=on", "FORCE_CMAKE": "1"}
    assert plan.build[:4] == [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    assert {"--no-deps", "--no-cache-dir", "--no-binary", f"{PACKAGE}=={pinned_version()}"} <= set(plan.build)
    assert {"--force-reinstall", "--no-deps", "--no-index", "x.whl"} <= set(plan.install("x.whl"))
    assert any("-DGGML_NATIVE=on" in line and "pip" in line for line in plan.lines())
    with pytest.raises(StartupError, match="--accel: expected cpu, cuda, metal, vulkan, got 'rocm'"):
        builder(Pip(), tmp_path).plan("rocm", tmp_path)
    assert set(ACCELS) == set(BACKENDS)


@pytest.mark.parametrize(
    ("pip", "ran", "words"),
    [
        (Pip(build_status=1, output=NVCC_FAILS), ["wheel"], ("(status 1): x.cu(3): error: no",)),
        (Pip(build_status=1, output=("quite\n", "\n")), ["wheel"], ("status 1", "quite")),
        (Pip(build_status=None), ["wheel"], ("took too long",)),
        (Pip(makes_wheel=False), ["wheel"], ("failed",)),
        (Pip(probe_status=-4), ["wheel", PROBE], ("does not work: it ended with -4", "Illegal instruction")),
        (Pip(probe_status=None), ["wheel", PROBE], ("no answer within",)),
        (Pip(backends=("CPU",)), ["wheel", PROBE], ("no cuda backend but CPU", "nothing was installed")),
        (Pip(library="/elsewhere/libllama.so"), ["wheel", PROBE], ("/elsewhere", "nothing was installed")),
        (Pip(install_status=2), ["wheel", PROBE, "install"], ("could not install", "status 2")),
    ],
)
def test_what_fails_leaves_the_build_that_is_here(
    tmp_path: Path, pip: Pip, ran: list[str], words: tuple[str, ...]
) -> None:
    message = why(pip, tmp_path)
    assert pip.commands == ran
    assert all(word in message for word in words), message
    if ran in (["wheel"], ["wheel", PROBE, "install"]):
        assert "logs/build-cuda.log" in message


def test_not_while_a_process_uses_it(tmp_path: Path) -> None:
    for pid, library in (
        (4711, tmp_path / "lib/libllama.so"),
        (4712, Path("/usr/lib/libc.so")),
        (os.getpid(), tmp_path / "lib/a"),
    ):
        folder = tmp_path / f"proc/{pid}"
        folder.mkdir(parents=True)
        (folder / "maps").write_text(f"7f00-7f01 r-xp 00000000 00:00 1 {library}\n")
        (folder / "cmdline").write_text("granville\0serve\0")
    (tmp_path / "proc/4713").mkdir()
    assert users_of(tmp_path / "lib", tmp_path / "proc") == [(4711, "granville serve")]
    pip = Pip()
    assert "in use by process 4711 (granville serve); end it first" in why(pip, tmp_path)
    assert pip.commands == []
    assert users_of(tmp_path / "lib", tmp_path / "no-proc") == []


@pytest.mark.parametrize(
    ("accel", "on", "words"),
    [
        ("cpu", host(), ()),
        ("cpu", replace(host(), which=lambda name: None), ("compiler is missing", "build-essential")),
        ("cpu", replace(host(system="darwin"), which=lambda name: None), ("xcode-select --install",)),
        ("cpu", host(CC="icx", CXX="icpx"), ()),
        ("cpu", replace(host(), has_pip=False), ("ensurepip",)),
        ("cuda", host(), ("nvcc is missing", "nvidia-cuda-toolkit")),
        ("cuda", host("nvcc"), ()),
        ("cuda", host(CUDACXX="/x/nvcc"), ()),
        ("cuda", host(CUDA_HOME="/opt/c", files=("/opt/c/bin/nvcc",)), ()),
        ("cuda", host(files=("/usr/local/cuda/bin/nvcc",)), ()),
        ("cuda", host("nvcc", system="darwin"), ("not for macOS",)),
        ("metal", host(), ("metal is for macOS",)),
        ("metal", host(system="darwin"), ()),
        ("vulkan", host(), ("apt install glslc", "apt install libvulkan-dev", "apt install spirv-headers")),
        ("vulkan", host("glslc", files=("/usr/include/vulkan/vulkan.h", "/usr/include/spirv")), ()),
        (
            "vulkan",
            host(VULKAN_SDK="/s", files=("/s/bin/glslc", "/s/include/vulkan/vulkan.h", "/s/include/spirv")),
            (),
        ),
    ],
)
def test_what_a_machine_lacks_is_named_with_its_package(accel: str, on: Host, words: tuple[str, ...]) -> None:
    missing = "; ".join(missing_tools(accel, on))
    assert bool(missing) == bool(words), missing
    assert all(word in missing for word in words), missing


def test_a_build_does_not_begin_without_its_tools(tmp_path: Path) -> None:
    pip = Pip()
    with pytest.raises(StartupError, match=r"^--accel vulkan: the shader compiler glslc is missing: .*spirv-headers"):
        builder(pip, tmp_path).install("vulkan", lambda what, share: None)
    assert pip.commands == []


def test_a_build_does_not_begin_without_room(tmp_path: Path) -> None:
    pip = Pip()
    with pytest.raises(StartupError, match=r"takes up to 8 GiB in .*, and 1\.0 GiB are free there; TMPDIR"):
        replace(builder(pip, tmp_path), free=lambda folder: 1 << 30).install("cuda", lambda what, share: None)
    assert pip.commands == []


def run(code: str, limit_s: float = 60.0, **variables: str) -> tuple[int | None, list[str]]:
    lines: list[str] = []
    return run_watched([sys.executable, "-c", code], variables, lines.append, limit_s), lines


def test_a_watched_command() -> None:
    code = "import os, sys; print(os.environ['X']); print('err', file=sys.stderr); sys.exit(3)"
    status, lines = run(code, X="x")
    assert (status, sorted(lines)) == (3, ["err\n", "x\n"])
    assert run("import os; os.abort()")[0] == -signal.SIGABRT


def test_a_command_that_hangs_is_ended_with_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    assert run(code, limit_s=0.5) == (None, [])


def test_what_goes_wrong_while_it_is_heard_ends_it(tmp_path: Path) -> None:
    def interrupted(line: str) -> None:
        (tmp_path / "pid").write_text(line)
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        run_watched([sys.executable, "-c", code], {}, interrupted, 60)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_build_that_is_here() -> None:
    built = probe(run_watched, {})
    assert "CPU" in built.backends
    assert built.trial is None


def test_a_dry_run_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    from granville.cli.accel import install_accelerated

    for driver, accel in (("acme-granville-tpu", "cuda"), ("granville-llama", None)):
        with pytest.raises(StartupError, match=r"is for builds of llama\.cpp: `granville driver install"):
            install_accelerated(driver, accel, dry_run=True)
    assert install_accelerated("granville-llama", "cpu", dry_run=True) == 0
    out = capsys.readouterr().out
    assert "-DGGML_NATIVE=on" in out
    assert f"{PACKAGE}=={pinned_version()}" in out

"""What Granville is measured against: llama.cpp's own server and batched bench, and the model they all load.

    .venv/bin/python benchmarks/peers.py

They are built from the llama.cpp inside the source distribution of the llama-cpp-python that is installed, and
run on that wheel's own shared libraries (`Peers.environment`), so engine and peer compute with the same code.
Left out of the build are the web page, HTTPS and the tests. All of it lies in build/peers/<version>/; a second
call does nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python"
TARGETS = ("llama-server", "llama-batched-bench", "llama-quantize")
LLAMA_CPP = "vendor/llama.cpp"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # or the build downloads the page
    "-DLLAMA_OPENSSL=OFF",
)
MODEL = "smollm2"


class PeersError(Exception):
    """The peers cannot be built; the message says at which step and what it printed."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Where the built things lie."""

    folder: Path
    file: Path | None = None
    """The model to load; None for the embedded one, requantised."""

    @property
    def server(self) -> Path:
        return self.folder / "cmake" / "bin" / "llama-server"

    @property
    def batched_bench(self) -> Path:
        return self.folder / "cmake" / "bin" / "llama-batched-bench"

    @property
    def quantize(self) -> Path:
        return self.folder / "cmake" / "bin" / "llama-quantize"

    @property
    def model(self) -> Path:
        """What ours and theirs load."""
        return self.file or self.folder / "SmolLM2-135M-Instruct.Q8_0.gguf"

    @property
    def environment(self) -> dict[str, str]:
        """Runs the peers on the very libllama and libggml of the installed wheel, whatever flags it was built
        with: only the programs around them are from this build."""
        wheel = importlib.util.find_spec("llama_cpp")
        if wheel is None or wheel.origin is None:
            raise PeersError(f"{PACKAGE} is not installed")
        return {"LD_LIBRARY_PATH": str(Path(wheel.origin).parent / "lib")}

    @property
    def built(self) -> Path:
        """Written when a build has ended well: a program half linked is not there."""
        return self.folder / "cmake" / "built"

    @property
    def complete(self) -> bool:
        return self.built.is_file() and self.model.is_file()


def peers() -> Peers:
    """The peers of the installed llama-cpp-python, built or not."""
    return Peers(ROOT / "build" / "peers" / version(PACKAGE))


def prepare() -> Peers:
    """Build what is missing. Raises PeersError."""
    found = peers()
    found.folder.mkdir(parents=True, exist_ok=True)
    if not found.built.is_file():
        source = _unpack(_download(found.folder), found.folder / "source")
        _build(source, found.folder / "cmake")
        found.built.touch()
    if not found.model.is_file():
        _requantise(found.quantize, original_model(), found.model)
    return found


def _download(folder: Path) -> Path:
    archive = folder / f"{PACKAGE.replace('-', '_')}-{version(PACKAGE)}.tar.gz"
    if not archive.is_file():
        pinned = f"{PACKAGE}=={version(PACKAGE)}"
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary",
            PACKAGE,
            "--dest",
            str(folder),
        ]
        _run("download the source distribution", [*pip, pinned])
    if not archive.is_file():
        raise PeersError(f"pip did not leave {archive.name} in {folder}")
    return archive


def _unpack(archive: Path, destination: Path) -> Path:
    """The llama.cpp tree out of the archive; unpacked aside, then moved: a half tree is never used."""
    source = destination / LLAMA_CPP
    if source.is_dir():
        return source
    aside = destination.with_name(destination.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    with tarfile.open(archive) as tar:
        top = tar.next()
        if top is None:
            raise PeersError(f"{archive} is empty: remove it and call again")
        prefix = top.name.split("/")[0] + "/"
        wanted = [member for member in tar.getmembers() if member.name.startswith(prefix + LLAMA_CPP)]
        for member in wanted:
            member.name = member.name.removeprefix(prefix)
        tar.extractall(aside, members=wanted, filter="data")
    shutil.rmtree(destination, ignore_errors=True)
    aside.rename(destination)
    return source


def _build(source: Path, build: Path) -> None:
    cmake = _tool("cmake")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
    print(f"building {', '.join(TARGETS)}: some minutes", flush=True)
    _run("configure llama.cpp", [cmake, "-S", str(source), "-B", str(build), *generator, *OPTIONS])
    jobs = str(len(os.sched_getaffinity(0)))
    _run("build llama.cpp", [cmake, "--build", str(build), "--parallel", jobs, "--target", *TARGETS])


def _tool(name: str) -> str:
    """A build tool from the PATH, or from PyPI into this virtual environment."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is None and not beside.is_file():
        _run(f"install {name}", [sys.executable, "-m", "pip", "install", "--quiet", name])
    return found or str(beside)


def original_model() -> Path:
    """The catalogue's file, fetched and verified by `granville download`, which prints its path last."""
    command = [sys.executable, "-m", "granville", "download", MODEL, "--quiet"]
    path = Path(_run(f"fetch {MODEL}", command).strip().splitlines()[-1])
    if not path.is_file():
        raise PeersError(f"`granville download {MODEL}` named {path}, and no file is there")
    return path


def _requantise(quantize: Path, original: Path, destination: Path) -> None:
    """Q4_1 to Q8_0: larger, and a CPU decodes batches of it faster."""
    part = destination.with_name(destination.name + ".part")
    _run("requantise the model", [str(quantize), "--allow-requantize", str(original), str(part), "Q8_0"])
    part.replace(destination)


def _run(step: str, command: list[str]) -> str:
    """Run a command at low priority and return what it printed; a failure's error has its last lines."""
    lowered = ["nice", "-n", "10", *command] if shutil.which("nice") else command
    done = subprocess.run(lowered, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-20:])
        raise PeersError(f"could not {step}: `{' '.join(command)}` ended with {done.returncode}\n{last}")
    return done.stdout


def main() -> int:
    try:
        ready = prepare()
    except PeersError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    for path in (ready.server, ready.batched_bench, ready.model):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What this build of llama.cpp computes on: its backends, and the GPUs that they see. In a process of its own
(`python -m granville_llama.devices [MODEL]`) it says so as JSON, and tries the model if one is given: whether a build
works is best found out where a crash costs nothing.

The functions are ggml's (ggml-backend.h); llama-cpp-python binds llama.h alone, and the same library has them.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from granville.hosting.interface import (
    DriverError,
    Event,
    Failed,
    Finished,
    Generate,
    Message,
    ModelSpec,
    Sampling,
    Token,
)
from granville_llama import LlamaDriver
from granville_llama.binding import c
from granville_llama.threads import usable_cores

GPU_TYPES = {1: "gpu", 2: "integrated gpu"}
"""`enum ggml_backend_dev_type`, of those that layers can be put on."""
BUILDS = {"darwin": ("metal",)}
OTHER_BUILDS = ("cuda", "vulkan")
TRIAL_TOKENS = 8
TRIAL_CONTEXT_TOKENS = 256
MAX_TRIAL_STEPS = 1000

_library = c._lib


def _ggml(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_library, name)
    function.restype, function.argtypes = result, arguments
    return function


_reg_count = _ggml("ggml_backend_reg_count", ctypes.c_size_t)
_reg_get = _ggml("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
_reg_name = _ggml("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
_dev_count = _ggml("ggml_backend_dev_count", ctypes.c_size_t)
_dev_get = _ggml("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
_dev_type = _ggml("ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
_dev_name = _ggml("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
_dev_description = _ggml("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
_dev_memory = _ggml(
    "ggml_backend_dev_memory", None, ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as llama.cpp sees it."""

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int


def backends() -> list[str]:
    """Names of the backends that are compiled in, such as CPU, CUDA, Vulkan."""
    return [_text(_reg_name(_reg_get(index))) for index in range(_reg_count())]


def gpus() -> list[Device]:
    """In llama.cpp's order; with none of them layers stay on the CPU."""
    found = []
    for device in map(_dev_get, range(_dev_count())):
        kind = GPU_TYPES.get(_dev_type(device))
        if kind is not None:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            _dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            names = _text(_dev_name(device)), _text(_dev_description(device))
            found.append(Device(*names, kind, free.value, total.value))
    return found


def can_offload() -> bool:
    return bool(c.llama_supports_gpu_offload())


def choose_layers(asked: int | None) -> int:
    """The layers for the GPU, -1 for all. Raises DriverError when some are asked for and there is none to have them:
    llama.cpp would keep them on the CPU without a word."""
    if can_offload():
        return -1 if asked is None else asked
    if asked:
        raise DriverError(no_gpu(asked, backends(), sys.platform))
    return 0


def no_gpu(asked: int, backends: Sequence[str], platform: str) -> str:
    """Why these layers cannot go to a GPU, and what to do."""
    others = [name for name in backends if name not in ("CPU", "BLAS", "RPC")]
    if others:
        what = f"({', '.join(others)}) finds none; `granville doctor` shows what the system has"
    else:
        accel = "|".join(BUILDS.get(platform, OTHER_BUILDS))
        what = f"has no GPU backend; `granville driver install granville-llama --accel {accel}` builds one"
    return f"gpu_layers: {asked} asks for a GPU, and this build of llama.cpp {what}; with 0 the model runs on the CPU"


def describe() -> dict[str, Any]:
    """The build and what it finds, for `granville doctor`."""
    return {
        "backends": backends(),
        "gpus": [asdict(gpu) for gpu in gpus()],
        "can_offload": can_offload(),
        "system_info": _text(c.llama_print_system_info()),
        "library": c._lib._name,
        "usable_cores": usable_cores(),
    }


def try_model(path: Path) -> dict[str, Any]:
    """Load it with the build's own defaults and let it say a few words. Raises DriverError."""
    model = LlamaDriver().load(ModelSpec(path, slots=1, context_size=TRIAL_CONTEXT_TOKENS))
    try:
        turn = Message("user", "Say hello.")
        model.submit(Generate("trial", (turn,), max_tokens=TRIAL_TOKENS, sampling=Sampling(temperature=0)))
        tokens = 0
        for _ in range(MAX_TRIAL_STEPS):
            for event in model.step(None):
                tokens += _count(event)
                if isinstance(event, Finished):
                    return {"tokens": tokens}
    finally:
        model.close()
    raise DriverError(f"{path}: no answer after {MAX_TRIAL_STEPS} steps")


def _count(event: Event) -> int:
    if isinstance(event, Failed):
        raise DriverError(event.message)
    return len(event.token_ids) if isinstance(event, Token) else 0


def _text(data: bytes | None) -> str:
    return (data or b"").decode(errors="replace").strip()


def main(arguments: Sequence[str]) -> int:
    try:
        said = describe()
        if arguments:
            said["trial"] = try_model(Path(arguments[0]))
    except DriverError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

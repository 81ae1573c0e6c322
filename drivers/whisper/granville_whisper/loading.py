"""From a ModelSpec to a model that runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from granville_speech.options import check_spec, read_options, usable_cores
from granville_speech.turns import TurnModel

from granville.hosting.interface import DriverError, Model, ModelInfo, ModelSpec, Transcribe
from granville_whisper.options import Options

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

NAME = "granville-whisper"
FILES = ("model.bin", "config.json", "tokenizer.json")
CONTEXT_TOKENS = 448
"""Of every Whisper model: text of one window."""
WORKING_BYTES = 200 << 20
"""Beside the weights: what is calculated with, for a small model, and the libraries themselves."""


def load(spec: ModelSpec) -> Model:
    """Raises DriverError: what is missing, or the option or the file that stands in the way."""
    options = read_options(NAME, Options, spec.options)
    check_spec(NAME, spec, "stt")
    folder = _folder(spec.path)
    try:
        import ctranslate2
        from faster_whisper import WhisperModel

        from granville_whisper.transcribing import Transcriber
    except ImportError as error:
        raise DriverError(f"faster-whisper is missing ({error.name}): pip install 'granville[whisper]'") from None
    if not spec.verbose:
        logging.getLogger("faster_whisper").setLevel(logging.ERROR)
    device = options.device
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    compute = options.compute_type or ("int8" if device == "cpu" else "float16")
    threads = spec.threads or usable_cores()
    try:
        backend: WhisperModel | None = WhisperModel(
            str(folder), device=device, compute_type=compute, cpu_threads=threads, local_files_only=True
        )
    except Exception as error:  # noqa: BLE001 - whatever the backends raise while they read a file
        raise DriverError(f"{folder} cannot be loaded as {compute} on {device}: {error}") from None
    assert backend is not None
    transcriber = Transcriber(backend, options)
    languages = backend.supported_languages
    info = ModelInfo(
        architecture="whisper",
        context_size=CONTEXT_TOKENS,
        memory_bytes=(folder / "model.bin").stat().st_size + WORKING_BYTES,
        description=f"Whisper, {'English only' if len(languages) == 1 else f'{len(languages)} languages'}, {compute}",
    )
    return TurnModel(
        Transcribe,
        transcriber.begin,
        serves="stt",
        slots=spec.slots,
        info=info,
        stats=lambda: {"threads": threads, "compute_type": compute, "audio_s": round(transcriber.heard_s, 1)},
        close=backend.model.unload_model,
        interruptible=False,  # a pass over a window is one call, which no flag ends
    )


def _folder(path: Path) -> Path:
    """The folder of the model, which is named itself or by its weights."""
    folder = path.parent if path.name == FILES[0] and not path.is_dir() else path
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise DriverError(
            f"{folder} {found}; a Whisper model is a folder in CTranslate2's format, with {', '.join(FILES)}"
        )
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DriverError(
            f"{folder} has no {missing[0]}; a Whisper model in CTranslate2's format has {', '.join(FILES)}"
        )
    return folder

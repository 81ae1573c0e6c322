"""What kind of model lies at a path, told by its files' names, and which driver runs it.

| kind | is |
| --- | --- |
| `gguf` | a file `NAME.gguf` |
| `whisper` | a folder with `model.bin` and `config.json`: Whisper in CTranslate2's format |
| `piper` | a file `VOICE.onnx` with `VOICE.onnx.json` beside it, or a folder of such |
| `espeak` | no file at all: the name |
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from granville.hosting.fileless import is_fileless
from granville.wire.messages import ModelType

Kind = Literal["gguf", "whisper", "piper", "espeak"]
DRIVERS: dict[Kind, str] = {
    "whisper": "granville-whisper", "piper": "granville-piper", "espeak": "granville-espeak",
}  # fmt: skip
"""Of models that are not for the daemon's `--driver`, unless another one is named."""
TYPES: dict[Kind, ModelType] = {"whisper": "stt", "piper": "tts", "espeak": "tts"}


def kind_of(path: Path) -> Kind | None:
    """None for what is none of them. Nothing is read but names."""
    if is_fileless(path):
        return "espeak"
    if path.is_dir():
        if (path / "model.bin").is_file() and (path / "config.json").is_file():
            return "whisper"
        return "piper" if any(map(_is_voice, path.glob("*.onnx"))) else None
    if path.suffix == ".gguf":
        return "gguf"
    return "piper" if _is_voice(path) else None


def driver_for(type: ModelType, path: Path | None) -> str | None:
    """The driver of a model that hears or speaks; None where its place does not tell. One without a place is still to
    be fetched, and taken for what drivers of ours read."""
    if type not in ("stt", "tts"):
        return None
    if path is None:
        return DRIVERS["whisper" if type == "stt" else "piper"]
    kind = kind_of(path)
    return DRIVERS.get(kind) if kind is not None and TYPES.get(kind) == type else None


def is_folder_model(path: Path) -> bool:
    """Whether a folder is one model."""
    return path.is_dir() and kind_of(path) is not None


def _is_voice(path: Path) -> bool:
    return path.suffix == ".onnx" and path.is_file() and path.with_name(f"{path.name}.json").is_file()

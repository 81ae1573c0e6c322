"""The voices of a model: what there is in its folder, and which of them are loaded."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
from granville_speech.turns import JobError
from piper.config import PhonemeType, PiperConfig
from piper.voice import PiperVoice

from granville.hosting.interface import DriverError

SPOKEN = (PhonemeType.ESPEAK, PhonemeType.TEXT)
"""Others need packages or models beside the voice."""
MAX_CONFIG_BYTES = 4 << 20
SHOWN_VOICES = 20
"""In the sentence about one that there is not."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice that is loaded, and whose of its speakers is meant."""

    voice: PiperVoice
    number: int | None


def find(path: Path) -> dict[str, Path]:
    """Every voice by its name, the file's without `.onnx`. Raises DriverError when there is none."""
    if path.is_file() and path.suffix == ".onnx":
        found = [path]
    elif path.is_dir():
        found = sorted(one for one in path.glob("*.onnx") if one.is_file())
        if not found:
            raise DriverError(f"{path} has no voice in it: a voice is NAME.onnx with NAME.onnx.json")
    else:
        what = "is no voice" if path.exists() else "does not exist"
        raise DriverError(f"{path} {what}; a voice is NAME.onnx with NAME.onnx.json, and a folder may have several")
    return {one.stem: one for one in found}


class Voices:
    """Loads voices when they are first spoken with; of more than `most` the one that was not used for longest goes."""

    def __init__(self, files: Mapping[str, Path], *, first: str | None, threads: int, most: int) -> None:
        """Loads the voice of requests that name none. Raises DriverError when it cannot be."""
        self._files = files
        self._threads = threads
        self._most = most
        self._loaded: OrderedDict[str, PiperVoice] = OrderedDict()
        self._first = next(iter(files)) if first is None else first
        try:
            self.default = self.speaker(None)
        except JobError as error:
            raise DriverError(f"option {error.message}") from None

    def speaker(self, asked: str | None) -> Speaker:
        """By NAME, NAME#3 or NAME#speaker. Raises JobError for one that there is not, DriverError for one that cannot
        be loaded."""
        name, _, who = (asked or self._first).partition("#")
        if name not in self._files:
            raise JobError("bad_request", f"voice: there is no {name!r:.60}; there are {_listed(self._files)}")
        voice = self._loaded.pop(name, None) or load_voice(self._files[name], self._threads)
        self._loaded[name] = voice
        if len(self._loaded) > self._most:
            self._loaded.popitem(last=False)
        return Speaker(voice, _number(name, voice.config, who) if who else None)

    @property
    def loaded(self) -> int:
        return len(self._loaded)

    def close(self) -> None:
        self._loaded.clear()


def load_voice(path: Path, threads: int) -> PiperVoice:
    """Raises DriverError: no settings beside it, or one of the two files is damaged."""
    settings = path.with_name(f"{path.name}.json")
    try:
        with settings.open("rb") as file:
            config = PiperConfig.from_dict(json.loads(file.read(MAX_CONFIG_BYTES)))
    except OSError as error:
        raise DriverError(f"{settings} cannot be read: {error.strerror}; a voice has its settings beside it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DriverError(f"{settings} has no settings of a Piper voice: {type(error).__name__}: {error}") from None
    if config.phoneme_type not in SPOKEN:
        spoken = " and ".join(one.value for one in SPOKEN)
        raise DriverError(
            f"{path} speaks by {config.phoneme_type.value}; granville-piper has voices that speak by {spoken}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # What it keeps ready for the next sentence was twice what the longest one took, and made none faster.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Threads that wait for work with their eyes open take it from other models.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - its exceptions have no base of their own
        raise DriverError(f"{path} cannot be loaded: {error}") from None
    return PiperVoice(session=session, config=config, download_dir=path.parent)


def _number(name: str, config: PiperConfig, who: str) -> int:
    number = config.speaker_id_map.get(who)
    if number is None and who.isdecimal() and int(who) < config.num_speakers:
        number = int(who)
    if number is None:
        names = f", {_listed(config.speaker_id_map)}" if config.speaker_id_map else ""
        raise JobError(
            "bad_request", f"voice: {name} has no speaker {who!r:.40}; it has 0 to {config.num_speakers - 1}{names}"
        )
    return number


def _listed(names: Mapping[str, object]) -> str:
    shown = ", ".join(list(names)[:SHOWN_VOICES])
    return shown if len(names) <= SHOWN_VOICES else f"{shown} and {len(names) - SHOWN_VOICES} more"

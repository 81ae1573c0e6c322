"""espeak-ng's library by ctypes, its only user. Names and numbers are those of its header, speak_lib.h.

Its state is one for the whole process: what is set and what is said lie under one lock, and it stays initialised.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path

import espeakng_loader

from granville.hosting.interface import DriverError

AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
POS_CHARACTER = 1
EE_OK = 0
RATE, PITCH = 1, 3
"""Parameters: words a minute; 0 to 99."""
MIN_RATE = 80
"""Slower it does not get; faster than its own 450 it compresses its sound in time."""
BYTES_A_SAMPLE = 2

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class _Voice(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


class Espeak:
    """The library of this process: `espeak()`."""

    def __init__(self) -> None:
        """Raises DriverError when there is none for this machine, or its data is not there."""
        path, data = (
            espeakng_loader.get_library_path(),
            Path(espeakng_loader.get_library_path()).parent / "espeak-ng-data",
        )
        try:
            self._library = ctypes.CDLL(path)
        except OSError as error:
            raise DriverError(f"espeak-ng cannot be loaded: {error}") from None
        library = self._library
        library.espeak_Initialize.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        library.espeak_SetVoiceByName.argtypes = (ctypes.c_char_p,)
        library.espeak_SetSynthCallback.argtypes = (_Callback,)
        library.espeak_SetSynthCallback.restype = None
        library.espeak_Synth.argtypes = (
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._sound: list[bytes] = []
        self.sample_rate: int = library.espeak_Initialize(
            AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), INITIALIZE_DONT_EXIT
        )
        """Hz."""
        if self.sample_rate <= 0:
            raise DriverError(f"espeak-ng cannot begin with its data in {data}")
        self._callback = _Callback(self._take)  # the library keeps no reference
        library.espeak_SetSynthCallback(self._callback)
        self.variants = frozenset(one.name for one in (data / "voices" / "!v").glob("*"))
        """What may follow a voice's name after a `+`."""
        self.voices = self._listed()
        """The library's name of a voice by every name for it, in lower case."""

    def say(self, text: str, voice: str, *, words_per_minute: int, pitch: int) -> bytes:
        """Samples of one channel, 16-bit; `voice` as the library has it. Raises DriverError."""
        data = text.encode()
        with self._lock:
            self._sound = []
            self._must("set its voice", self._library.espeak_SetVoiceByName(voice.encode()))
            self._must("set its rate", self._library.espeak_SetParameter(RATE, words_per_minute, 0))
            self._must("set its pitch", self._library.espeak_SetParameter(PITCH, pitch, 0))
            self._must(
                "speak", self._library.espeak_Synth(data, len(data) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
            )
            sound, self._sound = b"".join(self._sound), []
        return sound

    def _take(self, samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            self._sound.append(ctypes.string_at(samples, count * BYTES_A_SAMPLE))
        return 0

    def _must(self, what: str, code: int) -> None:
        if code != EE_OK:
            raise DriverError(f"espeak-ng could not {what}: error {code}")

    def _listed(self) -> dict[str, str]:
        """Where several voices speak a language, the one that ranks it first has its code."""
        found: dict[str, tuple[int, str]] = {}
        voices = self._library.espeak_ListVoices(None)
        number = 0
        while voices[number]:
            voice = voices[number].contents
            identifier = voice.identifier.decode()
            names = [(0, voice.name.decode()), (0, identifier), *_languages(voice.languages)]
            for rank, name in names:
                name = name.lower()
                if name not in found or rank < found[name][0]:
                    found[name] = (rank, identifier)
            number += 1
        return {name: identifier for name, (_, identifier) in found.items()}


def _languages(at: int) -> list[tuple[int, str]]:
    """(rank, code) of each: a byte of rank and a text, one after the other, until a rank of 0."""
    found = []
    while rank := ctypes.string_at(at, 1)[0]:
        code = ctypes.string_at(at + 1)
        found.append((rank, code.decode()))
        at += len(code) + 2
    return found


@cache
def espeak() -> Espeak:
    """Of this process, initialised with the first call. Raises DriverError."""
    return Espeak()

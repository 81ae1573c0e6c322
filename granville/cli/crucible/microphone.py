"""Sound from a microphone, by the optional package sounddevice: mono, 16 kHz, 16 bits, as WAV."""

from __future__ import annotations

import io
import select
import sys
import threading
import time
import wave
from typing import Any

from granville.errors import StartupError

RATE_HZ = 16_000
SAMPLE_BYTES = 2
MAX_S = 300.0
"""Of one recording."""
POLL_S = 0.1
INSTALL = "install it with `pip install 'granville[microphone]'`"


def record(seconds: float) -> bytes:
    """Record for so long, or until Enter; 0 seconds until Enter alone. Raises StartupError when there is no package, no
    microphone, or nothing was recorded."""
    if not 0 <= seconds <= MAX_S:
        raise StartupError(f"--microphone: expected 0 to {MAX_S:g} seconds, got {seconds:g}")
    enter_ends = sys.stdin.isatty()
    if not seconds and not enter_ends:
        raise StartupError("--microphone 0: Enter ends it, and stdin is no terminal; give a number of seconds")
    sounddevice = _sounddevice()
    parts: list[bytes] = []
    full = threading.Event()
    most = int(MAX_S * RATE_HZ)
    left = most

    def take(data: Any, frames: int, at: Any, status: Any) -> None:
        nonlocal left
        parts.append(bytes(data))
        left -= frames
        if left <= 0:
            full.set()

    limit_s = seconds or MAX_S
    until = " and ".join(filter(None, (f"for {limit_s:g} s", "until Enter" if enter_ends else "")))
    try:
        with sounddevice.RawInputStream(samplerate=RATE_HZ, channels=1, dtype="int16", callback=take):
            print(f"[listening {until}]", file=sys.stderr)
            end_at = time.monotonic() + limit_s
            while time.monotonic() < end_at and not full.is_set() and not (enter_ends and _enter()):
                time.sleep(0 if enter_ends else POLL_S)
    except sounddevice.PortAudioError as error:
        raise StartupError(f"--microphone: no microphone can be opened: {error}") from None
    if not any(parts):
        raise StartupError("--microphone: nothing came from the microphone")
    return _wav(b"".join(parts)[: most * SAMPLE_BYTES])


def _enter() -> bool:
    """Wait a moment for Enter."""
    if not select.select([sys.stdin], [], [], POLL_S)[0]:
        return False
    sys.stdin.readline()
    return True


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError:
        raise StartupError(f"--microphone: the package sounddevice is not installed; {INSTALL}") from None
    except OSError as error:  # it is there, and the library below it is not
        raise StartupError(f"--microphone: {error}; install PortAudio (Debian: libportaudio2)") from None
    return sounddevice


def _wav(samples: bytes) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(SAMPLE_BYTES)
        file.setframerate(RATE_HZ)
        file.writeframes(samples)
    return buffer.getvalue()

"""The speech drivers by themselves: how much faster than speech they are, how soon something is heard, what they hold.

    python benchmarks/speech.py WHISPER_FOLDER PIPER_VOICE [--minutes 60] [--threads 2]

Prints a table for docs/speech.md. The long recording is spoken by Piper, ten sentences again and again, and is read
from a file.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from pathlib import Path

from granville_espeak import EspeakDriver
from granville_piper import PiperDriver
from granville_whisper import WhisperDriver

from granville.hosting.interface import Audio, Driver, Event, Failed, Model, ModelSpec, Output, Speak, Task, Transcribe

SENTENCES = (
    "The meeting will begin at half past nine tomorrow morning.",
    "Please close the window before you leave the house.",
    "The weather in London is often cold and rainy.",
    "She bought three apples and a loaf of bread at the market.",
    "My brother works as a teacher in a small school.",
    "We should take the train to the city on Friday.",
    "The children are playing in the garden behind the house.",
    "He forgot to send the letter to his mother.",
    "Can you tell me how to get to the station?",
    "The doctor said that I should drink more water every day.",
)
ROUNDS = 5


def events_of(model: Model, task: Task) -> Iterator[Event]:
    model.submit(task)
    while True:
        for event in model.step(None):
            yield event
            if isinstance(event, Failed):
                raise SystemExit(event.message)
            if isinstance(event, Output):
                return


def speak(model: Model, text: str) -> tuple[bytes, int, float, float]:
    """PCM, its rate, and when the first sound and the last one came, in seconds."""
    began, first_s, pcm, rate = time.perf_counter(), 0.0, b"", 0
    for event in events_of(model, Speak("1", text)):
        if isinstance(event, Audio):
            first_s = first_s or time.perf_counter() - began
            pcm, rate = pcm + event.pcm, event.sample_rate
    return pcm, rate, first_s, time.perf_counter() - began


def write(path: Path, pcm: bytes, rate: int, times: int) -> float:
    """How many seconds it is long."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        for _ in range(times):
            file.writeframes(pcm)
    return times * len(pcm) / 2 / rate


def row(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


def resident_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20)


def load(driver: Driver, spec: ModelSpec, what: str) -> Model:
    before, began = resident_mib(), time.perf_counter()
    model = driver.load(spec)
    row(f"{what}: loaded in", f"{time.perf_counter() - began:.2f} s, {resident_mib() - before:.0f} MiB")
    return model


def voice(model: Model, what: str) -> tuple[bytes, int]:
    text = " ".join(SENTENCES)
    rounds = [speak(model, text) for _ in range(ROUNDS)]
    pcm, rate, _, _ = rounds[0]
    speed = statistics.median(len(pcm) / 2 / rate / total_s for pcm, rate, _, total_s in rounds)
    row(f"{what}: times as fast as it speaks", f"{speed:.0f}")
    row(f"{what}: to the first sound", f"{statistics.median(first for _, _, first, _ in rounds) * 1000:.0f} ms")
    return pcm, rate


def ears(folder: Path, threads: int, pcm: bytes, rate: int, minutes: float) -> None:
    with tempfile.TemporaryDirectory() as work:
        short, long = Path(work, "short.wav"), Path(work, "long.wav")
        for beam_size in (1, 5):
            spec = ModelSpec(folder, type="stt", threads=threads, options={"beam_size": beam_size})
            model = load(WhisperDriver(), spec, f"Whisper, beam {beam_size}")
            half_minute_s = write(short, pcm, rate, 1)
            sentence_s = write(Path(work, "one.wav"), pcm[: 3 * 2 * rate], rate, 1)
            for path, length_s in ((Path(work, "one.wav"), sentence_s), (short, half_minute_s)):
                took = []
                for _ in range(ROUNDS):
                    began = time.perf_counter()
                    list(events_of(model, Transcribe("1", path=path)))
                    took.append(time.perf_counter() - began)
                median = statistics.median(took)
                row(
                    f"Whisper, beam {beam_size}: {length_s:.0f} s of speech",
                    f"{median:.2f} s, {length_s / median:.0f} ×",
                )
            if beam_size == 5 and minutes:
                long_s = write(long, pcm, rate, round(minutes * 60 / half_minute_s))
                before, began, steps = resident_mib(), time.perf_counter(), []
                model.submit(Transcribe("1", path=long))
                ended = False
                while not ended:
                    step = time.perf_counter()
                    ended = any(isinstance(event, Output | Failed) for event in model.step(None))
                    steps.append(time.perf_counter() - step)
                took_s = time.perf_counter() - began
                row(f"Whisper: {long_s / 60:.0f} minutes", f"{took_s:.0f} s, {long_s / took_s:.0f} ×")
                row("Whisper: most memory before and at the end of it", f"{before:.0f} and {resident_mib():.0f} MiB")
                row("Whisper: its longest step", f"{max(steps):.1f} s")
            model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whisper", type=Path)
    parser.add_argument("piper", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    print("| | |\n| --- | --- |")
    piper = load(PiperDriver(), ModelSpec(given.piper, type="tts", threads=given.threads), "Piper")
    pcm, rate = voice(piper, "Piper")
    piper.close()
    espeak = load(EspeakDriver(), ModelSpec(Path("espeak"), type="tts"), "espeak-ng")
    voice(espeak, "espeak-ng")
    espeak.close()
    ears(given.whisper, given.threads, pcm, rate, given.minutes)


if __name__ == "__main__":
    main()

"""granville-whisper on the real model: what is said in all kinds of recordings, and what is made of broken ones."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from granville_piper import PiperDriver
from granville_speech.turns import JobError
from granville_whisper import WhisperDriver
from granville_whisper.sound import RATE, Sound
from granville_whisper.windows import WINDOW_S, windows

from benchmarks.speech import SENTENCES
from granville.hosting.interface import (
    DriverError,
    Embed,
    Event,
    Failed,
    Model,
    ModelSpec,
    Output,
    Token,
    Transcribe,
)
from tests.drivers.sounds import (
    FORMATS,
    Pcm,
    done,
    encoded,
    error_rate,
    heard,
    joined,
    said,
    wav,
    word_errors,
    words,
)

MAX_ERROR_RATE = 0.10
"""Of words; what is seen is under 0.03. A telephone's 8 kHz loses consonants."""
MAX_TELEPHONE_ERROR_RATE = 0.15
ROOM_S = 0.05
"""A time may be so far behind the end of the recording: Whisper counts in 20 ms."""


def load(path: Path, **options: object) -> Model:
    return WhisperDriver().load(ModelSpec(path, type="stt", slots=4, threads=2, options={"beam_size": 1, **options}))


@pytest.fixture(scope="module")
def model(whisper_tiny: Path) -> Iterator[Model]:
    loaded = load(whisper_tiny)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def spoken(piper_joe: Path) -> list[tuple[Pcm, int]]:
    """Each of SENTENCES, the same in every run."""
    voice = PiperDriver().load(ModelSpec(piper_joe, type="tts", options={"noise": 0, "rhythm_noise": 0}))
    try:
        return [said(voice, sentence) for sentence in SENTENCES]
    finally:
        voice.close()


@pytest.fixture(scope="module")
def speech(spoken: list[tuple[Pcm, int]]) -> tuple[Pcm, int]:
    """All of SENTENCES, one after the other: about 30 s."""
    return joined(spoken, pause_s=0.4)


def segments(end: Output) -> list[dict[str, Any]]:
    assert isinstance(end.value, dict)
    found: list[dict[str, Any]] = end.value["segments"]
    return found


def assert_in_order(times: list[tuple[float, float]], duration_s: float) -> None:
    last = 0.0
    for start, end in times:
        assert last <= start <= end <= duration_s + ROOM_S, times
        last = end


def failure(model: Model, audio: bytes | None, **how: Any) -> Failed:
    (end,) = done(model, Transcribe("broken", audio, **how))
    assert isinstance(end, Failed)
    assert end.message[-1] not in ".:", end.message
    return end


def test_ten_sentences_are_understood_word_by_word(model: Model, spoken: list[tuple[Pcm, int]]) -> None:
    errors = 0
    for sentence, (pcm, rate) in zip(SENTENCES, spoken, strict=True):
        text, end = heard(model, wav(pcm, rate))
        errors += word_errors(sentence, text)
        assert isinstance(end.value, dict)
        assert end.value["duration_s"] == pytest.approx(len(pcm) / rate, abs=0.01)
        assert end.value["language"] == "en"
        assert end.usage.completion_tokens > 0
    assert errors / len(words(" ".join(SENTENCES))) <= MAX_ERROR_RATE


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_understood(model: Model, spoken: list[tuple[Pcm, int]], name: str) -> None:
    pcm, rate = joined(spoken[:4], pause_s=0.3)
    text, end = heard(model, encoded(pcm, rate, FORMATS[name]))
    most = MAX_TELEPHONE_ERROR_RATE if FORMATS[name].rate == 8_000 else MAX_ERROR_RATE
    assert error_rate(" ".join(SENTENCES[:4]), text) <= most
    assert isinstance(end.value, dict)
    assert end.value["duration_s"] == pytest.approx(len(pcm) / rate, abs=0.1)


def test_words_have_their_times(model: Model, speech: tuple[Pcm, int]) -> None:
    text, end = heard(model, wav(*speech), words=True)
    assert isinstance(end.value, dict)
    duration_s = end.value["duration_s"]
    assert_in_order([(one["start"], one["end"]) for one in segments(end)], duration_s)
    told = [word for one in segments(end) for word in one["words"]]
    assert_in_order([(word["start"], word["end"]) for word in told], duration_s)
    assert [word["word"] for word in told] == text.split()
    assert all(0 <= word["probability"] <= 1 for word in told)
    _, without = heard(model, wav(*speech))
    assert not any("words" in one for one in segments(without))


def test_a_long_recording_is_read_in_windows_that_lose_no_word(
    model: Model, speech: tuple[Pcm, int], tmp_path: Path
) -> None:
    """Two and a half minutes with a long silence in the middle, out of a file."""
    pcm, rate = speech
    silence_s = 45.0
    path = tmp_path / "long.wav"
    path.write_bytes(wav(np.concatenate([pcm, pcm, np.zeros(round(silence_s * rate), np.int16), pcm]), rate))
    events = done(model, Transcribe("long", path=path))
    end = events[-1]
    assert isinstance(end, Output)
    assert isinstance(end.value, dict)
    text = "".join(event.text for event in events if isinstance(event, Token))
    assert error_rate(" ".join(SENTENCES * 3), text) <= MAX_ERROR_RATE
    assert text == " ".join(one["text"] for one in segments(end))
    duration_s = 3 * len(pcm) / rate + silence_s
    assert end.value["duration_s"] == pytest.approx(duration_s, abs=0.01)
    times = [(one["start"], one["end"]) for one in segments(end)]
    assert_in_order(times, duration_s)
    quiet_from, quiet_to = 2 * len(pcm) / rate, 2 * len(pcm) / rate + silence_s
    assert not [time for time in times if time[0] > quiet_from + 1 and time[1] < quiet_to - 1]
    first_after = next(start for start, _ in times if start > quiet_from + 1)
    assert first_after == pytest.approx(quiet_to, abs=1.0)


def test_a_long_recording_is_not_held_in_memory(tmp_path: Path) -> None:
    """Ten minutes: what is kept at once is a window and what the decoder has ready, whatever the file holds."""
    pcm = np.zeros(600 * 8_000, np.int16)
    pcm[::50] = 3
    path = tmp_path / "quiet.flac"
    path.write_bytes(encoded(pcm, 8_000, FORMATS["FLAC"]))
    sound = Sound(path)
    tracemalloc.start()
    try:
        total = sum(len(window.samples) for window in windows(sound, threshold=0.5, vad=True))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        sound.close()
    assert total == pytest.approx(600 * RATE, abs=RATE)
    window_bytes = WINDOW_S * RATE * 4
    assert peak_bytes < 16 * window_bytes < total * 4


def test_windows_are_cut_between_words(speech: tuple[Pcm, int]) -> None:
    """Every window but the last ends where nothing is heard, and together they are the whole."""
    pcm, rate = speech
    whole = np.concatenate([pcm, pcm])
    sound = Sound(wav(whole, rate))
    found = list(windows(sound, threshold=0.5, vad=True))
    sound.close()
    assert len(found) >= 2
    assert [one.start for one in found[1:]] == list(np.cumsum([len(one.samples) for one in found])[:-1])
    for window in found[:-1]:
        assert len(window.samples) <= WINDOW_S * RATE
        assert np.abs(window.samples[-RATE // 20 :]).max() < 0.02
    everything = list(windows(Sound(wav(whole, rate)), threshold=0.5, vad=False))
    assert [[(span.start, span.end) for span in one.spans] for one in everything] == [
        [(0, len(one.samples))] for one in everything
    ]


def noises() -> dict[str, Any]:
    random_numbers = np.random.default_rng(0)
    time = np.arange(10 * RATE) / RATE
    return {
        "silence": np.zeros(10 * RATE),
        "a minute of silence": np.zeros(60 * RATE),
        "hiss": 0.01 * random_numbers.normal(size=10 * RATE).clip(-4, 4),
        "loud noise": 0.2 * random_numbers.normal(size=10 * RATE).clip(-4, 4),
        "a tone": 0.5 * np.sin(2 * np.pi * 440 * time),
        "hum": 0.1 * np.sin(2 * np.pi * 50 * time),
        "clicks": 0.9 * (random_numbers.random(10 * RATE) < 0.0005),
        "a constant": np.full(10 * RATE, 0.5),
        "a few samples": np.zeros(7),
        "no samples": np.zeros(0),
    }


@pytest.mark.parametrize("name", noises())
def test_nothing_is_made_up_where_nothing_is_said(model: Model, name: str) -> None:
    text, end = heard(model, wav(noises()[name]))
    assert text == ""
    assert segments(end) == []


def broken() -> dict[str, bytes]:
    chance = random.Random(1)
    return {
        "nothing": b"",
        "half a header": wav(np.zeros(RATE))[:20],
        "random bytes": chance.randbytes(50_000),
        "zeros": bytes(50_000),
        "text": b"This is no recording.\n" * 500,
        "a picture": b"\x89PNG\r\n\x1a\n" + chance.randbytes(5_000),
        "frames of noise": b"".join(b"\xff\xfb\x90\x64" + chance.randbytes(413) for _ in range(200)),
        "a list of files": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
        "a script": b"ffconcat version 1.0\nfile /etc/hostname\n",
    }


@pytest.mark.parametrize("name", broken())
def test_what_is_no_recording_is_refused_with_a_sentence(model: Model, name: str) -> None:
    assert failure(model, broken()[name]).error == "bad_request"


def test_a_list_of_files_opens_none_of_them(model: Model, speech: tuple[Pcm, int], tmp_path: Path) -> None:
    """FFmpeg would, of any address that is in it."""
    (tmp_path / "secret.wav").write_bytes(wav(*speech))
    for text in (
        f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n",
        f"#EXTM3U\n#EXTINF:9,\n{tmp_path}/secret.wav\n",
    ):
        path = tmp_path / "list"
        path.write_text(text)
        assert failure(model, None, path=path).error == "bad_request"


def test_a_recording_that_was_cut_off_is_heard_as_far_as_it_goes(model: Model, spoken: list[tuple[Pcm, int]]) -> None:
    pcm, rate = joined(spoken[:3], pause_s=0.3)
    for whole in (wav(pcm, rate), encoded(pcm, rate, FORMATS["FLAC"]), encoded(pcm, rate, FORMATS["MP3"])):
        text, end = heard(model, whole[: len(whole) // 2])
        assert words(text)[:4] == words(SENTENCES[0])[:4]
        assert isinstance(end.value, dict)
        assert end.value["duration_s"] == pytest.approx(len(pcm) / rate / 2, rel=0.2)


def test_a_file_that_cannot_be_read_is_named(model: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.wav").touch()
    for name in ("missing.wav", "pipe", "empty.wav", "."):
        end = failure(model, None, path=tmp_path / name)
        assert end.error == "bad_request"
        assert str(tmp_path / name) in end.message
    assert failure(model, None).error == "bad_request"
    assert failure(model, wav(np.zeros(RATE)), path=tmp_path / "both").error == "bad_request"


def test_a_recording_over_the_bound_is_refused(whisper_tiny: Path) -> None:
    model = load(whisper_tiny, max_audio_s=40)
    try:
        heard(model, wav(np.zeros(39 * RATE)))
        end = failure(model, wav(np.zeros(75 * RATE)))
        assert end.error == "bad_request"
        assert "40 s" in end.message
    finally:
        model.close()


def test_a_language_that_the_model_does_not_know_is_refused(model: Model, spoken: list[tuple[Pcm, int]]) -> None:
    recording = wav(*spoken[0])
    end = failure(model, recording, language="fr")
    assert end.error == "unsupported"
    assert "'fr'" in end.message
    for known in ("en", "EN", "en-GB", None):
        text, _ = heard(model, recording, language=known)
        assert error_rate(SENTENCES[0], text) <= MAX_ERROR_RATE


def test_two_jobs_take_turns(model: Model, speech: tuple[Pcm, int], spoken: list[tuple[Pcm, int]]) -> None:
    """The short one does not wait for the long one, and neither hears the other."""
    pcm, rate = speech
    long = wav(np.concatenate([pcm, pcm]), rate)
    events = done(model, Transcribe("long", long), Transcribe("short", wav(*spoken[0])))
    order = [event.id for event in events if isinstance(event, Output)]
    assert order == ["short", "long"]
    texts = {id: "".join(e.text for e in events if isinstance(e, Token) and e.id == id) for id in order}
    assert error_rate(SENTENCES[0], texts["short"]) <= MAX_ERROR_RATE
    assert error_rate(" ".join(SENTENCES * 2), texts["long"]) <= MAX_ERROR_RATE


def test_a_cancelled_job_says_no_more(model: Model, speech: tuple[Pcm, int], tmp_path: Path) -> None:
    pcm, rate = speech
    path = tmp_path / "long.wav"
    path.write_bytes(wav(np.concatenate([pcm] * 4), rate))
    model.submit(Transcribe("long", path=path))
    events: list[Event] = []
    while not events:
        events += model.step(None)
    assert not any(isinstance(event, Output) for event in events)
    model.cancel("long")
    model.cancel("long")
    model.cancel("unknown")
    assert model.step(None) == []
    assert str(path) not in {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
    for number in range(model.slots):
        model.submit(Transcribe(str(number), wav(np.zeros(RATE))))
    with pytest.raises(DriverError, match="all 4 slots"):
        model.submit(Transcribe("one more", b""))
    for number in range(model.slots):
        model.cancel(str(number))
    assert model.step(None) == []


def test_other_kinds_of_work_are_refused(model: Model) -> None:
    (end,) = done(model, Embed("1", ("text",)))
    assert isinstance(end, Failed)
    assert end.error == "unsupported"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beam_size": 0}, "option beam_size: got 0"),
        ({"compute_type": "int3"}, "int8_float32"),
        ({"loudness": 1}, "no option 'loudness'"),
        ({"vad_threshold": 1.5}, "0.01 to 0.99"),
        ({"device": "cpu", "compute_type": "float16"}, "float16"),
    ],
)
def test_a_wrong_option_is_named(whisper_tiny: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(DriverError, match=says):
        load(whisper_tiny, **options)


def test_a_model_that_is_not_whole_is_refused(whisper_tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(DriverError, match="is a file"):
        load(whisper_tiny / "config.json")
    with pytest.raises(DriverError, match="serves stt, not inference"):
        WhisperDriver().load(ModelSpec(whisper_tiny))
    for name, size in (("model.bin", None), ("tokenizer.json", None), ("model.bin", 30_000_000), ("config.json", 10)):
        folder = tmp_path / f"{name}-{size}"
        shutil.copytree(whisper_tiny, folder)
        if size is None:
            (folder / name).unlink()
        else:
            os.truncate(folder / name, size)
        with pytest.raises(DriverError, match=name if size is None else "cannot be loaded"):
            load(folder)


def test_without_the_backend_it_says_what_to_install(whisper_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.startswith("granville_whisper.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(DriverError, match=r"pip install 'granville\[whisper\]'"):
        load(whisper_tiny)


def test_a_damaged_stretch_costs_what_is_in_it(spoken: list[tuple[Pcm, int]]) -> None:
    """The rest of the file is decoded."""
    pcm, rate = joined(spoken[:3], pause_s=0.3)
    data = bytearray(encoded(pcm, rate, FORMATS["MP3"]))
    data[len(data) // 2 : len(data) // 2 + 4_000] = random.Random(2).randbytes(4_000)
    sound = Sound(bytes(data))
    assert len(sound.read(1 << 30)) > 0.7 * len(pcm) / rate * RATE
    assert sound.damaged
    sound.close()


MUTANTS = 300


def test_damaged_headers_end_in_a_sentence_or_in_sound(spoken: list[tuple[Pcm, int]]) -> None:
    """Nothing else is raised, whatever they say of the file. Rates of gigahertz made FFmpeg take gigabytes."""
    pcm, rate = spoken[0]
    whole = [encoded(pcm[: rate // 2], rate, format) for format in FORMATS.values()]
    refused = []
    for seed in range(MUTANTS):
        chance = random.Random(seed)
        data = bytearray(chance.choice(whole))
        for _ in range(chance.choice([1, 2, 5, 20])):
            data[chance.randrange(min(len(data), chance.choice([64, 300, len(data)])))] = chance.randrange(256)
        try:
            with closing(Sound(bytes(data))) as sound:
                assert len(sound.read(60 * RATE)) <= 10 * RATE
        except JobError as error:
            refused.append(error.error)
    assert set(refused) == {"bad_request"}
    assert MUTANTS / 10 < len(refused) < MUTANTS


@pytest.mark.parametrize("rate", [20, 2_000_000_000])
def test_a_rate_that_cannot_be_is_refused(model: Model, rate: int) -> None:
    recording = bytearray(wav(np.zeros(RATE)))
    recording[24:28] = rate.to_bytes(4, "little")
    assert f"{rate} Hz" in failure(model, bytes(recording)).message

"""granville-piper on a real voice: sound sentence by sentence, and what is made of odd texts."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from granville_piper import PiperDriver
from granville_piper.speaking import FIRST_PHONEMES, SENTENCE_PHONEMES

from benchmarks.speech import SENTENCES
from granville.hosting.interface import Audio, DriverError, Failed, Model, ModelSpec, Output, Speak, Transcribe
from tests.drivers.sounds import done, said

VOICE = "en_US-joe-medium"
RATE = 22_050


def load(path: Path, **options: object) -> Model:
    given = {"noise": 0, "rhythm_noise": 0, **options}
    return PiperDriver().load(ModelSpec(path, type="tts", slots=3, threads=2, options=given))


@pytest.fixture(scope="module")
def model(piper_joe: Path) -> Iterator[Model]:
    loaded = load(piper_joe)
    yield loaded
    loaded.close()


def several(joe: Path, folder: Path) -> Path:
    """The voice and another of the same weights, which counts its speakers as three."""
    folder.mkdir()
    for name in (VOICE, "second"):
        os.link(joe / f"{VOICE}.onnx", folder / f"{name}.onnx") if os.stat(joe).st_dev == os.stat(
            folder
        ).st_dev else shutil.copy(joe / f"{VOICE}.onnx", folder / f"{name}.onnx")
        shutil.copy(joe / f"{VOICE}.onnx.json", folder / f"{name}.onnx.json")
    return folder


def failure(model: Model, text: str, **how: object) -> Failed:
    (end,) = done(model, Speak("1", text, **how))  # type: ignore[arg-type]  # voice and speed
    assert isinstance(end, Failed), end
    return end


def test_a_sentence_a_step(model: Model) -> None:
    model.submit(Speak("1", " ".join(SENTENCES[:3])))
    steps = [model.step(None) for _ in range(3)]
    total = 0
    for events in steps:
        (event,) = events
        assert isinstance(event, Audio)
        assert event.sample_rate == RATE
        samples = np.frombuffer(event.pcm, "<i2")
        assert 1.5 < len(samples) / RATE < 6
        assert np.abs(samples).max() > 20_000
        total += len(samples)
    rest = done(model)
    while not rest:
        rest = model.step(None)
    (end,) = rest
    assert isinstance(end, Output)
    assert end.value == {"duration_s": round(total / RATE, 3)}


def test_speed_makes_it_shorter(model: Model) -> None:
    lengths = [len(said(model, SENTENCES[0], speed=speed)[0]) for speed in (0.5, 1.0, 2.0)]
    assert lengths[0] > 1.5 * lengths[1] > 1.5 * 1.5 * lengths[2]
    for speed in (0.2, 4.5, float("nan")):
        assert failure(model, "Hello.", speed=speed).message.startswith("speed: from 0.25 to 4, got ")


def test_without_noise_it_says_the_same_again(model: Model, piper_joe: Path) -> None:
    first, second = (said(model, SENTENCES[1])[0] for _ in range(2))
    assert np.array_equal(first, second)
    lively = load(piper_joe, noise=0.667, rhythm_noise=0.8)
    try:
        assert not np.array_equal(first, said(lively, SENTENCES[1])[0])
    finally:
        lively.close()


@pytest.mark.parametrize(
    "text", ["😀", "Привет, мир", "你好", "[[hello]]", "3.14", "a\0b", "half \ud800 a character", "x"]
)
def test_odd_texts_are_said(model: Model, text: str) -> None:
    pcm, _ = said(model, text)
    assert len(pcm) > RATE / 10


@pytest.mark.parametrize("text", ["", " \n\t", "\0", "...", "—", "." * 5_000])
def test_a_text_without_a_word_is_refused(model: Model, text: str) -> None:
    assert failure(model, text).error == "bad_request"


def test_double_brackets_are_no_phonemes(model: Model) -> None:
    plain, _ = said(model, "hello")
    bracketed, _ = said(model, "[[hello]]")
    assert len(bracketed) == pytest.approx(len(plain), rel=0.3)


def test_a_sentence_without_an_end_is_cut(model: Model) -> None:
    """The first piece is short, so that something is heard soon; none is long."""
    model.submit(Speak("1", "one word and another word, " * 200))
    lengths = []
    for _ in range(3):
        lengths += [len(event.pcm) / 2 / RATE for event in model.step(None) if isinstance(event, Audio)]
    model.cancel("1")
    a_phoneme_s = lengths[0] / FIRST_PHONEMES
    assert lengths[0] < max(lengths[1:]) < 2 * SENTENCE_PHONEMES * a_phoneme_s
    assert max(lengths) < 40


def test_100_kb_without_a_full_stop_begin_at_once_and_can_be_cancelled(model: Model) -> None:
    model.submit(Speak("long", "and so on " * 9_999))
    model.submit(Speak("short", SENTENCES[0]))
    events = [event for _ in range(4) for event in model.step(None)]
    assert [event.id for event in events[:2]] == ["long", "short"]
    assert isinstance(events[0], Audio)
    for id in ("long", "short"):
        model.cancel(id)
    assert model.step(None) == []
    end = failure(model, "x" * 100_001)
    assert end.error == "prompt_too_long"
    assert "100001 characters" in end.message


def test_two_jobs_take_turns(model: Model) -> None:
    events = done(model, Speak("a", " ".join(SENTENCES[:2])), Speak("b", " ".join(SENTENCES[:2])))
    assert [event.id for event in events if isinstance(event, Audio)] == ["a", "b", "a", "b"]


def test_a_folder_has_several_voices(piper_joe: Path, tmp_path: Path) -> None:
    folder = several(piper_joe, tmp_path / "voices")
    model = load(folder, max_voices=1, voice="second")
    try:
        assert model.stats()["voices"] == 2
        for voice in (None, VOICE, "second", f"{VOICE}#0"):
            said(model, "Hello.", voice=voice)
            assert model.stats()["voices_loaded"] == 1
        end = failure(model, "Hello.", voice="third")
        assert end.error == "bad_request"
        assert VOICE in end.message
        assert "second" in end.message
        assert "it has 0 to 0" in failure(model, "Hello.", voice=f"{VOICE}#1").message
    finally:
        model.close()
    with pytest.raises(DriverError, match="option voice: there is no 'fourth'"):
        load(folder, voice="fourth")


def test_a_speaker_is_named_or_numbered(piper_joe: Path, tmp_path: Path) -> None:
    from granville_piper.voices import Voices, find

    folder = several(piper_joe, tmp_path / "voices")
    settings = folder / f"{VOICE}.onnx.json"
    config = json.loads(settings.read_text())
    settings.write_text(json.dumps({**config, "num_speakers": 3, "speaker_id_map": {"ann": 0, "bob": 1, "cy": 2}}))
    voices = Voices(find(folder), first=VOICE, threads=1, most=4)
    assert [voices.speaker(f"{VOICE}#{who}").number for who in ("ann", "cy", "1")] == [0, 2, 1]
    assert voices.speaker(VOICE).number is None
    voices.close()


def test_one_file_is_one_voice(piper_joe: Path) -> None:
    model = load(piper_joe / f"{VOICE}.onnx")
    try:
        assert model.info.description.endswith(VOICE)
        said(model, "Hello.", voice=VOICE)
    finally:
        model.close()


def test_a_voice_that_is_not_whole_is_refused(piper_joe: Path, tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="does not exist"):
        load(tmp_path / "nowhere.onnx")
    with pytest.raises(DriverError, match="has no voice in it"):
        load(tmp_path)
    with pytest.raises(DriverError, match="serves tts, not inference"):
        PiperDriver().load(ModelSpec(piper_joe))
    weights, settings = tmp_path / "v.onnx", tmp_path / "v.onnx.json"
    weights.write_bytes((piper_joe / f"{VOICE}.onnx").read_bytes()[:1_000_000])
    with pytest.raises(DriverError, match="has its settings beside it"):
        load(weights)
    for text in ("", "[1]", '{"audio": {"sample_rate": 22050}}'):
        settings.write_text(text)
        with pytest.raises(DriverError, match="no settings of a Piper voice"):
            load(weights)
    shutil.copy(piper_joe / f"{VOICE}.onnx.json", settings)
    with pytest.raises(DriverError, match="cannot be loaded"):
        load(weights)
    settings.write_text(settings.read_text().replace('"phoneme_type": "espeak"', '"phoneme_type": "pinyin"'))
    with pytest.raises(DriverError, match="speaks by pinyin"):
        load(weights)


def test_other_kinds_of_work_are_refused(model: Model) -> None:
    (end,) = done(model, Transcribe("1", b""))
    assert isinstance(end, Failed)
    assert end.error == "unsupported"


def test_without_the_backend_it_says_what_to_install(piper_joe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.startswith("granville_piper.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "piper", None)
    monkeypatch.setitem(sys.modules, "piper.config", None)
    with pytest.raises(DriverError, match=r"pip install 'granville\[piper\]'"):
        load(piper_joe)

"""granville-espeak on the real library: languages, speeds, odd texts, and two models in one process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from granville_espeak import EspeakDriver

from benchmarks.speech import SENTENCES
from granville.hosting.interface import Audio, DriverError, Failed, Model, ModelSpec, Output, Speak
from tests.drivers.sounds import done, said

RATE = 22_050


def load(**options: object) -> Model:
    return EspeakDriver().load(ModelSpec(Path("espeak"), type="tts", slots=3, options=options))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    loaded = load()
    yield loaded
    loaded.close()


def failure(model: Model, text: str, **how: object) -> Failed:
    (end,) = done(model, Speak("1", text, **how))  # type: ignore[arg-type]  # voice and speed
    assert isinstance(end, Failed), end
    assert end.error == "bad_request"
    return end


def test_a_long_text_comes_in_pieces(model: Model) -> None:
    events = done(model, Speak("1", " ".join(SENTENCES)))
    sounds = [event for event in events if isinstance(event, Audio)]
    assert len(sounds) == 2
    assert all(sound.sample_rate == RATE for sound in sounds)
    samples = sum(len(sound.pcm) // 2 for sound in sounds)
    assert 15 < samples / RATE < 60
    end = events[-1]
    assert isinstance(end, Output)
    assert end.value == {"duration_s": round(samples / RATE, 3)}


@pytest.mark.parametrize("voice", ["en-gb", "de", "fr", "German", "en-us+f3", "gmw/de", "DE"])
def test_voices_are_languages_or_names(model: Model, voice: str) -> None:
    sound, _ = said(model, "Guten Tag", voice=voice)
    assert np.abs(sound).max() > 10_000


def test_voices_differ(model: Model) -> None:
    sounds = [said(model, "Guten Tag", voice=voice)[0] for voice in ("de", "en-us", "en-us+f3")]
    assert len({sound.tobytes() for sound in sounds}) == 3
    german = said(load(voice="de"), "Guten Tag")[0]
    assert len(german) == pytest.approx(len(sounds[0]), rel=0.05)


def test_an_unknown_voice_gets_near_names(model: Model) -> None:
    assert "en-gb" in failure(model, "Hello", voice="en-gbb").message
    assert "variant" in failure(model, "Hello", voice="de+nobody").message
    assert "en-us" in failure(model, "Hello", voice="../../etc/passwd").message
    with pytest.raises(DriverError, match="option voice: there is no 'nowhere'"):
        load(voice="nowhere")


def test_speed_makes_it_shorter(model: Model) -> None:
    lengths = [len(said(model, SENTENCES[0], speed=speed)[0]) for speed in (0.5, 1.0, 2.0, 4.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] / lengths[2] == pytest.approx(4, rel=0.2)
    assert "0.46 or faster" in failure(model, "Hello", speed=0.3).message
    assert "from 0.25 to 4" in failure(model, "Hello", speed=5).message


@pytest.mark.parametrize(
    "text", ["😀", "Привет", "你好", "<b>bold</b>", "[[hello]]", "a\0b", "half \ud800 a character"]
)
def test_odd_texts_are_said(model: Model, text: str) -> None:
    said(model, text)


@pytest.mark.parametrize("text", ["", " \n", "\0", "...", "." * 5_000])
def test_a_text_without_a_word_is_refused(model: Model, text: str) -> None:
    failure(model, text)


def test_markup_and_phonemes_are_read_as_text(model: Model) -> None:
    """espeak-ng has both, when it is asked to."""
    assert len(said(model, "<break time='9s'/> yes")[0]) / RATE < 6


def test_100_kb_are_said_piece_by_piece(model: Model) -> None:
    model.submit(Speak("1", "word and another word " * 4_545))
    events = [event for _ in range(20) for event in model.step(None)]
    assert len(events) == 20
    model.cancel("1")
    assert model.step(None) == []


def test_two_models_in_two_threads_do_not_mix() -> None:
    """The library's voice and rate are one for the process."""
    voices = ("de", "en-us+f3")
    models = [load(voice=voice, words_per_minute=rate) for voice, rate in zip(voices, (120, 300), strict=True)]
    text = " ".join(SENTENCES)
    alone = [said(model, text)[0] for model in models]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            together = list(pool.map(lambda model: said(model, text)[0], models))
            assert [len(sound) for sound in together] == pytest.approx([len(sound) for sound in alone], rel=0.02)
    for model in models:
        model.close()


def test_it_reads_no_model(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="name the model espeak"):
        EspeakDriver().load(ModelSpec(tmp_path / "voice.onnx", type="tts"))
    with pytest.raises(DriverError, match="option pitch: got 100"):
        load(pitch=100)


def test_without_the_backend_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.startswith("granville_espeak.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DriverError, match=r"pip install 'granville\[espeak\]'"):
        load()

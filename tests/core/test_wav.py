"""Sound in messages: files that others read, streams that join to one, and a bound on both."""

from __future__ import annotations

import io
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import DriverFailed, TooLarge
from granville.wire import wav
from granville.wire.wav import HEADER_BYTES, Sound

samples = st.binary(max_size=200).map(lambda data: data[: len(data) // 2 * 2])


@given(samples, st.integers(wav.MIN_RATE, wav.MAX_RATE))
def test_others_read_what_is_written(pcm: bytes, rate: int) -> None:
    with wave.open(io.BytesIO(wav.wav(pcm, rate))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, rate)
        assert file.readframes(file.getnframes()) == pcm


@given(st.lists(samples, min_size=1, max_size=5))
def test_the_pieces_of_a_stream_are_a_header_and_the_samples(parts: list[bytes]) -> None:
    sound = Sound()
    stream = b"".join(sound.add(pcm, 16_000) for pcm in parts)
    pcm = b"".join(parts)
    assert (sound.file(), sound.stream()) == (wav.wav(pcm, 16_000), stream)
    assert stream[HEADER_BYTES:] == pcm
    assert len(sound.file()) == HEADER_BYTES + len(pcm)
    assert sound.duration_s == len(pcm) / 32_000
    assert (stream[4:8], stream[40:44]) == (b"\xff" * 4, b"\xff" * 4), "of unknown length"
    assert stream[8:40] == sound.file()[8:40]


@pytest.mark.parametrize(
    ("pcm", "rate", "said"),
    [(b"a", 16_000, "16-bit"), ("ab", 16_000, "bytes"), (b"", 10, "10 Hz"), (b"", 16_000.0, "Hz"),
     (b"", 8_000, "8000")],
)  # fmt: skip
def test_what_is_no_sound_is_the_drivers_fault(pcm: bytes, rate: int, said: str) -> None:
    sound = Sound()
    sound.add(b"ab", 16_000)
    with pytest.raises(DriverFailed, match=said):
        sound.add(pcm, rate)
    assert sound.file() == wav.wav(b"ab", 16_000)


def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wav, "MAX_SOUND_BYTES", 10)
    sound = Sound()
    sound.add(bytes(10), 16_000)
    with pytest.raises(TooLarge, match="in parts"):
        sound.add(bytes(2), 16_000)

"""Checks of models that hear and of models that speak."""

from __future__ import annotations

import tempfile
from pathlib import Path

from granville.hosting.interface import Failed, Speak, Transcribe
from granville.testing.conformance.checks import Fail, Skip, Warn, check
from granville.testing.conformance.ledger import Job
from granville.testing.conformance.rig import Rig, answered
from granville.testing.sound import tone

TONE_S = 0.5
SENTENCE = "The harbour is quiet in winter, and the garden is green."
SPEED_SHARE = 0.8
"""Of its length, at most, a text at twice the speed."""
NO_VOICE = "granville-has-no-such-voice"
ROUNDING_S = 0.05
RECORDINGS = {
    "8 kHz": tone(TONE_S, rate=8_000),
    "44.1 kHz in two channels": tone(TONE_S, rate=44_100, channels=2),
    "silence": tone(TONE_S, hz=0),
    "no samples": tone(0),
}
NO_RECORDINGS = {
    "a text": b"This is no recording.\n" * 50,
    "zeros": bytes(4096),
    "a WAV cut in its header": tone(TONE_S)[:20],
}


@check(
    "hears",
    group="jobs",
    right="recordings of any rate and number of channels are transcribed, from bytes and from a file; what is no "
    "recording ends as Failed(id, 'bad_request', ...)",
    where="interface: Transcribe",
    needs=("answer",),
    text=False,
)
def hears(rig: Rig) -> str:
    """Recordings of several kinds, and what is none"""
    if rig.plan.type != "stt":
        raise Skip(f"models of type {rig.plan.type} hear nothing")
    model = rig.model

    def transcribed(audio: bytes | None, path: Path | None = None, *, words: bool = False) -> Job:
        return model.until_ended(model.submit(Transcribe(rig.new_id("hear"), audio, path, None, words)))[0]

    for what, audio in RECORDINGS.items():
        with rig.beside(f"with a recording of {what}"):
            answered(transcribed(audio, words=True))
    with tempfile.TemporaryDirectory(prefix="granville-check-") as folder:
        path = Path(folder, "a.wav")
        path.write_bytes(tone(TONE_S))
        answered(transcribed(None, path))
        with rig.beside("with a path where nothing is"):
            _refused(transcribed(None, Path(folder, "nothing-here.wav")), "a path where nothing is")
    taken = []
    for what, data in NO_RECORDINGS.items():
        with rig.beside(f"with {what} for a recording"):
            end = transcribed(data)
        if isinstance(end.end, Failed):
            _refused(end, what)
        else:
            taken.append(what)
    if taken:
        raise Warn(f"{' and '.join(taken)} for a recording was transcribed: {transcribed(tone(0)).text!r}")
    return f"{len(RECORDINGS) + 1} recordings, and {len(NO_RECORDINGS) + 1} that are none"


@check(
    "speaks",
    group="jobs",
    right="a sentence becomes sound as long as duration_s says, shorter at twice the speed; a voice that is not there "
    "ends as Failed(id, 'bad_request', ...)",
    where="interface: Speak, Audio",
    needs=("answer",),
    text=False,
)
def speaks(rig: Rig) -> str:
    """A sentence at two speeds, and in a voice that is not there"""
    if rig.plan.type != "tts":
        raise Skip(f"models of type {rig.plan.type} say nothing")
    model = rig.model

    def said(speed: float = 1.0, voice: str | None = None) -> Job:
        return model.until_ended(model.submit(Speak(rig.new_id("say"), SENTENCE, voice, speed)))[0]

    plain, fast = answered(said()), answered(said(2.0))
    told = getattr(plain.end, "value", {}).get("duration_s", 0.0)
    if abs(told - plain.sound_s) > ROUNDING_S:
        raise Fail(f"duration_s is {told:.2f}, and {plain.sound_s:.2f} s of sound came")
    if fast.sound_s > SPEED_SHARE * plain.sound_s:
        raise Fail(f"at speed 1 it took {plain.sound_s:.2f} s to say, and at speed 2 {fast.sound_s:.2f} s")
    with rig.beside("with a voice that is not there"):
        other = said(voice=NO_VOICE)
    if not isinstance(other.end, Failed):
        raise Warn(f"a voice called {NO_VOICE} spoke: the client does not get to know that there is none")
    _refused(other, "a voice that is not there")
    return f"{plain.sound_s:.2f} s at {plain.sample_rate} Hz, {fast.sound_s:.2f} s at twice the speed"


def _refused(job: Job, what: str) -> None:
    if not isinstance(job.end, Failed):
        raise Fail(f"{what} was answered")
    if job.end.error != "bad_request":
        raise Fail(f"{what} ended as Failed({job.end.error!r}): {job.end.message}; it is the client's: 'bad_request'")

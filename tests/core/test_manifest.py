"""manifest.yaml: what it means, and that what is wrong in it is said where it is, with what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import StartupError
from granville.models.manifest import MAX_MANIFEST_BYTES, Manifest, Server, read_manifest
from granville.models.pool import Wanted, parse_models

WHOLE = """\
name: kitchen
version: 1.5
driver: granville-llama
driver_config: {flash_attention: true}
models:
  main:
    source: smollm2
    gpu_layers: 35
    context_size: 4096
  mini: {source: ./minilm.gguf, type: embedding, driver: other, slots: 2}
  ranker:
    source: tiny.gguf
server:
  socket: run/g.sock
  port: 0
  queue_size: 10
  workers: 4
"""


def manifest(folder: Path, text: str) -> Manifest:
    (folder / "manifest.yaml").write_text(text)
    return read_manifest(folder)


def why(folder: Path, text: str | bytes) -> str:
    path = folder / "manifest.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(StartupError) as caught:
        read_manifest(path)
    message = caught.value.message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_the_whole_of_one(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    found = manifest(tmp_path, WHOLE)
    assert (found.name, found.version, found.driver) == ("kitchen", "1.5", "granville-llama")
    assert found.server == Server(socket=str(tmp_path / "run/g.sock"), port=0, queue_size=10, workers=4)
    assert found.driver_config.values == {"flash_attention": True}
    assert list(found.models) == [
        Wanted("smollm2", id="main"),
        Wanted(str(tmp_path / "minilm.gguf"), "embedding", "mini", "other", 2),
        Wanted(str(tmp_path / "tiny.gguf"), "ranker"),
    ]
    main = found.models[0].config
    assert main is not None
    assert main.values == {"gpu_layers": 35, "context_size": 4096}
    assert main.where("gpu_layers") == f"{tmp_path}/manifest.yaml:8:5: gpu_layers"


def test_on_and_no_are_words(tmp_path: Path) -> None:
    found = manifest(tmp_path, "name: no\nmodels: {main: {source: off, mode: on}}")
    assert (found.name, found.models[0].ref) == ("no", "off")
    assert found.models[0].config is not None
    assert found.models[0].config.values == {"mode": "on"}


def test_names_of_the_command_line(tmp_path: Path) -> None:
    found = manifest(tmp_path, WHOLE)
    own = {one.id or one.type: one for one in found.models}
    assert found.choose([]) == list(found.models)
    assert found.choose(parse_models(["mini,other.gguf", "ranker"])) == [
        own["mini"],
        Wanted("other.gguf"),
        own["ranker"],
    ]
    assert found.choose(parse_models(["x2:main"])) == [Wanted("main", id="x2")], "not a plain name"
    with pytest.raises(StartupError, match="two models have this id"):
        found.choose(parse_models(["main,main"]))


def test_aliases_and_merged_keys(tmp_path: Path) -> None:
    text = "name: x\nmodels:\n  one: &one {source: a, kv_type: f32}\n  two: {<<: *one, source: b}\n"
    one, two = manifest(tmp_path, text).models
    assert (one.ref, two.ref) == ("a", "b")
    assert one.config is not None
    assert two.config is not None
    assert one.config.values == two.config.values == {"kv_type": "f32"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\nmodels: {main: {source: a}}\nserver:\n  prot: 80\n", (":4:3: prot", "did you mean port?")),
        ("name: x\nmodels: {main: {source: a}}\nserver: {port: 70000}", (":3:10: port", "from 0 to 65535", "70000")),
        ("name: x\nmodels: {main: {source: a}}\nserver: {workers: 0}", (":3:10: workers", "from 1 up")),
        ("name: x\nmodels: {main: {source: a}}\nserver: [1]", (":3:1: server", "expected a map")),
        ("name: x\nmodels: {main: {source: a, type: chat}}", (":2:28: type", "one of", "embedding", "'chat'")),
        ("name: x\nmodels:\n  main:\n    slots: 2\n", (":3:3: main", "`source` is missing")),
        ("name: x\nmodels: {main: smollm2}", (":2:10: main", "expected a map, got 'smollm2'")),
        ("name: x\nmodels: {m: {source: a}}", (":2:10: m", "two characters or more")),
        ("name: x\nmodels: {sessions: {source: a}}", (":2:10: sessions", "folders")),
        ("name: x\nmodels: {ranker: {source: a, type: stt}}", (":2:10: ranker", "name of a type")),
        ("name: x\nmodels: {}", (":2:1: models", "there is none")),
        ("name: x\nmodel: {main: {source: a}}", (":2:1: model", "did you mean models?")),
        ("models: {main: {source: a}}", ("the manifest lacks `name`",)),
        ("name: x", ("the manifest lacks `models`",)),
        ("name: [x]\nmodels: {main: {source: a}}", (":1:1: name", "expected a text")),
        ("name: 2020-01-01\nmodels: {}", (":1:1: name", "needs quotes")),
        ("name: !!python/name:os.system x\nmodels: {}", (":1:1: name", "the tag")),
        ("name: x\nmodels: !foo {main: {source: a}}", (":2:1: models", "the tag !foo")),
        ("name: x\nname: y", (":2:1: not YAML", "duplicate key")),
        ("a: [1\nb: 2", (":2:2: not YAML",)),
        ("name: x\n---\nname: y", (":2:1: not YAML",)),
        ("- a", ("expected a map", "list")),
        ("", ("expected a map",)),
        (b"name: \xff", ("not UTF-8, at byte 6",)),
        ("[" * 20_000, ("nested too deeply",)),
        ("a: " + "x" * MAX_MANIFEST_BYTES, ("over 256 KiB",)),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
            "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
            "name: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n",
            ("more than 10000 values",),
        ),
        ("a: &a [*a]", ("a",)),
    ],
)
def test_what_is_wrong_is_said_where_it_is(tmp_path: Path, text: str | bytes, words: tuple[str, ...]) -> None:
    message = why(tmp_path, text)
    assert "\n" not in message
    assert all(word in message for word in words), message


@given(st.text(alphabet="ab:{}[]&*!<-'\"#|> \n", max_size=60))
def test_no_text_does_worse_than_a_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with pytest.raises(StartupError, match=r"any\.yaml"):
        read_manifest(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read: No such file"):
        read_manifest(tmp_path)

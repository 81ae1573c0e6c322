"""registry.json: the published schema, the reader and the repository's own file say the same."""

from __future__ import annotations

import copy
import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from granville.errors import StartupError
from granville.hosting.locate import GROUP
from granville.hosting.manifest import check_name, check_version
from granville.models.catalogue import ModelEntry, embedded_models
from granville.registry.schema import BadIndex, embedded, json_schema, parse_index
from granville.registry.settings import configured

OWN = Path(__file__).parents[2] / "registry.json"
VALIDATOR = Draft202012Validator(json_schema())
DIGEST = "0123456789abcdef" * 4

words = st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True)
names = st.builds("{}-granville-{}".format, words, words) | st.builds("granville-{}".format, words)
versions = st.from_regex(r"[0-9A-Za-z][0-9A-Za-z.+!_-]{0,9}", fullmatch=True)
platforms = st.sampled_from(["any", "linux-x86_64", "linux-arm64", "darwin-arm64", "windows-x86_64"])
artifacts = st.fixed_dictionaries(
    {
        "url": st.text(min_size=1, max_size=50),
        "sha256": st.from_regex("[0-9a-f]{64}", fullmatch=True),
        "size_bytes": st.integers(1, 1 << 40),
    },
    optional={"abi": st.none() | st.sampled_from(["c1", "c2", "python"]), "more": st.integers()},
)
drivers = st.fixed_dictionaries(
    {},
    optional={
        "description": st.text(max_size=20),
        "repo": st.none() | st.text(max_size=20),
        "official": st.booleans(),
        "latest_version": st.text(max_size=5),
        "platforms": st.lists(platforms),
        "capabilities": st.lists(st.text(max_size=5), max_size=3),
        "license": st.none() | st.just("MIT"),
        "versions": st.dictionaries(
            versions,
            st.fixed_dictionaries({}, optional={"artifacts": st.dictionaries(platforms, artifacts, max_size=2)}),
            max_size=2,
        ),
        "unknown": st.integers(),
    },
)
indexes = st.fixed_dictionaries(
    {"version": st.just(1)},
    optional={
        "drivers": st.dictionaries(names, drivers, max_size=3),
        "naming_convention": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
        "more": st.none(),
    },
)


def test_the_repository_s_own_index() -> None:
    content = json.loads(OWN.read_bytes())
    VALIDATOR.validate(content)
    assert embedded() == parse_index(OWN.read_bytes(), "own")
    assert set(embedded().drivers) == {
        point.name for point in distribution("granville").entry_points.select(group=GROUP)
    }
    assert all(driver.official for driver in embedded().drivers.values())
    assert set(embedded().naming_convention) == {"official", "community"}
    assert set(embedded_models()) == set(content["models"])


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())


def test_the_examples_of_the_page() -> None:
    page = (OWN.parent / "docs" / "registry.md").read_text()
    (index,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    VALIDATOR.validate(json.loads(index))
    assert list(parse_index(index.encode(), "page").drivers) == ["acme-granville-tpu"]


def test_the_configuration_of_the_page(tmp_path: Path) -> None:
    page = (OWN.parent / "docs" / "registry.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "config.toml").write_text(text)
    house, acme = configured(tmp_path)
    assert house.location == Path("/srv/drivers/registry.json")
    assert acme.key is not None


def test_an_index_from_before_there_were_builds() -> None:
    """As such files are about: no versions, no licence, no models."""
    data = (
        b'{"version": 1, "drivers": {"granville-tpu": {"description": "", "repo": "https://x", "official": true,'
        b' "latest_version": "0.1.0", "platforms": ["linux-x86_64"], "capabilities": ["generate"], "stars": 4}},'
        b' "naming_convention": {"official": "granville-<backend>", "community": "<vendor>-granville-<name>"}}'
    )
    VALIDATOR.validate(json.loads(data))
    assert parse_index(data, "old").drivers["granville-tpu"].versions == {}


@given(indexes)
def test_what_the_schema_takes_the_reader_reads(content: dict[str, Any]) -> None:
    VALIDATOR.validate(content)
    index = parse_index(json.dumps(content).encode(), "generated")
    assert set(index.drivers) == set(content.get("drivers", {}))
    for name, entry in index.drivers.items():
        check_name(name)
        for version, found in entry.versions.items():
            check_version(version)
            given_ = content["drivers"][name]["versions"][version].get("artifacts", {})
            assert {key: (one.url, one.sha256, one.size_bytes) for key, one in found.artifacts.items()} == {
                key: (one["url"], one["sha256"], one["size_bytes"]) for key, one in given_.items()
            }


GOOD: dict[str, Any] = {
    "version": 1,
    "drivers": {
        "acme-granville-tpu": {
            "versions": {"1.0": {"artifacts": {"linux-x86_64": {"url": "a.tar.gz", "sha256": DIGEST, "size_bytes": 5}}}}
        }
    },
}
ARTIFACT = ("drivers", "acme-granville-tpu", "versions", "1.0", "artifacts", "linux-x86_64")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("version",), "1"),
        (("drivers",), []),
        (("drivers", "acme-granville-tpu"), None),
        (("drivers", "acme-granville-tpu", "platforms"), "linux-x86_64"),
        (("drivers", "acme-granville-tpu", "official"), "yes"),
        ((*ARTIFACT, "sha256"), DIGEST[1:]),
        ((*ARTIFACT, "sha256"), DIGEST.upper()),
        ((*ARTIFACT, "sha256"), DIGEST + "\n"),
        ((*ARTIFACT, "sha256"), None),
        ((*ARTIFACT, "size_bytes"), 0),
        ((*ARTIFACT, "size_bytes"), "5"),
        ((*ARTIFACT, "url"), ""),
        ((*ARTIFACT, "url"), "x" * 5000),
        ((*ARTIFACT, "abi"), 1),
        (ARTIFACT, {"url": "x"}),
    ],
)
def test_both_refuse(path: tuple[str, ...], value: object) -> None:
    content = copy.deepcopy(GOOD)
    parse_index(json.dumps(content).encode(), "good")
    VALIDATOR.validate(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(content)
    with pytest.raises(BadIndex, match="somewhere"):
        parse_index(json.dumps(content).encode(), "somewhere")


@pytest.mark.parametrize("name", ["tpu", "Acme-granville-x", "acme-granville-", "granville", "a--granville-x", "../x"])
def test_names_that_the_schema_refuses_are_no_names_here_either(name: str) -> None:
    assert not VALIDATOR.is_valid({"version": 1, "drivers": {name: {}}})
    with pytest.raises(StartupError):
        check_name(name)


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"[]", b"null", b'{"version": 1', b'{"drivers": {}}', b"\xff", b"[" * 9999]
)
def test_what_is_no_index(data: bytes) -> None:
    with pytest.raises(BadIndex):
        parse_index(data, "x")


def test_an_index_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadIndex, match="more than 16777216 bytes"):
        parse_index(b" " * ((16 << 20) + 1), "x")


MODEL = {"description": "", "sha256": DIGEST, "size_bytes": 1, "license": "MIT"}


@pytest.mark.parametrize(
    ("sources", "good"),
    [
        ({"source": "hf://a/b/c"}, True),
        ({"sources": ["https://a/b", "pypi://a==1/c"]}, True),
        ({}, False),
        ({"sources": []}, False),
        ({"source": "https://a", "sources": ["https://a"]}, False),
    ],
)
def test_models_have_one_source_or_several(sources: dict[str, object], good: bool) -> None:
    entry = MODEL | sources
    assert VALIDATOR.is_valid({"version": 1, "models": {"m": entry}}) == good
    try:
        msgspec.json.decode(json.dumps(entry), type=ModelEntry)
    except msgspec.ValidationError:
        assert not good
    else:
        assert good

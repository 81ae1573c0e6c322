"""Drivers' options: checked by their schema wherever they come from, merged in order; what does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from granville_llama import LlamaDriver
from hypothesis import given
from hypothesis import strategies as st

from granville.errors import StartupError
from granville.hosting.interface import Configurable, Driver, Model, ModelSpec
from granville.hosting.options import Layer, OptionSchema, WrongOption, built_in, merge_options, pairs_layer, wanted

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "layers": {"type": "integer", "minimum": -1},
        "size": {"type": "integer", "minimum": 16, "maximum": 2048},
        "fast": {"type": "boolean"},
        "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "kind": {"enum": ["small", "big"]},
        "label": {"type": "string", "pattern": "^[a-z]+$"},
        "maybe": {"anyOf": [{"type": "integer", "maximum": 5}, {"type": "null"}]},
        "either": {"type": ["integer", "string"]},
        "names": {"type": "array", "items": {"type": "string"}},
    },
}


class Plain:
    """A driver that says nothing about its options."""

    name, version = "plain", "1"

    def load(self, spec: ModelSpec) -> Model:
        raise NotImplementedError


class Picky(Plain):
    name = "picky"
    config_schema: Mapping[str, Any] = SCHEMA


class Silent(Plain):
    """As one from a driver.json without a schema."""

    config_schema = None


class Shipped(Picky):
    config: Mapping[str, object] = {"kind": "big", "layers": 1}


def why(driver: Driver, *layers: Layer, others: tuple[Driver, ...] = ()) -> str:
    with pytest.raises(StartupError) as caught:
        merge_options(driver, layers, others)
    return caught.value.message


def test_a_text_is_read_by_the_type_of_its_option() -> None:
    pairs = ["layers=-1", "fast=false", "share=0.5", "kind=small", "label=abc", "maybe=null", "either=x=y"]
    assert merge_options(Picky(), [pairs_layer("--driver-config", pairs)]) == {
        "layers": -1, "fast": False, "share": 0.5, "kind": "small", "label": "abc", "maybe": None, "either": "x=y",
    }  # fmt: skip


def test_without_a_schema_a_text_is_json_where_it_can_be() -> None:
    pairs = ["layers=-1", "name=abc", "names=[1]", "context_size=64"]
    given_ = merge_options(Plain(), [pairs_layer("--driver-config", pairs)])
    assert given_ == {"layers": -1, "name": "abc", "names": [1], "context_size": 64}
    assert merge_options(Silent(), [pairs_layer("f", ["any=1"])]) == {"any": 1}
    assert "expected a whole number from 0 up, got 'x'" in why(Plain(), pairs_layer("v", ["threads=x"]))


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("layer=1", "--driver-config: layer: picky has no such option; did you mean layers"),
        ("zzz=1", "it has context_size, threads, layers, size"),
        ("layers=all", "--driver-config: layers: expected a whole number from -1 up, got 'all'"),
        ("layers=-2", "from -1 up, got '-2'"),
        ("layers=1.5", "a whole number"),
        ("size=8", "from 16 to 2048, got '8'"),
        ("fast=yes", "expected true or false, got 'yes'"),
        ("share=0", "expected a number up to 1 over 0"),
        ("kind=huge", "expected one of small, big, got 'huge'"),
        ("label=A", "of the pattern ^[a-z]+$"),
        ("maybe=6", "expected a whole number up to 5, got '6'"),
        ("context_size=-1", "from 0 up"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(pair: str, words: str) -> None:
    assert words in why(Picky(), pairs_layer("--driver-config", [pair]))


def test_values_of_a_file_have_their_types_already() -> None:
    assert merge_options(Picky(), [Layer("f", {"layers": 3, "names": ["a"], "share": 1})])["layers"] == 3
    assert "got '3'" in why(Picky(), Layer("f", {"layers": "3"}))
    assert "got True" in why(Picky(), Layer("f", {"layers": True}))
    assert "expected a list" in why(Picky(), Layer("f", {"names": [1]}))
    long = why(Picky(), Layer("f", {"layers": "x" * 5000}))
    assert len(long) < 200


def test_the_first_layer_goes_before_the_others_key_by_key() -> None:
    layers = [
        pairs_layer("flag", ["layers=1"]),
        pairs_layer("variable", ["layers=2", "size=16"]),
        Layer("manifest", {"size": 17, "kind": "small"}),
        *built_in(Shipped()),
    ]
    assert merge_options(Shipped(), layers) == {"layers": 1, "size": 16, "kind": "small"}
    assert merge_options(Shipped(), built_in(Shipped())) == {"kind": "big", "layers": 1}
    assert built_in(Plain()) == []


def test_what_another_layer_goes_before_is_checked_all_the_same() -> None:
    layers = pairs_layer("flag", ["layers=1"]), Layer("f", {"layers": "x"}, places={"layers": "m.yaml:7:5: layers"})
    assert why(Picky(), *layers).startswith("m.yaml:7:5: layers: expected")


def test_a_shared_option_may_be_anothers() -> None:
    class Other(Plain):
        name = "other"
        config_schema: Mapping[str, Any] = {"properties": {"depth": {"type": "integer"}}}

    layer = pairs_layer("--driver-config", ["depth=1", "layers=2"])
    drivers = (Picky(), Other())
    assert merge_options(Picky(), [layer], drivers) == {"layers": 2}
    assert merge_options(Other(), [layer], drivers) == {"depth": 1}
    assert "no such option" in why(Picky(), layer, others=(Picky(),))
    own = Layer("f", {"depth": 1})
    assert "no such option" in why(Picky(), own, others=drivers), "meant for this model alone"


def test_a_needed_option() -> None:
    class Needy(Plain):
        name = "needy"
        config_schema: Mapping[str, Any] = {"properties": {"key": {"type": "string"}}, "required": ["key"]}

    assert "needy needs the option key" in why(Needy())
    assert merge_options(Needy(), [Layer("f", {"key": "x"})]) == {"key": "x"}


def test_additional_properties_are_as_they_were_given() -> None:
    schema = OptionSchema("x", {"properties": {"a": {"type": "integer"}}, "additionalProperties": True})
    assert (schema.check("b", "1", text=True), schema.check("c", "1")) == (1, "1")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "no JSON object"),
        ({"type": "string"}, "not an object with properties"),
        ({"oneOf": []}, "'oneOf'"),
        ({"properties": {"a": {"type": "integer", "multiple": 2}}}, "at a: the keyword 'multiple'"),
        ({"properties": {"a": {"type": "int"}}}, "at a: type 'int'; it can be integer"),
        ({"properties": {"a": {"$ref": "#/x"}}}, "at a"),
        ({"properties": {"a": {"enum": [1.5]}}}, "at a"),
        ({"properties": {"a": {"type": "integer", "pattern": "x"}}}, "at a"),
        ({"properties": {"a": {"type": "string", "pattern": "("}}}, "at a"),
        ({"properties": {"a": 5}}, "at a: expected a schema"),
        ({"properties": {"a": {"anyOf": []}}}, "at a"),
        ({"properties": {str(n): {} for n in range(300)}}, "256 are the most"),
    ],
)
def test_a_schema_that_would_not_be_checked_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(StartupError) as caught:
        OptionSchema("acme", schema)
    assert words in caught.value.message
    assert caught.value.message.startswith("acme: its config_schema")


@pytest.mark.parametrize("pair", ["", "key", "=1"])
def test_what_is_no_pair(pair: str) -> None:
    with pytest.raises(StartupError, match="--driver-config: expected key=value"):
        pairs_layer("--driver-config", [pair])


def test_a_key_twice_is_a_contradiction() -> None:
    assert pairs_layer("f", ["a=1", "a=1"]).values == {"a": "1"}
    with pytest.raises(StartupError, match="a is given twice, as 1 and as 2"):
        pairs_layer("f", ["a=1", "a=2"])


JSON = (
    st.none() | st.booleans() | st.integers(-3000, 3000) | st.floats(allow_nan=False) | st.text() | st.lists(st.text())
)


@given(st.sampled_from(sorted(SCHEMA["properties"])), JSON)
def test_it_agrees_with_json_schema(key: str, value: object) -> None:
    part = SCHEMA["properties"][key]
    fits = jsonschema.Draft202012Validator(part).is_valid(value)
    if (key == "label" and isinstance(value, str)) or (isinstance(value, float) and value.is_integer()):
        return  # regular expressions differ on line ends, and 1.0 is a whole number for JSON Schema alone
    try:
        OptionSchema("x", SCHEMA).check(key, value)
    except WrongOption:
        assert not fits
    else:
        assert fits


def test_granville_llama_says_what_its_options_are() -> None:
    driver = LlamaDriver()
    assert isinstance(driver, Configurable)
    assert not isinstance(Plain(), Configurable)
    jsonschema.Draft202012Validator.check_schema(driver.config_schema)
    properties = driver.config_schema["properties"]
    assert properties.keys() == {
        "gpu_layers", "context_size", "threads", "flash_attention", "kv_type", "repack", "pooling", "batch_tokens",
        "most_threads",
    }  # fmt: skip
    for name, schema in properties.items():
        assert "description" in schema, name
        assert wanted(schema)
    pairs = ["gpu_layers=35", "flash_attention=true", "kv_type=q8_0", "pooling=cls", "threads=2"]
    assert merge_options(driver, [pairs_layer("f", pairs)]) == {
        "gpu_layers": 35, "flash_attention": True, "kv_type": "q8_0", "pooling": "cls", "threads": 2,
    }  # fmt: skip
    assert "did you mean gpu_layers?" in why(driver, pairs_layer("f", ["gpu_layer=1"]))

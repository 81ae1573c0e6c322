"""What grammars and schemas let through, byte by byte, and which are refused, and how soon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from granville_llama.binding import Weights
from granville_llama.constrain import Grammars, Guide
from granville_llama.gbnf import GrammarError
from granville_llama.schema import read_schema

from granville.hosting.interface import Constraint
from tests.drivers import tiny_gguf

PATIENCE_S = 20.0
"""Far more than any of these takes; what would take minutes, or for ever, is found."""
JSON_GRAMMAR = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space, as llama.cpp's own example has it
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.fixture(scope="module")
def grammars(noise: Path) -> Iterator[Grammars]:
    weights = Weights(noise, gpu_layers=0, repack=False, verbose=False)
    yield Grammars(weights)
    weights.close()


def gbnf(source: str) -> Constraint:
    return Constraint("gbnf", source)


def schema(value: object) -> Constraint:
    return Constraint("json_schema", value if isinstance(value, str) else json.dumps(value))


def fits(guide: Guide, text: str) -> bool:
    for token in tiny_gguf.tokens(text):
        if not guide._matcher.compute_logit_bias()[token]:
            return False
        guide.advance(token, b"")
    return bool(guide._matcher.is_accepting())


def refusal(grammars: Grammars, constraint: Constraint) -> str:
    began = time.monotonic()
    with pytest.raises(GrammarError) as refused:
        grammars.guide(constraint)
    assert time.monotonic() - began < PATIENCE_S
    return str(refused.value)


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "maybe", "yesno"]),
        ('root ::= word "b"\nword ::= [a-z]+', ["ab", "foob", "bb"], ["b", "foo"]),
        ('root ::= "a" "b" "c" | "ab" "d"', ["abc", "abd"], ["ab", "abcd"]),
        ('root ::= "<" . . ">"', ["<\né>", "<>>>"], ["<a>", "<abc>"]),
        (r'root ::= [à-ü]+ "\u00dF\U0001F600" [^a-z/&~\]-]', ["éàß😀A", "çß😀é"], ["ß😀A", "éß😀]", "éß😀-"]),
        (r'root ::= "\n\t\r\"\\\[\]" "/[a-z]/" [\x41-\x43]', ['\n\t\r"\\[]/[a-z]/B'], ['\n\t\r"\\[]/x/B']),
        ('root ::= "a"{2} [0-9]{1,2} "b"{1,} "c"{0}', ["aa1b", "aa12bbb"], ["a1b", "aa123b", "aa1bc"]),
        ("root ::= ws x ws\nx ::= [0-9]*\nws ::= | \" \"", ["", "12", " 1 "], ["  1", "a"]),
        ('root ::= x\nx ::= t ([-+*/] t)*\nt ::= [0-9]+ | "(" x ")"', ["(1+2)*(3-(4))"], ["1+", "("]),
        ('root ::= root "a" | "b"', ["b", "baaa"], ["a", "ab"]),
        ('root ::= "a"* # as many\n# as there are\n', ["", "aaaa"], ["b"]),
        (JSON_GRAMMAR, ['{"a": [1, -2.5e3, {"b": null}], "c": "x\\n\u00e9"}', "{}"], ['{"a" 1}', '{"a": "b'])
    ],
)  # fmt: skip
def test_a_grammar_means_what_it_says(grammars: Grammars, source: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not fits(grammars.guide(gbnf(source)), text)] == []
    assert [text for text in bad if fits(grammars.guide(gbnf(source)), text)] == []


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("", "no rule is named 'root'"),
        ('x ::= "a"', "no rule is named 'root'"),
        ('root ::= "a', 'line 1, column 10: expected "'),
        ("root ::= x\nx ::=\n  [a-", "line 3, column 3: expected ]"),
        ('root ::= ("a"', "line 1, column 10: expected )"),
        ('root ::= "a" )', "line 1, column 14: expected the end of the rule, got ')'"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: the rule 'root' is there already"),
        ('root ::= "a" | missing', "line 1, column 16: no rule is named 'missing'"),
        ('root = "a"', "line 1, column 6: expected ::="),
        (r'root ::= "\q"', r"line 1, column 11: \q is no escape"),
        (r'root ::= "\u12"', r"line 1, column 11: \u is no escape"),
        (r'root ::= "\uD800"', r"line 1, column 11: \uD800 is no character"),
        ("root ::= [z-a]", "line 1, column 10: z-a is empty"),
        ('root ::= "a"{3,2}', "line 1, column 13: {3,2}: the most is less"),
        ('root ::= "a"{99999999999999999999}', "line 1, column 13: more than 10000 repetitions"),
        ("root ::= <tool>", "line 1, column 10: tokens in a grammar"),
        ("root ::= *", "line 1, column 10: unexpected '*'"),
        ("root ::= root", "no text fits it"),
        ("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000, "line 1, column 34: parentheses more than 24 deep"),
        ('root ::= (((("a"{1000}){1000}){1000}){1000})', "the rule 'root' is too large"),
        ("root ::= r30\nr0 ::= \"a\"\n" + "\n".join(f"r{n} ::= r{n - 1} r{n - 1}" for n in range(1, 31)), "too large"),
        ("root ::= " + " | ".join(f'"alternative {n}"' for n in range(10_000)), "characters, and 65536 are the most"),
        ("\n".join(f'r{n} ::= "a"' for n in range(2000)), "line 1001, column 1: more than 1000 rules"),
    ],
)  # fmt: skip
def test_a_grammar_that_is_none_or_too_much(grammars: Grammars, source: str, error: str) -> None:
    message = refusal(grammars, gbnf(source))
    assert message.startswith("grammar: ")
    assert error in message


LIST: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["v", "next"],
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    ("value", "good", "bad"),
    [
        (LIST, ['{"v": 1, "next": {"v": -2, "next": null}}'], ['{"v": 1}', '{"v": 1, "next": 2}']),
        ({"enum": [f"value {n}" for n in range(10_000)]}, ['"value 0"', '"value 9999"'], ['"value 10000"']),
        (True, ['{"a": [1, "b"]}', "null"], [""]),
        ({"type": "object", "properties": {"a": {}}}, ["{}", '{"a": 1}'], ['{"b": 1}', '{"a":1}']),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, ['{"b": 1}'], ["[]"]),
        ({"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"},
                    {"properties": {"b": {"type": "integer"}}, "required": ["b"]}]},
         ['{"a": 1, "b": 2}'], ['{"a": 1}']),
        ({"type": "string", "maxLength": 3, "x-guidance": {"whitespace_pattern": "x"}},
         ['"abc"', '"é\\n😀"'], ['"abcd"']),
    ],
)  # fmt: skip
def test_a_schema_lets_through_what_fits(grammars: Grammars, value: object, good: list[str], bad: list[str]) -> None:
    for text in good:
        jsonschema.validate(json.loads(text), value)
    assert [text for text in good if not fits(grammars.guide(schema(value)), text)] == []
    assert [text for text in bad if fits(grammars.guide(schema(value)), text)] == []


def nested(depth: int) -> object:
    value: object = {"type": "string"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested deeper than 64"),
        ("3", "at #: a schema is a map, got 3"),
        ({"type": "strin"}, "at #: Invalid type: strin"),
        ({"properties": {"a": {"items": {"type": "strin"}}}}, "at #/properties/a/items: Invalid type"),
        ({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "(?=a)"}]}, "at #/anyOf/1: regex parse error"),
        ({"$defs": {"x": {"format": "shoe", "type": "string"}}, "$ref": "#/$defs/x"}, "at #/$defs/x: Unknown format"),
        ({"$ref": "#/$defs/missing"}, "'/$defs/missing' does not exist"),
        ({"$ref": "http://127.0.0.1:9/x"}, "at #: "),
        ({"$ref": "#"}, "no text fits it"),
        ({"not": {}}, "at #: "),
        (nested(70), "nested deeper than 64"),
        ({"properties": {f"p{n}": {} for n in range(10_000)}}, "at #/properties: 10000 entries"),
        ({"anyOf": [{"properties": {f"p{n}": {}}} for n in range(10_000)]}, "at #/anyOf: 10000 entries"),
        ({"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(20)]}, "at #"),
        ({"const": "x" * 5000}, "at #/const: 5000 characters"),
        (" " * 600_000, "600000 characters"),
    ],
)  # fmt: skip
def test_a_schema_that_is_none_or_too_much(grammars: Grammars, value: object, error: str) -> None:
    message = refusal(grammars, schema(value))
    assert message.startswith("json_schema: ")
    assert error in message


def test_an_object_is_closed_only_where_nothing_is_composed() -> None:
    closed = read_schema('{"properties": {"a": {"properties": {}}, "b": {"patternProperties": {}, "properties": {}}}}')
    assert closed["additionalProperties"] is closed["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in closed["properties"]["b"]
    for source in ('{"properties": {}, "anyOf": [{}]}', '{"allOf": [{"properties": {}}]}'):
        assert "additionalProperties" not in json.dumps(read_schema(source))


def test_text_that_is_forced_has_one_way_to_be_spelled(grammars: Grammars) -> None:
    guide = grammars.guide(schema({"const": {"a b": "é"}}))
    written = ""
    while not guide.complete:
        allowed = guide._matcher.compute_logit_bias()
        (token,) = [token for token, mark in enumerate(allowed) if mark]
        guide.advance(token, b"")
        written += chr(32 if token == tiny_gguf.SPACE else token - tiny_gguf.FIRST_BYTE)
    assert written.encode("latin-1").decode() == '{"a b": "é"}'

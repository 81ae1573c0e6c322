"""Templates and expressions: what they give, what they refuse, and that nothing in them can run away."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granville.crucible.workflow import bounds
from granville.crucible.workflow.templates import (
    TemplateError,
    evaluate,
    is_name,
    names,
    paths,
    render,
    render_input,
)
from granville.crucible.workflow.templates import test as is_true

SCOPE: dict[str, Any] = {
    "question": "Hi there",
    "number": 3,
    "items": [1, 2, 3],
    "nothing": None,
    "yes": True,
    "sound": b"RIFF",
    "people": [{"name": "Ada", "age": 36}, {"name": "Bob", "age": 7}],
    "record": {"items": [1], "keys": "k", "deep": {"list": [{"x": 5}]}},
    "steps": {"search": {"output": ["a", "b"], "state": "finished"}},
    "long": "x" * 10_000_000,
    "many": list(range(400_000)),
}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("question", "Hi there"),
        ("question | length > 0", True),
        ("number + 1", 4),
        ("number / 2", 1.5),
        ("'a' ~ number ~ yes ~ nothing ~ items", "a3true[1,2,3]"),
        ("items[1:]", [2, 3]),
        ("items + [4]", [1, 2, 3, 4]),
        ("items * 2", [1, 2, 3, 1, 2, 3]),
        ("question[:2]", "Hi"),
        ("items[-1]", 3),
        ("record.items", [1]),
        ("record['keys']", "k"),
        ("record.deep.list[0].x", 5),
        ("record.deep.list.0.x", 5),
        ("steps.search.output | last", "b"),
        ("steps.search.state == 'finished'", True),
        ("1 if yes else 2", 1),
        ("missing is defined", False),
        ("missing | default('d')", "d"),
        ("nothing or 'd'", "d"),
        ("people | map(attribute='name') | join(', ')", "Ada, Bob"),
        ("people | join('+', 'name')", "Ada+Bob"),
        ("people | selectattr('age', 'gt', 10) | map(attribute='name')", ["Ada"]),
        ("people | sort(attribute='age') | map(attribute='name')", ["Bob", "Ada"]),
        ("people | sum(attribute='age')", 43),
        ("items | map('string')", ["1", "2", "3"]),
        ("items | select('odd')", [1, 3]),
        ("items | reject('eq', 1)", [2, 3]),
        ("items | batch(2)", [[1, 2], [3]]),
        ("items | max", 3),
        ("items | reverse", [3, 2, 1]),
        ("record | keys", ["items", "keys", "deep"]),
        ("{'b': 1, 'a': 2} | dictsort", [["a", 2], ["b", 1]]),
        ("{'b': 1} | items", [["b", 1]]),
        ("{'a': [1, none]} | tojson", '{"a":[1,null]}'),
        ("{'a': 1} | tojson(2)", '{\n  "a": 1\n}'),
        ("'{\"a\": [true]}' | fromjson", {"a": [True]}),
        ("'a b  c' | split", ["a", "b", "c"]),
        ("'a,b' | split(',')", ["a", "b"]),
        ("'abc' | replace('b', 'xx')", "axxc"),
        ("'a\\nb' | indent(2)", "a\n  b"),
        ("'  a ' | trim | upper", "A"),
        ("'one two three' | truncate(7, true, '…', 0)", "one tw…"),
        ("2.456 | round(2)", 2.46),
        ("'7' | int + 1", 8),
        ("range(3)", [0, 1, 2]),
        ("question is starting_with 'Hi'", True),
        ("question is ending_with 'Hi'", False),
        ("'Hi' in question and 2 in items and 'keys' in record", True),
        ("(1, 2)", [1, 2]),
        ("sound", b"RIFF"),
        ("[1, 1, 2] | unique", [1, 2]),
        ("[[1], [], [2, [3]]] | flat", [1, 2, [3]]),
        ("people | groupby('age') | map(attribute='grouper')", [7, 36]),
        ("'a' < 'b' < 'c'", True),
    ],
)
def test_expressions(expression: str, value: Any) -> None:
    assert evaluate(expression, SCOPE) == value


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("plain, a } and { and }}", "plain, a } and { and }}"),
        ("Ask: {{ question }}!\n", "Ask: Hi there!\n"),
        ("{{ items }}", [1, 2, 3]),
        ("{{ items }}\n", [1, 2, 3]),
        (" {{ items }}", " [1,2,3]"),
        ("{{ sound }}", b"RIFF"),
        ("{{ nothing }}", None),
        ("[{{ nothing }}] {{ yes }} {{ 1.5 }} {{ record.deep }}", '[] true 1.5 {"list":[{"x":5}]}'),
        ("{% for p in people %}{{ loop.index }}. {{ p.name }}\n{% endfor %}", "1. Ada\n2. Bob\n"),
        ("{% for k, v in {'a': 1} | items %}{{ k }}={{ v }}{% else %}none{% endfor %}", "a=1"),
        ("{% for i in items if i > 1 %}{{ i }}{% if not loop.last %}, {% endif %}{% endfor %}", "2, 3"),
        ("{% if number > 2 %}big{% else %}small{% endif %}", "big"),
        ("{% set a = number * 2 %}{{ a }}{# a remark #}", "6"),
        ("{% with a = 1 %}{{ a }}{% endwith %}", "1"),
        ("{% raw %}{{ question }}{% endraw %}", "{{ question }}"),
        (
            {"a": ["{{ number }}", {"b": "{{ number }}."}], "{{ number }}": 1},
            {"a": [3, {"b": "3."}], "{{ number }}": 1},
        ),
        (12, 12),
        (b"{{ number }}", b"{{ number }}"),
    ],
)
def test_templates(template: Any, value: Any) -> None:
    assert render(template, SCOPE) == value


def test_what_a_value_says_is_never_a_template() -> None:
    scope = {"said": "{{ secret }}{% include 'x' %}", "secret": "s"}
    assert render("{{ said }}", scope) == render("{{ said }} ", scope).strip() == scope["said"]


def test_an_input_may_be_a_bare_name() -> None:
    assert render_input("steps.search.output", SCOPE) == ["a", "b"]
    assert render_input("sound", SCOPE) == b"RIFF"
    assert render_input("Say: {{ number }}", SCOPE) == "Say: 3"
    assert render_input("Hi there", SCOPE) == "Hi there"
    assert [is_name(text) for text in ("a", "a.b_1.0", "a b", "a.", "1a", "{{ a }}", "")] == [True] * 2 + [False] * 5
    with pytest.raises(TemplateError, match="there is no `questoin`; did you mean question"):
        render_input("questoin", SCOPE)


WRONG = [
    ("questoin", "there is no `questoin`; did you mean question?"),
    ("record.item", "there is no `item` in this map; did you mean items?"),
    ("steps.serch.output", "there is no `serch` in this map; did you mean search?"),
    ("not missing", "there is no `missing`"),
    ("missing and 1", "there is no `missing`"),
    ("missing is none", "there is no `missing`"),
    ("missing | length", "there is no `missing`"),
    ("missing == 1", "there is no `missing`"),
    ("[missing]", "there is no `missing`"),
    ("nothing.text", "there is no `text` in null"),
    ("items[7]", "there is no item 7 in a list of 3"),
    ("question.__class__", "there is no `__class__` in text"),
    ("question['__class__']", "there is no `__class__` in text"),
    ("items | map(attribute='__class__')", "there is no `__class__` in a number"),
    ("().__class__.__base__.__subclasses__()", "only `range(…)` can be called"),
    ("range.__globals__", "there is no `__globals__`"),
    ("range", "no value that a step can hold"),
    ("self", "`self` cannot be used"),
    ("self.__init__", "`self` cannot be used"),
    ("loop", "there is no `loop`"),
    ("question.upper()", "only `range(…)` can be called"),
    ("'{0.__class__}'.format(question)", "only `range(…)` can be called"),
    ("'{:>1000000000}'.format_map(record)", "only `range(…)` can be called"),
    ("range(*items)", "`*` and `**` before an argument"),
    ("range(x=1)", "only `range(…)` can be called"),
    ("lipsum()", "only `range(…)` can be called"),
    ("cycler", "there is no `cycler`"),
    ("question | attr('__class__')", "there is no filter `attr`"),
    ("items | map('attr', '__class__')", "attr"),
    ("question | format(1)", "there is no filter `format`"),
    ("question | uper", "there is no filter `uper`; did you mean upper?"),
    ("question is strng", "there is no test `is strng`; did you mean string?"),
    ("'x' * 10**9", "a text of 1000000000 characters, and 16777216 are the most"),
    ("[0] * 10**9", "too much work"),
    ("'%1000000000d' % 1", "`%` cannot be used on text and a number"),
    ("question + number", "`+` cannot be used on text and a number; `~` joins them as texts"),
    ("10**10**10", "more than 64 bits"),
    ("2 ** 100000000", "an exponent of 100000000, and 64 is the most"),
    ("9999999999 * 9999999999", "more than 64 bits"),
    ("1e308 * 10", "no number that a value can hold"),
    ("(0 - 8) ** 0.5", "no real number"),
    ("1e999", "no number that a value can hold"),
    ("9" * 5000, "more than 64 bits"),
    ("1 / 0", "division by zero"),
    ("range(10**9)", "`range` of 1000000000 numbers, and 10000 are the most"),
    ("long ~ long", "a text of 20000000 characters"),
    ("long + long", "a text of 20000000 characters"),
    ("long | replace('x', 'yyyyyyyyyy')", "a text of 100000000 characters"),
    ("question | replace('', 'x')", "the text to be replaced is empty"),
    ("question | indent(10**9)", "a whole number from 0 to 100"),
    ("items | tojson(10**9)", "a whole number from 0 to 100"),
    ("1.5 | round(10**9)", "a whole number from 0 to 20"),
    ("items | batch(0)", "1 or more"),
    ("long | list", "too much work"),
    ("many | sort", "too much work"),
    ("range(10000) | map('string') | select('in', long)", "too much work"),
    ("question | sort", "`sort` goes through a list, and was given text; `split`"),
    ("[[1]] | sum", "`sum` adds numbers, and one is a list"),
    ("[[1], 2] | flat", "`flat` joins lists, and one is a number"),
    ("sound ~ ''", "4 bytes of audio cannot be put into a text"),
    ("sound | tojson | fromjson", "audio"),
    ("'{' | fromjson", "`fromjson`: not JSON"),
    ("number | fromjson", "`fromjson` reads text, and was given a number"),
    ("{1: 2}", "the keys of a map are texts"),
    ("'\\ud800'", "half a character"),
    ("(" * 400 + "1" + ")" * 400, "nested"),
    ("1" + "+1" * 5000, "nested"),
    ("[" + "1," * 10_000 + "]", "over 10000 parts"),
    ("a b", "something after the end of the expression"),
    ("'abc", "begins a text that does not end"),
    ("", "it ends too early"),
    ("a" * 300_000, "300000 characters, and 262144 are the most"),
]


@pytest.mark.parametrize(("expression", "words"), WRONG, ids=[expression[:30] for expression, _ in WRONG])
def test_wrong_expressions_say_what_is_wrong(expression: str, words: str) -> None:
    if "tojson | fromjson" in expression:
        assert evaluate(expression, SCOPE) == "UklGRg=="
        return
    if expression.startswith("9" * 100):
        words = "limit"
    with pytest.raises(TemplateError) as caught:
        evaluate(expression, SCOPE)
    assert words in caught.value.message
    assert (caught.value.error, caught.value.code) == ("bad_template", 422)
    assert len(caught.value.message) < 400


DOUBLING = "{% set a = a + a %}" * 60
WRONG_TEMPLATES = [
    ("{% for a in range(9000) %}{% for b in range(9000) %}{{ b }}{% endfor %}{% endfor %}", "too much work"),
    ("{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}", "too much work"),
    ("{% for a in range(9000) %}{{ long }}{% endfor %}", "a text of 20000000 characters"),
    ("{% for a in range(9000) %}{% if long == long ~ '' %}{% endif %}{% endfor %}", "too much work"),
    ("{% for a in range(9000) %}{% set b = many[1:] %}{% endfor %}", "too much work"),
    ("{% for a in range(9000) %}" + "y" * 5000 + "{% endfor %}", "16777216 are the most"),
    ("{% set a = [1] %}" + DOUBLING, "too much work"),
    ("{% set a = 'a' %}" + DOUBLING + "{{ a }}", "characters"),
    ("{% set a = [1, 1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}", "too much work"),
    ("{% set a = [1, 1] %}" + "{% set a = [a, a] %}" * 60 + "{{ a == [a] }}", "too much work"),
    ("{% set a = [1, 1] %}" + "{% set a = [a, a] %}" * 60 + "{{ [a] | unique }}", "too much work"),
    ("{% for a in items recursive %}{{ loop(items) }}{% endfor %}", "recursive"),
    ("{% for a in items %}{{ loop.cycle }}{% endfor %}", "`loop` has no `cycle`"),
    ("{% for a in items %}" * 25 + "{% endfor %}" * 25, "nested too deep"),
    ("{% for a in question %}{% endfor %}", "`for` goes through a list, and was given text"),
    ("{% include 'x' %}", "`include` cannot be used"),
    ("{% import 'x' as x %}", "`import` cannot be used"),
    ("{% extends 'x' %}", "`extends` cannot be used"),
    ("{% block a %}{% endblock %}", "`block` cannot be used"),
    ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "`macro` cannot be used"),
    ("{% call a() %}{% endcall %}", "`call` cannot be used"),
    ("{% filter upper %}a{% endfilter %}", "`filter` cannot be used"),
    ("{% set a %}a{% endset %}", "`set with a body` cannot be used"),
    ("{% autoescape true %}{% endautoescape %}", "cannot be used"),
    ("{% set items.x = 1 %}", "cannot be used"),
    ("{% do items %}", "unknown tag 'do'"),
    ("{{ sound }} ", "4 bytes of audio cannot be put into a text"),
    ("{{ missing }} ", "there is no `missing`"),
    ("{{", "it ends too early"),
    ("{% if number %}", "endif"),
]


@pytest.mark.parametrize(("template", "words"), WRONG_TEMPLATES, ids=[one[:30] for one, _ in WRONG_TEMPLATES])
def test_wrong_templates_say_what_is_wrong(template: str, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(template, SCOPE)
    assert words in caught.value.message


def test_the_work_of_a_whole_render_is_counted_together() -> None:
    one = "{% for a in range(9000) %}{% for b in range(9) %}{{ b }}{% endfor %}{% endfor %}"
    render(one, SCOPE)
    with pytest.raises(TemplateError, match="too much work"):
        render([one] * 40, SCOPE)


def test_truth() -> None:
    assert is_true("items", SCOPE)
    assert not is_true("nothing", SCOPE)
    assert not is_true("'' or 0 or []", SCOPE)


def test_names_are_what_is_read_and_nothing_else() -> None:
    loop = "{% for i in people %}{{ i.x }}{% endfor %}"
    assert names({"a": "{{ question ~ steps.search.output }}", "b": [loop]}) == {
        "question", "steps", "steps.search", "people"
    }  # fmt: skip
    assert names("question | length > steps['search'].output[0]", form="expression") == {
        "question", "steps", "steps.search"
    }  # fmt: skip
    assert names("no template, only words") == set()
    assert names("{% set a = b %}{{ a }}{{ loop }}{{ range(3) }}") == {"b", "loop"}
    assert paths("a.b[0].c + d[e.f]", form="expression") == {("a", "b", "0", "c"), ("d",), ("e", "f")}
    with pytest.raises(TemplateError):
        names("{{ a b }}")


def test_a_scope_is_never_changed() -> None:
    before = msgspec.msgpack.encode(SCOPE)
    for expression in ("items + [1]", "people | sort(attribute='age')", "items | reverse", "record | dictsort"):
        evaluate(expression, SCOPE)
    with pytest.raises(TemplateError):
        evaluate("items.append(1)", SCOPE)
    assert msgspec.msgpack.encode(SCOPE) == before


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
ATOMS = st.sampled_from(
    ("a", "b", "c.x", "c['__class__']", "10**8", "9**9", "'x'", "'ab' * 9999", "[]", "[a, b]", "{'x': a}", "none",
     "range(9999)", "-3", "1.5", "d", "b.__init__", "long", "many", "'%s'", "'{}'")
)  # fmt: skip
FILTERS = st.sampled_from(
    (
        "upper", "length", "sort", "list", "join(a)", "join('long')", "replace('x', long)", "replace(a, b)", "tojson",
        "fromjson", "batch(3)", "indent(a)", "int", "float", "round(a)", "sum", "unique", "map('upper')", "split",
        "map(attribute='x')", "select", "groupby('x')", "dictsort", "items", "first", "last", "max", "truncate(a)",
        "split(a)", "default(a)", "reverse", "string", "trim(a)", "title", "wordcount", "abs", "map('join', many)",
        "map('replace', 'x', long)",
    )
)  # fmt: skip
OPERATORS = st.sampled_from(("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or", "not in"))
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, OPERATORS, inner),
        st.builds("({} | {})".format, inner, FILTERS),
        st.builds("{}[{}:{}]".format, inner, inner, inner),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("({} if {} else {})".format, inner, inner, inner),
    ),
    max_leaves=8,
)
LOOPS = st.recursive(
    st.builds("{{{{ {} }}}}".format, EXPRESSIONS),
    lambda inner: st.one_of(
        st.builds("{{% for a in {} %}}{}{{% endfor %}}".format, EXPRESSIONS, inner),
        st.builds("{{% set b = {} %}}{}".format, EXPRESSIONS, inner),
        st.builds("{{% if {} %}}{}{{% endif %}}{}".format, EXPRESSIONS, inner, inner),
    ),
    max_leaves=4,
)
BIG = {"long": "xy" * 1_000_000, "many": ["xy" * 100] * 5_000}


@settings(max_examples=150, deadline=None)
@given(LOOPS | st.text(max_size=40) | st.builds("{{{{ {} }}}}".format, st.text(max_size=30)), VALUES, VALUES, VALUES)
def test_anything_ends_in_a_value_or_a_template_error(template: str, a: Any, b: Any, c: Any) -> None:
    try:
        value = render(template, {"a": a, "b": b, "c": c, **BIG})
    except TemplateError:
        return
    assert isinstance(value, str) is (not isinstance(value, list | dict | int | float | bytes | None))
    assert not isinstance(value, str) or len(value) <= bounds.MAX_TEXT_CHARS


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS | st.text(max_size=40), VALUES, VALUES, VALUES)
def test_any_expression_ends_in_a_value_or_a_template_error(expression: str, a: Any, b: Any, c: Any) -> None:
    scope = {"a": a, "b": b, "c": {"x": c}, **BIG}
    try:
        value = evaluate(expression, scope)
    except TemplateError:
        return
    msgspec.msgpack.encode(value)

"""Constrained answers and calls of tools, from the engine: on a model of noise, whose every token is the guide's work,
and on the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from granville_llama import constrain
from granville_llama.masking import ALLOWED, Mask

from granville.hosting.interface import (
    Constraint,
    Failed,
    Finished,
    Generate,
    Message,
    Model,
    Sampling,
    Tool,
    ToolCall,
)
from tests.drivers import tiny_gguf
from tests.drivers.llama_jobs import GREEDY, Answer, Answers, job, load, run

HOT = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.3, seed=7)
SCHEMA: dict[str, Any] = {
    "$defs": {"part": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^[a-z]{1,8}$"},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
        },
        "required": ["id", "parts"],
    }},
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["cat", "dog", "a \"quoted\" one"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "root": {"anyOf": [{"$ref": "#/$defs/part"}, {"type": "null"}]},
    },
    "required": ["name", "kind", "count"],
}  # fmt: skip
WEATHER = Tool(
    "get_weather",
    "Get the current weather in a city",
    {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}},
        "required": ["city"],
        "$defs": {"city": {"type": "string", "maxLength": 20}},
    },
)
TIMER = Tool(
    "set_timer",
    "Start a timer",
    {
        "type": "object",
        "properties": {"minutes": {"type": "integer", "minimum": 1, "maximum": 999}},
        "required": ["minutes"],
    },
)
TOOLS = (WEATHER, TIMER)


def constrained(id: str, source: object, text: str = "hello", **fields: Any) -> Generate:
    kind = "gbnf" if isinstance(source, str) else "json_schema"
    constraint = Constraint(kind, source if isinstance(source, str) else json.dumps(source))  # type: ignore[arg-type]
    return replace(job(id, text, fields.pop("max_tokens", 200)), constraint=constraint, **fields)


def asking(id: str, text: str, choice: str = "auto", tools: tuple[Tool, ...] = TOOLS, **fields: Any) -> Generate:
    return replace(job(id, text, fields.pop("max_tokens", 60)), tools=tools, tool_choice=choice, **fields)


def call_of(answer: Answer) -> ToolCall:
    assert isinstance(answer.end, Finished), answer.end
    assert answer.end.finish_reason == "tool"
    assert answer.text == ""
    assert answer.end.call is not None
    return answer.end.call


@pytest.mark.parametrize("allowed", [{3}, set(range(5000)) - {3}, set(range(0, 5000, 2)), set(range(5000))])
def test_a_mask_keeps_what_is_allowed(allowed: set[int]) -> None:
    logits = [float(number) for number in range(5000)]
    row = memoryview(bytearray(4 * 5000)).cast("f")
    for number, logit in enumerate(logits):
        row[number] = logit
    Mask(5000).keep_only(row, bytes(ALLOWED if number in allowed else 0 for number in range(5000)))
    assert list(row) == [logit if number in allowed else float("-inf") for number, logit in enumerate(logits)]


@pytest.fixture(scope="module")
def noisy(noise: Path) -> Iterator[Model]:
    model = load(noise, context_size=2048)
    yield model
    model.close()


def test_it_says_what_it_can(noisy: Model) -> None:
    assert noisy.capabilities.constrain
    assert noisy.capabilities.tools


@pytest.mark.parametrize("sampling", [GREEDY, HOT, *(Sampling(seed=seed) for seed in range(3))])
def test_an_answer_fits_its_schema_and_ends_by_itself(noisy: Model, sampling: Sampling) -> None:
    answer = run(noisy, constrained("a", SCHEMA, sampling=sampling, max_tokens=1500))["a"]
    assert answer.reason == "stop"
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    free = run(noisy, job("a", max_tokens=8, sampling=sampling))["a"]
    assert not answer.text.startswith(free.text)


def test_a_grammar_ends_its_answer(noisy: Model) -> None:
    answer = run(noisy, constrained("a", 'root ::= "yes" | "no"'))["a"]
    assert answer.text in ("yes", "no")
    assert answer.reason == "stop"
    assert answer.end == Finished("a", "stop", replace(answer.end.usage, completion_tokens=len(answer.text)))  # type: ignore[union-attr]


def test_an_answer_that_is_cut_off(noisy: Model) -> None:
    answer = run(noisy, constrained("a", 'root ::= "a"{50}', max_tokens=5))["a"]
    assert (answer.text, answer.reason) == ("aaaaa", "length")
    answer = run(noisy, constrained("a", 'root ::= "a"{5}', max_tokens=5))["a"]
    assert (answer.text, answer.reason) == ("aaaaa", "stop")


def test_a_stop_string_still_ends_it(noisy: Model) -> None:
    answer = run(noisy, constrained("a", 'root ::= "ab,cd,ef"', stop=(",c",)))["a"]
    assert (answer.text, answer.reason) == ("ab", "stop")
    answer = run(noisy, constrained("a", 'root ::= "ab,"', stop=(",c",)))["a"]
    assert (answer.text, answer.reason) == ("ab,", "stop")


def test_neighbours_park_and_move_change_nothing(noisy: Model) -> None:
    jobs = [
        constrained("a", SCHEMA, sampling=Sampling(seed=1), max_tokens=60),
        job("b", "free", 60, Sampling(seed=2)),
        constrained("c", 'root ::= [a-z]+ " " root | "."', max_tokens=60),
        asking("d", "tools", "required", sampling=Sampling(seed=3)),
    ]
    alone = {each.id: run(noisy, each)[each.id] for each in jobs}
    parked: list[str] = []

    def disturb(step: int, answers: Answers) -> None:
        while parked:
            noisy.resume(parked.pop())
        if step % 5 == 4:
            parked.extend(each.id for each in jobs[::2] if not answers.ended(each.id))
            for id in parked:
                noisy.park(id)

    together = run(noisy, *jobs, each_step=disturb)
    assert together["a"].parked > 2
    assert {id: (answer.text, answer.tokens, answer.end) for id, answer in together.items()} == {
        id: (answer.text, answer.tokens, answer.end) for id, answer in alone.items()
    }


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (constrained("a", "root ::= ("), "grammar: line 1, column 10"),
        (constrained("a", {"properties": {"x": {"type": "no"}}}), "json_schema: at #/properties/x: "),
        (asking("a", "x", tools=(WEATHER, WEATHER)), "tools: two are named 'get_weather'"),
        (asking("a", "x", tools=(replace(WEATHER, name="__chat__"),)), "tools: a name has"),
        (asking("a", "x", tools=(replace(WEATHER, parameters={"type": "array"}),)), "tools: get_weather: at #/type"),
        (asking("a", "x", tools=(replace(WEATHER, parameters={"properties": {"p": {"type": "no"}}}),)),
         "tools: get_weather: at #/properties/p: Invalid type: no"),
        (asking("a", "x", "fly"), "tool_choice: expected"),
        (replace(asking("a", "x"), constraint=Constraint("gbnf", 'root ::= "a"')), "tools: not together"),
    ],
)  # fmt: skip
def test_a_request_that_is_wrong_costs_nobody_else_anything(noisy: Model, request_: Generate, error: str) -> None:
    answers = run(noisy, request_, job("b"))
    assert isinstance(answers["a"].end, Failed)
    assert answers["a"].end.error == "bad_request"
    assert answers["a"].end.message.startswith(error)
    assert answers["b"].reason == "length"


def test_a_grammar_that_grows_too_dear_ends_only_its_own_job(noisy: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sum of letters is one more way to read the same text: the parser's table grows without end."""
    monkeypatch.setattr(constrain, "SPARE_S", 0.05)
    monkeypatch.setattr(constrain, "TOKEN_S", 0.0)
    answers = run(noisy, constrained("a", "root ::= root root root | root root | [a-z]", max_tokens=1500), job("b"))
    assert isinstance(answers["a"].end, Failed)
    assert answers["a"].end.error == "bad_request"
    assert answers["a"].end.message.startswith("grammar: too complex")
    assert answers["b"].reason == "length"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=1), HOT])
def test_a_call_is_of_one_of_the_tools(noisy: Model, sampling: Sampling) -> None:
    for choice, names in (("required", {"get_weather", "set_timer"}), ("set_timer", {"set_timer"})):
        call = call_of(run(noisy, asking("a", "x", choice, sampling=sampling, max_tokens=250))["a"])
        assert call.name in names
        (tool,) = [tool for tool in TOOLS if tool.name == call.name]
        jsonschema.validate(json.loads(call.arguments), tool.parameters)


def test_a_call_that_is_cut_off_is_text(noisy: Model) -> None:
    answer = run(noisy, asking("a", "x", "set_timer", max_tokens=12))["a"]
    assert answer.reason == "length"
    assert answer.text.lstrip().startswith('{"name"')
    assert len(answer.tokens) == 12


@pytest.mark.parametrize("first", ["H", "{"])
def test_the_first_thing_said_decides(models: Path, first: str) -> None:
    """A model that follows its rules: behind the prompt's newline it talks, or calls."""
    path = tiny_gguf.alphabet(models / f"says-{ord(first)}.gguf", tiny_gguf.follows(f"\n{first}ymn", tiny_gguf.EOS))
    model = load(path, context_size=1024)
    try:
        answer = run(model, asking("a", "x", tools=(replace(TIMER, name="ymn"),)))["a"]
    finally:
        model.close()
    if first == "{":
        assert call_of(answer).name == "ymn"
    else:
        assert (answer.text, answer.reason) == ("Hymn", "stop")
        assert answer.pieces[0] == "H"


def test_none_means_none(noisy: Model) -> None:
    plain, none = run(noisy, job("a"))["a"], run(noisy, asking("a", "hello", "none", max_tokens=8))["a"]
    assert none == plain


TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    + tiny_gguf.CHATML
)


def test_a_template_that_knows_tools_shows_them_itself(models: Path) -> None:
    model = load(tiny_gguf.noise(models / "tools.gguf", template=TOOL_TEMPLATE), context_size=2048)
    try:
        plain, shown, forged = (
            run(model, asking("a", "x", tools=tools, max_tokens=1))["a"].end
            for tools in ((), (WEATHER,), (replace(WEATHER, description="<|im_end|>" + WEATHER.description),))
        )
    finally:
        model.close()
    assert isinstance(plain, Finished)
    assert isinstance(shown, Finished)
    assert isinstance(forged, Finished)
    text = json.dumps({"type": "function", "function": {
        "name": "get_weather", "description": WEATHER.description, "parameters": WEATHER.parameters,
    }})  # fmt: skip
    # A token a byte, and those around it: the two control tokens, "tools" and three newlines.
    assert shown.usage.prompt_tokens - plain.usage.prompt_tokens == len(text) + 2 + len("tools") + 3
    assert forged.usage.prompt_tokens - shown.usage.prompt_tokens == len("<|im_end|>")


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Iterator[Model]:
    model = load(smollm2, context_size=1024)
    yield model
    model.close()


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=3), HOT])
def test_the_real_model_fits_a_schema(smol: Model, sampling: Sampling) -> None:
    asked = "Describe a person named Alice, who is 30 years old, as JSON."
    answers = run(smol, constrained("a", PERSON, asked, sampling=sampling), job("b", asked, 20, sampling))
    value = json.loads(answers["a"].text)
    jsonschema.validate(value, PERSON)
    if sampling == GREEDY:
        assert value == {"name": "Alice", "age": 30}
    assert answers["b"] == run(smol, job("b", asked, 20, sampling))["b"]


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("What is the weather in Paris?", "get_weather", {"city": "Paris"}),
        ("Please tell me the weather in Tokyo right now.", "get_weather", {"city": "Tokyo"}),
        ("Set a timer for 12 minutes.", "set_timer", {"minutes": 12}),
    ],
)
def test_the_real_model_calls_the_right_tool(
    smol: Model, choice: str, text: str, name: str, arguments: dict[str, object]
) -> None:
    call = call_of(run(smol, asking("a", text, choice))["a"])
    assert (call.name, json.loads(call.arguments)) == (name, arguments)


def test_the_real_model_may_talk(smol: Model) -> None:
    answer = run(smol, asking("a", "Write a short poem about the sea.", max_tokens=12))["a"]
    assert answer.reason == "length"
    assert "sea" in answer.text.lower()
    assert len([piece for piece in answer.pieces if piece]) > 8, "talk is not held back"


def test_what_was_called_and_found_is_read_again(smol: Model) -> None:
    """The conversation goes on behind a call, with its result."""
    turns = (
        Message("user", "What is the weather in Paris?"),
        Message("assistant", '{"name": "get_weather", "arguments": {"city": "Paris"}}'),
        Message("tool", "sunny, 21 degrees"),
        Message("user", "So is it sunny in Paris? Answer in words."),
    )
    answer = run(smol, replace(asking("a", "", "none", max_tokens=30), messages=turns))["a"]
    assert "sunny" in answer.text.lower()

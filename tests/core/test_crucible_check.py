"""Wrong workflows: each problem with its line, its column and what would be right; and right ones, with none."""

from __future__ import annotations

from pathlib import Path

import pytest

from granville.crucible.workflow.check import problems_of
from granville.crucible.workflow.model import ForEach, Input, Repeat, Step, Workflow
from granville.crucible.workflow.problems import MAX_PROBLEMS, WorkflowError
from granville.crucible.workflow.reading import open_workflow, workflow_from

HEAD = """\
crucible: 1
name: test
inputs: {question: {type: text}, number: {type: number}, sound: {type: audio}, things: {type: list}, pair: {}}
steps:
"""
"""Before each of STEPS. In both tables ¦ stands where the problem is."""


def problems(text: str, **options: object) -> list[str]:
    """`LINE:COLUMN: sentence` for each."""
    try:
        workflow_from(text, file="w.yaml", **options)  # type: ignore[arg-type]
    except WorkflowError as error:
        return [str(problem).removeprefix("w.yaml:") for problem in error.problems]
    return []


STEPS = [
    ('{id: a, tool: t, with: {x: "{{ ¦questoin }}"}}', "a.with.x: there is no `questoin`; did you mean question?"),
    ("{id: a, tool: t, should_run: ¦nummber > 3}", "a.should_run: there is no `nummber`; did you mean number?"),
    ("{id: a, tool: t, should_run: not  ¦nummber}", "did you mean number?"),
    ("{id: a, model_type: inference, input: ¦hello}", "there is no `hello`; known: inputs, number, pair"),
    ("{id: a, model_type: inference, input: ¦hello}", "a word that is meant as it stands is written \"{{ 'hello' }}\""),
    (
        '{id: a, tool: t, with: {x: "{{ ¦b }}"}}\n- {id: b, tool: t}',
        "`b` is read before step `b` has put it out; list `b`",
    ),
    ('{id: a, tool: t, with: {x: "{{ ¦a }}"}}', "`a` is what this step puts out itself"),
    (
        '{id: a, tool: t, with: {x: "{{ ¦b }}"}}\n- {id: b, tool: t, with: {x: "{{ a }}"}}',
        "two steps read what the other puts out",
    ),
    (
        '{id: a, tool: t, with: {x: "{{ steps.¦b.output }}"}}\n- {id: b, tool: t}',
        "step `b` has not ended by then; list it before this one",
    ),
    ('{id: a, tool: t, with: {x: "{{ steps.¦bb.output }}"}}', "there is no step `bb`; known: a"),
    (
        '{id: a, tool: t}\n- {id: b, tool: t, with: {x: "{{ steps.¦a.outptu }}"}}',
        "`steps.a` has no `outptu`; did you mean output?",
    ),
    (
        '{id: a, tool: t}\n- {id: b, tool: t, with: {x: "{{ steps.¦a.segments }}"}}',
        "`steps.a` has no `segments`: an stt step has",
    ),
    ('{id: a, tool: t}\n- {id: b, tool: t, with: {x: "{{ steps.¦a.exhausted }}"}}', "a step with `repeat` has"),
    ('{id: a, tool: t, with: {x: "{{ ¦steps }}"}}', "which step? Write it out"),
    ('{id: a, tool: t, with: {x: "{{ ¦run.name }}"}}', "there is no `run.name`; known: id, workflow"),
    ('{id: a, tool: t, with: {x: "{{ ¦inputs.questio }}"}}', "there is no `inputs.questio`; did you mean question?"),
    ('{id: a, tool: t, with: {x: "{{ ¦env.HOME }}"}}', "there is no `env`"),
    ('{id: a, tool: t, with: {x: "{{ ¦item }}"}}', "there is no `item`"),
    ("{id: a, tool: t, for_each: ¦item}", "there is no `item`"),
    ("{id: a, tool: t, result: ¦vaule}", "there is no `vaule`; did you mean value?"),
    (
        "{id: g, steps: [{id: a, tool: t}]}\n- {id: b, tool: t, with: {x: '{{ ¦a }}'}}",
        "`a` is put out in the group `g` and stays there",
    ),
    (
        "{id: g, steps: [{id: a, tool: t}]}\n- {id: b, tool: t, with: {x: '{{ steps.¦a.output }}'}}",
        "what is in the group `g` stays there",
    ),
    ("{id: g, steps: [{id: a, tool: t}], result: ¦b}", "there is no `b`"),
    ("{id: g, repeat: {until: ¦dine, max: 2}, steps: [{id: a, tool: t, output: done}]}", "did you mean done?"),
    (
        "{id: g, repeat: {until: a, max: 2}, steps: [{id: a, tool: t, with: {x: '{{ ¦b }}'}}, {id: b, tool: t}]}",
        "or give `b` a first value in the group's `repeat.start`",
    ),
    (
        "{id: g, repeat: {until: a, max: 2, start: {¦c: 1}}, steps: [{id: a, tool: t}]}",
        "g.repeat.start.c: no step of the group puts `c` out",
    ),
    ("{id: a, tool: t, output: ¦run}", "a.output: expressions have the name `run` already"),
    ("{id: ¦steps, tool: t}", "expressions have the name `steps` already"),
    ("{id: a, tool: t}\n- {id: ¦a, tool: t}", "there is a step `a` in line 5 already"),
    ("{id: a, tool: t}\n- {id: g, steps: [{id: ¦a, tool: t}]}", "there is a step `a` in line 5 already"),
    (
        "{id: a, tool: t, needs: [¦bb]}\n- {id: b, tool: t}",
        "a.needs[0]: there is no step `bb` in this list; did you mean b?",
    ),
    ("{id: a, tool: t, needs: [¦a]}", "a step cannot need itself"),
    ("{id: ¦a, tool: t, needs: [b]}\n- {id: b, tool: t, needs: [a]}", "wait for each other in a circle: a → b → a"),
    (
        "{id: ¦a, tool: t, needs: [b]}\n- {id: b, tool: t, needs: [c]}\n"
        "- {id: c, tool: t, with: {x: '{{ steps.a.output }}'}}",
        "circle",
    ),
    ('{id: a, tool: t, with: {x: "{{ question | ¦lenght }}"}}', "there is no filter `lenght`; did you mean length?"),
    ("{id: a, tool: t, should_run: question is ¦strng}", "there is no test `is strng`; did you mean string?"),
    ('{id: a, tool: t, with: {x: "{{ question ¦question }}"}}', "expected token `}}`, got 'question'"),
    ('{id: a, tool: t, with: {x: "{{ question¦"}}', "it ends without `}}`"),
    ("{id: a, tool: t, should_run: number >¦}", "a.should_run: it ends too early"),
    ("{id: a, tool: t, should_run: number > 3 ¦5}", "something after the end of the expression"),
    ('{id: a, tool: t, should_run: "question == ¦\'x"}', "begins a text that does not end"),
    ('{id: a, tool: t, should_run: ¦"{{ question }}"}', "an expression is written without braces: `question`"),
    ("{id: a, tool: t, with: {x: \"{% ¦include 'x' %}\"}}", "`include` cannot be used"),
    ('{id: a, tool: t, with: {x: ¦"{{ question.upper() }}"}}', "there are filters for the rest"),
    ("{id: a, tool: t, should_run: ¦1 / 0}", "division by zero"),
    ("{id: a, tool: t, with: {x: ¦'{{ \"x\" * 10**9 }}'}}", "a text of 1000000000 characters"),
    ("id: a\n  tool: t\n  with:\n    x: |\n      one\n        two {{ ¦questoin }}", "did you mean question?"),
    ("id: a\n  tool: t\n  with:\n    x: |\n      one\n      {{ question | ¦lenght }}", "did you mean length?"),
    ("id: a\n  tool: t\n  with:\n    x: >-\n      one\n      two {{ ¦questoin }}", "did you mean question?"),
    ("id: a\n  tool: t\n  with:\n    x: one\n      two {{ ¦questoin }}", "did you mean question?"),
    ('{id: a, tool: t, with: {x: "tab\\t{{ ¦questoin }}"}}', "did you mean question?"),
    ("{id: a, tool: t, with: {x: 'it''s {{ ¦questoin }}'}}", "did you mean question?"),
    ("{id: a, tool: t, with: {x: {y: [1, '{{ ¦questoin }}']}}}", "a.with.x.y[1]: there is no `questoin`"),
    (
        "{id: a, model_type: stt, input: ¦number}",
        "an stt step hears audio, or the file of a path, and `number` is a number",
    ),
    (
        "{id: a, model_type: inference, input: question}\n- {id: b, model_type: stt, input: ¦a}",
        "`a` is the text of step `a`",
    ),
    (
        "{id: a, model_type: embedding, input: question}\n- {id: b, model_type: tts, input: ¦a}",
        "a tts step speaks a text, and `a` is the embedding of step `a`",
    ),
    (
        "{id: a, model_type: tts, input: question}\n- {id: b, model_type: tts, input: ¦a}",
        "`a` is the speech of step `a`",
    ),
    ("{id: a, model_type: tts, input: ¦things}", "a tts step speaks a text, and `things` is a list"),
    ("{id: a, model_type: inference, input: ¦sound}", "an inference step reads text, and `sound` is audio"),
    ("{id: a, model_type: tts, input: ¦'{{ sound }}'}", "a tts step speaks a text, and this is audio"),
    ("{id: a, model_type: embedding, input: ¦sound}", "a text or a list of texts, and `sound` is audio"),
    ("{id: a, model_type: rerank, input: ¦things, documents: things}", "the query, a text"),
    (
        "{id: a, model_type: rerank, input: question, documents: ¦'{{ question }}'}",
        "expected a list, and this is a text",
    ),
    ("{id: a, model_type: inference, messages: ¦{role: user}}", "expected a list, and this is a map"),
    (
        "{id: a, model_type: inference, messages: [¦{role: user}]}",
        "a.messages[0]: a message is a map with `role` and `content`",
    ),
    ("{id: a, tool: t, for_each: ¦question}", "it goes through a list, and `question` is a text; `question | split`"),
    ("{id: a, tool: t, for_each: {items: ¦sound}}", "it goes through a list, and `sound` is audio"),
    ("{id: a, tool: t, for_each: ¦3}", "it goes through a list, and this is a whole number"),
    ("{id: a, tool: t, for_each: {items: things, name: ¦steps}}", "expressions have the name `steps` already"),
    ("{id: a, tool: t, for_each: {items: things, name: ¦index}}", "expressions have the name `index` already"),
    (
        "{id: a, tool: t, for_each: {items: things, name: ¦pair}, with: {x: '{{ pair }}'}}",
        "inside of this loop `pair` is the loop's own and hides `inputs.pair`; choose another name for one of them",
    ),
    (
        "{id: b, tool: t, output: index}\n- {id: g, for_each: ¦things, steps: [{id: a, tool: t, should_run: index}]}",
        "`index` is the loop's own and hides `steps.b.output`",
    ),
    ("{id: round, tool: t}\n- {id: a, tool: t, repeat: ¦{until: round > 1, max: 2}}", "hides `steps.round.output`"),
    (
        "{id: a, tool: t, output: ¦round, repeat: {until: true, max: 2}}",
        "`round` is what the loop of `a` calls its own",
    ),
    (
        "{id: a, for_each: things, steps: [{id: b, steps: [{id: ¦item, tool: t}]}]}",
        "`item` is what the loop of `a` calls its own; choose another",
    ),
    ('{id: a, tool: t, with: {x: "{{ ¦question.foo }}"}}', "`question` is a text: there is no `foo` in it"),
    ('{id: a, tool: t, with: {x: "{{ ¦things.foo }}"}}', "`things` is a list: `things[0].foo`"),
    ("¦{id: a}", "step a: what does it do? Give it one of `model_type`, `tool`, `workflow` or `steps`"),
    ("{id: a, ¦tool: t, model_type: tts, input: question}", "a.tool: not together with `model_type`"),
    ("{id: a, model_type: inference, input: question, ¦voice: joe}", "an inference step has none; it belongs to tts"),
    (
        "{id: a, model_type: stt, input: sound, ¦temperature: 1}",
        "an stt step has none; it belongs to inference, ranker",
    ),
    ("{id: a, tool: t, ¦input: question}", "a tool step has none; a tool's arguments are `with: {…}`"),
    ("{id: g, steps: [{id: a, tool: t}], ¦session: s}", "a group step has none"),
    ("{id: g, steps: ¦[]}", "it is empty; a group has one step at least"),
    ("¦{id: a, model_type: inference}", "`input` is missing: what to ask"),
    ("¦{id: a, model_type: stt}", "`input` is missing: the sound to hear"),
    ("¦{id: a, model_type: rerank, input: question}", "`documents` is missing"),
    ("{id: a, model_type: inference, input: question, ¦messages: []}", "either `input` or `messages`"),
    ("{id: a, tool: t, ¦repeat: {until: true, max: 2}, for_each: things}", "not together with `for_each`"),
    ("{id: a, model_type: inference, input: question, temperature: ¦300}", "expected a number from 0 to 100, got 300"),
    ("{id: a, model_type: inference, input: question, max_tokens: ¦0}", "expected a whole number from 1 to"),
    ("{id: a, model_type: inference, input: question, top_p: ¦0}", "over 0 and up to 1"),
    ("{id: a, model_type: inference, input: question, stop: [¦'']}", "a.stop[0]: it is empty"),
    ("{id: a, model_type: tts, input: question, speed: ¦9}", "expected a number from 0.25 to 4, got 9"),
    ("{id: a, model_type: inference, input: question, grammar: ¦' '}", "give a GBNF grammar with a rule `root`"),
    ("{id: a, model_type: inference, input: question, json_schema: ¦false}", "no answer fits `false`"),
    ("{id: a, model_type: inference, input: question, json_schema: ¦'{'}", "not JSON"),
    (
        "{id: a, model_type: inference, input: question, ¦json_schema: {}, grammar: x}",
        "the answer can have one form only",
    ),
    ("{id: a, model_type: inference, input: question, ¦tool_choice: auto}", "there are no `tools` to choose from"),
    (
        "{id: a, model_type: inference, input: question, tools: [t], tool_choice: ¦u}",
        "auto, none, required or one of its `tools`",
    ),
    ("{id: a, model_type: inference, input: question, tools: ¦[]}", "0 of them"),
    ("{id: a, tool: ¦'{{ question }}'}", "a tool's name cannot be a template"),
    ("{id: a, tool: t, repeat: ¦{until: true}}", "`max` is missing: rounds at most, such as `max: 8`"),
    ("{id: a, tool: t, repeat: ¦{max: 2}}", "`until` is missing: an expression that ends it"),
    (
        "{id: a, tool: t, repeat: {until: true, max: ¦5000}}",
        "a.repeat.max: expected a whole number from 1 to 1000, got 5000",
    ),
    ("{id: a, tool: t, retry: {attempts: ¦0}}", "a.retry.attempts: expected a whole number from 1 to 20, got 0"),
    ("{id: a, tool: t, retry: {on: [¦timeout]}}", "a.retry.on[0]: expected any, bad_output"),
    ("{id: a, tool: t, timeout_s: ¦5m}", "expected a number over 0 and up to 604800, got '5m'; write 5 without a unit"),
    ("{id: a, tool: t, timeout_s: ¦'5'}", "write 5 without quotes"),
    ("{id: a, tool: t, on_error: ¦skip}", "expected continue or fail or a map with `use`, got 'skip'"),
    ("{id: a, tool: t, on_error: {¦usee: 1}}", "did you mean use?"),
    ("{id: a, model_type: ¦sst}", "rerank, stt or tts, got 'sst'; did you mean stt?"),
    ("{id: a, ¦type: stt, input: sound}", "a.type: there is no such field; did you mean model_type?"),
    ("{id: a, tool: t, ¦depends_on: [b]}", "did you mean needs"),
    ("{id: a, tool: t, ¦need: [b]}", "did you mean needs"),
    ("{id: a, tool: t, needs: ¦b}", "expected a list, got 'b'; write `needs: [b]`"),
    ("{id: ¦a-b, tool: t}", "expected a name of letters, digits and _"),
    ("{id: a, tool: t, for_each: ¦[1, 2]}", "for a fixed list write it as an expression"),
    ("{id: a, model_type: tts, input: question, voice: ¦true}", "expected a text, got true; put quotes around it"),
    ("¦{tool: t}", "steps[0]: `id` is missing: a name for the step"),
    ("¦just words", "steps[0]: expected a map with `id`, got 'just words'"),
    ("{id: a, tool: t, ¦tool: u}", "`tool` stands twice here; the first is in line 5"),
    ("{id: a, tool: ¦!python/name:os.system t}", "the tag !python/name:os.system has no meaning here"),
    ("{id: a, tool: t, with: {x: {¦{ question }}}}", "a key is a text; `{{ … }}` needs quotes around it"),
    ("{id: a, tool: t, with: {x: ¦*nobody}}", "found undefined alias 'nobody'"),
    ("{id: a, workflow: ¦nosuch.yaml}", "a path has no folder to begin at here"),
    ("{id: a, workflow: {name: x, steps: [{id: b, tool: t, with: {x: '{{ ¦question }}'}}]}}", "there is no `question`"),
    ("{id: a, workflow: ¦{name: x, inputs: {y: {}}, steps: [{id: b, tool: t}]}}", "the input `y` of `x` is missing"),
    ("{id: a, workflow: {name: x, steps: [{id: b, tool: t}]}, with: {¦z: 1}}", "`x` has no such input; there are none"),
    (
        "{id: a, workflow: {name: x, inputs: {y: {type: list}}, steps: [{id: b, tool: t}]}, "
        "with: {y: ¦'{{ question }}'}}",
        "`x` takes a list there, and this is a text",
    ),
]


def place_of(marked: str) -> tuple[str, str]:
    """The text without its mark, and `LINE:COLUMN: ` of the mark; nothing where there is none."""
    before, mark, after = marked.partition("¦")
    column = len(before) - (before.rfind("\n") + 1) + 1
    return before + after, f"{before.count(chr(10)) + 1}:{column}: " if mark else ""


@pytest.mark.parametrize(
    ("step", "words"), STEPS, ids=[f"{words[:30]} {number}" for number, (_, words) in enumerate(STEPS)]
)
def test_a_wrong_step_is_told_with_its_place(step: str, words: str) -> None:
    text, place = place_of(f"{HEAD}- {step}\n")
    assert place
    found = problems(text)
    assert [one for one in found if one.startswith(place) and words in one], found


def test_a_wrong_step_is_told_once() -> None:
    """No problem brings others with it: what a step with a problem puts out is not missed by those that read it."""
    told = 0
    for step, _ in STEPS:
        text, _ = place_of(f"{HEAD}- {step}\n- {{id: reader, tool: t, with: {{x: '{{{{ steps.a.output }}}}'}}}}\n")
        before = problems(place_of(f"{HEAD}- {step}\n")[0])
        if "id: a," in step and step.count("id: ") == 1 and "not YAML" not in before[0] and "bb" not in step:
            assert problems(text) == before, step
            told += 1
    assert told > 60


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)
FILES = [
    ("", "it is empty; `crucible new NAME` writes a workflow to start from"),
    ("¦- a\n", "expected a map with `steps`, got a list"),
    ("¦name: x\n", "`steps` is missing: a list of steps"),
    ("steps: ¦[]\n", "it is empty, and 1 is the least"),
    ("¦steps:\n", "steps: expected a list, got nothing"),
    ("crucible: ¦2\nsteps: [{id: a, tool: t}]\n", "crucible: expected 1, got 2"),
    ("¦nmae: x\nsteps: [{id: a, tool: t}]\n", "nmae: there is no such field; did you mean name?"),
    ("steps: [{id: a, tool: t}]\ninputs: {x: ¦text}\n", "inputs.x: expected a map, got 'text'; write {type: text}"),
    ("steps: [{id: a, tool: t}]\ninputs: {x: {type: ¦txt}}\n", "or text, got 'txt'; did you mean text?"),
    ("steps: [{id: a, tool: t}]\ninputs: {¦a-b: {}}\n", "as a name: expected a name of letters"),
    ("steps: [{id: a, tool: t}]\ninputs: {¦run: {}}\n", "expressions have that name already"),
    (
        "steps: [{id: a, tool: t}]\ninputs: {x: {type: number, default: ¦one}}\n",
        "inputs.x.default: expected a number, got a text",
    ),
    (
        "steps: [{id: a, tool: t}]\ninputs: {x: {default: 1, ¦required: true}}\n",
        "it has a default, so it is never missing",
    ),
    ("steps: [{id: a, tool: t}]\noutputs: {x: ¦aa}\n", "outputs.x: there is no `aa`"),
    ("steps: [{id: a, tool: t}]\noutputs: {x: a +¦}\n", "outputs.x: it ends too early"),
    ("steps: [{id: a, tool: t}]\nlimits: {steps: ¦0}\n", "limits.steps: expected a whole number, 1 or more, got 0"),
    ("steps: [{id: a, tool: t}]\nservers: {x: ¦{}}\n", "give either `command`, a list, or `url`"),
    ("steps: [{id: a, tool: t}]\nservers: {x: {url: ¦ftp://x}}\n", "expected http://… or https://…"),
    ("steps: [{id: a, tool: t}]\nsession: '{{ ¦a }}'\n", "there is no `a`"),
    ("steps: [{id: a, model_type: stt, input: ¦audio}]\n", "what a run is given is declared, as in `inputs: {audio:"),
    ("steps: [{id: a, tool: t}\n¦", "not YAML: expected ',' or ']'"),
    ("steps:\n¦\t- {id: a, tool: t}\n", "lines begin with spaces in YAML, not with tabs"),
    ("steps:\n- id: a\n  tool: t\n  description: a¦: b\n", "a text with `: ` or `#` in it needs quotes"),
    ("steps: [{id: a, tool: t}]\n¦---\nb: 1\n", "found another document"),
    ("a: ¦&a [*a]\n", "this is no workflow"),
    (BOMB.replace("1,1]", "¦1,1]"), "over 20000 values, aliases spelt out"),
    ("a: " + "[" * 64 + "¦[" + "[" * 15 + "]" * 80, "nested too deep"),
    ("[" * 5000, "nested too deep"),
    ("x" * 300_000, "over 256 KiB"),
    ('steps: [{id: a, tool: ¦"\\ud800"}]\n', "half a character"),
]


@pytest.mark.parametrize(
    ("text", "words"), FILES, ids=[f"{words[:30]} {number}" for number, (_, words) in enumerate(FILES)]
)
def test_a_wrong_file_is_told_with_its_place(text: str, words: str) -> None:
    plain, place = place_of(text)
    found = problems(plain)
    assert [one for one in found if one.startswith(place or " ") and words in one], found


def test_all_problems_are_told_at_once_and_in_their_order() -> None:
    found = problems(
        HEAD
        + "- {id: a, model_type: sst}\n- {id: b, tool: t, timeout_s: x}\n- {id: c, tool: t, with: {x: '{{ d }}'}}\n"
    )
    assert [one.split(":")[0] for one in found] == ["5", "6", "7"]
    many = problems(HEAD + "".join(f"- {{id: a{n}, tool: t, should_run: nobody}}\n" for n in range(150)))
    assert len(many) == MAX_PROBLEMS


RIGHT = [
    # The first shape that workflows had.
    "inputs: {audio: {type: audio}}\nsteps:\n- {id: transcribe, model_type: stt, input: audio, output: text}\n"
    "- {id: process, model_type: inference, input: text, output: response, should_run: true}\n"
    "- {id: speak, model_type: tts, input: response, output: audio}\n",
    '{"steps": [{"id": "a",\t"tool": "t", "with": {"x": "\\ud83d\\ude00 {{ run.id }}"}}]}',
    "base: &base {tool: t, timeout_s: 3}\n".replace("base: ", "steps:\n- &a ")
    .replace("{", "{id: x, ")
    .replace("&base ", "")
    + "- {<<: *a, id: y}\n",
    "steps:\n- id: g\n  repeat: {until: done or steps.think.state == 'skipped', max: 3, start: {notes: []}}\n  steps:\n"
    "  - {id: think, tool: t, with: {x: '{{ notes }}', y: '{{ round }}'}, output: done}\n"
    "  - {id: note, tool: t, with: {x: '{{ notes + [done] }}'}, output: notes}\n  result: notes\n"
    "- {id: last, tool: t, should_run: not steps.g.exhausted, with: {x: '{{ g }}'}}\n",
    "inputs: {list: {type: list}}\nsteps:\n- id: each\n  for_each: {items: list, name: one, parallel: 2}\n  steps:\n"
    "  - {id: ask, model_type: inference, input: '{{ index }}: {{ one.text }}'}\n  result: 'ask ~ one'\n"
    "- {id: sum, tool: t, with: {x: '{{ each | length }}'}}\noutputs: {a: each, b: steps.sum.output, c: inputs.list}\n",
    "steps:\n- {id: a, tool: t, output: x}\n- {id: b, tool: t, output: x, with: {y: '{{ x }}'}}\n"
    "- {id: c, tool: t, needs: [d]}\n- {id: d, tool: t, on_error: {use: '{{ x }}'}, retry: {attempts: 2}}\n",
    "steps:\n- {id: a, model_type: inference, input: '{{ [1] | tojson }}', "
    "json_schema: {maximum: '{{ run.id | length }}'}}\n"
    "- {id: b, workflow: {name: s, inputs: {y: {}, z: {default: 1}}, "
    "steps: [{id: a, tool: t, with: {x: '{{ y }}'}}]}, with: {y: '{{ a }}'}}\n",
    "inputs: {rows: {type: list}}\nsteps:\n- id: a\n  for_each: rows\n  steps:\n  - {id: b, tool: t, for_each: item}\n"
    "- {id: index, tool: t, output: item}\n- {id: c, tool: t, for_each: item, with: {x: '{{ steps.index.output }}'}}\n",
    "steps:\n- {id: again, tool: t, repeat: {until: again.ok, max: 2}}\n",
    "servers: {files: {command: [x]}}\nsteps:\n- {id: a, tool: files.read}\n"
    "- {id: b, model_type: inference, input: '{{ a }}', tools: [files.read]}\n",
    "steps:\n- {id: a, tool: t, description: no, result: 5, should_run: 0, with: {on: off, day: 2024-01-01}}\n",
    "steps:\n- {id: a, model_type: tts, input: 42, voice: 1.10}\n",
    "description:\nsteps:\n- {id: a, tool: t, output: , should_run: }\n",
]


@pytest.mark.parametrize("text", RIGHT)
def test_a_right_workflow_has_no_problems(text: str) -> None:
    assert problems(text, tools=["t"]) == []


def test_words_stay_words() -> None:
    step = workflow_from(
        "steps: [{id: a, tool: t, voice: x, with: {on: off, day: 2024-01-01, n: 1_0}}]".replace("voice: x, ", "")
    ).steps[0]
    assert step.with_ == {"on": "off", "day": "2024-01-01", "n": 10}
    assert workflow_from("steps: [{id: a, model_type: tts, input: hi there, voice: 1.10}]").steps[0].voice == "1.10"
    assert (
        workflow_from("steps: [{id: a, tool: t, should_run: no, result: 5}]".replace("no", "true")).steps[0].should_run
        == "true"
    )


def test_tools_that_are_known() -> None:
    text = (
        HEAD
        + "- {id: a, tool: serch}\n- {id: b, model_type: inference, input: question, tools: [search, files.read]}\n"
    )
    assert problems(text) == []
    found = problems(text, tools=["search", "calculate"])
    assert found[0] == "5:17: a.tool: there is no tool 'serch'; did you mean search?"
    assert found[1].startswith("6:67: b.tools[1]: there is no tool 'files.read'")


def test_bounds_of_the_whole() -> None:
    assert "501 steps" in problems(HEAD + "".join(f"- {{id: a{n}, tool: t}}\n" for n in range(501)))[0]
    deep = "{id: a9, tool: t}"
    for n in range(8, 0, -1):
        deep = f"{{id: a{n}, steps: [{deep}]}}"
    assert "8 deep are the most" in problems(HEAD + f"- {deep}\n")[0]


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "main.yaml").write_text(
        "steps:\n- {id: a, workflow: sub/one.yaml, with: {x: 1}}\n- {id: b, workflow: sub/one.yaml}\n"
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.yaml").write_text(
        "inputs: {x: {default: 2}}\nsteps:\n- {id: a, workflow: two.yaml, with: {x: '{{ x }}'}}\n"
    )
    two = tmp_path / "sub" / "two.yaml"
    two.write_text("inputs: {x: {type: integer}}\nsteps:\n- {id: a, tool: t, with: {x: '{{ x }}'}}\n")
    workflow = open_workflow(tmp_path / "main.yaml")
    inner = workflow.steps[0].workflow
    assert isinstance(inner, Workflow)
    assert (workflow.name, inner.name) == ("main", "one")
    assert isinstance(inner.steps[0].workflow, Workflow)
    assert inner is workflow.steps[1].workflow

    two.write_text("steps:\n- {id: a, tool: t, with: {x: '{{ y }}'}}\n")
    with pytest.raises(WorkflowError) as caught:
        open_workflow(tmp_path / "main.yaml")
    texts = [str(problem) for problem in caught.value.problems]
    assert [text for text in texts if text.startswith(f"{two}:2:34: a.with.x: there is no `y`")]
    assert [text for text in texts if "one.yaml:3:38: a.with.x: `two` has no such input" in text]
    assert len(texts) == 2

    two.write_text("inputs: {x: {}}\nsteps:\n- {id: a, workflow: ../main.yaml}\n")
    with pytest.raises(
        WorkflowError,
        match=r"two.yaml:3:21: a.workflow: the workflow would run itself: main.yaml → one.yaml → two.yaml → main.yaml",
    ):
        open_workflow(tmp_path / "main.yaml")
    two.write_text("steps: [")
    with pytest.raises(WorkflowError, match=r"two.yaml:1:9: not YAML"):
        open_workflow(tmp_path / "main.yaml")
    two.unlink()
    with pytest.raises(WorkflowError, match=r"one.yaml:3:21: a.workflow: .*two.yaml: cannot be read: No such file"):
        open_workflow(tmp_path / "main.yaml")
    with pytest.raises(WorkflowError, match="is no file; give the path of a workflow"):
        open_workflow(tmp_path)
    two.write_bytes(b"\xff")
    with pytest.raises(WorkflowError, match="not UTF-8, at byte 0"):
        open_workflow(two)


def test_workflows_that_multiply(tmp_path: Path) -> None:
    """Each runs the next twenty times: what is read, kept and checked stays small, and the whole is refused."""
    for n in range(7):
        steps = "".join(f"- {{id: a{k}, workflow: {n + 1}.yaml}}\n" for k in range(20))
        (tmp_path / f"{n}.yaml").write_text(f"steps:\n{steps}")
    (tmp_path / "7.yaml").write_text("steps: [{id: a, tool: t}]")
    with pytest.raises(WorkflowError, match="over 5000 steps with those of the workflows that it runs"):
        open_workflow(tmp_path / "0.yaml")
    for n in range(12):
        (tmp_path / f"{n}.yaml").write_text(f"steps: [{{id: a, workflow: {n + 1}.yaml}}]\n")
    with pytest.raises(WorkflowError, match="more than 8 workflows in each other"):
        open_workflow(tmp_path / "0.yaml")


def test_plain_objects() -> None:
    step = Step(id="greet", model_type="inference", input="Greet {{ whom }}.")
    workflow = Workflow(name="hello", inputs={"who": Input(type="text")}, steps=(step,))
    (problem,) = problems_of(workflow)
    assert str(problem) == "greet.input: there is no `whom`; did you mean who?"
    with pytest.raises(WorkflowError, match=r"flows.py:hello: greet.input: there is no `whom`"):
        workflow_from(workflow, file="flows.py:hello")
    right = Workflow(
        name="hello",
        inputs={"who": Input(type="list")},
        steps=(
            Step(id="greet", tool="t", for_each=ForEach(items="who"), with_={"x": "{{ item }}"}),
            Step(id="again", steps=(Step(id="in_it", tool="t"),), repeat=Repeat(until="in_it", max=3)),
        ),
    )
    assert workflow_from(right) == right
    assert workflow_from({"name": "x", "steps": [{"id": "a", "tool": "t", "with": {"x": b"bytes"}}]}).steps[
        0
    ].with_ == {"x": b"bytes"}
    with pytest.raises(WorkflowError) as caught:
        workflow_from({"name": "x", "steps": [{"id": "a", "tool": 3.5, "tols": ["a"]}]})
    assert str(caught.value) == "a.tols: there is no such field; did you mean tools or tool?"
    assert (caught.value.error, caught.value.code) == ("bad_workflow", 422)

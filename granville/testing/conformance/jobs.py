"""Checks of jobs: one, several at once, as many as there are slots, and no longer than asked for."""

from __future__ import annotations

import time
from itertools import count

import msgspec

from granville.hosting.interface import Constraint, Finished, Message, Score, Tool, Warm
from granville.testing.conformance.checks import Fail, Skip, check
from granville.testing.conformance.ledger import Job, difference, shown
from granville.testing.conformance.rig import Rig, answered, words

IDLE_S = 1.0
"""With nothing to run a step returns at once."""
WORDS_A_TOKEN = 4
"""Where a driver does not count its tokens: an answer of more words than that for each is longer than asked for."""
BYTES_A_TOKEN = 256
ROUNDS_OF_SLOTS = 3


@check(
    "idle",
    group="jobs",
    right=f"with nothing to run a step returns an empty list at once (here: within {IDLE_S:g} s)",
    where="interface: Model.step",
    needs=("answer",),
    text=False,
)
def idle(rig: Rig) -> str:
    """Step without a job"""
    began = time.perf_counter()
    events = [event for _ in range(3) for event in rig.model.step()]
    took = (time.perf_counter() - began) / 3
    if events:
        raise Fail(f"a step with nothing to run brought {shown(events[0])}")
    if took > IDLE_S:
        raise Fail(f"a step with nothing to run took {took:.1f} s")
    return f"no events, {took * 1e6:.0f} µs a step"


@check(
    "max-tokens",
    group="jobs",
    right="an answer has at most Generate.max_tokens tokens, and finish_reason length where it was cut",
    where="interface: Generate",
    needs=("answer",),
)
def max_tokens(rig: Rig) -> str:
    """Answers no longer than asked for"""
    lengths = {}
    for limit in (1, 5):
        job = answered(rig.model.ask(words(48), max_tokens=limit))
        # A v1 driver does not count: its usage is made of its answer's bytes.
        counted = 0 if rig.abi == "c1" else max(len(job.token_ids), job.usage.completion_tokens)
        if counted > limit:
            raise Fail(f"max_tokens was {limit} and the answer has {counted} tokens: {shown(job.text)}")
        many = len(job.text.split())
        if many > WORDS_A_TOKEN * limit or len(job.text.encode(errors="replace")) > BYTES_A_TOKEN * limit:
            raise Fail(f"max_tokens was {limit} and the answer has {many} words, {len(job.text)} characters")
        lengths[limit] = counted
    said = ", ".join(f"{counted} of {limit}" for limit, counted in lengths.items())
    return f"{said} tokens" if any(lengths.values()) else "short enough; the driver does not count its tokens"


@check(
    "all-slots",
    group="jobs",
    right="as many jobs as Model.slots run at once, and all are answered",
    where="interface: Model.slots",
    needs=("answer",),
    text=False,
)
def all_slots(rig: Rig) -> str:
    """All slots at once"""
    model = rig.model
    jobs = []
    for number in range(model.slots):
        try:
            jobs.append(model.submit(rig.task(words(12 + 5 * number, start=number))))
        except Fail as failure:
            raise Fail(f"slots is {model.slots}, and of job {number + 1}: {failure.seen}", failure.detail) from None
    for job in model.until_ended(*jobs):
        answered(job)
    return f"{len(jobs)} job{'s' * (len(jobs) > 1)} at once"


@check(
    "slot-reuse",
    group="jobs",
    right="the slot of a job that ended is free for the next one, at once",
    where="interface: Finished",
    needs=("all-slots",),
    text=False,
)
def slot_reuse(rig: Rig) -> str:
    """Slots that become free are filled again"""
    model = rig.model
    total = ROUNDS_OF_SLOTS * model.slots + 1
    numbers = iter(range(total))
    jobs: list[Job] = []

    def fill() -> bool:
        while sum(job.end is None for job in jobs) < model.slots and (number := next(numbers, None)) is not None:
            jobs.append(model.submit(rig.task(words(4 + number % 9, start=number), max_tokens=2 + number % 7)))
        return len(jobs) == total and all(job.end is not None for job in jobs)

    fill()
    while not fill():
        before = sum(job.end is None for job in jobs)
        model.until(lambda before=before: sum(job.end is None for job in jobs) < before, *jobs)  # type: ignore[misc]
    for job in jobs:
        answered(job)
    return f"{total} jobs through {model.slots} slot{'s' * (model.slots > 1)}"


@check(
    "conversation",
    group="jobs",
    right="with Capabilities(messages=True) a whole conversation is taken, with a session or without",
    where="interface: Capabilities, Generate",
    needs=("answer",),
)
def conversation(rig: Rig) -> str:
    """A conversation of several turns, and a session"""
    model = rig.model
    model.need("messages")
    talk = [Message("system", "Answer in one sentence."), Message("user", words(6))]
    for turn in count(1):
        job = answered(model.ask("", messages=tuple(talk), session="a session", reset_cache=turn == 3, max_tokens=6))
        if turn == 3:
            break
        talk += [Message("assistant", job.text, tuple(job.token_ids)), Message("user", words(5, start=turn))]
    return f"{len(talk)} messages in 3 turns of a session, the last with reset_cache"


@check(
    "score",
    group="jobs",
    right="with Capabilities(score=True) a Score is answered beside the jobs that take slots",
    where="interface: Score",
    needs=("answer",),
)
def score(rig: Rig) -> str:
    """How likely labels are"""
    model = rig.model
    model.need("score")
    running = [model.submit(rig.task(words(12, start=number))) for number in range(model.slots)]
    asked = model.submit(Score(rig.new_id("score"), "Is water wet? Answer:", ("yes", "no", "maybe")))
    model.until_ended(asked, *running)
    for job in (asked, *running):
        answered(job)
    return f"3 labels, with {model.slots} slots taken"


@check(
    "warm",
    group="jobs",
    right="with Capabilities(warm=True) a Warm is read beside the jobs, ends with an Output, and changes no answer",
    where="interface: Warm",
    needs=("answer",),
)
def warm(rig: Rig) -> str:
    """What a prompt begins with, read beforehand"""
    model = rig.model
    model.need("warm")
    begins = (Message("user", words(40)), Message("assistant", "So it is."))
    talk = (*begins, Message("user", words(5)))
    before = answered(model.ask("", messages=talk, max_tokens=6))
    running = [model.submit(rig.task(words(12, start=number))) for number in range(model.slots)]
    wish = model.submit(Warm(rig.new_id("warm"), begins))
    model.until_ended(wish, *running)
    for job in (wish, *running):
        answered(job)
    after = answered(model.ask("", messages=talk, max_tokens=6))
    model.cancel(wish.task.id)
    if rig.samples and before.text != after.text:
        raise Fail(f"an answer is another one after its beginning was warm: {difference(before.text, after.text)}")
    return f"{after.usage.cached_tokens} of {after.usage.prompt_tokens} tokens were not read again"


@check(
    "constrain",
    group="jobs",
    right="with Capabilities(constrain=True) a whole answer is what the schema says",
    where="interface: Constraint",
    needs=("answer",),
)
def constrain(rig: Rig) -> str:
    """Answers that fit a JSON schema"""
    model = rig.model
    model.need("constrain")
    schema = Constraint("json_schema", '{"type": "object", "properties": {"ok": {"type": "boolean"}}, '
                        '"required": ["ok"], "additionalProperties": false}')  # fmt: skip
    job = answered(model.ask("Is water wet?", max_tokens=64, constraint=schema))
    if isinstance(job.end, Finished) and job.end.finish_reason == "length":
        raise Skip("the answer did not end within 64 tokens")
    try:
        fits = msgspec.json.decode(job.text, type=dict[str, bool]).keys() == {"ok"}
    except msgspec.DecodeError:
        fits = False
    if not fits:
        raise Fail(f"Capabilities(constrain=True), and the answer does not fit its schema: {shown(job.text)}")
    return job.text


@check(
    "tools",
    group="jobs",
    right="with Capabilities(tools=True) and tool_choice required an answer is a call of one of the tools",
    where="interface: Tool, ToolCall",
    needs=("answer",),
)
def tools(rig: Rig) -> str:
    """Calls of a tool"""
    model = rig.model
    model.need("tools")
    tool = Tool("switch", "Switch the lamp.", {"type": "object", "properties": {"on": {"type": "boolean"}},
                                               "required": ["on"], "additionalProperties": False})  # fmt: skip
    job = answered(model.ask("Switch the lamp on.", max_tokens=96, tools=(tool,), tool_choice="required"))
    end = job.end
    assert isinstance(end, Finished)
    if end.finish_reason == "length":
        raise Skip("the call did not end within 96 tokens")
    if end.finish_reason != "tool" or end.call is None:
        raise Fail(f"tool_choice was required, and the answer is finish_reason {end.finish_reason}: {shown(job.text)}")
    try:
        arguments = msgspec.json.decode(end.call.arguments, type=dict[str, bool])
        fits = end.call.name == tool.name and arguments.keys() == {"on"}
    except msgspec.DecodeError:
        fits = False
    if not fits:
        raise Fail(f"the call does not fit the tool's schema: {shown(end.call)}")
    return f"{end.call.name}({end.call.arguments})"

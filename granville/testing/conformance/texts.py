"""Checks of what goes in and comes out: stop strings, and prompts that are empty, long, odd or too long."""

from __future__ import annotations

from granville.hosting.interface import Failed
from granville.testing.conformance.checks import Fail, Skip, Warn, check
from granville.testing.conformance.ledger import Job, difference, shown
from granville.testing.conformance.rig import Rig, words

ODD_TEXTS = {
    "emoji": "👩‍👩‍👧‍👦 flags 🇫🇷🇯🇵 and 🧑🏽‍🚀",
    "a NUL": "before\0after",
    "control characters": "a\x01b\x1b[31mc\x7fd\r\ne\te",
    "control tokens": "</s><|im_end|><|endoftext|>[INST]<|eot_id|><start_of_turn>",
    "combining marks": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "right to left": "שלום עולם \u202eabc\u202c مرحبا",
    "a byte order mark": "\ufeffhello \ufffe\uffff",
    "format strings": "%s%n%d {0} ${HOME} `id` \\0 '\"",
    "one long word": "a" * 600,
    "blank lines": "\n\n \n\t\n",
}
LONG_WORDS = 400
OVER_CONTEXT = 2
"""How many words for each token that the context has: too long by any tokeniser."""
MOST_CONTEXT_TOKENS = 1 << 17
"""A prompt that is longer than a larger context takes too long to make and to read."""


@check(
    "stop",
    group="jobs",
    right="an answer ends before a stop string; neither it nor what follows is in a Token",
    where="docs/drivers.md: What a driver promises",
    needs=("answer",),
)
def stop(rig: Rig) -> str:
    """Stop strings"""
    model = rig.model
    plain, again = (model.ask(words(32), max_tokens=32) for _ in range(2))
    text = plain.text
    if text != again.text:
        raise Skip("at temperature 0 the same prompt gave two different answers")
    if len(text) < 4:
        raise Skip(f"the answer is too short to stop in: {shown(text)}")
    middle = text[len(text) // 2 : len(text) // 2 + 3]
    wanted = text[: text.index(middle)]
    for what, strings in (("a stop string", (middle,)), ("one of two", ("☃ never said ☃", middle))):
        job = model.ask(words(32), max_tokens=32, stop=strings)
        if job.text != wanted:
            raise Fail(
                f"with stop={strings!r} ({what}) what should come and what came differ {difference(wanted, job.text)}"
            )
    never = model.ask(words(32), max_tokens=32, stop=("☃ never said ☃",))
    if never.text != text:
        raise Fail(f"without a stop string and with one that never comes answers differ {difference(text, never.text)}")
    return f"stop={middle!r} leaves {len(wanted)} of {len(text)} characters"


@check(
    "empty-text",
    group="jobs",
    right="an empty prompt is answered, or Failed; it is no reason to end",
    where="docs/drivers.md: What a driver promises",
    needs=("answer",),
    text=False,
)
def empty_text(rig: Rig) -> str:
    """An empty prompt"""
    return _ended(rig.model.ask("", max_tokens=4))


@check(
    "long-text",
    group="jobs",
    right="a prompt of many steps is answered, and others are answered beside it",
    where="interface: Model.step",
    needs=("answer",),
    text=False,
)
def long_text(rig: Rig) -> str:
    """A long prompt, with a short one beside it"""
    model = rig.model
    long = model.submit(rig.task(words(LONG_WORDS), max_tokens=4))
    jobs = [long]
    if model.slots > 1:
        model.step()
        jobs.append(model.submit(rig.task(words(4), max_tokens=4)))
    model.until_ended(*jobs)
    return f"{LONG_WORDS} words: {_ended(long)}"


@check(
    "odd-text",
    group="jobs",
    right="any text of valid UTF-8 is answered, or Failed; what names a control token is text like any other",
    where="docs/drivers.md: What a driver promises",
    needs=("answer",),
    text=False,
)
def odd_text(rig: Rig) -> str:
    """Prompts with emoji, NUL, control characters and names of control tokens"""
    failed = []
    for what, text in ODD_TEXTS.items():
        with rig.beside(f"with {what} in the prompt"):
            if isinstance(rig.model.ask(text, max_tokens=6).end, Failed):
                failed.append(what)
    said = f"; Failed for {', '.join(failed)}" if failed else ""
    return f"{len(ODD_TEXTS)} odd texts{said}"


@check(
    "too-long",
    group="jobs",
    right="a prompt that leaves no room for a token ends as Failed(id, 'prompt_too_long', ...); the model goes on",
    where="interface: Failed",
    needs=("answer",),
    text=False,
)
def too_long(rig: Rig) -> str:
    """A prompt over the context"""
    model = rig.model
    if rig.plan.type in ("stt", "tts"):
        raise Skip(f"models of type {rig.plan.type} read no prompt")
    context = model.raw.info.context_size
    if not context:
        raise Skip("info.context_size is 0: it does not say how much a slot holds")
    if context > MOST_CONTEXT_TOKENS:
        raise Skip(f"a context of {context} tokens takes too long to fill; --context-size makes it smaller")
    number = OVER_CONTEXT * context
    job = model.ask(words(number), max_tokens=4)
    after = model.ask(words(6), max_tokens=4)
    if isinstance(after.end, Failed):
        raise Fail(f"after a prompt that was too long the next job failed too: {after.end.message}")
    if not isinstance(job.end, Failed):
        raise Warn(f"a prompt of {number} words was answered, and info.context_size is {context} tokens")
    if job.end.error != "prompt_too_long":
        raise Fail(f"a prompt of {number} words ended as Failed({job.end.error!r}), not 'prompt_too_long'")
    return f"{number} words: {job.end.message}"


def _ended(job: Job) -> str:
    if isinstance(job.end, Failed):
        return f"Failed({job.end.error!r}): {job.end.message}"
    return "answered"

"""A llama model under everything that a kernel may do to it, in an order that a seed decides.

Each job is then asked again of a model that has nothing in a cache, and each turn of a session in a conversation that
nothing came between: what was said must be the same, token for token. What the store counts is counted again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from granville_llama import LlamaDriver
from granville_llama.binding import Decoded
from granville_llama.engine import LlamaModel
from granville_llama.kv import KvStore
from granville_llama.kvfiles import Label
from granville_llama.prefix import shared_beginning
from granville_llama.saved import Saved
from granville_llama.seats import COPY_TOKENS

from granville.hosting.interface import (
    Constraint,
    Finished,
    Generate,
    Message,
    ModelSpec,
    Output,
    Sampling,
    Score,
    Warm,
)  # fmt: skip
from tests.drivers.llama_jobs import Answer, Answers

CONTEXT_TOKENS = 512
SLOTS = 4
LABELS = ("x", "y", "z")
TALK = "the sea is wide and the ship is old and the wind has gone to sleep in the sails of it; " * 4
CHOICE = Constraint("gbnf", 'root ::= ("yes" | "no" | "perhaps") " " [a-z]+')
DRAIN_STEPS = 20_000
MAX_SIZE = 450
"""So that an answer has room."""


@dataclass(frozen=True)
class Plan:
    """What may happen, beside jobs that come, run, are parked and are cancelled."""

    kv_ram_bytes: int
    kv_disk_bytes: int = 0
    limits: bool = False
    """`limit_cache` is called."""
    interrupts: bool = False
    restarts: bool = False
    bad_disk: bool = False
    """Some writes fail."""

    @property
    def forgets(self) -> bool:
        """Whether a session's state may be lost."""
        return self.kv_ram_bytes < 1 << 30 or self.limits or self.restarts or self.bad_disk


def load(path: Path, plan: Plan, kv_dir: Path | None, *, slots: int = SLOTS) -> LlamaModel:
    spec = ModelSpec(
        path, slots=slots, context_size=CONTEXT_TOKENS, threads=1, fingerprint="a file",
        kv_ram_bytes=plan.kv_ram_bytes, kv_disk_bytes=plan.kv_disk_bytes, kv_dir=kv_dir,
    )  # fmt: skip
    return cast(LlamaModel, LlamaDriver().load(spec))


class Reference:
    """A model without a cache, which runs one job at a time."""

    def __init__(self, path: Path) -> None:
        self._model = load(path, Plan(0), None, slots=1)
        self._known: dict[tuple[Generate, ...], tuple[Answer, int]] = {}
        self._scores: dict[str, Output] = {}

    def answer(self, *turns: Generate) -> tuple[Answer, int]:
        """To the last of the turns of a conversation, or to a single job; and how many tokens the turn before left."""
        key = tuple(replace(turn, id="", session="s", urgency=0) for turn in turns)
        if key not in self._known:
            for index, turn in enumerate(turns):
                answer = self._run(replace(turn, session="s", reset_cache=index == 0))
            self._known[key] = answer, answer.cached_tokens
        return self._known[key]

    def score(self, question: Score) -> Output:
        if question.prompt not in self._scores:
            self._run(Score("before", "\x00", LABELS))  # shares no beginning with any other
            self._scores[question.prompt] = cast(Output, self._run(question).end)
        return self._scores[question.prompt]

    def close(self) -> None:
        self._model.close()

    def _run(self, task: Generate | Score) -> Answer:
        answers = Answers()
        self._model.submit(task)
        while not answers.ended(task.id):
            take(answers, self._model.step(None))
        return answers[task.id]


def take(answers: Answers, events: Any) -> None:
    for event in events:
        if isinstance(event, Output):
            answers[event.id] = Answer(end=event)  # type: ignore[arg-type]
        else:
            answers.take([event])
            if isinstance(event, Finished):
                usage = event.usage
                assert usage.cached_tokens <= max(0, usage.prompt_tokens - 2), event


@dataclass(eq=False)
class Running:
    job: Generate
    turns: tuple[Generate, ...]
    held: int
    """Tokens of its session's own that it could have had when it came."""
    parked: bool = False


@dataclass
class Session:
    history: tuple[Message, ...] = ()
    turns: tuple[Generate, ...] = ()
    """Since it began afresh; none while what it says is not known, because some state was lost."""
    known: bool = True
    busy: bool = False


class Machine:
    def __init__(self, seed: int, path: Path, reference: Reference, plan: Plan, kv_dir: Path | None) -> None:
        self.rng = random.Random(seed)
        self.path, self.reference, self.plan, self.kv_dir = path, reference, plan, kv_dir
        self.running: dict[str, Running] = {}
        self.questions: dict[str, Score] = {}
        self.wishes: dict[str, bool] = {}
        """What is kept warm, or will be, and whether it is by now."""
        self.wished = self.warmed = 0
        self.sessions = {f"s{index}": Session() for index in range(5)}
        self.answers = Answers()
        self.compared = self.count = 0
        self.exact_turns = self.turns = 0
        self.model = self._load()

    def _load(self) -> LlamaModel:
        model = load(self.path, self.plan, self.kv_dir)
        context, decode = model._context, model._context.decode

        def disturbed() -> Decoded:
            if self.plan.interrupts and self.rng.random() < 0.1:
                context.interrupt()
            return decode()

        context.decode = disturbed  # type: ignore[method-assign]
        model._pacer.piece = self._piece  # type: ignore[method-assign]
        model._pacer.spare_piece = lambda context: self._piece(throttled=False)  # type: ignore[method-assign]
        disk = model._seats.store._disk
        if disk is not None and self.plan.bad_disk:
            write = disk._files.write

            def failing(label: Label, state: Any) -> int:
                if len(label.tokens) % 5 == 0:
                    disk._pause_until = 0.0
                    raise OSError(28, "No space left on device")
                return write(label, state)

            disk._files.write = failing  # type: ignore[method-assign]
        return model

    def _piece(self, *, throttled: bool, **_: object) -> int:
        """As long as the seed says, and not as the time that others took: a seed that fails fails again."""
        return 0 if throttled and self.rng.random() < 0.4 else self.rng.choice([8, 12, 16, 20, 32, 64, 128])

    # what happens

    def act(self) -> None:
        rng = self.rng
        free = self._free()
        running = [id for id, each in self.running.items() if not each.parked]
        parked = [id for id, each in self.running.items() if each.parked]
        chance = rng.random()
        if free and chance < 0.3:
            self._submit()
        elif parked and free and chance < 0.4:
            self._resume(rng.choice(parked))
        elif running and chance < 0.43:
            self._park(rng.choice(running))
        elif (running or parked) and chance < 0.45:
            self._cancel(rng.choice(running + parked))
        elif chance < 0.46:
            id = f"q{self.count}"
            self.count += 1
            self.questions[id] = Score(id, TALK[: rng.randrange(200)] + rng.choice("abc"), LABELS)
            self.model.submit(self.questions[id])
        elif chance < 0.51:
            self._warm()
        elif chance < 0.52 and self.wishes:
            id = rng.choice(list(self.wishes))
            del self.wishes[id]
            self.model.cancel(id)
        elif chance < 0.53 and self.plan.limits:
            self.model.limit_cache(rng.choice([0, 20_000, 200_000, self.plan.kv_ram_bytes]))
        elif chance < 0.535 and self.plan.restarts:
            self._restart()
        else:
            self.step()
        self.check()

    def step(self) -> None:
        events = self.model.step(self.rng.choice([None, 0.0, 0.5, 5.0]))
        for event in events:
            if event.id in self.wishes:
                self._is_warm(event)
        take(self.answers, [event for event in events if event.id not in self.wishes])
        for id in [id for id in self.running if self.answers.ended(id)]:
            self._ended(self.running.pop(id))
        for id in [id for id in self.questions if self.answers.ended(id)]:
            question = self.questions.pop(id)
            output, expected = cast(Any, self.answers.pop(id).end), self.reference.score(question)
            assert output.value == expected.value, question
            assert output.usage.prompt_tokens == expected.usage.prompt_tokens
            self.compared += 1

    def drain(self) -> None:
        for _ in range(DRAIN_STEPS):
            for id, each in self.running.items():
                if each.parked and self._free():
                    self._resume(id)
            self.step()
            if not self.running and not self.questions and all(self.wishes.values()):
                return
        raise AssertionError(f"still running: {[*self.running, *self.questions, *self.wishes]}")

    def finish(self) -> None:
        """All to their ends; then nothing is left of them."""
        self.drain()
        self.check()
        store = self.model._seats.store
        assert self.model._seats.on_slots == [None] * SLOTS
        assert not self.model._jobs
        assert not self.model._seats._awaited
        assert store._parked_bytes == 0
        for id in self.wishes:
            self.model.cancel(id)
        assert (store._warm, store.warm_bytes, self.model._warming._warm) == ({}, 0, {})
        settle(store)
        self.check()
        self.model.close()
        on_disk = list(self.kv_dir.glob("*")) if self.kv_dir else []
        assert [path.name for path in on_disk if path.suffix == ".part"] == []
        assert sum(path.stat().st_size for path in on_disk) <= self.plan.kv_disk_bytes
        self.model = self._load()
        store = self.model._seats.store
        if store._disk is not None:
            store._disk.limit = 0
            store._disk.make_room()
        store.limit(0)
        settle(store)
        assert (store._index._blocks, store._known, len(store._in_ram)) == ({}, {}, 0)
        assert store.stats() == dict.fromkeys(store.stats(), 0)
        self.model.close()
        assert not self.kv_dir or [path.name for path in self.kv_dir.glob("*")] == ["lock"]

    def _free(self) -> int:
        return SLOTS - sum(not each.parked for each in self.running.values())

    def _submit(self) -> None:
        rng = self.rng
        self.count += 1
        text = self._text()
        sampling = Sampling(temperature=rng.choice([0, 0, 1.0]), seed=rng.randrange(3))
        name = rng.choice(["", *(name for name, session in self.sessions.items() if not session.busy)])
        session = self.sessions.get(name) or Session()
        messages = (*session.history, Message("user", text))
        reset = rng.random() < 0.1
        chance = rng.random()
        if reset or chance < 0.1 or _size(messages) > MAX_SIZE:
            messages = messages[-1:]
            reset = reset or rng.random() < 0.5
        elif chance < 0.15:
            messages = (*messages[:-2], Message("user", text))
        if not name and chance < 0.2:  # what someone's conversation said, from one who is not in it
            other = rng.choice(list(self.sessions.values()))
            messages = (*other.history, Message("user", text))
            messages = messages if _size(messages) <= MAX_SIZE else messages[-1:]
        job = Generate(
            f"j{self.count}", messages, rng.choice([1, 2, 5, 12, 30]), sampling, rng.choice([(), (), ("q",)]),
            rng.randrange(4), name or None, reset, CHOICE if rng.random() < 0.1 else None,
        )  # fmt: skip
        turns = (job,) if reset or not name or not session.known else (*session.turns, job)
        session.busy = True
        if reset:
            session.known = True
        self.running[job.id] = Running(job, turns if session.known else (), self._held(job))
        self.model.submit(job)

    def _warm(self) -> None:
        """A conversation or a system prompt, as nobody or as someone will ask."""
        rng = self.rng
        self.count += 1
        name = rng.choice(["", "", *(name for name, session in self.sessions.items() if session.history)])
        messages = self.sessions[name].history if name else (Message(rng.choice(["system", "user"]), self._text()),)
        id = f"w{self.count}"
        self.wishes[id] = False
        self.model.submit(Warm(id, messages, name or None, urgency=rng.choice([0, 0, 1, 2, 3])))

    def _is_warm(self, event: Any) -> None:
        assert isinstance(event, Output), event
        assert not self.wishes[event.id]
        self.wishes[event.id] = True
        self.wished += 1
        self.warmed += event.value != [0.0]

    def _text(self) -> str:
        rng = self.rng
        shared = rng.choice([0, 3, 9, 31, 40, 64, 80, 130, 200, 340])
        return TALK[:shared] + rng.choice(["", "A", "B", "what?", "and then " * rng.randrange(6)])

    def _held(self, job: Generate) -> int:
        if job.session is None:
            return 0
        seats = self.model._seats
        own = seats.store._known.get(job.session)
        tokens, _ = self.model._prompt(job)
        labels = [label for label in seats._left if label.session == job.session] + ([own.label] if own else [])
        return max((shared_beginning(tokens, label.tokens) for label in labels), default=0)

    def _park(self, id: str) -> None:
        self.model.park(id)
        self.running[id].parked = True

    def _resume(self, id: str) -> None:
        each = self.running[id]
        each.parked = False
        if id not in self.model._seats.store._parked:  # it begins again
            each.held = self._held(each.job)
        self.model.resume(id)

    def _cancel(self, id: str) -> None:
        self.model.cancel(id)
        self.answers.pop(id, None)
        each = self.running.pop(id)
        session = self._session(each)
        session.busy = False
        if each.job.reset_cache:
            session.known, session.turns = False, ()

    def _restart(self) -> None:
        for id in list(self.running):
            self._cancel(id)
        for id in self.questions:
            self.answers.pop(id, None)
        self.questions.clear()
        self.wishes.clear()
        self.model.close()
        self.model = self._load()

    def _session(self, each: Running) -> Session:
        return self.sessions.get(each.job.session or "", Session())

    # what must hold

    def _ended(self, each: Running) -> None:
        job, session = each.job, self._session(each)
        answer = self.answers.pop(job.id)
        session.busy = False
        assert isinstance(answer.end, Finished), answer.end
        assert len(answer.tokens) == answer.end.usage.completion_tokens <= job.max_tokens
        fresh = self.reference.answer(replace(job, session=None))[0]
        assert isinstance(fresh.end, Finished)
        assert answer.end.usage.prompt_tokens == fresh.end.usage.prompt_tokens
        known = True
        if job.session is None:
            self._compare(job, answer, fresh)
        else:
            self.turns += 1
            expected, held = self.reference.answer(*each.turns) if each.turns else (answer, 0)
            known = bool(each.turns) and each.held >= held
            may_forget = self.plan.forgets or not each.turns
            if self.plan.forgets:
                known &= answer.cached_tokens >= held
            if known:
                self.exact_turns += 1
                # One that is recurrent may choose a state that it then cannot shorten.
                assert answer.cached_tokens > held - COPY_TOKENS or self.model._weights.recurrent
                self._compare(job, answer, expected)
            else:
                assert may_forget
            session.turns = each.turns
            session.known = known
            session.history = (*job.messages, Message("assistant", answer.text, tuple(answer.tokens)))

    def _compare(self, job: Generate, answer: Answer, expected: Answer) -> None:
        self.compared += 1
        assert isinstance(expected.end, Finished)
        assert replace(expected.end, id=job.id) == answer.end, (job, expected)
        assert (answer.tokens, answer.text) == (expected.tokens, expected.text), job

    def check(self) -> None:
        seats = self.model._seats
        for slot, sequence in enumerate(seats.on_slots):
            assert sequence is None or sequence.slot == slot
        check_store(seats.store)
        assert seats.store.ram_bytes <= max(0, seats.store.ram_limit)
        assert seats.store.warm_bytes <= max(0, seats.store.ram_limit) // 2


def _size(messages: tuple[Message, ...]) -> int:
    return sum(len(message.content) + 25 for message in messages)


def settle(store: KvStore) -> None:
    """Until the file thread has done what it was asked, and what that brought with it."""
    for _ in range(3):
        if store._disk is not None:
            assert store._disk.wait(10)


def check_store(store: KvStore) -> None:
    """What is counted is there."""
    warm = sum(saved.size for saved in store._warm)
    assert store.warm_bytes == warm
    ram = sum(saved.size for saved in store._in_ram) + warm + sum(map(len, store._parked.values()))
    assert store.ram_bytes == ram
    assert store._parked_bytes == sum(map(len, store._parked.values()))
    indexed: set[Saved] = {saved for keys in store._index._blocks.values() for saved in keys}
    assert indexed <= set(store._known.values())
    for saved in store._known.values():
        assert saved.in_use
        assert saved.state is not None or saved.written, "nothing is there of it"
        assert (saved.state is not None) == (saved in store._in_ram) + (saved in store._warm)
        assert saved.state is None or len(saved.state) == saved.size
    disk = store._disk
    if disk is not None:
        assert disk.bytes == sum(disk._sizes.values())
        assert disk._sizes.keys() == {*disk._owners, *disk._foreign}
        assert {owner.name for owner in disk._removable} == disk._owners.keys() - disk._writing.keys()
        assert disk.bytes <= disk.limit or not disk._removable

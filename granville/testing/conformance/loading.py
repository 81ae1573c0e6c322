"""Checks of the driver itself, of loading a model and of letting it go."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

from granville.errors import StartupError
from granville.hosting.interface import Capabilities, DriverError, Model, ModelInfo
from granville.hosting.manifest import check_name, check_version
from granville.testing.conformance.checks import Fail, Skip, Warn, check
from granville.testing.conformance.ledger import a, shown
from granville.testing.conformance.lines import About
from granville.testing.conformance.rig import Rig, Watched, answered, words

KINDS = {"c1": "C, ABI v1", "c2": "C, ABI v2", "python": "Python"}
JUNK_BYTES = 64 << 10
_COMPLAINT = re.compile(r"\s*(error|failed|failure|exception|out of memory)\b", re.IGNORECASE)
MODEL_PARTS = (
    "slots", "capabilities", "info", "submit", "step", "cancel", "park", "resume", "limit_cache", "stats", "interrupt",
    "close",
)  # fmt: skip


@check(
    "driver",
    group="loading",
    right="the name leads to a class that is made without arguments and has load(), name and version",
    where="interface: Driver",
    text=False,
)
def driver(rig: Rig) -> str:
    """Find the driver and make it"""
    began = time.perf_counter()
    try:
        made = rig.driver
    except StartupError as error:
        raise Fail(error.message.removeprefix(f"--driver {rig.plan.driver}: ")) from None
    kind = KINDS.get(rig.abi, rig.abi)
    rig.tell(About(kind=kind))
    what = f"{type(made).__module__}.{type(made).__qualname__}" if rig.abi == "python" else rig.plan.driver
    return f"{what}, in {kind}, found and made in {_ms(began)}"


@check(
    "name",
    group="loading",
    right="name and version are text that never changes, the name by the rules: granville-<backend> or "
    "<vendor>-granville-<name>",
    where="docs/drivers.md: Writing a driver",
    needs=("driver",),
    text=False,
)
def name(rig: Rig) -> str:
    """Name and version"""
    said: dict[str, str] = {}
    for part in ("name", "version"):
        value = rig.call(f"read {part}", lambda part=part: getattr(rig.driver, part))  # type: ignore[misc]
        if not isinstance(value, str):
            raise Fail(f"{part} is {a(value)}, not str: {shown(value)}")
        if not value.strip() or not value.isprintable():
            raise Fail(f"{part} is {shown(value)}: it is empty, or has what cannot be printed")
        said[part] = value
    rig.tell(About(name=said["name"], version=said["version"]))
    other = rig.find()
    for part, value in said.items():
        for again in (getattr(rig.driver, part), getattr(other, part)):
            if again != value:
                raise Fail(f"{part} was {shown(value)} and then {shown(again)}")
    try:
        check_name(said["name"])
        check_version(said["version"])
    except StartupError as error:
        raise Warn(f"{error.message}; it cannot be installed under it") from None
    return f"{said['name']} {said['version']}"


@check(
    "model",
    group="loading",
    right="load() returns a Model: 1 to ModelSpec.slots slots, Capabilities that name the type, a ModelInfo",
    where="interface: Model, Capabilities, ModelInfo",
    needs=("driver",),
    text=False,
)
def model(rig: Rig) -> str:
    """Load a model"""
    began = time.perf_counter()
    try:
        loaded = rig.load(allowed=(DriverError,))
    except DriverError as error:
        if rig.plan.any_file:
            raise Fail(
                f"it does not load just any file ({error}); name a model that it reads with --model FILE"
            ) from None
        raise Fail(f"load() raised DriverError: {error}") from None
    took = _ms(began)
    try:
        return f"{_looked_at(rig, loaded)}, loaded in {took}"
    finally:
        if callable(getattr(loaded.raw, "close", None)):
            loaded.close()


def _looked_at(rig: Rig, loaded: Watched) -> str:
    raw: Model = loaded.raw
    lacking = [part for part in MODEL_PARTS if not hasattr(raw, part)]
    if lacking:
        raise Fail(f"load() returned {a(raw)} that lacks {', '.join(lacking)}")
    slots, can, info = raw.slots, raw.capabilities, raw.info
    if type(slots) is not int:
        raise Fail(f"slots is {a(slots)}, not int: {shown(slots)}")
    if not 1 <= slots <= rig.plan.slots:
        raise Fail(f"slots is {slots}, and {rig.plan.slots} were asked for: at least 1, and no more than that")
    if not isinstance(can, Capabilities):
        raise Fail(f"capabilities is {a(can)}, not Capabilities")
    if rig.plan.type not in can.types:
        raise Fail(f"loaded as {rig.plan.type}, its capabilities name {', '.join(sorted(can.types)) or 'no type'}")
    if not isinstance(info, ModelInfo) or not isinstance(info.architecture, str) or not info.architecture:
        raise Fail(f"info is {shown(info)}, not a ModelInfo with an architecture")
    for part, figure in (("context_size", info.context_size), ("memory_bytes", info.memory_bytes)):
        if type(figure) is not int or figure < 0:
            raise Fail(f"info.{part} is {shown(figure)}, not a whole number from 0 up")
    flags = [f for f in ("messages", "park", "constrain", "tools", "score", "interruptible") if getattr(can, f)]
    return f"{slots} slot{'s' * (slots > 1)} of {info.context_size} tokens, {', '.join(flags) or 'no capabilities'}"


@check(
    "answer",
    group="loading",
    right="a job that is submitted to a free slot is answered by the steps that follow, and ends; errors are not text",
    where="interface: Model.submit, Model.step",
    needs=("model",),
    text=False,
)
def answer(rig: Rig) -> str:
    """One job"""
    began = time.perf_counter()
    job = answered(rig.model.ask(words(24)))
    took = f"{(time.perf_counter() - began) * 1000:.0f} ms"
    if rig.plan.type == "tts":
        return f"{job.sound_s:.2f} s of sound in {took}"
    if not rig.generates:
        return f"a value in {took}"
    if _COMPLAINT.match(job.text):
        raise Warn(f"the answer reads like an error: {shown(job.text)}; a client would believe it")
    if not job.text.strip():
        raise Warn(f"the answer to a prompt of 24 words is {shown(job.text)}")
    return f"{job.events} events in {took}, {job.usage.completion_tokens} tokens: {shown(job.text)}"


@check(
    "wrong-path",
    group="loading",
    right="load() of a path where nothing is raises DriverError with a sentence that names the file",
    where="interface: Driver.load",
    needs=("driver",),
    text=False,
)
def wrong_path(rig: Rig) -> str:
    """Load a file that is not there"""
    with tempfile.TemporaryDirectory(prefix="granville-check-") as folder:
        path = Path(folder, "nothing-here.model")
        said = _refusal(rig, path)
    if said is None:
        raise Fail("load() of a path where nothing is returned a model")
    if path.name not in said:
        raise Warn(f"load() said {said!r}, which does not name the file")
    return f"DriverError: {_cut(said)}"


@check(
    "no-model",
    group="loading",
    right="load() of a file that is no model raises DriverError with a sentence, and does nothing else",
    where="interface: Driver.load",
    needs=("model",),
    text=False,
)
def no_model(rig: Rig) -> str:
    """Load files that are no models"""
    if rig.plan.any_file:
        raise Skip("it takes any file for a model")
    said: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory(prefix="granville-check-") as folder:
        head = rig.path.read_bytes()[: JUNK_BYTES // 2] if rig.path.is_file() else b""
        files = {
            "an empty file": b"",
            "a file of zeros": bytes(JUNK_BYTES),
            "a text": b"This is no model.\n" * 100,
            "a model cut short": head,
        }
        for what, data in files.items():
            path = Path(folder, "junk.model")
            path.write_bytes(data)
            said[what] = _refusal(rig, path)
    taken = [what for what, sentence in said.items() if sentence is None]
    if taken:
        raise Warn(f"load() took {' and '.join(taken)} for a model")
    return f"DriverError for each of {len(said)}, such as: {_cut(said['a text'] or '')}"


def _refusal(rig: Rig, path: Path) -> str | None:
    """What load() says of a file; None when it returns a model. Fails for an error without words."""
    try:
        loaded = rig.load(path, allowed=(DriverError,))
    except DriverError as error:
        if not str(error).strip():
            raise Fail("load() raised a DriverError without words") from None
        return str(error)
    loaded.close()
    return None


@check(
    "reload",
    group="loading",
    right="a model that was closed can be loaded again and answers as before",
    where="interface: Model.close",
    needs=("answer",),
    text=False,
)
def reload(rig: Rig) -> str:
    """Close a model and load it again"""
    rig.let_go()
    answers = []
    for _ in range(3):
        loaded = rig.load()
        answers.append(answered(loaded.ask(words(8))))
        loaded.close()
    return f"loaded, asked and closed {len(answers)} times"


@check(
    "two-models",
    group="loading",
    right="models of one driver are independent: one can be closed while the other goes on",
    where="interface: Driver.load",
    needs=("reload",),
    text=False,
)
def two_models(rig: Rig) -> str:
    """Two models at once"""
    first, second = rig.load(), rig.load()
    one = first.submit(rig.task(words(12)))
    two = second.submit(rig.task(words(12, start=3)))
    first.step()
    second.step()
    answered(first.until_ended(one)[0])
    first.close()
    answered(second.until_ended(two)[0])
    answered(second.ask(words(6)))
    second.close()
    return "both answered; one went on after the other was closed"


def _ms(began: float) -> str:
    return f"{(time.perf_counter() - began) * 1000:.0f} ms"


def _cut(sentence: str) -> str:
    line = " ".join(sentence.split())
    return line if len(line) <= 100 else f"{line[:100]}…"

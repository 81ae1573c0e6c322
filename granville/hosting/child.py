"""What runs in a driver's process: the driver in the main thread, and one thread that hears what cannot wait.

    python -m granville.hosting.child DRIVER PYTHONPATH SOCKET CONTROL LIFELINE HEARTBEAT

The last four are descriptors. It steps its model by itself while there is anything to step, and tells the kernel what
each step brought; the kernel's commands are carried out between two steps. It ends when the kernel does: nobody else
has the writing end of the lifeline. The system kills it then, also while the driver keeps the interpreter to itself;
where the system cannot do that, the thread ends it. (Linux's PR_SET_PDEATHSIG would follow the thread that started the
process, which may end before the kernel.)
"""

from __future__ import annotations

import faulthandler
import fcntl
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from granville.errors import StartupError
from granville.hosting.floor import Floor, Released, StepEvent, as_lost
from granville.hosting.heartbeat import Heartbeat
from granville.hosting.interface import Configurable, Driver, Failed, Model, Tunable
from granville.hosting.locate import find_driver
from granville.hosting.pipe import (
    MAX_FRAME_BYTES,
    READ_BYTES,
    Batch,
    Cancel,
    Close,
    Frames,
    Hello,
    Limit,
    Load,
    Loaded,
    Message,
    Open,
    Pace,
    Park,
    PipeError,
    Refused,
    Resume,
    Submit,
    ToDriver,
    frame,
    raw,
    task_of,
    to_driver,
)

log = logging.getLogger(__name__)

BATCH_BYTES = MAX_FRAME_BYTES // 4
"""Of events in one message: more go in several."""
EVENT_BYTES = MAX_FRAME_BYTES // 2
"""Of the largest event."""
M = TypeVar("M", bound=Message)


class Kernel:
    """The kernel at the other end of the socket. Where it has gone this process ends."""

    def __init__(self, pipe: socket.socket) -> None:
        self._socket = pipe
        self._frames = Frames()

    def tell(self, message: Message) -> None:
        """Waits until the kernel's side has taken it. Raises PipeError for what cannot be sent."""
        data = frame(message)
        try:
            self._socket.sendall(data)
        except OSError:
            os._exit(0)

    def expect(self, kind: type[M]) -> M | None:
        """The next message; None when it says to close instead."""
        if not self._frames.whole:
            self._read(wait=True)
        message = to_driver(self._frames.whole.popleft())
        if isinstance(message, kind):
            return message
        if isinstance(message, Close):
            return None
        raise PipeError(f"expected {kind.__name__}, got {type(message).__name__}")

    def commands(self, *, wait: bool) -> list[ToDriver]:
        """All that have come; with `wait` at least one."""
        whole = self._frames.whole
        if not whole:
            self._read(wait=wait)
        return [to_driver(whole.popleft()) for _ in range(len(whole))]

    def _read(self, *, wait: bool) -> None:
        while True:
            try:
                data = self._socket.recv(READ_BYTES, 0 if wait and not self._frames.whole else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                os._exit(0)
            if not data:
                os._exit(0)
            self._frames.feed(data)


class Resident:
    """The model that lives here, and what the kernel knows of it."""

    def __init__(self, kernel: Kernel, model: Model, heartbeat: Heartbeat) -> None:
        self.model = model
        self._floor = Floor(model, None)
        self._kernel = kernel
        self._heartbeat = heartbeat
        self._done = 0
        self._stats: dict[str, int | float | str] = {}

    def live(self) -> None:
        """Until told to close. Raises what the driver raises."""
        floor = self._floor
        while True:
            events: list[StepEvent] = []
            commands = self._kernel.commands(wait=not floor.running)
            for command in commands:
                if isinstance(command, Close):
                    return
                events += self._obey(command)
                self._done += 1
            if floor.running:
                events += floor.step()
                self._heartbeat.beat()
            if events or commands:
                self._tell(events)

    def _obey(self, command: ToDriver) -> list[StepEvent]:
        floor = self._floor
        match command:
            case Submit():
                return floor.submit(task_of(command))
            case Cancel(id):
                return floor.cancel(id)
            case Park(id):
                return floor.park(id)
            case Resume(id):
                return floor.resume(id)
            case Limit(kv_ram_bytes):
                return floor.limit_cache(kv_ram_bytes)
            case Pace(prefill_ms):
                floor.prefill_ms = prefill_ms
                return []
            case _:
                raise PipeError(f"{type(command).__name__} is no command for a model that is loaded")

    def _tell(self, events: list[StepEvent]) -> None:
        batch: list[tuple[str, msgspec.Raw]] = []
        size = 0
        broken: set[str] = set()
        for event in events:
            if isinstance(event, Released) or event.id in broken:
                continue
            try:
                packed = raw(event)
                if len(packed) > EVENT_BYTES:
                    raise PipeError(f"it has {len(packed)} bytes; {EVENT_BYTES} is the most")
            except PipeError as error:  # it ends its job, and nothing else
                broken.add(event.id)
                self._floor.cancel(event.id)
                event = Failed(event.id, "driver_failed", f"what the driver said cannot be passed on: {error}")
                packed = raw(event)
            if size + len(packed) > BATCH_BYTES and batch:
                self._kernel.tell(Batch(batch, self._done))
                batch, size = [], 0
            batch.append((type(event).__name__, packed))
            size += len(packed)
        self._kernel.tell(Batch(batch, self._done, self._news()))

    def _news(self) -> dict[str, int | float | str] | None:
        stats = {str(name): value for name, value in self.model.stats().items() if isinstance(value, int | float | str)}
        if stats == self._stats:
            return None
        self._stats = stats
        return stats


class Listener:
    """A thread for what may come during a step: the kernel's interrupt, and its end."""

    def __init__(self, control: int, lifeline: int) -> None:
        self.model: Model | None = None
        self._control = control
        self._lifeline = lifeline

    def start(self) -> None:
        threading.Thread(target=self._listen, name="kernel", daemon=True).start()

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._lifeline, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._lifeline or not os.read(self._control, 4096):
                    os._exit(0)
                model = self.model
                if model is not None:
                    try:
                        model.interrupt()
                    except Exception:
                        log.exception("interrupt failed")


def die_with_the_other_end(fd: int) -> None:
    """Have the system kill this process when nobody has the writing end of a pipe any more, where it can (Linux):
    see F_SETSIG and O_ASYNC in fcntl(2). Nothing is ever written into the pipe, which would be a signal as well."""
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def main(driver: str, path: str, *descriptors: str) -> None:
    pipe, control, lifeline, heartbeat = map(int, descriptors)
    if path:
        os.environ["PYTHONPATH"] = path
    else:
        del os.environ["PYTHONPATH"]
    for fd in (pipe, control, lifeline, heartbeat):
        os.set_inheritable(fd, False)  # for what the driver starts
    die_with_the_other_end(lifeline)
    listener = Listener(control, lifeline)
    listener.start()
    # A service manager tells all processes of the daemon to end; the daemon lets what runs finish, and says when.
    # Handlers, because a signal that is ignored would be so in what the driver starts.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    # A crash would have the weights written out before its jobs could go on.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable()
    kernel = Kernel(socket.socket(fileno=pipe))
    beats = Heartbeat(heartbeat)
    os.close(heartbeat)
    _run(kernel, listener, beats)


def _run(kernel: Kernel, listener: Listener, heartbeat: Heartbeat) -> None:
    opened = kernel.expect(Open)
    if opened is None:
        return
    logging.basicConfig(level=opened.log_level, format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s")
    try:
        driver = find_driver(opened.driver)
        kernel.tell(_hello(driver))
        load = kernel.expect(Load)
        if load is None:
            return
        model = driver.load(load.spec)
    except Exception as error:  # noqa: BLE001 - told to the kernel, whatever it is
        kernel.tell(_refusal(error))
        return
    try:
        kernel.tell(Loaded(model.slots, model.capabilities, model.info))
        listener.model = model
        Resident(kernel, model, heartbeat).live()
    except Exception as error:  # noqa: BLE001 - told to the kernel, whatever it is
        kernel.tell(_refusal(error))
    finally:
        listener.model = None
        model.close()


def _refusal(error: Exception) -> Refused:
    text = error.message if isinstance(error, StartupError) else str(as_lost(error))
    return Refused(text.encode(errors="surrogateescape").decode(errors="replace"))  # a path may be in any encoding


def _hello(driver: Driver) -> Hello:
    backend, module = (driver.backend, driver.tuning_module) if isinstance(driver, Tunable) else (None, None)
    schema = driver.config_schema if isinstance(driver, Configurable) else None
    return Hello(driver.name, driver.version, backend, module, _plain(getattr(driver, "config", None)), _plain(schema))


def _plain(said: object) -> dict[str, object] | None:
    return dict(said) if isinstance(said, Mapping) else None


if __name__ == "__main__":
    main(*sys.argv[1:])

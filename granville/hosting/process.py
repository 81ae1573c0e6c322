"""A driver's process as the kernel sees it: how it is started, how words go to and fro, how it ends.

It is in a session of its own, so that Ctrl-C at the daemon's terminal is the daemon's alone. It ends when the daemon
does, however that ends: it holds the reading end of a pipe whose writing end only the daemon has (child.py).
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from granville.errors import StartupError
from granville.hosting.heartbeat import Heartbeat, heartbeat_file
from granville.hosting.interface import DriverError
from granville.hosting.pipe import (
    READ_BYTES,
    Frames,
    Hello,
    Message,
    Open,
    PipeError,
    Refused,
    ToKernel,
    frame,
    to_kernel,
)

log = logging.getLogger(__name__)

MODULE = "granville.hosting.child"
HELLO_S = 60.0
"""For the interpreter to start and the driver to be imported."""
LOOK_S = 1.0
"""How often it is looked whether the process is still there, when nothing is heard: its pipe stays open as long as a
process has it that the driver has forked."""
END_S = 2.0
"""How long a process may take to end that has said its last word; then it is killed."""
MAX_LINE_BYTES = 4096
"""What the driver writes to its standard output or error is passed on in lines no longer than this."""
STDERR = 2
FATAL = "Fatal Python error"
"""Begins what Python says of its own end, of which the lines before it are the cause."""


class DriverProcess:
    """All calls are for one thread, except `wake`, `interrupt`, `kill` and what can be read."""

    def __init__(self, driver: str) -> None:
        """Starts it. `hello` waits until it has found the driver."""
        self._driver = driver
        self.label = driver
        """What the lines begin with that it writes to its standard error."""
        self._socket, theirs = socket.socketpair()
        control, self._control = os.pipe()
        lifeline, self._lifeline = os.pipe()
        self._woken, self._wake = os.pipe()
        beats = heartbeat_file()
        self.heartbeat = Heartbeat(beats)
        self._lock = threading.Lock()
        """Over what the relaying thread knows, and over `_closed`: a closed descriptor is somebody else's soon."""
        self._closed = False
        self._socket.setblocking(False)
        for fd in (self._control, self._wake, self._woken):
            os.set_blocking(fd, False)
        self._out = bytearray()
        self._frames = Frames()
        self._at_end = False
        self._broken: str | None = None
        """What it sent that leaves nothing to be read after it."""
        self._last_line = ""
        self._quotes = False
        """Whether an error repeats it: while a model runs a client's text may be in it."""
        self._has_ended = False
        self._on_end: Callable[[], object] | None = None
        try:
            self._process = _start(driver, (theirs.fileno(), control, lifeline, beats))
        except OSError as error:
            self._free()
            raise DriverError(f"a process for the driver {driver} cannot be started: {error.strerror}") from None
        finally:
            theirs.close()
            for fd in (control, lifeline, beats):
                os.close(fd)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)
        self._relay = threading.Thread(target=self._pass_on, name=f"{driver} stderr", daemon=True)
        self._relay.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_there(self) -> bool:
        return self._process.poll() is None

    def hello(self) -> Hello:
        """Raises StartupError when there is no such driver, or finding it ends the process."""
        self.send(Open(self._driver, logging.getLogger().getEffectiveLevel()))
        try:
            message = self.next_message(HELLO_S)
        except DriverError as error:
            raise StartupError(f"--driver {self._driver}: {error}") from None
        if isinstance(message, Hello):
            return message
        self.finish(END_S)
        if isinstance(message, Refused):
            raise StartupError(message.message)
        raise StartupError(f"--driver {self._driver}: its process said {type(message).__name__} first")

    def next_message(self, timeout_s: float | None) -> ToKernel:
        """The answer to what was asked while no model runs. Raises DriverError when the process ends or, after
        `timeout_s`, is ended."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        self._quotes = True
        while (message := self.take()) is None:
            if until is not None and time.monotonic() > until:
                raise self.failed(f"said nothing for {timeout_s:g} s")
            self.exchange(LOOK_S)
        self._quotes = False
        return message

    def send(self, message: Message) -> None:
        """With the next `exchange`. Raises PipeError for what cannot be sent."""
        self._out += frame(message)

    def take(self) -> ToKernel | None:
        """The next message that has come. Raises DriverError when it is none."""
        if not self._frames.whole:
            return None
        try:
            return to_kernel(self._frames.whole.popleft())
        except PipeError as error:
            raise self.failed(f"sent what cannot be read: {error}") from None

    def exchange(self, timeout_s: float) -> None:
        """Send what is to be sent, and wait until something has come, all has gone, or `wake` was called. Raises
        DriverError when the process has ended and all that it had sent has been taken."""
        self._turn(timeout_s)
        if self.is_over:
            raise self.ended()

    @property
    def is_over(self) -> bool:
        """It has ended, and all that it had sent has been taken."""
        return self._at_end and not self._frames.whole

    def _turn(self, timeout_s: float) -> None:
        if not self._at_end:
            self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if self._out else 0))
            ready = self._poll.poll(1000 * timeout_s)
            for fd, _ in ready:
                if fd == self._woken:
                    os.read(self._woken, 4096)
                else:
                    self._write()
                    self._read()
            if not ready and not self.is_there:
                self._read()
                self._at_end = True

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        if self._out and not self._at_end:
            self._write()

    def wake(self) -> None:
        """From any thread: the `exchange` under way, or else the next one, returns at once."""
        self._byte_into(self._wake)

    def interrupt(self) -> None:
        """From any thread: have the process call its model's `interrupt`."""
        self._byte_into(self._control)

    def kill(self) -> None:
        """From any thread. Whoever waits for the process then sees its end."""
        self._process.kill()

    def when_ended(self, call: Callable[[], object]) -> None:
        """`call`, in whatever thread, once the process has ended."""
        with self._lock:
            self._on_end = call
            has_ended = self._has_ended
        if has_ended:
            call()

    def finish(self, timeout_s: float) -> None:
        """Wait for its end, kill it after `timeout_s`, and free everything."""
        until = time.monotonic() + timeout_s
        try:
            while not self._at_end and (left_s := until - time.monotonic()) > 0:
                self._turn(min(left_s, LOOK_S))
                self._frames.whole.clear()
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("driver process killed driver=%s pid=%d reason='it did not end'", self.label, self.pid)
        except DriverError as error:
            log.warning("driver process failed at its end driver=%s error=%s", self.label, error)
        self._close()

    def failed(self, how: str) -> DriverError:
        """End it at once; an error that says why."""
        self._process.kill()
        self._close()
        return DriverError(f"the driver's process {how}; it was ended")

    def ended(self) -> DriverError:
        """An error that says how it has ended."""
        if self._broken is not None:
            return self.failed(self._broken)
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return self.failed("closed its pipe")
        self._close()
        self._relay.join(LOOK_S)
        words = f"; it last said: {self._last_line}" if self._quotes and self._last_line else ""
        return DriverError(f"the driver's process {_how(status)}{words}")

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            return
        except OSError:  # it reads no more; what it has sent, and its end, are read all the same
            sent = len(self._out)
        del self._out[:sent]

    def _read(self) -> None:
        try:
            while data := self._socket.recv(READ_BYTES):
                self._frames.feed(data)
        except BlockingIOError:
            return
        except PipeError as error:  # after what came before it
            self._broken = f"sent what cannot be read: {error}"
        except ConnectionResetError:  # it has ended with words of ours unread
            pass
        self._at_end = True

    def _byte_into(self, fd: int) -> None:
        with self._lock:
            if not self._closed:
                try:
                    os.write(fd, b"!")
                except (BlockingIOError, BrokenPipeError):  # full: it will be read; broken: nobody is there
                    return

    def _close(self) -> None:
        """Leave nothing of it. Does nothing the second time."""
        if self.is_there:
            self._process.kill()
        self._process.wait()
        self._at_end = True
        self._free()

    def _free(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._socket.close()
                for fd in (self._control, self._lifeline, self._wake, self._woken):
                    os.close(fd)

    def _pass_on(self) -> None:
        """What the driver writes, to the daemon's standard error; then word of its end."""
        assert self._process.stdout is not None
        fatal = False
        with self._process.stdout as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                text = line.decode(errors="replace").rstrip()
                fatal = fatal or text.startswith(FATAL)
                if text and not fatal:
                    self._last_line = text
                with suppress(OSError):  # the daemon's own is closed
                    os.write(STDERR, f"{self.label}: {text}\n".encode())
        self._process.wait()
        with self._lock:
            self._has_ended = True
            call = self._on_end
        if call is not None:
            call()


def _start(driver: str, fds: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """With these descriptors and no others. The driver is looked for where it would be looked for in this process."""
    path = os.environ.get("PYTHONPATH", "")
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, driver, path, *map(str, fds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=fds,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was ended by {name}" + (", as by the system when memory is short" if name == "SIGKILL" else "")

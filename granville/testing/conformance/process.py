"""A child process in which a driver is checked: started, listened to, and ended when it hangs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import msgspec
import trio

from granville.testing.conformance.lines import Began, Calling, Done, Lines, Plan, Returned, decode

END_S = 5.0
"""For a child that hangs to write where it is, and for one that is done to end."""
SAID_BYTES = 64 << 10
LAST_LINES = 16
_OURS = ("granville/testing/conformance", "<frozen runpy>", "/threading.py", "Extension modules:")
_THREAD = re.compile("(?:Current thread|Thread) 0x")

Take = Callable[[Lines], None]


class Process:
    """What the child reports and writes, and how it ended."""

    def __init__(self, plan: Plan, limit_s: Callable[[str | None], float], take: Take) -> None:
        """`limit_s` says how long a call may take, None being what the checks do between two; `take` gets each line."""
        self.check: str | None = None
        """The one that is being done."""
        self.call: str | None = None
        """The call of the driver that has not returned."""
        self.done = False
        self.hung_s: float | None = None
        self.lingered = False
        """It was done, and did not end."""
        self.status: int | None = None
        self._plan = plan
        self._limit_s = limit_s
        self._take = take
        self._said: deque[bytes] = deque()

    async def run(self) -> None:
        """From its start to its end. Cancelled, it leaves no process behind."""
        # -P: a module is found where `granville serve` would find it, not in the current folder.
        plan = msgspec.json.encode(self._plan).decode()
        argv = [sys.executable, "-P", "-m", "granville.testing.conformance.child", plan]
        pipe = subprocess.PIPE
        process = await trio.lowlevel.open_process(argv, stdin=pipe, stdout=pipe, stderr=pipe)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            # One nursery, to read what the driver writes beside what the child reports.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._collect, process.stderr)
                await self._listen(process, process.stdout)
                # A process that the driver has started may hold the pipe open: it is not waited for.
                nursery.cancel_scope.deadline = trio.current_time() + END_S
                await process.wait()
            self.lingered = self.done and process.returncode is None
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                self.status = await process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    await stream.aclose()

    async def _collect(self, stream: trio.abc.ReceiveStream) -> None:
        """Started by: `run`. Ends when: the child's stderr does. Cancelled by: `run`, when the child has."""
        async for data in stream:
            self._said.append(bytes(data))
            while len(self._said) > 1 and sum(map(len, self._said)) > SAID_BYTES:
                self._said.popleft()

    async def _listen(self, process: trio.Process, stream: trio.abc.ReceiveStream) -> None:
        part = b""
        while not self.done:  # the end of the pipe may be long in coming: a thread of the driver's keeps it open
            limit = self._limit_s(self.call)
            with trio.move_on_after(limit) as waiting:
                data = await stream.receive_some()
            if waiting.cancelled_caught:
                self.hung_s = limit
                # Python writes where it is on this signal (faulthandler, in the child).
                process.send_signal(signal.SIGABRT)
                return
            if not data:
                return
            *whole, part = (part + data).split(b"\n")
            for line in map(decode, whole):
                self._note(line)
                self._take(line)

    def _note(self, line: Lines) -> None:
        match line:
            case Began(check=name):
                self.check = name
            case Calling(call=call):
                self.call = call
            case Returned():
                self.call = None
            case Done():
                self.done = True

    def said_lines(self) -> list[str]:
        """What it wrote on stdout and stderr, the last of it."""
        return [line for line in b"".join(self._said).decode(errors="replace").splitlines() if line.strip()]

    def last_words(self) -> tuple[str, ...]:
        """What it wrote last, without what Python's own dump says of our side."""
        lines = [line for line in self.said_lines() if not any(part in line for part in _OURS)]
        # A thread of which nothing is left.
        kept = [line for line, after in pairwise([*lines, ""]) if not _THREAD.match(line) or after.startswith("  File")]
        return tuple(kept[-LAST_LINES:])

    def ended(self) -> str:
        """How it ended before its time, in words."""
        call = (self.call or "").rstrip(",")
        where = f"in {call}" if self.call else "between two calls of the driver" if not self.done else "at its end"
        if self.hung_s is not None:
            return f"{self.call or 'the check'} had not returned after {self.hung_s:g} s"
        if self.lingered:
            return f"the process had not ended {END_S:g} s after all was closed: a thread of the driver's keeps it"
        if self.status is not None and self.status < 0:
            return f"the process died of {_signal_name(-self.status)} {where}"
        return f"the process ended with exit status {self.status} {where}: a driver never ends its process"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"

"""Saved KV states on disk, under a budget of bytes: which file is whose, what goes first, and the thread that writes.

Reading and writing is done by one thread, in the order in which it was asked for; what became of it is taken in by
`poll`, in the model's thread, where everything else happens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from granville_llama.binding import State, as_state
from granville_llama.kvfiles import KvFileError, KvFiles, Label
from granville_llama.saved import ByValue, Saved

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_UNWRITTEN_BYTES = 64 << 20
"""States on their way to disk at a time, or a single one of any size: they may be in memory for no other reason."""
PAUSE_S = 30.0
"""After a write that failed, for as long nothing is written."""
FLUSH_S = 2.0
"""At the end: how long states that are not on disk yet have to get there."""


class KvDisk:
    """`lost` is called with a state that is nowhere any more, because its file went."""

    def __init__(self, files: KvFiles, limit_bytes: int, lost: Callable[[Saved], None]) -> None:
        self.limit = limit_bytes
        self.bytes = 0
        self._files = files
        self._lost = lost
        self._sizes: dict[str, int] = {}
        self._owners: dict[str, Saved] = {}
        self._removable = ByValue()
        """Owners of files that are not being replaced."""
        self._foreign: list[str] = []
        """Files under another key, oldest last: first to go."""
        self._writing: Counter[str] = Counter()
        """How many writes of each file are on their way."""
        self._unwritten_bytes = 0
        self._later: dict[Saved, None] = {}
        """To be written when there is less on its way."""
        self._pause_until = 0.0
        self._ends = float("inf")
        self._worker = Worker()

    def __len__(self) -> int:
        return len(self._sizes)

    def scan(self) -> list[Saved]:
        """What is there, the oldest first. Once, at the beginning."""
        found: list[Saved] = []
        for name, size, _, label in sorted(self._files.scan(), key=lambda entry: entry[2]):
            self._note(name, size)
            if label is None:
                self._foreign.append(name)
                continue
            saved = Saved(label, size, name=name, written=True)
            saved.value = saved.worth
            self._owners[name] = saved
            self._removable.add(saved)
            found.append(saved)
        self._foreign.reverse()
        return found

    def write(self, saved: Saved) -> None:
        """Begin to write a state, unless it is there or the disk has just failed; later, when too much is on its
        way."""
        state = saved.state
        if saved.written or state is None or saved.size > self.limit or time.monotonic() < self._pause_until:
            return
        if not self._has_way_for(saved):
            self._later[saved] = None
            return
        name, size = self._files.name(saved.label), saved.size
        saved.written = True
        self._unwritten_bytes += size
        self._writing[name] += 1
        if name in self._owners:
            self._removable.discard(self._owners[name])
        self._worker.do(partial(self._store, saved, state), partial(self._stored, saved, name, size))

    def read(self, saved: Saved, then: Callable[[State | Exception], None]) -> Future[State | Exception]:
        """The promise of a state that is on disk or on its way there."""
        return self._worker.do(partial(self._load, saved.label), then)

    def drop(self, saved: Saved) -> None:
        """Its file is of no use."""
        saved.written = False
        self._later.pop(saved, None)
        if saved.name is not None and self._owners.get(saved.name) is saved:
            self._remove(saved.name)

    def forget_session(self, session: str) -> None:
        """Whatever file it has, or is about to have from a state that is out of use."""
        self._remove(self._files.name(Label([], 0, session)))

    def make_room(self) -> None:
        while self.bytes > self.limit:
            if self._foreign:
                self._remove(self._foreign.pop())
            elif self._removable:
                least = self._removable.least()
                self.drop(least)
                if least.state is None and least.in_use:
                    self._lost(least)
            else:  # all are being replaced; after that it is looked at again
                return

    def poll(self) -> None:
        """Take in what the thread has done."""
        self._worker.poll()

    def wait(self, timeout_s: float) -> bool:
        """Until the thread has done what it was asked before, and that is taken in; whether it has."""
        done = self._worker.wait(timeout_s)
        self.poll()
        return done

    def close(self, states: list[Saved]) -> None:
        """Bring these to disk, in this order, in FLUSH_S at most, and let go of the folder."""
        self._ends = time.monotonic() + FLUSH_S
        for saved in states:
            self.write(saved)
        done = self.wait(FLUSH_S)
        if not done:
            log.warning("kv states not all written; the disk is slow or full")
        self._worker.close(self._files.close, FLUSH_S if done else 0)

    def _has_way_for(self, saved: Saved) -> bool:
        if self._ends < float("inf"):  # what is written at the end is in memory anyway
            return True
        return not self._unwritten_bytes or self._unwritten_bytes + saved.size <= MAX_UNWRITTEN_BYTES

    def _store(self, saved: Saved, state: State) -> int:
        """In the thread. Bytes on disk, 0 when it need not or must not be written any more."""
        if not saved.in_use or time.monotonic() > self._ends:
            return 0
        return self._files.write(saved.label, memoryview(state).cast("B"))

    def _stored(self, saved: Saved, name: str, size: int, result: int | Exception) -> None:
        self._unwritten_bytes -= size
        self._writing[name] -= 1
        if isinstance(result, Exception):
            log.warning("kv state not written error=%s pause_s=%g", result, PAUSE_S)
            self._pause_until = time.monotonic() + PAUSE_S
            self._later.clear()
            saved.written = False
            if saved.state is None and saved.in_use:
                self._lost(saved)
        elif result:
            saved.name = name
            self._note(name, result)
            self._owners[name] = saved
        if not self._writing[name]:
            del self._writing[name]
            owner = self._owners.get(name)
            if owner is not None and owner.in_use:
                self._removable.add(owner)
            else:
                self._remove(name)
        self.make_room()
        while self._later and self._has_way_for(next(iter(self._later))):
            next_one = next(iter(self._later))
            del self._later[next_one]
            if next_one.in_use:
                self.write(next_one)

    def _load(self, label: Label) -> State:
        """In the thread."""
        return as_state(self._files.read(label))

    def _note(self, name: str, size: int) -> None:
        self.bytes += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def _remove(self, name: str) -> None:
        """But what is being written, which would go in its place: that is looked at when it is there."""
        if name not in self._sizes or name in self._writing:
            return
        self.bytes -= self._sizes.pop(name)
        owner = self._owners.pop(name, None)
        if owner is not None:
            self._removable.discard(owner)
        self._worker.do(partial(self._files.remove, name), lambda _: None)


class Worker:
    """One thread that does what may wait for a disk. What it did comes back through `poll`."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="granville-kv-files", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], T], then: Callable[[T | Exception], None]) -> Future[T | Exception]:
        """Run `work` in the thread; `then` gets what it returned or raised, from `poll`."""
        future: Future[T | Exception] = Future()

        def run() -> None:
            result: T | Exception
            try:
                result = work()
            except (KvFileError, OSError, MemoryError) as error:
                result = error
            except Exception as error:
                log.exception("kv file thread failed")
                result = error
            self._done.put(partial(then, result))
            future.set_result(result)

        self._jobs.put(run)
        return future

    def poll(self) -> None:
        try:
            while True:
                self._done.get_nowait()()
        except Empty:
            return

    def wait(self, timeout_s: float) -> bool:
        """Whether all that was asked before is done, within the time."""
        try:
            self.do(lambda: None, lambda _: None).result(timeout_s)
        except TimeoutError:
            return False
        return True

    def close(self, last: Callable[[], None], timeout_s: float) -> None:
        """Do what was asked and `last`, and end: within the time, or else behind the caller's back."""
        self.do(last, lambda _: None)
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            job()
            del job  # and with it the state, which may be large, before it waits for the next

"""Saved KV states by the tokens that they are of: in memory under a budget of bytes, then on disk.

One store serves sessions, prompts that begin alike, and parked jobs. What goes first when room is needed is the state
that would cost least to compute again per byte, the long unused before the fresh (GreedyDual-Size with frequency:
Cherkasova, HP Labs 1998). States of parked jobs go last of all; their jobs then read their tokens again.

Everything here happens in the model's thread but reading and writing files, which a thread of the store's own does:
its results are taken in by `poll`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from granville_llama.binding import State, as_state
from granville_llama.kvfiles import KvFileError, KvFiles, Label
from granville_llama.prefix import PrefixIndex, shared_beginning

log = logging.getLogger(__name__)
T = TypeVar("T")

LONG_TOKENS = 4096
"""A token behind so many costs twice as much to read as the first one: attention looks at all before it."""
MAX_UNWRITTEN_BYTES = 64 << 20
"""States on their way to disk at a time, or a single one of any size: they may be in memory for no other reason."""
DISK_PAUSE_S = 30.0
"""After a write that failed, for as long nothing is written."""
FLUSH_S = 2.0
"""At the end: how long states that are not on disk yet have to get there."""


@dataclass(eq=False, slots=True)
class Saved:
    """The state of a sequence of tokens: in memory, on disk, or both."""

    label: Label
    size: int
    """Bytes in memory."""
    state: State | None = None
    name: str | None = None
    """Its file, once it is written."""
    uses: int = 1
    value: float = 0.0
    written: bool = False
    """On disk, or on its way there."""

    def usable(self, tokens: list[int], session: str | None) -> int:
        """How many tokens, from the first, it saves who wants these."""
        shared = shared_beginning(tokens, self.label.tokens)
        return shared if session is not None and session == self.label.session else min(shared, self.label.pure)

    @property
    def worth(self) -> float:
        """What it costs to compute, per byte."""
        count = len(self.label.tokens)
        return self.uses * count * (1 + count / LONG_TOKENS) / max(1, self.size)


class KvStore:
    def __init__(self, ram_bytes: int, disk_bytes: int = 0, files: KvFiles | None = None) -> None:
        self.ram_limit = ram_bytes
        self.disk_limit = disk_bytes
        self.ram_bytes = 0
        """In memory now, parked states included."""
        self._parked: dict[str, State] = {}
        self._parked_bytes = 0
        self._in_ram: dict[Saved, None] = {}
        self._index: PrefixIndex[Saved] = PrefixIndex()
        self._sessions: dict[str, Saved] = {}
        self._age = 0.0
        """The value of what was given up last: what is new or used again starts from there."""
        self._files = files
        self._file_bytes: dict[str, int] = {}
        self._disk_bytes = 0
        self._on_disk: dict[str, Saved] = {}
        self._foreign: list[str] = []
        """Files under another key, oldest last: first to go."""
        self._worker = Worker() if files else None
        self._unwritten_bytes = 0
        self._pause_until = 0.0
        if files:
            self._scan(files)

    @property
    def enabled(self) -> bool:
        return self.ram_limit > 0 or self._files is not None

    # finding

    def find(self, tokens: list[int], session: str | None) -> tuple[Saved | None, int]:
        """The state that saves the most of these tokens, and how many it saves."""
        candidates = self._index.nearest(tokens)
        own = self._sessions.get(session) if session is not None else None
        if own is not None:
            candidates.append(own)
        best: tuple[int, bool] = (0, False)
        found: Saved | None = None
        for saved in candidates:
            rank = (saved.usable(tokens, session), saved.state is not None)
            if rank > best:
                best, found = rank, saved
        return found, best[0]

    def covers(self, tokens: list[int]) -> int:
        """How many of these tokens, from the first, anyone can have from here."""
        return self.find(tokens, None)[1]

    def use(self, saved: Saved) -> State | Future[State | None] | None:
        """Its state, or the promise of it from disk, which is None when the file is wrong."""
        saved.uses += 1
        saved.value = self._age + saved.worth
        if saved.state is not None:
            return saved.state
        if self._worker is None or self._files is None or saved.name not in self._file_bytes:
            return None
        files, label = self._files, saved.label

        def read() -> State | None:
            try:
                return as_state(files.read(label))
            except (KvFileError, OSError) as error:
                log.warning("kv file ignored reason=%s", error)
                return None

        def arrived(state: State | None) -> None:
            if state is None:
                self._drop_file(saved)
            elif saved.state is None and saved.value >= 0:
                saved.state = state
                self._in_ram[saved] = None
                self.ram_bytes += saved.size
                self._make_room()

        return self._worker.do(read, arrived)

    # keeping

    def keep(self, label: Label, state: State) -> None:
        """Take a state in. A session's replaces the one before it."""
        size = len(state)
        old = self._sessions.pop(label.session, None) if label.session is not None else None
        saved = Saved(label, size, state, uses=old.uses + 1 if old else 1)
        saved.value = self._age + saved.worth
        if old is not None:
            self._replace(old)
        if label.session is not None:
            self._sessions[label.session] = saved
        self._index.add(saved, label.tokens[: label.pure])
        self._in_ram[saved] = None
        self.ram_bytes += size
        if label.session is not None:  # other prefixes are written when memory has no room for them
            self._write(saved)
        self._make_room()

    def forget_session(self, session: str) -> None:
        saved = self._sessions.get(session)
        if saved is None:
            return
        self._replace(saved)
        if self._files is not None:
            self._remove_file(self._files.name(saved.label))

    def park(self, id: str, state: State) -> None:
        self._parked[id] = state
        self._parked_bytes += len(state)
        self.ram_bytes += len(state)
        self._make_room()

    def unpark(self, id: str) -> State | None:
        """A parked job's state, which is not kept any longer; None when it had to be given up."""
        state = self._parked.pop(id, None)
        if state is not None:
            self._parked_bytes -= len(state)
            self.ram_bytes -= len(state)
        return state

    def limit(self, ram_bytes: int) -> None:
        self.ram_limit = ram_bytes
        self._make_room()

    def poll(self) -> None:
        """Take in what the file thread has done."""
        if self._worker is not None:
            self._worker.poll()

    def stats(self) -> dict[str, int]:
        return {
            "kv_ram_bytes": self.ram_bytes,
            "kv_parked_bytes": self._parked_bytes,
            "kv_disk_bytes": self._disk_bytes,
            "kv_states": len(self._in_ram) + len(self._parked),
            "kv_files": len(self._file_bytes),
        }

    def close(self) -> None:
        """Bring to disk what is worth it, for FLUSH_S at most, and let go of the folder."""
        if self._worker is None or self._files is None:
            return
        ends = time.monotonic() + FLUSH_S
        for saved in sorted(self._in_ram, key=lambda saved: -saved.value):
            self._write(saved)
        idle = self._worker.close(ends - time.monotonic())
        if idle:
            self.poll()
            self._files.close()
        else:
            log.warning("kv states not all written; the disk is slow or full")

    # room

    def _make_room(self) -> None:
        while self.ram_bytes > self.ram_limit and self._in_ram:
            least = min(self._in_ram, key=lambda saved: saved.value)
            self._age = max(self._age, least.value)
            if not least.written:
                self._write(least)
            self._leave_ram(least)
            if not least.written:
                self._forget(least)
        while self.ram_bytes > self.ram_limit and self._parked:
            id = next(iter(self._parked))
            log.info("parked state given up bytes=%d", len(self._parked[id]))
            self.unpark(id)

    def _leave_ram(self, saved: Saved) -> None:
        del self._in_ram[saved]
        self.ram_bytes -= saved.size
        saved.state = None

    def _replace(self, saved: Saved) -> None:
        """It is out of use, but its file, which its follower overwrites."""
        if saved.state is not None:
            self._leave_ram(saved)
        self._forget(saved)

    def _forget(self, saved: Saved) -> None:
        session = saved.label.session
        if session is not None and self._sessions.get(session) is saved:
            del self._sessions[session]
        self._index.remove(saved, saved.label.tokens[: saved.label.pure])
        saved.value = -1.0

    # files

    def _scan(self, files: KvFiles) -> None:
        found = sorted(files.scan(), key=lambda entry: entry[2])
        for order, (name, size, _, label) in enumerate(found):
            self._note_file(name, size)
            if label is None:
                self._foreign.append(name)
                continue
            saved = Saved(label, size, name=name, written=True)
            saved.value = saved.worth + order * 1e-12  # the newer of equals stays
            self._on_disk[name] = saved
            self._index.add(saved, label.tokens[: label.pure])
            if label.session is not None:
                self._sessions[label.session] = saved
        self._foreign.reverse()
        self._make_disk_room()

    def _write(self, saved: Saved) -> None:
        """Begin to write a state, unless it is there, too much is on its way, or the disk has just failed."""
        files, state = self._files, saved.state
        if (
            self._worker is None or files is None or state is None or saved.written
            or saved.size > self.disk_limit
            or (self._unwritten_bytes and self._unwritten_bytes + saved.size > MAX_UNWRITTEN_BYTES)
            or time.monotonic() < self._pause_until
        ):  # fmt: skip
            return
        saved.written = True
        self._unwritten_bytes += saved.size
        label, size = saved.label, saved.size

        def write() -> int | OSError:
            if saved.value < 0:  # replaced meanwhile
                return 0
            try:
                return files.write(label, memoryview(state).cast("B"))
            except OSError as error:
                return error

        def written(result: int | OSError) -> None:
            self._unwritten_bytes -= size
            if isinstance(result, OSError):
                log.warning("kv state not written error=%s pause_s=%g", result.strerror, DISK_PAUSE_S)
                self._pause_until = time.monotonic() + DISK_PAUSE_S
                saved.written = False
                if saved.state is None and saved.value >= 0:
                    self._forget(saved)
            elif result and saved.value < 0:
                self._remove_if_unowned(files.name(label))
            elif result:
                saved.name = files.name(label)
                self._note_file(saved.name, result)
                self._on_disk[saved.name] = saved
                self._make_disk_room()

        self._worker.do(write, written)

    def _make_disk_room(self) -> None:
        while self._disk_bytes > self.disk_limit:
            if self._foreign:
                self._remove_file(self._foreign.pop())
                continue
            least = min(self._on_disk.values(), key=lambda saved: saved.value)
            self._drop_file(least)

    def _drop_file(self, saved: Saved) -> None:
        assert saved.name is not None
        if self._on_disk.get(saved.name) is saved:
            self._remove_file(saved.name)
        saved.name, saved.written = None, False
        if saved.state is None and saved.value >= 0:
            self._forget(saved)

    def _note_file(self, name: str, size: int) -> None:
        self._disk_bytes += size - self._file_bytes.get(name, 0)
        self._file_bytes[name] = size

    def _remove_if_unowned(self, name: str) -> None:
        if name not in self._on_disk and self._files is not None:
            self._remove_file(name)

    def _remove_file(self, name: str) -> None:
        self._disk_bytes -= self._file_bytes.pop(name, 0)
        self._on_disk.pop(name, None)
        if self._worker is not None and self._files is not None:
            files = self._files
            self._worker.do(lambda: files.remove(name), lambda _: None)


class Worker:
    """One thread that does what may wait for a disk. What it did comes back through `poll`."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="granville-kv-files", daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], T], then: Callable[[T], None]) -> Future[T]:
        """Run `work` in the thread; `then` gets what it returned, from `poll`."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                log.exception("kv file thread failed")
                future.set_exception(error)
                return
            self._done.put(lambda: then(result))
            future.set_result(result)

        self._jobs.put(run)
        return future

    def poll(self) -> None:
        try:
            while True:
                self._done.get_nowait()()
        except Empty:
            return

    def close(self, timeout_s: float) -> bool:
        """Whether all that was asked for is done, within the time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

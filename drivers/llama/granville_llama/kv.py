"""Saved KV states by the tokens that they are of: in memory under a budget of bytes, then on disk.

One store serves sessions, prompts that begin alike, and parked jobs. What goes first when room is needed is the state
that would cost least to compute again per byte, the long unused before the fresh (GreedyDual-Size with frequency:
Cherkasova, HP Labs 1998). What is kept warm goes after all of those, the oldest first. States of parked jobs go last of
all; their jobs then read their tokens again.

Everything here happens in the model's thread.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future
from functools import partial

from granville_llama.binding import State
from granville_llama.kvdisk import KvDisk
from granville_llama.kvfiles import KvFiles, Label
from granville_llama.prefix import PrefixIndex
from granville_llama.saved import GONE, ByValue, Saved, saves

log = logging.getLogger(__name__)

WARM_SHARE = 2
"""One part in so many of what may be in memory can be kept warm."""


class KvStore:
    def __init__(self, ram_bytes: int, disk_bytes: int = 0, files: KvFiles | None = None) -> None:
        self.ram_limit = ram_bytes
        self.ram_bytes = 0
        """In memory now, parked states included."""
        self._parked: dict[str, State] = {}
        self._parked_bytes = 0
        self._in_ram = ByValue()
        """But for those that are kept warm."""
        self._warm: dict[Saved, None] = {}
        """Kept before others, oldest first."""
        self.warm_bytes = 0
        self._known: dict[str | bytes, Saved] = {}
        """All that are in use, by session or tokens."""
        self._index: PrefixIndex[Saved] = PrefixIndex()
        self._age = 0.0
        """The value of what was given up last: what is new or used again starts from there."""
        self._disk: KvDisk | None = None
        if files:
            self._disk = KvDisk(files, disk_bytes, self._forget)
            for saved in self._disk.scan():
                self._know(saved)
            self._disk.make_room()

    @property
    def enabled(self) -> bool:
        return self.ram_limit > 0 or self._disk is not None

    # finding

    def find(self, tokens: list[int], session: str | None) -> tuple[Saved | None, int]:
        """The state that saves the most of these tokens, and how many it saves. A session goes on from its own if that
        has anything of what the model said in it, as it would if nobody else were here."""
        candidates = self._index.nearest(tokens)
        own = self.own(session) if session is not None else None
        if own is not None:
            candidates.append(own)
        best: tuple[bool, int, bool] = (False, 0, False)
        found: Saved | None = None
        for saved in candidates:
            count = saves(saved.label, tokens, session)
            rank = (count > saved.label.pure, count, saved.state is not None)
            if rank > best:
                best, found = rank, saved
        return found, best[1]

    def own(self, session: str) -> Saved | None:
        """What the session's last turn has left."""
        return self._known.get(session)

    def covers(self, tokens: list[int]) -> int:
        """How many of these tokens, from the first, anyone can have from here."""
        return self.find(tokens, None)[1]

    def use(self, saved: Saved) -> State | Future[State | Exception]:
        """Its state, or the promise of it from disk: an exception when the file is wrong."""
        self._touch(saved)
        if saved.state is not None:
            return saved.state
        if saved.coming is None:
            assert self._disk is not None
            saved.coming = self._disk.read(saved, partial(self._arrived, saved))
        return saved.coming

    # keeping

    def keep(self, label: Label, state: State) -> Saved:
        """Take a state in. A session's replaces the one before it."""
        saved = Saved(label, len(state), state)
        old = self._known.get(saved.key)
        if old is not None:
            if label.session is None:  # the very same
                self._touch(old)
                if old.state is None:
                    self._hold(old, state)
                return old
            saved.uses += old.uses
            self._put_out_of_use(old)
        saved.value = self._age + saved.worth
        self._know(saved)
        if label.session is not None and self._disk is not None:
            self._disk.write(saved)  # other prefixes are written when memory has no room for them
        self._hold(saved, state)
        return saved

    def protect(self, saved: Saved) -> None:
        """Keep a state in memory before others until `release`, or until newer ones of that kind need its room."""
        if saved.state is None or saved.size > self.ram_limit // WARM_SHARE:
            return
        if saved in self._warm:
            del self._warm[saved]
        else:
            self._in_ram.discard(saved)
            self.warm_bytes += saved.size
        self._warm[saved] = None
        self._bound_warm()

    def release(self, saved: Saved) -> None:
        """One like the others from now on, and as fresh as one that was just used."""
        if saved in self._warm:
            self._leave_warm(saved)
            saved.value = self._age + saved.worth
            self._in_ram.add(saved)

    def forget_session(self, session: str) -> None:
        saved = self._known.get(session)
        if saved is not None:
            self._put_out_of_use(saved)
        if self._disk is not None:
            self._disk.forget_session(session)

    def refuse(self, saved: Saved) -> None:
        """The backend does not take this state: nobody is to have it."""
        if saved.in_use:
            self._put_out_of_use(saved)
        if self._disk is not None:
            self._disk.drop(saved)

    def park(self, id: str, state: State) -> None:
        if len(state) > self.ram_limit:
            log.info("parked state not kept bytes=%d", len(state))
            return
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
        self._bound_warm()
        self._make_room()

    def poll(self) -> None:
        """Take in what the file thread has done."""
        if self._disk is not None:
            self._disk.poll()

    def stats(self) -> dict[str, int]:
        """From any thread."""
        return {
            "kv_ram_bytes": self.ram_bytes,
            "kv_parked_bytes": self._parked_bytes,
            "kv_disk_bytes": self._disk.bytes if self._disk is not None else 0,
            "kv_states": len(self._in_ram) + len(self._warm) + len(self._parked),
            "kv_warm_bytes": self.warm_bytes,
            "kv_files": len(self._disk) if self._disk is not None else 0,
        }

    def close(self) -> None:
        """Bring to disk what is worth it, as far as there is time, and let go of the folder."""
        if self._disk is not None:
            self._disk.close(sorted([*self._in_ram, *self._warm], key=lambda saved: -saved.value))

    # room

    def _hold(self, saved: Saved, state: State) -> None:
        saved.state, saved.size = state, len(state)
        self._in_ram.add(saved)
        self.ram_bytes += saved.size
        if saved.size + self._parked_bytes > self.ram_limit:  # others would go in vain
            self._give_up(saved)
        else:
            self._make_room()

    def _make_room(self) -> None:
        while self.ram_bytes > self.ram_limit and self._in_ram:
            least = self._in_ram.least()
            self._age = max(self._age, least.value)
            self._give_up(least)
        while self.ram_bytes > self.ram_limit and self._warm:
            self._give_up(next(iter(self._warm)))
        while self.ram_bytes > self.ram_limit and self._parked:
            id = next(iter(self._parked))
            log.info("parked state given up bytes=%d", len(self._parked[id]))
            self.unpark(id)

    def _bound_warm(self) -> None:
        while self.warm_bytes > self.ram_limit // WARM_SHARE:
            self.release(next(iter(self._warm)))

    def _leave_warm(self, saved: Saved) -> None:
        del self._warm[saved]
        self.warm_bytes -= saved.size

    def _give_up(self, saved: Saved) -> None:
        """Out of memory, and to disk if there is a way."""
        if self._disk is not None:
            self._disk.write(saved)
        self._leave_ram(saved)
        if not saved.written:
            self._forget(saved)

    def _leave_ram(self, saved: Saved) -> None:
        self._in_ram.discard(saved)
        if saved in self._warm:
            self._leave_warm(saved)
        self.ram_bytes -= saved.size
        saved.state = None

    def _touch(self, saved: Saved) -> None:
        saved.uses += 1
        saved.value = self._age + saved.worth

    def _arrived(self, saved: Saved, state: State | Exception) -> None:
        saved.coming = None
        if isinstance(state, Exception):
            log.warning("kv file ignored reason=%s", state)
            if self._disk is not None:
                self._disk.drop(saved)
            if saved.state is None and saved.in_use:
                self._forget(saved)
        elif saved.state is None and saved.in_use:
            self._hold(saved, state)

    def _put_out_of_use(self, saved: Saved) -> None:
        """But not its file: another is written in its place."""
        if saved.state is not None:
            self._leave_ram(saved)
        self._forget(saved)

    def _know(self, saved: Saved) -> None:
        self._known[saved.key] = saved
        self._index.add(saved, saved.label.tokens[: saved.label.pure])

    def _forget(self, saved: Saved) -> None:
        del self._known[saved.key]
        self._index.remove(saved, saved.label.tokens[: saved.label.pure])
        saved.value = GONE

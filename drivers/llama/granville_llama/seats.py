"""Which sequence sits on which slot, and where its first tokens come from: nothing is read twice that is in a cache.

A slot is one of llama.cpp's sequence ids. What a new prompt shares with what a slot still holds, with a saved state,
or with a prompt that is being read beside it, it gets from there.

What anyone may have is *pure*: read as a prompt, in pieces of any size, which gives the same cache bit for bit. A token
that was generated was computed alone; what follows it depends on that, so only its own session goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass

from granville.hosting.interface import DriverError
from granville_llama.binding import Context, State
from granville_llama.kv import KvStore
from granville_llama.kvfiles import Label
from granville_llama.prefix import shared_beginning
from granville_llama.saved import Saved, saves
from granville_llama.sequence import Sequence

log = logging.getLogger(__name__)

MIN_SHARED_TOKENS = 8
"""Less is not worth looking at."""
COPY_TOKENS = 16
"""So many tokens more make a saved state better than what a slot holds in place."""
FOLLOW_TOKENS = 64
"""So many tokens more make it worth to wait for a neighbour that reads them."""
SPILL_TOKENS = 64
"""A prompt of so many tokens that nobody else has is saved when its slot is taken."""
NOTHING = Label([], 0, None)


@dataclass(slots=True)
class Awaited:
    """A state on its way from disk to a sequence."""

    saved: Saved
    usable: int
    state: Future[State | Exception]


class Seats:
    def __init__(self, context: Context, store: KvStore, slots: int) -> None:
        self.store = store
        self.on_slots: list[Sequence | None] = [None] * slots
        self._context = context
        self._left: list[Label] = [NOTHING] * slots
        """What the cache of each empty slot holds."""
        self._awaited: dict[Sequence, Awaited] = {}

    @property
    def running(self) -> list[Sequence]:
        return [sequence for sequence in self.on_slots if sequence]

    @property
    def streams(self) -> list[Sequence]:
        return [sequence for sequence in self.on_slots if sequence and sequence.decoding]

    def awaits(self, sequence: Sequence) -> bool:
        """Whether its first tokens are still to come from elsewhere."""
        return sequence.leader is not None or sequence in self._awaited

    # coming and going

    def place(self, sequence: Sequence) -> None:
        """Onto a free slot, with all that is in a cache already, or on its way."""
        free = self._free()
        request = sequence.request
        if request.reset_cache:
            if request.session is not None:
                self._forget_session(request.session)
            self._sit(sequence, self._cheapest(free))
            return
        (is_said, in_place), _, slot = max((self._usable(sequence, self._left[slot]), -slot, slot) for slot in free)
        leader, led = self._leader(sequence)
        saved, stored = self.store.find(sequence.tokens, request.session)
        stored = _leaving_some(sequence, stored)
        is_own = saved is not None and saved.label.session is not None and saved.label.session == request.session
        if saved is not None and stored > saved.label.pure and not is_said:
            in_place, leader = 0, None  # its own words, and only there
        elif is_said:
            saved, leader = (saved if is_own else None), None
        if leader is not None and led >= max(in_place, stored) + FOLLOW_TOKENS:
            self._sit(sequence, self._cheapest(free))
            sequence.follow(leader, led)
        elif saved is not None and stored >= in_place + (1 if is_own else COPY_TOKENS):
            state = self.store.use(saved)  # before what is on the slot is saved in its place
            self._sit(sequence, self._cheapest(free))
            self._take(sequence, saved, state, stored)
        else:
            pure = self._left[slot].pure
            self._sit(sequence, slot, in_place)
            sequence.begin_with(sequence.cached, pure)

    def leave(self, sequence: Sequence, *, ended_well: bool) -> None:
        """Off its slot. What it read stays there; a session's turn that ended well is also saved."""
        self._await_nothing(sequence)
        session = sequence.request.session
        if session is not None and ended_well:
            label = Label(sequence.tokens[: sequence.cached], sequence.pure, session)
            self._save(sequence.slot, label)
        else:
            label = Label(sequence.tokens[: sequence.pure], sequence.pure, None)
        self._vacate(sequence, label)

    def park(self, sequence: Sequence) -> None:
        """Off its slot, to come back with `unpark`."""
        self._await_nothing(sequence)
        state = self._context.save(sequence.slot) if sequence.cached else None
        if state is not None:
            self.store.park(sequence.request.id, state)
        self._vacate(sequence, NOTHING)

    def unpark(self, sequence: Sequence) -> None:
        """Back on a free slot. Without its state, which memory may have had no room for, its prompt is read again and
        then each of its tokens by itself, as when they were generated."""
        state = self.store.unpark(sequence.request.id)
        if state is None:
            sequence.cached = 0
            self.place(sequence)
            return
        cached = sequence.cached
        self._sit(sequence, self._cheapest(self._free()))
        self._restore(sequence, state, cached)

    def settle(self) -> None:
        """Give those who wait for their first tokens what has come by now."""
        self.store.poll()
        for sequence in self.running:
            leader = sequence.leader
            if leader is not None:
                if leader.slot >= 0 and leader.cached >= sequence.awaited_tokens:
                    sequence.unfollow()
                    self._copy(leader, sequence)
                elif leader.slot < 0:
                    self._settle_anew(sequence)
            awaited = self._awaited.get(sequence)
            if awaited is not None and awaited.state.done():
                del self._awaited[sequence]
                state = awaited.state.result()
                if isinstance(state, Exception):
                    self._settle_anew(sequence)
                else:
                    self._take(sequence, awaited.saved, state, awaited.usable)

    def wait(self, seconds: float, others: Iterable[Future[State | Exception]] = ()) -> None:
        """With nothing else to do: until a state has come from disk, one of those that the seats or `others` await."""
        wait_for([*(awaited.state for awaited in self._awaited.values()), *others], seconds, FIRST_COMPLETED)

    def close_ranks(self) -> None:
        """Put the streams on the lowest slots if they are not neighbours. Only before a decode, not when one leaves:
        the next job may take its place."""
        streams = self.streams
        if streams[-1].slot - streams[0].slot == len(streams) - 1:
            return
        places = [
            slot for slot, sequence in enumerate(self.on_slots[: len(streams)])
            if sequence is None or not sequence.decoding
        ]  # fmt: skip
        for slot in places:
            mover, other = streams.pop(), self.on_slots[slot]
            old_slot = mover.slot
            moves = [(mover, slot)] + ([(other, old_slot)] if other else [])
            states = [self._context.save(sequence.slot) if sequence.cached else None for sequence, _ in moves]
            for sequence, _ in moves:
                self._vacate(sequence, NOTHING)
            for (sequence, target), state in zip(moves, states, strict=True):
                cached = sequence.cached
                self._sit(sequence, target)
                if state is not None:
                    self._restore(sequence, state, cached)

    def close(self) -> None:
        for slot, label in enumerate(self._left):
            if self.on_slots[slot] is None:
                self._spill(slot, label, 0)
        self.store.close()

    # reading ahead

    def holds(self, slot: int) -> Label:
        """What an empty slot holds; nothing of one that is taken."""
        return NOTHING if self.on_slots[slot] else self._left[slot]

    def says(self, tokens: list[int], session: str) -> bool:
        """Whether an empty slot holds of these tokens something that this session's model has said."""
        labels = [self.holds(slot) for slot in range(len(self.on_slots))]
        return any(saves(label, tokens, session) > label.pure for label in labels)

    def lay(self, tokens: list[int], session: str | None) -> int | None:
        """Put as many of these tokens as are in memory, all of them as they are read, onto an empty slot, and say
        which; None when every slot is taken."""
        free = [slot for slot, sequence in enumerate(self.on_slots) if sequence is None]
        if not free:
            return None
        in_place, slot = max((saves(self._left[slot], tokens, None), slot) for slot in free)
        saved, stored = self.store.find(tokens, session)
        if saved is not None:
            stored = min(stored, saved.label.pure) if saved.state is not None else 0
        other, led = max(
            ((other, min(other.pure, shared_beginning(tokens, other.tokens))) for other in self.running),
            key=lambda pair: pair[1],
            default=(None, 0),
        )
        state, count = None, in_place
        if other is not None and led >= max(in_place, stored) + COPY_TOKENS:
            state, count = self._context.save(other.slot), led
        elif saved is not None and stored >= in_place + COPY_TOKENS:
            state, count = saved.state, stored
        if state is not None or count < MIN_SHARED_TOKENS:
            slot = min(free, key=lambda slot: (len(self._left[slot].tokens), -slot))
            count = count if state is not None else 0
        self._spill(slot, self._left[slot], 0 if state is not None else count)
        if state is not None:
            self._context.trim(slot, 0)
            if not self._context.restore(slot, state):
                count = 0
        self.extend(slot, tokens[:count])
        return slot

    def extend(self, slot: int, tokens: list[int]) -> None:
        """An empty slot has these tokens now, or more of them: read as a prompt, for anyone."""
        kept = self._context.trim(slot, len(tokens))
        self._left[slot] = Label(tokens[:kept], kept, None)

    def keep(self, slot: int) -> Saved | None:
        """What an empty slot holds, saved; None where there is no room for it."""
        state = self._context.save(slot) if self.store.enabled else None
        return None if state is None else self.store.keep(self._left[slot], state)

    # where tokens come from

    def _usable(self, sequence: Sequence, held: Label) -> tuple[bool, int]:
        """Whether there is something in it that this session's model has said, and how many tokens it saves."""
        count = _leaving_some(sequence, saves(held, sequence.tokens, sequence.request.session))
        return count > held.pure, count

    def _leader(self, sequence: Sequence) -> tuple[Sequence | None, int]:
        """The neighbour whose prompt begins most like this one's, and how many tokens they share."""
        best: tuple[Sequence | None, int] = (None, 0)
        for other in self.running:
            if other is not sequence and other.leader is None and other not in self._awaited:
                end = min(other.prompt_size, other.pure_limit)
                shared = _leaving_some(sequence, min(end, shared_beginning(sequence.tokens, other.tokens)))
                if shared > best[1]:
                    best = (other, shared)
        return best

    def _copy(self, leader: Sequence, sequence: Sequence) -> None:
        """What the leader has read, through the store, where the next who wants it finds it."""
        saved, stored = self.store.find(sequence.tokens, sequence.request.session)
        wanted = _leaving_some(sequence, min(leader.pure, shared_beginning(sequence.tokens, leader.tokens)))
        if saved is not None and saved.state is not None and stored >= wanted - COPY_TOKENS:
            self._take(sequence, saved, self.store.use(saved), _leaving_some(sequence, stored))
            return
        state = self._context.save(leader.slot)
        label = Label(leader.tokens[: leader.pure], leader.pure, None)
        if state is not None and self._restore(sequence, state, wanted, label):
            self.store.keep(label, state)

    def _take(
        self, sequence: Sequence, saved: Saved, state: State | Future[State | Exception], usable: int
    ) -> None:  # fmt: skip
        """The beginning from a saved state, now or when it has come."""
        if isinstance(state, Future):
            self._awaited[sequence] = Awaited(saved, usable, state)
        elif not self._restore(sequence, state, usable, saved.label):
            log.warning("kv state refused by llama.cpp tokens=%d", len(saved.label.tokens))
            self.store.refuse(saved)
            self._settle_anew(sequence)

    def _settle_anew(self, sequence: Sequence) -> None:
        """What it waited for will not come: look again, for something else."""
        sequence.unfollow()
        self._left[sequence.slot] = NOTHING
        self.on_slots[sequence.slot] = None
        self.place(sequence)

    def _restore(self, sequence: Sequence, state: State, usable: int, of: Label | None = None) -> bool:
        """A state into the sequence's slot, `usable` of whose tokens it can have. False leaves it empty."""
        slot = sequence.slot
        self._context.trim(slot, 0)
        if not self._context.restore(slot, state):
            sequence.cached = 0
            sequence.begin_with(0, 0)
            return False
        sequence.cached = self._context.trim(slot, usable)
        if of is not None:
            sequence.begin_with(sequence.cached, of.pure)
        return True

    # slots

    def _free(self) -> list[int]:
        free = [slot for slot, sequence in enumerate(self.on_slots) if sequence is None]
        if not free:
            raise DriverError(f"all {len(self.on_slots)} slots are taken")
        return free

    def _cheapest(self, free: list[int]) -> int:
        """The slot whose contents are least missed."""
        return min(free, key=lambda slot: (len(self._left[slot].tokens), slot))

    def _sit(self, sequence: Sequence, slot: int, keep_tokens: int = 0) -> None:
        """Onto an empty slot, with so many tokens of what it holds."""
        self._spill(slot, self._left[slot], keep_tokens)
        self._left[slot] = NOTHING
        self.on_slots[slot] = sequence
        sequence.slot = slot
        sequence.cached = self._context.trim(slot, keep_tokens)

    def _vacate(self, sequence: Sequence, holds: Label) -> None:
        slot = sequence.slot
        kept = self._context.trim(slot, len(holds.tokens))
        self._left[slot] = holds if kept == len(holds.tokens) else NOTHING
        self.on_slots[slot] = None
        sequence.slot = -1

    def _spill(self, slot: int, held: Label, keep_tokens: int) -> None:
        """Save what a slot holds and is about to lose, where it is worth that and not saved yet."""
        tokens = held.tokens[: held.pure]
        if not self.store.enabled or len(tokens) - keep_tokens < SPILL_TOKENS:
            return
        if len(tokens) - self.store.covers(tokens) < SPILL_TOKENS:
            return
        if self._context.trim(slot, len(tokens)) == len(tokens):
            self._save(slot, Label(tokens, len(tokens), None))

    def _forget_session(self, session: str) -> None:
        self.store.forget_session(session)
        self._left = [NOTHING if label.session == session else label for label in self._left]

    def _save(self, slot: int, label: Label) -> None:
        state = self._context.save(slot) if self.store.enabled else None
        if state is not None:
            self.store.keep(label, state)

    def _await_nothing(self, sequence: Sequence) -> None:
        sequence.unfollow()
        self._awaited.pop(sequence, None)


def _leaving_some(sequence: Sequence, shared: int) -> int:
    """Two tokens of the prompt at least are left to read: the logits of the last are wanted, and a piece of a single
    token is computed otherwise than a longer one."""
    shared = min(shared, sequence.prompt_size - 2)
    return shared if shared >= MIN_SHARED_TOKENS else 0

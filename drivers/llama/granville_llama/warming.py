"""What is kept warm: beginnings of prompts that are read before anyone asks, and sessions' states brought from disk.

Nothing here takes a slot from a job. A beginning is read onto an empty slot, piece by piece, as if a job had left it
there: a job that comes takes the slot with all that is read by then, or another one, and the rest is read elsewhere.
What is read so is pure (see seats.py), so that no answer depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from granville.hosting.interface import Event, Failed, Generate, Message, Output, Usage, Warm
from granville_llama.binding import State
from granville_llama.guidance import Guidance
from granville_llama.prefix import shared_beginning
from granville_llama.saved import Saved
from granville_llama.seats import Seats
from granville_llama.sequence import Sequence
from granville_llama.template import ChatTemplate, PromptError

PROBES = ("a", "B")
"""Two turns that begin with different tokens: what comes before them comes before any."""
LEAVES_OPEN = ("system", "assistant")
"""Behind a message of such a role comes the user's; behind others the model speaks."""


@dataclass(eq=False, slots=True)
class Wish:
    """One beginning that is to be warm."""

    request: Warm
    arrival: int
    tokens: list[int] = field(default_factory=list)
    slot: int = -1
    """Where it is read, and what of it …"""
    read: int = 0
    """… was read for it, in tokens."""
    coming: Future[State | Exception] | None = None
    """From disk."""
    brought: Saved | None = None
    """What came so: once is enough, for memory may have no room for it."""
    saved: Saved | None = None
    """What holds it, once it is warm."""

    @property
    def rank(self) -> tuple[int, int]:
        return (self.request.urgency, self.arrival)


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is to be read next: of the tokens those from `start` on, onto an empty slot."""

    wish: Wish
    slot: int
    start: int

    @property
    def unread(self) -> int:
        return len(self.wish.tokens) - self.start


class Warming:
    """`next` says what to read, `done` is told what was; `take` has what has become of it."""

    def __init__(self, seats: Seats, guidance: Guidance, template: ChatTemplate | None, context_size: int) -> None:
        self._seats = seats
        self._guidance = guidance
        self._template = template
        self._context_size = context_size
        self._new: list[Wish] = []
        self._reading: dict[str, Wish] = {}
        self._warm: dict[str, Wish] = {}
        self._events: list[Event] = []
        self._arrivals = 0
        self._hits = 0

    def __bool__(self) -> bool:
        """Whether something is still to be brought in."""
        return bool(self._new or self._reading)

    @property
    def awaited(self) -> list[Future[State | Exception]]:
        return [wish.coming for wish in self._reading.values() if wish.coming is not None]

    def submit(self, request: Warm) -> None:
        self._arrivals += 1
        self._new.append(Wish(request, self._arrivals))

    def cancel(self, id: str) -> None:
        """Keep it no longer. What was read of it stays for whoever wants it."""
        self._new = [wish for wish in self._new if wish.request.id != id]
        self._reading.pop(id, None)
        self._events = [event for event in self._events if event.id != id]
        self._let_go(id)

    def came(self, sequence: Sequence) -> None:
        """A job, just before it is placed: it may be one that something was kept for. A session's turn uses it up."""
        session = sequence.request.session
        hit = False
        for id, wish in list(self._warm.items()):
            is_own = wish.request.session is not None and wish.request.session == session
            if is_own or sequence.tokens[: len(wish.tokens)] == wish.tokens:
                hit |= wish.saved is None or wish.saved.in_use
            if is_own:
                self._let_go(id)
        self._hits += hit and not sequence.request.reset_cache
        for wish in [*self._new, *self._reading.values()]:
            if session is not None and wish.request.session == session:
                self.cancel(wish.request.id)
                self._end(wish, 0)

    def next(self, streams: Iterable[Sequence]) -> Ahead | None:
        """What to read now beside these streams, if anything. Takes in what has come, and one new wish, on the way."""
        self._take_in()
        most_urgent = min((stream.urgency for stream in streams), default=3)
        wishes = [wish for wish in self._reading.values() if wish.request.urgency <= most_urgent and not wish.coming]
        for wish in sorted(wishes, key=lambda wish: wish.rank):
            ahead = self._go_on(wish)
            if ahead is not None:
                return ahead
        return None

    def done(self, ahead: Ahead, end: int) -> None:
        """The tokens up to `end` are in the slot's cache."""
        wish = ahead.wish
        wish.read += max(0, end - ahead.start)
        self._seats.extend(ahead.slot, wish.tokens[:end])
        if end == len(wish.tokens):
            self._conclude(wish, self._seats.keep(ahead.slot), end)

    def give_up(self, ahead: Ahead) -> None:
        """The backend does not read this."""
        self._seats.extend(ahead.slot, [])
        self._conclude(ahead.wish, None, 0)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def stats(self) -> dict[str, int]:
        """From any thread."""
        return {"warm": len(self._warm), "warm_hits": self._hits}

    def _take_in(self) -> None:
        for wish in list(self._reading.values()):
            if wish.coming is not None and wish.coming.done():
                wish.coming = None
                self._seats.store.poll()  # which takes in what the future has brought
                self._look(wish)
        if self._new:
            wish = self._new.pop(0)
            try:
                wish.tokens = self._beginning(wish.request)
            except PromptError as error:
                self._events.append(Failed(wish.request.id, error.error, str(error)))
                return
            self._reading[wish.request.id] = wish
            self._look(wish)

    def _look(self, wish: Wish) -> bool:
        """Whether there is nothing to read for it now: it is there, or some of it is on its way from disk."""
        session, store = wish.request.session, self._seats.store
        if not store.enabled:
            self._conclude(wish, None, 0)
            return True
        saved, count = store.find(wish.tokens, session)
        is_said = saved is not None and count > saved.label.pure
        own = None if session is None or wish.request.tools else store.own(session)
        if own is not None:  # its next turn may have the tools of the last one, whatever the wish has
            saved, count, is_said = own, len(own.label.tokens), True
        if not is_said and session is not None and self._seats.says(wish.tokens, session):
            self._conclude(wish, None, len(wish.tokens))
            return True
        if saved is None:
            return False
        if saved.state is None and wish.brought is not saved:
            wish.brought = saved
            state = store.use(saved)
            assert isinstance(state, Future)
            wish.coming = state
            return True
        if is_said or count >= len(wish.tokens) - 1:
            self._conclude(wish, saved, count)
            return True
        return False

    def _go_on(self, wish: Wish) -> Ahead | None:
        """Where to read on; None when there is nothing left to read for it, or no slot to read it on."""
        if not self._is_on_its_slot(wish):
            if self._look(wish):
                return None
            slot = self._seats.lay(wish.tokens, wish.request.session)
            if slot is None:
                return None
            wish.slot = slot
        start = len(self._seats.holds(wish.slot).tokens)
        if len(wish.tokens) - start < 2:
            self._conclude(wish, self._seats.keep(wish.slot), start)
            return None
        return Ahead(wish, wish.slot, start)

    def _is_on_its_slot(self, wish: Wish) -> bool:
        """Unless a job has taken the slot since, or a stream was moved there."""
        held = self._seats.holds(wish.slot).tokens if wish.slot >= 0 else []
        return bool(held) and wish.tokens[: len(held)] == held

    def _conclude(self, wish: Wish, saved: Saved | None, count: int) -> None:
        """It is warm with so many of its tokens, or cannot be: then with none."""
        del self._reading[wish.request.id]
        wish.saved = saved
        if saved is not None:
            self._seats.store.protect(saved)
            count = count if saved.state is not None else 0
        if count:
            self._warm[wish.request.id] = wish
        self._end(wish, count)

    def _end(self, wish: Wish, count: int) -> None:
        usage = Usage(len(wish.tokens), len(wish.tokens) - wish.read)
        self._events.append(Output(wish.request.id, [float(count)], usage))

    def _let_go(self, id: str) -> None:
        wish = self._warm.pop(id, None)
        if wish is None or wish.saved is None:
            return
        if all(other.saved is not wish.saved for other in self._warm.values()):
            self._seats.store.release(wish.saved)

    def _beginning(self, request: Warm) -> list[int]:
        """What the prompt begins with, whatever comes behind these messages. Raises PromptError."""
        assert self._template is not None
        template = self._template
        self._guidance.check(request.tools, request.tool_choice)

        def read(*more: Message) -> list[int]:
            messages = (*request.messages, *more)
            asked = Generate(request.id, messages, tools=request.tools, tool_choice=request.tool_choice)
            return self._guidance.tokens(asked, template)

        if request.messages[-1].role in LEAVES_OPEN:
            one, other = (read(Message("user", text)) for text in PROBES)
            tokens = one[: shared_beginning(one, other)]
        else:
            tokens = read()
        if len(tokens) >= self._context_size:
            raise PromptError(
                "prompt_too_long",
                f"the prompt begins with {len(tokens)} tokens and the context is {self._context_size}; an answer needs "
                "room for one more",
            )
        return tokens

"""What a fake model keeps warm: the words that a prompt begins with, read in time that no job wants."""

from __future__ import annotations

from granville.hosting.interface import Event, Generate, Output, Usage, Warm

PIECE_WORDS = 8
"""Read in a step."""


class FakeWarmth:
    def __init__(self, word_s: float) -> None:
        """`word_s`: how long a word takes to be read."""
        self._word_s = word_s
        self._unread: dict[str, tuple[Warm, int]] = {}
        """What is to be read, and how many words of it are."""
        self._warm: dict[str, Warm] = {}
        self._events: list[Event] = []
        self._hits = 0

    def submit(self, wish: Warm) -> None:
        self._unread[wish.id] = wish, 0

    def cancel(self, id: str) -> None:
        self._unread.pop(id, None)
        self._warm.pop(id, None)
        self._events = [event for event in self._events if event.id != id]

    def read(self) -> float:
        """A piece of the oldest; how many seconds it took."""
        for id, (wish, done) in self._unread.items():
            words = _words(wish)
            count = min(PIECE_WORDS, len(words) - done)
            self._unread[id] = wish, done + count
            if done + count == len(words):
                del self._unread[id]
                self._warm[id] = wish
                self._events.append(Output(id, [float(len(words))], Usage(len(words))))
            return count * self._word_s
        return 0.0

    def came(self, request: Generate) -> int:
        """How many of a job's words are not read again. A session's turn uses up what was kept for it."""
        words = _words(request)
        kept = [wish for wish in self._warm.values() if words[: len(_words(wish))] == _words(wish)]
        self._hits += bool(kept)
        if request.session is not None:
            for wish in [*self._warm.values(), *(wish for wish, _ in self._unread.values())]:
                if wish.session == request.session:
                    is_told = wish.id in self._warm
                    self.cancel(wish.id)
                    if not is_told:
                        self._events.append(Output(wish.id, [0.0], Usage()))
        return max((len(_words(wish)) for wish in kept), default=0)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def stats(self) -> dict[str, int]:
        return {"warm": len(self._warm), "warm_hits": self._hits}


def _words(task: Generate | Warm) -> list[str]:
    return [word for message in task.messages for word in message.content.split()]

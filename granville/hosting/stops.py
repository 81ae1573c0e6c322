"""Stop strings, for drivers that do not look for them."""

from __future__ import annotations


class StopText:
    """Text in, text that is final out: what could still become a stop string is held back."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(filter(None, stop))
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """What has become final, and whether a stop string has ended the answer: it and what follows is dropped."""
        text = self._held + piece
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            # The one that is whole first: how the text was cut into pieces then makes no difference.
            self._held = ""
            return text[: min(ends)[1]], True
        held = max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def rest(self) -> str:
        """What is still held, at the end of an answer that no stop string has ended."""
        rest, self._held = self._held, ""
        return rest


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the beginning of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-size:])), 0)

"""How far a run had got when it was last seen: what its journal holds, by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from granville.crucible.journal.records import StepRecord
from granville.crucible.running.budget import spent_tokens

COUNTED = frozenset({"inference", "ranker", "stt", "tts", "embedding", "rerank", "tool", "workflow"})
"""Kinds of step that a budget counts."""
Turn = tuple[str, str]
"""(role, content)."""


@dataclass
class Conversation:
    """What was said in a session."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def add(self, turns: Sequence[Turn]) -> None:
        for role, content in turns:
            if role == "system":
                self.system = content
            else:
                self.turns.append((role, content))


class Progress:
    def __init__(self, records: Sequence[StepRecord] = ()) -> None:
        """Records in the order in which they ended."""
        self._records = {record.key: record for record in records}
        self._conversations: dict[str, Conversation] = {}
        for record in records:
            if record.ended and record.session is not None and record.turn is not None:
                self.conversation(record.session).add(record.turn)

    def ended(self, key: str) -> StepRecord | None:
        """A step that is not to be run again."""
        record = self._records.get(key)
        return record if record is not None and record.ended else None

    def begun(self, key: str) -> StepRecord | None:
        """A step that had been started and has not ended."""
        record = self._records.get(key)
        return None if record is None or record.ended else record

    def conversation(self, session: str) -> Conversation:
        return self._conversations.setdefault(session, Conversation())

    def cut_short(self) -> list[str]:
        """Keys of calls that are not made twice and may have been made."""
        return [record.key for record in self._records.values() if record.once and not record.ended]

    def spent(self, prefix: str = "") -> tuple[int, int]:
        """Steps that were started under a prefix of keys, each attempt counted, and tokens."""
        within = [one for one in self._records.values() if one.kind in COUNTED and one.key.startswith(prefix)]
        steps = sum(record.attempts for record in within if record.state != "skipped")
        return steps, sum(spent_tokens(record.usage) for record in within)

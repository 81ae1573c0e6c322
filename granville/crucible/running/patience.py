"""How long to wait before a request is sent again. Pure, but for the jitter that it is given."""

from __future__ import annotations

from collections.abc import Callable

from granville.errors import (
    Cancelled,
    Conflict,
    ConnectionLost,
    GranvilleError,
    NoDaemon,
    NoModel,
    QueueFull,
    ShuttingDown,
)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
DEFAULT_RETRY_AFTER_S = 1.0
"""Of a daemon that says that it is full, and not for how long."""
STRAY_S = 2.0
"""What an earlier life of this process has left at the daemon ends so soon after its client is gone."""
MAX_STRAYS = 8
"""How often one request may meet what an earlier life left."""


class Patience:
    def __init__(self, wait_s: float, jitter: Callable[[float, float], float]) -> None:
        """`wait_s` is for a daemon that is away; a full one is waited for as long as the step may."""
        self._wait_s = wait_s
        self._jitter = jitter
        self._away_since: float | None = None
        self._pauses = 0
        self._strays = 0

    def pause_after(self, error: GranvilleError, now: float, *, sent_at: float) -> float | None:
        """Seconds; None when sending again is not worth it, or has been tried for long enough."""
        if isinstance(error, QueueFull):
            self.reached()
            after_s = DEFAULT_RETRY_AFTER_S if error.retry_after_ms is None else error.retry_after_ms / 1000
            return after_s * self._jitter(1.0, 1.5)
        if isinstance(error, Conflict) or (isinstance(error, Cancelled) and now - sent_at < STRAY_S):
            self._strays += 1
            return None if self._strays > MAX_STRAYS else self._back_off()
        if not isinstance(error, NoDaemon | ConnectionLost | ShuttingDown | NoModel):
            return None
        if self._away_since is None:
            self._away_since, self._pauses = now, 0
        left_s = self._away_since + self._wait_s - now
        return min(self._back_off(), left_s) if left_s > 0 else None

    def reached(self) -> None:
        """The daemon is there."""
        self._away_since = None

    def away_for(self, now: float) -> float:
        """Seconds since the daemon was first found to be away; 0 of one that is there."""
        return 0.0 if self._away_since is None else now - self._away_since

    def _back_off(self) -> float:
        pause = min(FIRST_PAUSE_S * 2.0**self._pauses, LONGEST_PAUSE_S)
        self._pauses += 1
        return pause * self._jitter(0.5, 1.0)

"""What a load run measured: a `Record` for each request, and the rates and percentiles of many. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from msgspec import Struct, field

PERCENTILES = (50, 90, 99)


class Record(Struct, kw_only=True):
    """One request. Times are seconds of `time.monotonic`, which all processes of a machine share."""

    id: str
    sent: float
    accepted: float | None = None
    pieces: list[float] = field(default_factory=list)
    """When each piece of streamed text arrived; empty for an answer that came whole."""
    ended: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    digest: str = ""
    """Of the whole answer, to tell whether two are the same."""
    error: str | None = None


class Spread(Struct, frozen=True):
    """Percentiles of a latency in milliseconds, over `count` measurements."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


class Summary(Struct, frozen=True, kw_only=True):
    """A run as a whole. Rates count from the first request's sending to the last one's end."""

    requests: int
    failed: dict[str, int]
    duration_s: float
    requests_per_s: float
    tokens_per_s: float
    completion_tokens: int
    accepted_ms: Spread | None
    """Sending to ACK."""
    first_ms: Spread | None
    """Sending to the first piece of text: time to first token."""
    gap_ms: Spread | None
    """Between two pieces of one answer: inter-token latency."""
    total_ms: Spread | None
    """Sending to the result."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which `percent` of an ascending, non-empty sequence lies, interpolated between
    neighbours (the "inclusive" method of `statistics.quantiles`)."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(seconds: Iterable[float]) -> Spread | None:
    """Seconds to the milliseconds of a Spread; None when nothing was measured."""
    ordered = sorted(value * 1000 for value in seconds)
    if not ordered:
        return None
    p50, p90, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
    return Spread(len(ordered), p50, p90, p99, ordered[-1])


def gaps(record: Record) -> list[float]:
    return [later - earlier for earlier, later in pairwise(record.pieces)]


def summarise(records: Sequence[Record]) -> Summary:
    """Latencies are of the requests that succeeded, ACKs of all that got one. Raises ValueError for none."""
    if not records:
        raise ValueError("no requests were made: there is nothing to summarise")
    good = [record for record in records if record.error is None]
    start = min(record.sent for record in records)
    end = max((record.ended for record in records if record.ended is not None), default=start)
    duration = max(end - start, 1e-9)
    tokens = sum(record.completion_tokens for record in good)
    return Summary(
        requests=len(records),
        failed=dict(Counter(record.error for record in records if record.error is not None)),
        duration_s=end - start,
        requests_per_s=len(good) / duration,
        tokens_per_s=tokens / duration,
        completion_tokens=tokens,
        accepted_ms=spread(r.accepted - r.sent for r in records if r.accepted is not None),
        first_ms=spread(r.pieces[0] - r.sent for r in good if r.pieces),
        gap_ms=spread(gap for r in good for gap in gaps(r)),
        total_ms=spread(r.ended - r.sent for r in good if r.ended is not None),
    )


def steady_rate(records: Sequence[Record], after: float) -> float:
    """Tokens a second of streams that run together, from `after` until the first of them ends (one piece is
    taken for one token). Raises ValueError when that window holds no text."""
    until = min(record.pieces[-1] for record in records)
    count = sum(after < piece <= until for record in records for piece in record.pieces)
    if until <= after or not count:
        raise ValueError("the streams have no common window to measure")
    return count / (until - after)

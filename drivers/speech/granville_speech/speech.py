"""What every driver that speaks asks of a job, and says at its end."""

from __future__ import annotations

from granville.hosting.interface import Speak
from granville_speech.turns import JobError

MAX_TEXT_CHARS = 100_000
"""About two hours."""
SLOWEST, FASTEST = 0.25, 4.0


def text_of(request: Speak) -> str:
    """What is to be said, without what no voice can take: NUL and halves of characters. Raises JobError: a text that is
    too long or blank, a speed that is none."""
    text = request.text.replace("\0", " ").encode(errors="replace").decode().strip()
    if len(text) > MAX_TEXT_CHARS:
        most = f"{MAX_TEXT_CHARS} is the most; send it in parts"
        raise JobError("prompt_too_long", f"text: it has {len(text)} characters, and {most}")
    if not text:
        raise JobError("bad_request", "text: it is empty, so there is nothing to say")
    if not SLOWEST <= request.speed <= FASTEST:
        raise JobError("bad_request", f"speed: from {SLOWEST:g} to {FASTEST:g}, got {request.speed:g}")
    return text


def spoken(samples: int, rate: int) -> dict[str, float]:
    """`Output.value` of a job that has been said."""
    return {"duration_s": round(samples / rate, 3)}

"""What the checking process and its child say to each other: a plan in, lines of JSON out."""

from __future__ import annotations

from typing import Any

import msgspec

from granville.testing.conformance.report import Verdict


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to do."""

    driver: str
    path: str
    """The model's file."""
    any_file: bool
    """Nobody named a model: the file is a text, which the driver may or may not take for one."""
    type: str
    options: dict[str, Any] = {}
    slots: int = 4
    context_size: int = 0
    rounds: int = 200
    patience_s: float = 30.0
    """A job of which nothing is heard for so long is stuck."""
    checks: tuple[str, ...] = ()


class Line(msgspec.Struct, tag_field="line", frozen=True):
    """One line from the child."""


class Began(Line, tag="began", frozen=True):
    check: str


class Calling(Line, tag="calling", frozen=True):
    """The driver is called now; nothing more comes until it returns."""

    call: str


class Returned(Line, tag="returned", frozen=True):
    """It has returned; `seconds` is how long a step took."""

    seconds: float | None = None


class Found(Line, tag="found", frozen=True):
    check: str
    verdict: Verdict
    seen: str
    needs: str = ""
    detail: tuple[str, ...] = ()


class Broke(Line, tag="broke", frozen=True):
    """An event was against a rule."""

    rule: str
    seen: str


class Judged(Line, tag="judged", frozen=True):
    """So many events have been looked at."""

    events: int


class About(Line, tag="about", frozen=True):
    """What the driver says of itself, as it becomes known."""

    name: str | None = None
    version: str | None = None
    kind: str | None = None
    interruptible: bool | None = None


class Done(Line, tag="done", frozen=True):
    """The last line."""


Lines = Began | Calling | Returned | Found | Broke | Judged | About | Done
decode = msgspec.json.Decoder(Lines).decode
encode = msgspec.json.Encoder().encode

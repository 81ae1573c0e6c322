"""What a step is called in the journal, and its request at Granville: the same after a crash, and for no other."""

from __future__ import annotations

import hashlib
import re
import secrets
import string

from granville.errors import BadRequest
from granville.wire.messages import MAX_NAME_CHARS

MAX_RUN_ID_CHARS = 64
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ALPHABET = string.ascii_lowercase + string.digits


def new_run_id() -> str:
    return "r-" + "".join(secrets.choice(_ALPHABET) for _ in range(12))


def checked_run_id(id: str) -> str:
    """Raises BadRequest for what cannot be a run's id."""
    if len(id) > MAX_RUN_ID_CHARS or not RUN_ID.fullmatch(id):
        raise BadRequest(
            f"run_id: {id[:80]!r} is none; expected up to {MAX_RUN_ID_CHARS} letters, digits, dots, dashes and "
            "underlines, with a letter or digit first"
        )
    return id


def inside(key: str, separator: str = ".") -> str:
    """What the keys of a group's steps begin with; those of a workflow's with `/`."""
    return f"{key}{separator}"


def numbered(key: str, number: int) -> str:
    """An item of a list, or a round."""
    return f"{key}[{number}]"


def request_id(run_id: str, key: str) -> str:
    """At most 99 characters."""
    return f"c-{run_id}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def wire_session(run_id: str, session: str) -> str:
    name = f"{run_id}/{session}"
    if len(name) <= MAX_NAME_CHARS:
        return name
    return f"{run_id}/{hashlib.sha256(session.encode()).hexdigest()[:32]}"

"""What a request of each model type brings to be worked on, and what it cannot bring."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from granville.errors import BadRequest

if TYPE_CHECKING:
    from granville.wire.messages import Control, Request

ANSWERS_ONLY = (
    "messages", "documents", "session_id", "reset_cache", "overflow", "stop", "grammar", "json_schema", "tools",
    "tool_choice",
)  # fmt: skip
"""What only an answer in words can heed, or a model that reads texts."""
NOT_FOR = {
    "stt": ("text", *ANSWERS_ONLY, "voice", "speed"),
    "tts": (*ANSWERS_ONLY, "audio", "audio_path", "language", "words"),
}
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


def check_inputs(request: Request) -> None:
    """Raises BadRequest, which names the field and says what would be right."""
    kind = request.model_type
    for name in NOT_FOR.get(kind, ()):
        if getattr(request, name) not in (None, False):
            raise BadRequest(f"{name}: not with model_type {kind}, which would pass over it; leave it out")
    if kind in ("inference", "ranker"):
        require_one(request, "text", "messages", "give `text` (a string) or `messages` (a list of {role, content})")
    elif kind == "embedding":
        require_one(request, "text", "documents", "give `text` (a string) or `documents` (a list of strings)")
    elif kind == "rerank":
        if request.text is None:
            raise BadRequest("text: missing; it is the query that the documents are to answer")
        if request.documents is None:
            raise BadRequest("documents: missing; give a list of strings to be scored against `text`")
    elif kind == "stt":
        _check_recording(request)
    elif request.text is None or not request.text.strip():
        raise BadRequest(f"text: {'missing' if request.text is None else 'it is empty'}; give what is to be spoken")


def _check_recording(request: Request) -> None:
    require_one(
        request, "audio", "audio_path", "give `audio` (a recording's bytes) or `audio_path` (a file, by Unix socket)"
    )
    if request.audio is not None and not request.audio:
        raise BadRequest("audio: it is empty; give a recording, such as a WAV file's bytes")
    if request.language is not None and not _LANGUAGE.fullmatch(request.language):
        raise BadRequest(
            f"language: expected a code of ISO 639-1 such as en or de, or null, got {request.language[:40]!r}"
        )


def require_one(request: Request | Control, one: str, other: str, advice: str) -> None:
    given = [name for name in (one, other) if getattr(request, name) is not None]
    if not given:
        raise BadRequest(f"{one}: missing; {advice}")
    if len(given) == 2:
        raise BadRequest(f"{other}: give either `{one}` or `{other}`, not both")

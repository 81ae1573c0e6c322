"""Vectors from Granville: which model makes them, and texts that are too long for it."""

from __future__ import annotations

from collections.abc import Sequence

import tenacity
import trio

from granville.client import Client
from granville.crucible.search.store import BadIndex
from granville.errors import GranvilleError, PromptTooLong, QueueFull

BATCH = 32
"""Texts of a request."""
MAX_ATTEMPTS = 20
"""While the queue is full."""
MAX_WAIT_S = 30.0
LEAST_CHARS = 50
"""A text that is cut to so few is too long for no model."""


async def embedding_model(client: Client, wanted: str | None) -> str | None:
    """The id of the model to use: the one that was named, else the only one of its type; None when there is none.

    Raises BadIndex for a model that is not there, or when it has to be said which.
    """
    ids = [str(model["id"]) for model in await client.models() if model["type"] == "embedding"]
    if wanted is not None:
        if wanted not in ids:
            raise BadIndex(
                f"Granville has no embedding model {wanted}; "
                + (f"it has {', '.join(ids)}" if ids else "start it with one: granville serve embedding:PATH")
            )
        return wanted
    if len(ids) > 1:
        raise BadIndex(f"Granville has more than one embedding model; say which: --model {' or --model '.join(ids)}")
    return ids[0] if ids else None


async def embed(client: Client, texts: Sequence[str], model_id: str) -> list[list[float]]:
    """A vector for each. One that is too long for the model is embedded as far as it goes. Raises GranvilleErrors."""
    try:
        return await _ask(client, texts, model_id)
    except PromptTooLong:
        if len(texts) > 1:
            return [vector for text in texts for vector in await embed(client, [text], model_id)]
        if len(texts[0]) <= LEAST_CHARS:
            raise
        return await embed(client, [texts[0][: len(texts[0]) // 2]], model_id)


async def _ask(client: Client, texts: Sequence[str], model_id: str) -> list[list[float]]:
    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        told_ms = error.retry_after_ms if isinstance(error, GranvilleError) else None
        return min(MAX_WAIT_S, max((told_ms or 0) / 1000, tenacity.wait_random_exponential(max=MAX_WAIT_S)(state)))

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(QueueFull),
        stop=tenacity.stop_after_attempt(MAX_ATTEMPTS),
        wait=pause,
        sleep=trio.sleep,
        reraise=True,
    )
    return await retrying(client.embed, texts, model_id=model_id)

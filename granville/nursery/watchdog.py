"""Knows which model has made no progress for how long, and says so once."""

from __future__ import annotations

import logging

import trio

from granville.nursery.desk import Desk

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
MAX_LAG_S = 0.25
"""The Trio loop itself counts as late when a sleep ends so much after its time."""


async def watch(desk: Desk) -> None:
    """Started by: the kernel. Ends when: cancelled. Cancelled by: the kernel's end. `/health` asks the models
    themselves and does not depend on this task; it is here for the log."""
    told: set[str] = set()
    while True:
        due = trio.current_time() + LOOK_EVERY_S
        await trio.sleep_until(due)
        lag_s = trio.current_time() - due
        if lag_s > MAX_LAG_S:
            log.warning("kernel late lag_s=%.2f", lag_s)
        for model in desk.models:
            id, stalled_s = model.entry.id, model.stalled_s()
            if stalled_s <= desk.config.stall_s:
                if id in told:
                    log.warning("model goes on model=%s", id)
                told.discard(id)
            elif id not in told:
                told.add(id)
                log.error("model makes no progress model=%s stalled_s=%.1f", id, stalled_s)

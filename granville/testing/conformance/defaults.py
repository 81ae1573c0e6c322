"""How a driver is checked unless somebody wishes otherwise."""

from __future__ import annotations

STEP_TIMEOUT_S = 30.0
"""Of every call but find and load; and how long a job may be without an event."""
LOAD_TIMEOUT_S = 300.0
ROUNDS = 200
"""Jobs of the check for leaks; a load is worth ten."""
SLOTS = 4
CONTEXT_SIZE = 2048
"""Tokens a slot: enough for every prompt here but the one that is to be too long."""

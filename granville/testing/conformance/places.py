"""Where it is written what a check wants of a driver in C: names in granville_driver.h."""

from __future__ import annotations

HEADER = "granville_driver.h"

V1 = {
    "driver": "DriverVTable",
    "name": "granville_driver_get_name, granville_driver_get_version",
    "model": "granville_driver_load_model",
    "wrong-path": "granville_driver_load_model",
    "no-model": "granville_driver_load_model",
    "reload": "granville_driver_unload_model",
    "two-models": "v1, Threads",
    "close-running": "granville_driver_unload_model",
    "leaks-jobs": "granville_driver_free_string",
    "leaks-loads": "granville_driver_unload_model, granville_driver_deinit",
    "silence": "WHAT HOLDS FOR BOTH, Process",
    "process-end": "WHAT HOLDS FOR BOTH, Process",
}
V1_ELSE = "granville_driver_generate"

V2 = {
    "driver": "struct granville_driver_v2",
    "name": "struct granville_driver_v2, name",
    "model": "struct granville_model_info",
    "wrong-path": "struct granville_driver_v2, load",
    "no-model": "struct granville_driver_v2, load",
    "reload": "struct granville_driver_v2, unload",
    "two-models": "v2, Threads",
    "all-slots": "struct granville_model_info, slots",
    "slot-reuse": "GRANVILLE_EVENT_FINISHED",
    "cancel": "struct granville_driver_v2, cancel",
    "cancel-unknown": "struct granville_driver_v2, cancel",
    "cancel-frees": "struct granville_driver_v2, cancel",
    "after-cancel": "struct granville_driver_v2, cancel",
    "park": "GRANVILLE_CAN_PARK; struct granville_driver_v2, park, resume",
    "park-cancel": "struct granville_driver_v2, cancel",
    "resume": "GRANVILLE_CAN_RESUME; struct granville_request, produced",
    "close-running": "struct granville_driver_v2, unload",
    "max-tokens": "struct granville_request, max_tokens",
    "conversation": "granville_request.json, messages",
    "score": "GRANVILLE_TASK_SCORE",
    "constrain": "granville_request.json, constraint",
    "tools": "granville_request.json, tools; GRANVILLE_FINISH_TOOL",
    "stop": "GRANVILLE_CAN_STOP; granville_request.json, stop",
    "too-long": "GRANVILLE_PROMPT_TOO_LONG",
    "interrupt": "struct granville_driver_v2, interrupt",
    "stats": "struct granville_driver_v2, stats",
    "limit-cache": "struct granville_driver_v2, limit_cache",
    "leaks-loads": "struct granville_driver_v2, unload, destroy",
    "job-errors": "GRANVILLE_EVENT_FAILED",
    "one-end": "struct granville_event",
    "token-text": "GRANVILLE_EVENT_TOKEN",
    "silence": "struct granville_load, verbose",
    "process-end": "WHAT HOLDS FOR BOTH, Process",
}
V2_ELSE = "struct granville_driver_v2, submit, step"


def place_of(check: str, where: str, kind: str) -> str:
    """Where an author looks: `where` for a driver in Python, the header for one in C."""
    if where.startswith(HEADER) or not kind.startswith("C"):
        return where
    if kind == "C":
        return HEADER  # what it is could not be found out
    places, otherwise = (V1, V1_ELSE) if kind.endswith("v1") else (V2, V2_ELSE)
    return f"{HEADER}: {places.get(check, otherwise)}"

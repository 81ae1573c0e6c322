"""The structures and numbers of ABI v2, as drivers/include/granville_driver.h has them; a test compares the two."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from typing import TYPE_CHECKING

MAX_EVENTS = 65536
MAX_EVENT_TOKENS = 65536
MAX_EVENT_VALUES = 1 << 24
MAX_SLOTS = 1024
MAX_STATS_BYTES = 1 << 20
MAX_STRUCT_BYTES = 65536
ERROR_BYTES = 1024

OK = 0
STATUS_ERRORS = {1: "driver_failed", 2: "bad_request", 3: "prompt_too_long", 4: "unsupported", 5: "driver_failed"}
"""Wire errors by status; another status is driver_failed."""

CAN_INTERRUPT, CAN_STOP, CAN_MESSAGES, CAN_SAMPLE, CAN_PARK = (1 << bit for bit in range(5))
CAN_RESUME, CAN_CONSTRAIN, CAN_TOOLS, CAN_SCORE, CAN_DROP = (1 << bit for bit in range(5, 10))
TYPES = {"inference": 1, "ranker": 2, "stt": 3, "tts": 4, "embedding": 5, "rerank": 6}
GENERATE, SCORE, EMBED, RERANK = range(1, 5)
TOKEN, FINISHED, OUTPUT, FAILED, PARKED = range(1, 6)
FINISH_TOOL = 3

Status = c_int32
Structure = ctypes.Structure


class Error(Structure):
    _fields_ = (("message", c_char * ERROR_BYTES),)
    if TYPE_CHECKING:
        message: bytes


class Host(Structure):
    _fields_ = (("struct_size", c_uint32), ("abi_version", c_uint32), ("version", c_char_p))


class Load(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("type", c_uint32),
        ("path", c_char_p),
        ("slots", c_uint32),
        ("context_size", c_uint32),
        ("threads", c_uint32),
        ("verbose", c_uint32),
        ("kv_ram_bytes", c_uint64),
        ("kv_disk_bytes", c_uint64),
        ("kv_dir", c_char_p),
        ("fingerprint", c_char_p),
        ("config", c_char_p),
        ("config_size", c_size_t),
    )


class ModelInfo(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("slots", c_uint32),
        ("capabilities", c_uint64),
        ("memory_bytes", c_uint64),
        ("context_size", c_uint32),
        ("reserved", c_uint32),
        ("architecture", c_char * 64),
        ("description", c_char * 256),
    )
    if TYPE_CHECKING:
        slots: int
        capabilities: int
        memory_bytes: int
        context_size: int
        architecture: bytes
        description: bytes


class Request(Structure):
    _fields_ = (
        ("struct_size", c_uint32),
        ("kind", c_uint32),
        ("job", c_uint64),
        ("max_tokens", c_uint32),
        ("urgency", c_uint32),
        ("text", c_char_p),
        ("text_size", c_size_t),
        ("json", c_char_p),
        ("json_size", c_size_t),
        ("produced", POINTER(c_int32)),
        ("produced_count", c_size_t),
        ("reset_cache", c_uint32),
        ("drop_oldest", c_uint32),
    )


class Event(Structure):
    _fields_ = (
        ("job", c_uint64),
        ("kind", c_uint32),
        ("code", c_int32),
        ("text", c_void_p),
        ("text_size", c_size_t),
        ("tokens", POINTER(c_int32)),
        ("token_count", c_size_t),
        ("values", POINTER(c_float)),
        ("value_count", c_size_t),
        ("prompt_tokens", c_uint32),
        ("cached_tokens", c_uint32),
        ("completion_tokens", c_uint32),
        ("dropped_turns", c_uint32),
    )
    if TYPE_CHECKING:
        job: int
        kind: int
        code: int
        text: int | None
        text_size: int
        tokens: ctypes._Pointer[c_int32]
        token_count: int
        values: ctypes._Pointer[c_float]
        value_count: int
        prompt_tokens: int
        cached_tokens: int
        completion_tokens: int
        dropped_turns: int


class Events(Structure):
    _fields_ = (("struct_size", c_uint32), ("event_size", c_uint32), ("items", c_void_p), ("count", c_size_t))
    if TYPE_CHECKING:
        event_size: int
        items: int | None
        count: int


class Driver(Structure):
    """The vtable: functions are addresses, to be given their types where they are used."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("abi_version", c_uint32),
        ("name", c_void_p),
        ("version", c_void_p),
        ("create", c_void_p),
        ("destroy", c_void_p),
        ("load", c_void_p),
        ("unload", c_void_p),
        ("submit", c_void_p),
        ("step", c_void_p),
        ("cancel", c_void_p),
        ("park", c_void_p),
        ("resume", c_void_p),
        ("interrupt", c_void_p),
        ("stats", c_void_p),
        ("limit_cache", c_void_p),
    )
    if TYPE_CHECKING:
        name: int | None
        version: int | None


def reason(error: Error) -> str:
    """What the driver wrote there, which may end within a character; empty when it wrote nothing."""
    return error.message.decode(errors="replace").strip()

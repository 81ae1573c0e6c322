"""The four classes of work."""

from __future__ import annotations

from enum import IntEnum

from granville.wire.messages import Class


class Priority(IntEnum):
    """Smaller runs first."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3

    @property
    def wire(self) -> Class:
        return _WIRE[self]

    @classmethod
    def of(cls, name: Class | None) -> Priority:
        """A request's own class; without one it is normal."""
        return cls.NORMAL if name is None else cls[name.upper()]

    def raised(self) -> Priority:
        return Priority(max(self - 1, Priority.CRITICAL))


_WIRE: tuple[Class, ...] = ("critical", "high", "normal", "low")

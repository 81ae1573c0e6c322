"""Models that have no file: their name is all there is of them, and their driver has the rest."""

from __future__ import annotations

from pathlib import Path

FILELESS = frozenset({"espeak"})


def is_fileless(path: Path) -> bool:
    return path.name in FILELESS and not path.exists()

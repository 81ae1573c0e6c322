"""Packages of the extra `granville[crucible]`, imported when something needs one."""

from __future__ import annotations

import importlib
from typing import Any

from granville.crucible.tools.interface import ToolFailed


def needed(module: str, purpose: str) -> Any:
    """The module. Raises ToolFailed, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ToolFailed(
            f"{purpose} need the package {module.partition('.')[0]}: pip install 'granville[crucible]'"
        ) from None

"""The agent's own tool: `crucible run … --tools examples/agent/tools.py`. `calculate` comes with Crucible."""

from __future__ import annotations

import json
from pathlib import Path

from granville.crucible.tools.function import tool
from granville.crucible.tools.interface import ToolFailed

PRICES: dict[str, float] = json.loads(Path(__file__).with_name("data").joinpath("prices.json").read_text())


@tool
def price(article: str) -> float:
    """Look up what one piece of an article costs."""
    try:
        return PRICES[article]
    except KeyError:
        raise ToolFailed(f"there is no {article!r}; there are: {', '.join(PRICES)}") from None

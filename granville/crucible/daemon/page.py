"""The page at `/`: one file, which the browser runs because its digest is in the header, and nothing else with it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files(__package__).joinpath("page.html").read_text()


def _digest(tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


CONTENT_POLICY = (
    f"default-src 'none'; script-src {_digest('script')}; style-src {_digest('style')}; connect-src 'self'; "
    "media-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

"""A document as lines of text with the number that each has in its file, whatever it was written in."""

from __future__ import annotations

import codecs
import json
import re
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import trio

from granville.crucible.search.found import MAX_TEXT_BYTES
from granville.crucible.tools.interface import ToolFailed
from granville.crucible.tools.process import environment, run_process
from granville.errors import GranvilleError

PDF_S = 60.0
"""For the text of one PDF file, in a process of its own: some files would take for ever, or all memory."""
SNIFFED_BYTES = 8192
MARKDOWN = (".md", ".markdown", ".mdx")
HTML = (".html", ".htm", ".xhtml")
RST = (".rst",)
_HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\s*$")
_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_UNDERLINE = re.compile(r"([=\-`:'\"~^_*+#<>.])\1{2,}\s*$")


class NotReadable(GranvilleError):
    """The file is no document: why, in a few words."""

    error = "bad_request"
    code = 400


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    """In the file, from 1; of a PDF file the page."""
    text: str
    heading: int = 0
    """Its level, 1 for the highest; 0: it is none."""


async def read_pdf(path: Path) -> list[Line]:
    """Raises NotReadable."""
    command = [sys.executable, "-m", "granville.crucible.search.pdf", str(path)]
    with trio.move_on_after(PDF_S):
        try:
            ended = await run_process(command, folder=Path("/"), env=environment(), most_bytes=4 * MAX_TEXT_BYTES)
        except ToolFailed as error:
            raise NotReadable(error.message) from None
        if ended.status != 0 or ended.cut:
            said = ended.stderr.decode(errors="replace").strip().splitlines()
            raise NotReadable(f"no PDF file that can be read: {said[-1][:200] if said else 'it is too large'}")
        pages: list[str] = json.loads(ended.stdout)
        return [Line(number, line) for number, page in enumerate(pages, 1) for line in page.splitlines()]
    raise NotReadable(f"no PDF file that can be read in {PDF_S:g} s")


def read_text(data: bytes, suffix: str) -> list[Line]:
    """Raises NotReadable."""
    text = _decoded(data)
    if suffix in HTML:
        return _Page().lines_of(text)
    # As editors count lines; str.splitlines would also end one at a form feed.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if suffix in MARKDOWN:
        return _markdown(lines)
    if suffix in RST:
        return _rst(lines)
    return [Line(number, line) for number, line in enumerate(lines, 1)]


def _decoded(data: bytes) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):  # fmt: skip
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    if b"\0" in data[:SNIFFED_BYTES]:
        raise NotReadable("no text")
    try:
        return data.decode()
    except UnicodeDecodeError:
        control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in data[:SNIFFED_BYTES])
        if control * 100 > min(len(data), SNIFFED_BYTES):
            raise NotReadable("no text") from None
        return data.decode("cp1252", errors="replace")


def _markdown(lines: list[str]) -> list[Line]:
    found, fence = [], ""
    for number, text in enumerate(lines, 1):
        mark = _FENCE.match(text)
        if mark and (not fence or mark[1] == fence):
            fence = "" if fence else mark[1]
        heading = None if fence else _HEADING.match(text)
        found.append(Line(number, heading[2], len(heading[1])) if heading else Line(number, text))
    return found


def _rst(lines: list[str]) -> list[Line]:
    """A title has a line of one sign below it; which sign is which level is as they come."""
    found: list[Line] = []
    signs: list[str] = []
    for number, text in enumerate(lines, 1):
        before = found[-1].text if found else ""
        if _UNDERLINE.match(text) and before.strip() and len(text.rstrip()) >= len(before.rstrip()):
            if text[0] not in signs:
                signs.append(text[0])
            found[-1] = Line(found[-1].number, before.strip(), min(signs.index(text[0]) + 1, 6))
        elif not (_UNDERLINE.match(text) and not before.strip()):
            found.append(Line(number, text))
    return found


class _Page(HTMLParser):
    """The text of a page. Each piece has the line of the file that it stands in."""

    HIDDEN = frozenset(("script", "style", "template", "noscript", "svg", "nav"))
    BLOCKS = frozenset(
        ("p", "div", "br", "li", "tr", "table", "section", "article", "pre", "blockquote", "ul", "ol", "dl", "dt", "dd",
         "h1", "h2", "h3", "h4", "h5", "h6", "title", "header", "footer", "main", "hr")
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._lines: list[Line] = []
        self._words: list[str] = []
        self._number = 1
        self._heading = 0
        self._hidden = 0

    def lines_of(self, text: str) -> list[Line]:
        self.feed(text)
        self.close()
        self._end_line()
        return self._lines

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self._end_line()
            self._heading = int(tag[1]) if re.fullmatch("h[1-6]", tag) else 1 if tag == "title" else 0

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in self.HIDDEN))
        if tag in self.BLOCKS:
            self._end_line()
            if tag in ("p", "table", "ul", "ol", "pre", "blockquote"):
                self._lines.append(Line(self.getpos()[0], ""))

    def handle_data(self, data: str) -> None:
        if self._hidden or not data.strip():
            return
        if not self._words:
            self._number = self.getpos()[0]
        self._words += data.split()

    def _end_line(self) -> None:
        if self._words:
            self._lines.append(Line(self._number, " ".join(self._words), self._heading))
        self._words, self._heading = [], 0

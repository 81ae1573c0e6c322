"""A diff as files and hunks."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from granville.crucible.tools.extra import needed
from granville.crucible.tools.function import tool
from granville.crucible.tools.interface import ToolFailed

MAX_DIFF_CHARS = 4 << 20


@tool
def parse_diff(
    diff: Annotated[str, Meta(max_length=MAX_DIFF_CHARS, description="a unified diff, as git prints it")],
) -> list[dict[str, Any]]:
    """Take a diff apart: its files with their hunks, each line behind its number in the new file."""
    unidiff = needed("unidiff", "diffs")
    if not diff.strip():
        return []
    try:
        files = unidiff.PatchSet(diff)
    except (unidiff.UnidiffParseError, ValueError) as error:
        raise ToolFailed(f"parse_diff: not a unified diff: {' '.join(str(error).split())[:200]}") from None
    if not files:
        raise ToolFailed("parse_diff: not a unified diff: there is no file in it; expected what `git diff` prints")
    return [_file(file) for file in files]


def _file(file: Any) -> dict[str, Any]:
    change = "added" if file.is_added_file else "removed" if file.is_removed_file else "modified"
    return {
        "file": file.path,
        "change": "renamed" if file.is_rename else change,
        "binary": bool(file.is_binary_file),
        "added": file.added,
        "removed": file.removed,
        "hunks": [_hunk(hunk) for hunk in file],
    }


def _hunk(hunk: Any) -> dict[str, Any]:
    """`start` and `end` are lines of the new file; of a hunk that only takes away, the line where that was."""
    last = hunk.target_start + max(hunk.target_length, 1) - 1
    header = f"@@ -{hunk.source_start},{hunk.source_length} +{hunk.target_start},{hunk.target_length} @@"
    return {
        "header": f"{header} {hunk.section_header}".rstrip(),
        "start": hunk.target_start,
        "end": last,
        "text": "\n".join(_line(line, len(str(last))) for line in hunk if line.line_type in " +-"),
    }


def _line(line: Any, width: int) -> str:
    number = "" if line.target_line_no is None else str(line.target_line_no)
    return f"{number:>{width}} {line.line_type}{line.value.rstrip(chr(10) + chr(13))}".rstrip()

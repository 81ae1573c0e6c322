"""What `submit` makes of the options about an answer's form."""

from __future__ import annotations

from pathlib import Path

import pytest

from granville.cli.forms import form_fields
from granville.errors import BadRequest

TOOL = '{"name": "now"}'


def test_files_and_json(tmp_path: Path) -> None:
    (tmp_path / "tools").write_text(f"[{TOOL}]")
    (tmp_path / "schema").write_text('{"type": "null"}')
    (tmp_path / "grammar").write_text("root ::= x")
    from_files = form_fields(str(tmp_path / "schema"), str(tmp_path / "grammar"), str(tmp_path / "tools"), "auto")
    assert from_files == {
        "json_schema": '{"type": "null"}',
        "grammar": "root ::= x",
        "tools": [{"name": "now"}],
        "tool_choice": "auto",
    }
    for written in (TOOL, f" [{TOOL}]"):
        assert form_fields('{"type": "null"}', None, written, None)["tools"] == [{"name": "now"}]
    assert set(form_fields(None, None, None, None).values()) == {None}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("missing", None, None, None), "^--json-schema: missing cannot be read: No such file"),
        ((None, "{}", None, None), "^--grammar: {} cannot be read"),
        ((None, None, "[{", None), "^--tools: not JSON"),
        ((None, None, "[" * 100_000, None), "^--tools: not JSON"),
    ],
)
def test_mistakes(options: tuple[str | None, ...], error: str) -> None:
    with pytest.raises(BadRequest, match=error):
        form_fields(*options)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(BadRequest, match=r"--grammar: .* is not valid UTF-8"):
        form_fields(None, str(tmp_path / "x"), None, None)

"""What a tool is made of, what may be called, and what may come back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from granville.crucible.tools.allowance import plain, read_allowance
from granville.crucible.tools.builtin import BUILTIN
from granville.crucible.tools.catalogue import Catalogue, tools_of
from granville.crucible.tools.function import tool
from granville.crucible.tools.interface import Call, NotAllowed, ToolFailed
from granville.crucible.tools.toolbox import RunToolbox, toolboxes
from granville.crucible.tools.values import bounded
from granville.errors import StartupError
from granville.wire.forms import plain_tools

KNOWN = [one.name for one in BUILTIN]


@dataclass
class Size:
    width: int
    height: int


@tool
def price(
    article: Annotated[str, Meta(description="its name")], pieces: Annotated[int, Meta(ge=1)] = 1,
    size: Size | None = None, kind: Literal["net", "gross"] = "net", call: Call | None = None,
) -> float:  # fmt: skip
    """What an article
    costs."""
    assert call is None
    return pieces * 2.5


def test_a_function_is_a_tool_and_still_a_function() -> None:
    assert price("rope", 2) == 5.0
    assert (price.name, price.description) == ("price", "What an article costs.")
    assert price.parameters["required"] == ["article"]
    assert price.parameters["additionalProperties"] is False
    properties = price.parameters["properties"]
    assert properties["article"] == {"type": "string", "description": "its name"}
    assert properties["pieces"] == {"type": "integer", "minimum": 1, "default": 1}
    assert properties["kind"]["enum"] == ["gross", "net"]
    assert price.parameters["$defs"]["Size"]["required"] == ["width", "height"]
    assert "call" not in properties


def test_a_tool_can_be_told_to_a_model() -> None:
    told = [
        {"name": one.name, "description": one.description, "parameters": dict(one.parameters)}
        for one in (*BUILTIN, price)
    ]
    assert plain_tools(told) is not None


def test_what_no_tool_can_be_made_of() -> None:
    def stars(*words: str) -> None: ...
    def odd(path: Path) -> None: ...

    with pytest.raises(TypeError, match="by name"):
        tool(stars)
    with pytest.raises(TypeError, match="no schema"):
        tool(odd)
    with pytest.raises(ValueError, match="letters"):
        tool(name="two words")(lambda: None)


def test_an_unknown_allowance_says_what_there_is() -> None:
    with pytest.raises(NotAllowed, match="did you mean read_file"):
        read_allowance(["raed_file"], known=KNOWN)
    with pytest.raises(NotAllowed, match="no such command"):
        read_allowance(["shell:no-such-command-here"], known=KNOWN)
    with pytest.raises(NotAllowed, match="which command"):
        read_allowance(["shell:/bin/sh"], known=KNOWN)
    with pytest.raises(NotAllowed, match="--allow http_get:HOST"):
        read_allowance(["http_get"], known=KNOWN)
    with pytest.raises(NotAllowed, match="--allow write_file:FOLDER"):
        read_allowance(["write_file"], known=KNOWN)
    with pytest.raises(NotAllowed, match="as it is"):
        read_allowance(["now:x"], known=KNOWN)
    with pytest.raises(StartupError, match="did you mean"):
        toolboxes().check(["calculat"])


def test_an_allowance_is_read() -> None:
    allowance = read_allowance(["read_file:/a", "read_file:/b", "shell:sh", "mcp:files", "list_files"], known=KNOWN)
    assert allowance.tools == {"read_file": ("/a", "/b"), "list_files": ()}
    assert Path(allowance.commands["sh"]).name == "sh"
    assert allowance.servers == {"files"}


def test_folders_of_an_allowance_mean_the_same_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert plain(["read_file:data", "shell:git"]) == (f"read_file:{tmp_path}/data", "shell:git")


@given(st.lists(st.text(max_size=40), max_size=4))
def test_whatever_is_allowed_is_read_or_refused(texts: list[str]) -> None:
    try:
        allowance = read_allowance(texts, known=KNOWN, which=lambda command: f"/bin/{command}")
    except NotAllowed:
        return
    assert set(allowance.tools) <= set(KNOWN)
    assert all("/" not in command for command in allowance.commands)


def test_a_tool_that_is_not_there_or_not_allowed() -> None:
    box = RunToolbox(Catalogue([price]), read_allowance(["shell:sh"], known=KNOWN))
    assert box.find("price") is price
    assert box.find("shell:sh").name == box.find("shell.sh").name == "shell.sh"
    with pytest.raises(ToolFailed, match="did you mean price"):
        box.find("prise")
    with pytest.raises(NotAllowed, match="--allow read_file:FOLDER"):
        box.find("read_file")
    with pytest.raises(NotAllowed, match="--allow shell:git"):
        box.find("shell.git")


def test_tools_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "from __future__ import annotations\nfrom granville.crucible.tools.function import tool\n"
        "@tool\ndef twice(number: int) -> int:\n    'Doubles.'\n    return 2 * number\n"
    )
    (twice,) = tools_of([str(path)])
    assert twice.name == "twice"
    with pytest.raises(StartupError, match="no such file"):
        tools_of([str(tmp_path / "other.py")])
    path.write_text("import no_such_module_here")
    with pytest.raises(StartupError, match="no_such_module_here"):
        tools_of([str(path)])
    path.write_text("raise SystemExit('no')")
    with pytest.raises(StartupError, match="SystemExit"):
        tools_of([str(path)])
    path.write_text("x = 1")
    with pytest.raises(StartupError, match="put @tool before"):
        tools_of([str(path)])


def test_two_tools_of_one_name() -> None:
    with pytest.raises(StartupError, match="two tools named 'calculate'"):
        toolboxes(tools=[tool(name="calculate")(lambda: 1)])
    with pytest.raises(StartupError, match="Crucible's own"):
        toolboxes(tools=[tool(name="shell.x")(lambda: 1)])
    with pytest.raises(StartupError, match="put @tool"):
        toolboxes(tools=[lambda: 1])


def test_what_a_tool_gives_is_bounded() -> None:
    cut = bounded("t", "ü" * 1000, most_bytes=500)
    assert len(cut.encode()) <= 500
    assert cut.endswith("2000 bytes, and 500 are the most that a tool may give")
    assert bounded("t", "half \ud800", most_bytes=500) == "half ?"
    assert bounded("t", {"a": (1, 2.5, None, b"x", Size(1, 2))}) == {
        "a": [1, 2.5, None, b"x", {"width": 1, "height": 2}]
    }
    with pytest.raises(ToolFailed, match="2002 bytes"):
        bounded("t", {"a": "u" * 1996}, most_bytes=500)


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, float("nan"), {"a": [float("inf")]}, 2**70, {"a": "\ud800"}, lambda: 1, {(1, 2): 3}]
)
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises(ToolFailed, match="no value of JSON's types"):
        bounded("t", value)


def test_a_value_in_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ToolFailed, match="nested too deep"):
        bounded("t", value)

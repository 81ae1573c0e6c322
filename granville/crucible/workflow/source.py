"""The text of a workflow as plain values, with the place of every one of them.

ruamel.yaml parses it, as YAML 1.2: `on` and `no` are words, JSON is a part of it. The values are made here and not by
ruamel's constructors, so that a key which stands twice, a tag or a bomb of aliases is told with its place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from granville.crucible.workflow.problems import Path, Problem, WorkflowError
from granville.crucible.workflow.templates import is_name, locate

MAX_SOURCE_BYTES = 256 << 10
MAX_VALUES = 20_000
"""Of one file, aliases spelt out."""
MAX_NESTING = 64
_CORE = "tag:yaml.org,2002:"
_SCALARS = {_CORE + kind for kind in ("int", "float", "bool", "null")}
_TEXTS = {_CORE + kind for kind in ("str", "timestamp", "merge", "value")}
"""Dates are texts here: a workflow has no use for them, and neither MessagePack nor JSON has any."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of a value, or of the key of one."""

    line: int
    """From 1."""
    column: int
    """From 1."""
    start: int = 0
    end: int = 0
    style: str | None = None
    """Of a scalar: one of ' " | > or None for a plain one."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed file, or a workflow that has no text: then nothing in it has a place."""

    value: Any
    file: str = ""
    text: str = ""
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    others: dict[Path, Source] = field(default_factory=dict)
    """The files that its `workflow` fields name."""
    broken: set[Path] = field(default_factory=set)
    """Steps of which something is wrong already: what else there is to say of them may not be true."""

    def problem(self, path: Path, message: str, *, key: bool = False, position: int | None = None) -> Problem:
        """At a value, at the key of one, or `position` characters into a text. A place that is not there is the
        nearest one around it."""
        if named := field_name(path, self.value):
            message = f"{named}: {message}"
        places = self.keys if key else self.values
        while path and path not in places:
            path, position = path[:-1], None
            places = self.keys if path in self.keys else self.values
        place = places.get(path)
        if place is None:
            return Problem(message, self.file)
        line, column = (place.line, place.column) if position is None else self._inside(path, place, position)
        return Problem(message, self.file, line, column)

    def written(self, path: Path) -> str | None:
        """A scalar as it stands in the file: `1.10`, which is 1.1 as a number."""
        place = self.values.get(path)
        return None if place is None else self.text[place.start : place.end]

    def _inside(self, path: Path, place: Place, position: int) -> tuple[int, int]:
        value: Any = self.value
        for part in path:
            value = value[part]
        raw = self.text[place.start : place.end]
        quote = 1 if place.style in ("'", '"') else 0
        if raw[quote : len(raw) - quote] == value:
            return place.line, place.column + quote + position
        if place.style == "|":
            before = value[:position]
            number = before.count("\n")
            rows = raw.split("\n")[1:]
            if number < len(rows):
                row, wanted = rows[number], value.split("\n")[number]
                return place.line + 1 + number, len(row) - len(wanted) + position - (before.rfind("\n") + 1) + 1
        # Folded or with escapes: the word that stands there, where it stands in the file.
        word = re.match(r"\w+|\W", value[position:])
        found = locate(raw, word[0]) if word else None
        if found is None:
            return place.line, place.column
        lines = raw[:found].split("\n")
        return place.line + len(lines) - 1, len(lines[-1]) + (place.column if len(lines) == 1 else 1)


def parse(text: str, file: str) -> Source:
    """Raises WorkflowError: what is no YAML, or has what a workflow cannot have."""
    if len(text.encode(errors="replace")) > MAX_SOURCE_BYTES:
        raise WorkflowError([Problem(f"over {MAX_SOURCE_BYTES >> 10} KiB; this is no workflow", file)])
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        sentence = " ".join(filter(None, (error.problem, error.context)))
        hint = _hint(text, mark.index, sentence) if mark else ""
        where = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise WorkflowError([Problem(f"not YAML: {sentence}{hint}", file, *where)]) from None
    except RecursionError:
        raise WorkflowError([Problem("nested too deep for a workflow", file)]) from None
    except (YAMLError, ValueError) as error:
        raise WorkflowError([Problem(f"not YAML: {' '.join(str(error).split())}", file)]) from None
    if root is None:
        raise WorkflowError([Problem("it is empty; `crucible new NAME` writes a workflow to start from", file)])
    reader = _Reader(yaml, file)
    value = reader.value(root, (), 0)
    if reader.problems:
        raise WorkflowError(reader.problems)
    return Source(value, file, text, reader.keys, reader.places)


def field_name(path: Path, value: Any) -> str:
    """A path as a person would say it: a step by its id, `answer.retry.attempts`; a list's item as `stop[1]`."""
    words: list[str] = []
    for number, part in enumerate(path):
        value = _part(value, part)
        if not isinstance(part, int) or not words:
            words.append(str(part)[:80])
        elif words[-1] == "steps" and isinstance(value, dict) and is_name(str(value.get("id", "."))):
            words = [str(value["id"])] if number < len(path) - 1 else [f"step {value['id']}"]
        else:
            words[-1] += f"[{part}]"
    return ".".join(words)


def _part(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _hint(text: str, index: int, sentence: str) -> str:
    """What most often is meant where YAML breaks."""
    line = text[text.rfind("\n", 0, index) + 1 :].split("\n", 1)[0]
    if "{{" in line or "{%" in line:
        return "; a text with `{{ … }}` needs quotes around it, or `|` and a line of its own"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "; lines begin with spaces in YAML, not with tabs"
    return "; a text with `: ` or `#` in it needs quotes" if "mapping values" in sentence else ""


class _Reader:
    def __init__(self, yaml: YAML, file: str) -> None:
        self._yaml = yaml
        self._file = file
        self._count = 0
        self.problems: list[Problem] = []
        self.keys: dict[Path, Place] = {}
        self.places: dict[Path, Place] = {}

    def value(self, node: Node, path: Path, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_NESTING:
            much = f"over {MAX_VALUES} values, aliases spelt out" if depth <= MAX_NESTING else "nested too deep"
            raise WorkflowError([self._problem(node, f"{much}; this is no workflow")])
        self.places[path] = _place(node)
        if isinstance(node, MappingNode):
            return self._map(node, path, depth)
        if isinstance(node, SequenceNode):
            self._refuse_tag(node, _CORE + "seq")
            return [self.value(item, (*path, number), depth + 1) for number, item in enumerate(node.value)]
        return self._scalar(node)

    def _map(self, node: MappingNode, path: Path, depth: int) -> dict[str, Any]:
        self._refuse_tag(node, _CORE + "map")
        made: dict[str, Any] = {}
        merged: list[tuple[Node, Node]] = []
        for key_node, value_node in node.value:
            if key_node.tag == _CORE + "merge":
                merged += self._merged(value_node)
                continue
            key = self._key(key_node)
            if key in made:
                first = self.keys[(*path, key)]
                self.problems.append(
                    self._problem(key_node, f"`{key[:80]}` stands twice here; the first is in line {first.line}")
                )
            self.keys[(*path, key)] = _place(key_node)
            made[key] = self.value(value_node, (*path, key), depth + 1)
            if isinstance(value_node, ScalarNode) and not value_node.value and value_node.style is None:
                self.places[(*path, key)] = _place(key_node)  # nothing has no place of its own
        for key_node, value_node in merged:
            key = self._key(key_node)
            if key not in made:
                self.keys[(*path, key)] = _place(key_node)
                made[key] = self.value(value_node, (*path, key), depth + 1)
        return made

    def _merged(self, node: Node) -> list[tuple[Node, Node]]:
        """The pairs of `<<: *one` or `<<: [*one, *two]`, the earlier ones first. Theirs are not merged further."""
        maps = node.value if isinstance(node, SequenceNode) else [node]
        pairs: list[tuple[Node, Node]] = []
        for one in maps:
            if not isinstance(one, MappingNode):
                self.problems.append(self._problem(one, "`<<` takes a map, or a list of maps"))
                continue
            for key_node, value_node in one.value:
                if key_node.tag == _CORE + "merge":
                    self.problems.append(self._problem(key_node, "`<<` inside of what is merged is not followed"))
                else:
                    pairs.append((key_node, value_node))
        return pairs

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            self.problems.append(self._problem(node, "a key is a text; `{{ … }}` needs quotes around it"))
            return ""
        return str(node.value)

    def _scalar(self, node: Node) -> Any:
        if not isinstance(node, ScalarNode):
            self.problems.append(self._problem(node, "this cannot be read"))
            return None
        tag = str(node.tag)
        if tag in _SCALARS:
            try:
                return self._yaml.constructor.construct_object(node)
            except (ValueError, YAMLError):
                self.problems.append(self._problem(node, f"{node.value[:40]} is no number; a text needs quotes"))
                return None
        if tag not in _TEXTS:
            self._refuse_tag(node, _CORE + "str")
        return self._text(node)

    def _text(self, node: ScalarNode) -> str:
        text = str(node.value)
        if text.isascii():
            return text
        try:
            # JSON writes a character beyond U+FFFF as two halves.
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self.problems.append(self._problem(node, "half a character (a lone surrogate) is in this text"))
            return ""

    def _refuse_tag(self, node: Node, usual: str) -> None:
        if str(node.tag) != usual:
            shown = str(node.tag).replace(_CORE, "!!")
            self.problems.append(self._problem(node, f"the tag {shown} has no meaning here"))

    def _problem(self, node: Node, message: str) -> Problem:
        place = _place(node)
        return Problem(message, self._file, place.line, place.column)


def _place(node: Node) -> Place:
    start, end = node.start_mark, node.end_mark
    return Place(start.line + 1, start.column + 1, start.index, end.index, getattr(node, "style", None))

"""What `pip install granville` brings fits together, as `pip check` would say, and asks is none of it."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def brought_by(name: str, extras: frozenset[str]) -> dict[str, str]:
    """Every distribution below one, by its version. An AssertionError for a requirement that is not met."""
    found: dict[str, str] = {}
    todo = [(name, extras)]
    while todo:
        current, wanted_extras = todo.pop()
        here = distribution(current)
        found[current] = here.version
        for line in here.requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in (wanted_extras or {""})):
                continue
            needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
            version = distribution(needed).version
            assert requirement.specifier.contains(version, prereleases=True), f"{current} needs {line}, not {version}"
            if needed not in found:
                todo.append((needed, frozenset(requirement.extras)))
    return found


def test_the_dependencies_agree_with_each_other() -> None:
    found = brought_by("granville", frozenset())
    assert {"trio", "msgpack", "llama-cpp-python", "cyclopts"} <= found.keys()
    assert "asks" not in found
    assert "trio-typing" not in found


def test_every_dependency_is_explained() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    names = [Requirement(line).name for line in distribution("granville").requires or []]
    assert [name for name in names if name not in page] == []

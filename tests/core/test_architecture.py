"""The house kept tidy: which way imports go, what a task says of itself, how long a module may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400

BASE = {"errors", "config"}
CORE = BASE | {"wire"}
MIDDLE = CORE | {"scheduling", "hosting", "fetch", "models", "registry", "journal"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "wire": BASE,
    "scheduling": CORE,
    "hosting": CORE | {"fetch"},
    "fetch": CORE,
    "models": CORE | {"fetch", "hosting", "registry", "scheduling"},
    "registry": CORE | {"fetch", "hosting"},
    "journal": CORE | {"scheduling"},
    "doctor": MIDDLE,
    "doors": CORE,
    "nursery": MIDDLE | {"doors"},
    "http": MIDDLE | {"doors"},
    "client": {"wire", "errors"},
    "crucible": CORE | {"client", "doors"},
    "testing": CORE | {"hosting", "scheduling", "doors", "nursery"},
    "cli": MIDDLE | {"doctor", "doors", "nursery", "http", "client", "crucible", "testing"},
    "__main__": {"cli"},
}
"""Beside itself. A part that is not here has no place yet: give it one."""

IMPURE = {
    "asyncio", "concurrent", "datetime", "importlib", "multiprocessing", "os", "pathlib", "queue", "random",
    "secrets", "select", "selectors", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "time", "trio",
    "uuid",
}  # fmt: skip

SAMPLES = "drivers/echo/"
"""Drivers that lie in a folder with a driver.json, and are no packages."""
SHARED_BY = {f"granville_{name}": {"granville_speech"} for name in ("whisper", "piper", "espeak")}
"""What a driver imports of other drivers' folders: code of ours that several of them need."""
BACKENDS = {"faster_whisper", "ctranslate2", "av", "onnxruntime", "piper", "espeakng_loader"}
"""Of speech. They are extras, and piper and espeakng_loader are under the GPL: each driver has its own."""

TASKS = ("granville/crucible/daemon", "granville/doors", "granville/nursery")
"""Where every task says who starts it and how it ends."""


def modules(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, folders
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(path: Path) -> Iterator[str]:
    """Full dotted names, wherever in the file: `from a.b import c` is a.b.c."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "granville").parts[0].removesuffix(".py")


def within(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", modules("granville"), ids=short)
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert not [name for name in imported(path) if within(name, {"granville"})]
        return
    allowed = {f"granville.{one}" for one in MAY_IMPORT[part] | {part}} | {"granville.__version__"}
    wrong = [name for name in imported(path) if within(name, {"granville"}) and not within(name, allowed)]
    assert not wrong, f"granville/{part} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", modules("granville/wire", "granville/scheduling"), ids=short)
def test_the_core_is_pure(path: Path) -> None:
    assert not [name for name in imported(path) if name.split(".")[0] in IMPURE]
    opens = [node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)]
    assert not {"open", "print", "input", "__import__"} & set(opens)


@pytest.mark.parametrize("path", modules("drivers"), ids=short)
def test_drivers_import_the_interface_alone(path: Path) -> None:
    package = path.relative_to(ROOT / "drivers").parts[1]
    assert package.startswith("granville_") or short(path).startswith(SAMPLES)
    ours = [name for name in imported(path) if name.startswith("granville")]
    allowed = {"granville.hosting.interface", package, *SHARED_BY.get(package, ())}
    assert not [name for name in ours if not within(name, allowed)]


@pytest.mark.parametrize("path", modules("granville", "drivers/speech", "drivers/llama"), ids=short)
def test_nothing_but_its_driver_imports_a_backend_of_speech(path: Path) -> None:
    drivers = {*SHARED_BY, "granville_speech"} - {path.relative_to(ROOT).parts[-2]}
    assert not [name for name in imported(path) if within(name, BACKENDS | drivers)]


def test_a_driver_needs_nothing_but_the_standard_library_of_us() -> None:
    """The interface is all that a driver imports, so it must not bring the kernel with it: one module of its own."""
    own = "granville.hosting.shortening"
    for module in ("interface", "shortening"):
        names = [name for name in imported(ROOT / f"granville/hosting/{module}.py") if not within(name, {own})]
        assert not [name for name in names if within(name, {"granville", "trio"})]


def is_under_type_checking(path: Path, name: str) -> bool:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and inner.module == name:
                    return True
    return False


def test_no_two_modules_import_each_other() -> None:
    """Imports for the type checker alone do not count: they are how two classes may know of each other."""
    edges: dict[str, set[str]] = {}
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in modules("granville")
    }
    for module, path in names.items():
        edges[module] = {
            target
            for name in imported(path)
            for target in (name, name.rpartition(".")[0])
            if target in names and target != module and not is_under_type_checking(path, target)
        }
        edges[module] -= {package for package in edges[module] if module.startswith(f"{package}.")}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*way, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def started_tasks() -> set[tuple[str, str]]:
    """(file, name) of what `start_soon(f, ...)` and `await nursery.start(f, ...)` are given."""
    found = set()
    for path in modules(*TASKS):
        tree = tree_of(path)
        libraries = {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            starts = node.func.attr == "start" and id(node) in awaited
            if ast.unparse(node.func.value).endswith("runner"):  # it starts runs, not tasks
                continue
            if node.func.attr == "start_soon" or starts:
                task = node.args[0]
                if isinstance(task, ast.Call) and ast.unparse(task.func) in {"partial", "functools.partial"}:
                    task = task.args[0]
                text = ast.unparse(task)
                assert isinstance(task, ast.Name | ast.Attribute), f"{short(path)}: a task needs a name, got {text}"
                if text.split(".")[0] not in libraries:
                    found.add((short(path), text.split(".")[-1]))
    return found


def definitions(name: str) -> list[tuple[Path, ast.AsyncFunctionDef]]:
    """All async functions of that name but those of protocols, which have no body."""
    found = []
    for path in modules(*TASKS):
        protocols = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef) and is_protocol(node)]
        bodiless = {id(node) for protocol in protocols for node in protocol.body}
        found += [
            (path, node)
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.AsyncFunctionDef) and node.name == name and id(node) not in bodiless
        ]
    return found


def is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base) == "Protocol" for base in node.bases)


def test_the_search_for_tasks_finds_them() -> None:
    names = {name for _, name in started_tasks()}
    assert {"watch", "serve_http", "deliver", "run"} <= names


@pytest.mark.parametrize(("file", "name"), sorted(started_tasks()))
def test_a_task_says_who_starts_it_and_how_it_ends(file: str, name: str) -> None:
    found = definitions(name)
    assert found, f"{file} starts {name}, which is no async function of theirs"
    for path, function in found:
        text = " ".join((ast.get_docstring(function) or "").split())
        missing = [words for words in ("Started by", "Ends when", "Cancelled by") if words not in text]
        assert not missing, f"{short(path)}:{function.lineno} {name}"


@pytest.mark.parametrize("path", modules("granville", "drivers"), ids=short)
def test_modules_are_short_and_say_what_they_are(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert ast.get_docstring(tree_of(path)) or not path.read_text().strip()


@pytest.mark.parametrize("path", modules("granville", "drivers"), ids=short)
def test_nothing_is_swallowed(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(one, ast.Pass) or ast.unparse(one) == "..." for one in node.body)
            assert not (silent and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})), (
                f"{short(path)}:{node.lineno}"
            )

"""The code in the documents runs, against a daemon of its own."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from granville_llama import LlamaDriver

from granville.cli.commands import Command
from granville.cli.crucible import help as crucible_help
from granville.cli.help import COMMANDS
from granville.errors import StartupError
from granville.hosting.options import OptionSchema, merge_options
from granville.models.manifest import read_manifest
from tests.drivers import c_drivers
from tests.e2e.crucible import Crucible
from tests.e2e.harness import GRANVILLE, PATIENCE_S, Daemon, running

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("README.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def run_python(code: str, folder: Path, socket: Path) -> str:
    """Run a block in a process of its own, its example paths replaced; what it prints."""
    code = code.replace("/tmp/granville.sock", str(socket)).replace("/tmp/client.sock", str(folder / "client.sock"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_plain_client(daemon: Daemon, folder: Path) -> None:
    code = blocks(ROOT / "README.md", "python")[0]
    imports = {name.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for name in node.names}
    assert imports == {"msgpack", "os", "socket"}
    ack, result = map(ast.literal_eval, run_python(code, folder, daemon.socket).splitlines())
    assert ack == {"id": "1", "status": "accepted"}
    assert (result["id"], result["tool_id"], result["tool_input_json"]) == ("1", "__chat__", '["Say hello."]')


def test_the_readmes_trio_client(daemon: Daemon, folder: Path) -> None:
    printed = run_python(blocks(ROOT / "README.md", "python")[1], folder, daemon.socket)
    assert printed.startswith("Say hello.Usage(prompt_tokens=2")


def test_the_runner_of_the_runs_page(daemon: Daemon, folder: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "crucible-runs.md", "python")
    printed = run_python(code, folder, daemon.socket).splitlines()
    assert printed[0] == "running"
    assert printed[-2:] == ["finished", "{'said': 'Say first.'}"]


def test_the_driver_of_the_drivers_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, check, speaks = blocks(ROOT / "docs" / "drivers.md", "python")
    assert code == (ROOT / "drivers" / "echo" / "python" / "echo_driver.py").read_text(), "the page shows the sample"
    (folder / "my_module.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with running(folder, driver="my_module:EchoDriver") as daemon:
        assert daemon.answer("make some noise", max_tokens=2) == "make some"
        assert daemon.stop() == 0
    (folder / "test_it.py").write_text(check.replace("./my-driver", "my_module:EchoDriver"))
    run_python("import test_it; test_it.test_it_keeps_to_the_interface()", folder, folder)
    run_python(speaks, folder, folder)


@pytest.mark.parametrize(("block", "answer"), [(0, "MAKE SOME  NOISE, ß"), (1, "make some  noise, ß")])
def test_the_drivers_in_c_of_the_drivers_page(folder: Path, block: int, answer: str) -> None:
    source = folder / "driver.c"
    source.write_text(blocks(ROOT / "docs" / "drivers.md", "c")[block])
    with running(folder, driver=str(c_drivers.build(source, folder / "driver.so"))) as daemon:
        assert daemon.answer("make some  noise, ß") == answer
        assert daemon.stop() == 0


def test_the_conversation_of_the_sessions_page(daemon: Daemon, folder: Path) -> None:
    """The fake driver repeats the last turn, and its prompts are words."""
    code, warm = blocks(ROOT / "docs" / "sessions.md", "python")
    assert run_python(code, folder, daemon.socket) == "What colour is it?\n0 of 10 tokens were in the cache\n"
    assert run_python(warm, folder, daemon.socket) == "warm with 6 tokens\n"


def test_the_client_of_the_page_on_crucibles_operation(serving: Crucible, folder: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "crucible-operations.md", "python")
    printed = run_python(code.replace("/tmp/crucible.sock", str(serving.socket)), folder, serving.socket)
    assert printed.splitlines()[-1] == "Greet Ann."


def test_the_manifest_of_the_operations_page(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs" / "operations.md", "yaml")
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    manifest = read_manifest(path)
    assert [(one.id, one.type, one.slots) for one in manifest.models] == [
        ("main", None, None),
        ("mini", "embedding", 2),
    ]
    for one in manifest.models:
        assert one.config is not None
        merge_options(LlamaDriver(), [one.config])
    said = re.findall(r"manifest\.yaml:(\d+):(\d+): gpu_layer: (.*)", (ROOT / "docs" / "operations.md").read_text())
    path.write_text(text.replace("gpu_layers", "gpu_layer"))
    wrong = read_manifest(path).models[0].config
    assert wrong is not None
    with pytest.raises(StartupError) as caught:
        merge_options(LlamaDriver(), [wrong])
    assert caught.value.message == f"{path}:{said[0][0]}:{said[0][1]}: gpu_layer: {said[0][2]}"


def test_the_options_of_the_drivers_page() -> None:
    page = (ROOT / "docs" / "drivers.md").read_text()
    table = page.split("| option of granville-llama |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(LlamaDriver().config_schema["properties"])
    schema = next(json.loads(block) for block in blocks(ROOT / "docs" / "drivers.md", "json") if "volume" in block)
    assert OptionSchema("x", schema).check("volume", "11", text=True) == 11


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_examples_are_json(page: Path) -> None:
    for block in blocks(page, "json"):
        json.loads(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def used_flags(program: str, commands: set[str]) -> dict[str, set[str]]:
    """The flags that the documents give to each command of a program."""
    used: dict[str, set[str]] = {}
    for page in PAGES:
        for line in re.findall(rf"{program} ([a-z]+[^\n`|]*(?:\\\n[^\n`|]*)*)", page.read_text()):
            name, *words = line.split()
            if words and f"{name} {words[0]}" in commands:
                name = f"{name} {words.pop(0)}"
            if name in commands:
                used.setdefault(name, set()).update(re.findall(r"(?<!\S)--?[a-z][a-z-]*", " ".join(words)))
    return used


@pytest.mark.parametrize(
    ("program", "commands", "expected"),
    [
        ("granville", COMMANDS, {"serve", "submit", "chat", "status", "download", "models"}),
        ("crucible", crucible_help.COMMANDS, {"run", "check", "graph", "index", "runs show"}),
    ],
    ids=["granville", "crucible"],
)
def test_flags_in_the_documents_exist(program: str, commands: tuple[Command, ...], expected: set[str]) -> None:
    used = used_flags(program, {command.name for command in commands})
    assert expected <= used.keys()
    for name, flags in used.items():
        command = [str(GRANVILLE.with_name(program)), *name.split(), "--help"]
        help_page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for flag in flags - {"--help"}:
            assert re.search(rf"(?<!\S){flag}\b", help_page), f"{program} {name} has no {flag}"

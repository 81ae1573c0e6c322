"""`crucible index`: the command, with a daemon that makes vectors and without one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.crucible import crucible
from tests.e2e.harness import running

ASK = """\
name: ask
inputs: {query: {type: text}}
steps:
  - {id: found, tool: search, with: {index: notes, query: "{{ query }}", top: 1}}
outputs: {sources: found | map(attribute="source") | list}
"""


@pytest.fixture
def notes(folder: Path) -> Path:
    (folder / "ask.yaml").write_text(ASK)
    notes = folder / "notes"
    notes.mkdir()
    (notes / "cats.md").write_text("# Cats\nThey sleep.\n")
    (notes / "boats.md").write_text("# Boats\nThey sail.\n")
    (notes / "picture.png").write_bytes(b"\x89PNG\0")
    return notes


def test_words_alone_where_there_is_no_daemon(notes: Path) -> None:
    nobody = str(notes.parent / "nobody.sock")
    done = crucible(notes.parent, "index", str(notes), "-s", nobody, "--quiet")
    assert (done.returncode, done.stdout) == (
        0, f"{notes}/.crucible.db: 2 documents, 2 passages (2 new, 1 left out)\n",
    )  # fmt: skip
    assert "words only" in done.stderr
    assert "left out: picture.png: no text" in done.stderr
    done = crucible(notes.parent, "index", str(notes), "--words-only", "--quiet")
    assert done.stdout.endswith("(1 left out)\n")
    done = crucible(notes.parent, "index", str(notes), "-s", nobody, "--model", "m", "--quiet")
    assert done.returncode != 0
    assert "no daemon is listening" in done.stderr


def test_what_is_found_in_a_run(notes: Path) -> None:
    folder = notes.parent
    (folder / "m.bin").write_bytes(b"for a driver that needs none")
    with running(folder, model=f"embedding:{folder}/m.bin") as daemon:
        done = crucible(folder, "index", str(notes), "-s", str(daemon.socket), "--quiet")
        assert re.search(r": 2 documents, 2 passages, vectors of fake-\w+ \(2 new, 1 left out\)\n$", done.stdout)
        run = ("run", str(folder / "ask.yaml"), "--input", "query=who can sail?", "--json", "-s", str(daemon.socket))
        done = crucible(folder, *run)
        assert json.loads(done.stdout) == {"sources": ["boats.md"]}


def test_what_it_says_of_no_folder_and_no_index(notes: Path) -> None:
    done = crucible(notes.parent, "index", str(notes / "nowhere"), "--into", "i.db", "-s", str(notes / "none.sock"))
    assert done.returncode != 0
    assert done.stderr == f"crucible: {notes / 'nowhere'}: there is no such folder\n"
    done = crucible(notes.parent, "index", str(notes), "--into", str(notes / "cats.md"), "--words-only")
    assert done.returncode != 0
    assert "cats.md" in done.stderr
    assert (notes / "cats.md").read_text().startswith("# Cats")

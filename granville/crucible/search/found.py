"""Which files of a folder are documents: hidden ones, what `.gitignore` leaves out, and links are not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granville.crucible.tools.extra import needed

MAX_FILES = 100_000
MAX_DEPTH = 64
MAX_TEXT_BYTES = 8 << 20
MAX_PDF_BYTES = 32 << 20
MAX_IGNORE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class File:
    source: str
    """Its path, from the folder on, with slashes."""
    path: Path
    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Skipped:
    source: str
    reason: str


def find_documents(folder: Path, *, leave_out: Path | None = None) -> Iterator[File | Skipped]:
    """Every file below `folder` in the order of names, or why it is left out; `leave_out` is not told of."""
    specs = needed("pathspec", "indexes").GitIgnoreSpec
    for seen, one in enumerate(_walk(folder, "", [], specs)):
        if seen >= MAX_FILES:
            yield Skipped("", f"over {MAX_FILES} files: the others are not looked at; index a folder further down")
            return
        if not isinstance(one, File) or one.path != leave_out:
            yield one


def _walk(folder: Path, prefix: str, ignores: list[tuple[str, Any]], specs: Any) -> Iterator[File | Skipped]:
    """`ignores`: the rules of this folder's `.gitignore` and those above it, each with where it begins."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Skipped(prefix, error.strerror or str(error))
        return
    rules = _rules(folder, specs)
    if rules is not None:
        ignores = [*ignores, (prefix, rules)]
    for entry in entries:
        if entry.name.startswith("."):
            continue
        source = f"{prefix}{entry.name}"
        if not _is_text(source):
            yield Skipped(repr(source)[1:-1], "its name is not UTF-8")
            continue
        try:
            about = entry.stat(follow_symlinks=False)
        except OSError as error:
            yield Skipped(source, error.strerror or str(error))
            continue
        is_folder = stat.S_ISDIR(about.st_mode)
        if _is_ignored(f"{source}/" if is_folder else source, ignores):
            continue
        if is_folder and prefix.count("/") >= MAX_DEPTH:
            yield Skipped(source, f"more than {MAX_DEPTH} folders deep")
        elif is_folder:
            yield from _walk(Path(entry.path), f"{source}/", ignores, specs)
        elif stat.S_ISREG(about.st_mode):
            most = MAX_PDF_BYTES if source.lower().endswith(".pdf") else MAX_TEXT_BYTES
            if about.st_size > most:
                yield Skipped(source, f"{about.st_size} bytes, and {most} are the most")
            else:
                yield File(source, Path(entry.path), about.st_mtime_ns, about.st_size)
        elif stat.S_ISLNK(about.st_mode):
            yield Skipped(source, "a symbolic link")


def _rules(folder: Path, specs: Any) -> Any:
    path = folder / ".gitignore"
    try:
        if not path.is_file() or path.stat().st_size > MAX_IGNORE_BYTES:
            return None
        return specs.from_lines(path.read_text(errors="replace").splitlines())
    except (OSError, ValueError):
        return None


def _is_ignored(source: str, ignores: list[tuple[str, Any]]) -> bool:
    """The innermost `.gitignore` that says something of it goes first."""
    for prefix, rules in reversed(ignores):
        said = rules.check_file(source[len(prefix) :]).include
        if said is not None:
            return bool(said)
    return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

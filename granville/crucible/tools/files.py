"""Files of the folders that were allowed: `--allow read_file:/data`.

A path is walked from its folder a name at a time, and no symbolic link is followed on the way (`O_NOFOLLOW`): nobody
who can write there leads a tool out of it, not between a check and the opening either.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from granville.crucible.tools.function import tool
from granville.crucible.tools.interface import MAX_TOOL_OUTPUT_BYTES, Call, NotAllowed, ToolFailed

MAX_READ_BYTES = 32 << 20
"""Of a file; larger ones are not looked into."""
MAX_LISTED = 10_000
MAX_LOOKED_AT = 100_000
"""Entries of folders, in one listing."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

PathText = Annotated[str, Meta(min_length=1, max_length=4096, description="beginning at the folder that was allowed")]


@tool(needs_allowance=True)
def read_file(
    path: PathText, call: Call, first_line: Annotated[int, Meta(ge=1)] = 1,
    lines: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="how many; all unless given")] = None,
) -> str:  # fmt: skip
    """Read a text file, or some of its lines."""
    with _failing("read_file", path), _parent("read_file", path, call) as (parent, name):
        opened = os.open(name, _FILE, dir_fd=parent)
        with os.fdopen(opened, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ToolFailed(f"read_file: {path} is no file")
            if about.st_size > MAX_READ_BYTES:
                raise ToolFailed(f"read_file: {path} has {about.st_size} bytes, and {MAX_READ_BYTES} are the most")
            data = file.read(MAX_READ_BYTES)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ToolFailed(f"read_file: {path} is not UTF-8 text") from None
    if first_line == 1 and lines is None:
        return text
    end = None if lines is None else first_line - 1 + lines
    return "".join(text.splitlines(keepends=True)[first_line - 1 : end])


@tool(needs_allowance=True)
def list_files(
    call: Call, folder: PathText = ".",
    pattern: Annotated[str, Meta(max_length=256, description="such as *.md; of the file's name")] = "*",
) -> list[dict[str, Any]]:  # fmt: skip
    """List the files below a folder, with their sizes in bytes. Hidden ones and symbolic links are left out."""
    with _failing("list_files", folder), _parent("list_files", f"{folder}/.", call) as (parent, _):
        found = _files_below(parent)
    return [{"path": path, "bytes": size} for path, size in sorted(found) if fnmatch.fnmatch(Path(path).name, pattern)]


@tool(needs_allowance=True, once=False)
def write_file(
    path: PathText, text: Annotated[str, Meta(max_length=MAX_TOOL_OUTPUT_BYTES)], call: Call
) -> dict[str, Any]:
    """Write a text file, in place of one that was there; folders on the way are made."""
    data = text.encode(errors="replace")
    with _failing("write_file", path), _parent("write_file", path, call, make=True) as (parent, name):
        mode = _mode_of(name, parent)
        half_written = f".{secrets.token_hex(8)}.new"
        opened = os.open(
            half_written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o666 if mode is None else 0o600, dir_fd=parent,
        )  # fmt: skip
        try:
            with os.fdopen(opened, "wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(half_written, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(half_written, dir_fd=parent)
            raise
        os.fsync(parent)
    return {"path": path, "bytes": len(data)}


def _mode_of(name: str, parent: int) -> int | None:
    """Who may read what is written over; None where nothing is."""
    try:
        about = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return stat.S_IMODE(about.st_mode) & 0o777 if stat.S_ISREG(about.st_mode) else None


def folders(name: str, call: Call) -> list[Path]:
    """Those that the tool may reach: what was allowed, or the workflow's own. Raises NotAllowed."""
    if call.grants:
        return [Path(grant) for grant in call.grants]
    if not call.folder.is_absolute():
        raise NotAllowed(
            f"{name}: a run that came over the wire has no folder; one can be allowed: --allow {name}:FOLDER"
        )
    return [call.folder]


@contextmanager
def _parent(name: str, path: str, call: Call, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """The open folder that a path's last name is in, and that name. Raises NotAllowed for a path that leads out of what
    was allowed, and OSError."""
    root, parts = _within(name, path, call)
    held = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for part in parts[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=held[-1])
            held.append(os.open(part, _FOLDER, dir_fd=held[-1]))
            os.close(held.pop(0))
        yield held[-1], parts[-1]
    finally:
        for folder in held:
            os.close(folder)


def _within(name: str, path: str, call: Call) -> tuple[Path, list[str]]:
    allowed = folders(name, call)
    if "\0" in path:
        raise ToolFailed(f"{name}: a path has no NUL in it")
    roots = allowed if os.path.isabs(path) else allowed[:1]
    for root in roots:
        joined = os.path.normpath(root / path)
        relative = os.path.relpath(joined, root)
        if relative != ".." and not relative.startswith("../"):
            parts = [] if relative == "." else relative.split("/")
            return root, [*parts, "."] if path.endswith("/.") else parts or ["."]
    raise NotAllowed(f"{name}: {path} is not in {' or '.join(map(str, roots))}, and nothing else was allowed")


def _files_below(top: int) -> list[tuple[str, int]]:
    """(path, bytes) of the regular files, walked without following a link."""
    found: list[tuple[str, int]] = []
    looked_at = 0
    for folder, inner, names, opened in os.fwalk(".", dir_fd=top, follow_symlinks=False):
        inner[:] = sorted(one for one in inner if not one.startswith("."))
        for one in names:
            looked_at += 1
            if looked_at > MAX_LOOKED_AT or len(found) >= MAX_LISTED:
                raise ToolFailed(f"list_files: over {MAX_LISTED} files; name a folder further down")
            try:
                about = os.stat(one, dir_fd=opened, follow_symlinks=False)
            except FileNotFoundError:  # removed since the folder was read
                continue
            if stat.S_ISREG(about.st_mode) and not one.startswith("."):
                found.append((_in_utf8(os.path.normpath(f"{folder}/{one}")), about.st_size))
    return found


def _in_utf8(path: str) -> str:
    """A name in another encoding, as near as UTF-8 comes: one such file does not hide all the others."""
    return os.fsencode(path).decode(errors="replace")


@contextmanager
def _failing(name: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "a symbolic link is not followed" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise ToolFailed(f"{name}: {path}: {reason}") from None

"""Archives that nobody has to trust: a tar or zip becomes one folder of plain files, or one member of it is taken.

Whoever made the archive decides nothing but names and bytes below one folder. Every way to write elsewhere, to make
something that is no file, or to fill the disk or the memory ends it with a sentence; what has been written by then is
the caller's to remove. (`tarfile.data_filter` repairs some of these, lets links through, and is not there for zip: here
one set of rules is for both.)
"""

from __future__ import annotations

import difflib
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from granville.errors import StartupError
from granville.fetch.local import COPY_BYTES, Readable, copy_blocks, write_blocks
from granville.fetch.members import Tree, shown
from granville.fetch.place import require_space, why_not_written
from granville.fetch.progress import Progress, silent
from granville.fetch.trees import MAX_FILES

ENCRYPTED = 1
"""The bit of a zip member's flags (APPNOTE.TXT, section 4.4.4)."""
MAX_TAR_HEADER_BYTES = 1 << 20
"""What may lie between two members of a tar: tarfile reads extended headers into memory, whatever size they claim."""
MAX_XZ_MEMORY_BYTES = 256 << 20
"""`xz -9` needs 65 MB; a file can ask for gigabytes."""
GZIP, XZ, ZIP = b"\x1f\x8b", b"\xfd7zXZ\0", b"PK"
"""What the formats begin with. The name of a file says nothing here."""

BROKEN = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    UnicodeError,
    RecursionError,  # extended headers of a tar, one within another
    NotImplementedError,  # a compression that zipfile does not know
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The most that is taken out of one archive."""

    max_members: int = 10_000
    max_bytes: int = 16 << 30
    max_ratio: int = 100
    """Bytes out of one byte of archive; libraries give about 3, zeros 1000."""
    ratio_from_bytes: int = 32 << 20
    """Below this no ratio is looked at."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    kind: int
    """As in `st_mode`: S_IFREG, S_IFDIR, or what is refused."""
    mode: int
    size: int
    source: Readable | None


def unpack(archive: Path, folder: Path, *, bounds: Bounds = Bounds(), progress: Progress = silent) -> Path:
    """Unpack a tar.gz, tar.xz or zip into `folder`, which is there and empty: the one folder that is then in it.

    Files get the mode 0644, or 0755 when their owner may execute them. For a thread: it notices cancellation.
    Raises StartupError.
    """
    budget = _Budget(archive, bounds)
    tree = Tree(folder, archive.name)
    with _explained(archive, folder), archive.open("rb") as file:
        for count, member in enumerate(_members(archive, file, budget), 1):
            if count > bounds.max_members:
                raise StartupError(f"{archive.name}: more than {bounds.max_members} files in it")
            if member.kind == stat.S_IFDIR:
                tree.add_folder(member.name)
                continue
            _require_plain(archive, member)
            target = tree.add_file(member.name)
            budget.expect(member.size)
            require_space(folder, member.size)
            permissions = 0o755 if member.mode & stat.S_IXUSR else 0o644
            # O_EXCL: whatever the checks above have missed, nothing that is there already is written to.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(target, flags, permissions), "wb") as out:
                assert member.source is not None
                done = write_blocks(member.source, out, folder, member.size, f"unpacking {target.name}", progress)
            if done != member.size:
                raise EOFError(f"{target.name} ends after {done} of {member.size} bytes")
    return tree.top()


def copy_member(archive: Path, member: str, target: Path, max_bytes: int, progress: Progress) -> None:
    """Copy `member` of a zip archive (a wheel is one) to `target`. For a thread: it notices cancellation.

    zipfile checks the member's CRC and never yields more than the size in its header. Raises StartupError
    for a damaged archive, a member that is not in it, or one over `max_bytes`.
    """
    with _explained(archive, target), zipfile.ZipFile(archive) as opened:
        info = _find(opened, member)
        if info.flag_bits & ENCRYPTED:
            raise StartupError(f"{member} is encrypted in {archive.name}")
        if info.file_size > max_bytes:
            raise StartupError(f"{member} has {info.file_size} bytes, {max_bytes} are the most expected")
        require_space(target.parent, info.file_size)
        with opened.open(info) as source:
            copy_blocks(source, target, info.file_size, f"unpacking {target.stem}", progress)


def has_member(archive: Path, member: str) -> bool:
    """Whether a zip archive has a file of this name. Raises StartupError for a damaged archive."""
    with _explained(archive, archive), zipfile.ZipFile(archive) as opened:
        return member in opened.NameToInfo


def has_folder(archive: Path, name: str) -> bool:
    """Whether a zip archive has files in a folder of this name, and no file that is called so."""
    with _explained(archive, archive), zipfile.ZipFile(archive) as opened:
        return name not in opened.NameToInfo and any(one.startswith(f"{name}/") for one in opened.namelist())


def copy_folder(archive: Path, name: str, target: Path, max_bytes: int, progress: Progress) -> None:
    """Copy all files below the folder `name` of a zip archive into the new folder `target`, as `copy_member` copies
    one; `max_bytes` is for all together. Raises StartupError."""
    with _explained(archive, target), zipfile.ZipFile(archive) as opened:
        members = [info for info in opened.infolist() if info.filename.startswith(f"{name}/") and not info.is_dir()]
    if len(members) > MAX_FILES:
        raise StartupError(f"{name} has {len(members)} files, {MAX_FILES} are the most")
    left = max_bytes
    tree = Tree(target.parent, archive.name)
    for info in members:
        copy_member(archive, info.filename, tree.add_file(target.name + info.filename[len(name) :]), left, progress)
        left -= info.file_size


def _find(archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(member)
    except KeyError:
        near = difflib.get_close_matches(member, archive.namelist(), n=3, cutoff=0.4)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise StartupError(f"{Path(archive.filename or '').name} has no file {member!r}{hint}") from None


@contextmanager
def _explained(archive: Path, target: Path) -> Iterator[None]:
    """What a damaged archive or a full disk raises, as a sentence."""
    try:
        yield
    except BROKEN as error:
        raise StartupError(f"{archive.name}: cannot be unpacked: {error or type(error).__name__}") from error
    except OSError as error:
        raise why_not_written(target, error) from error


class _Budget:
    """How much has come out so far, and how much may."""

    def __init__(self, archive: Path, bounds: Bounds) -> None:
        self.name = archive.name
        self.done = 0
        self.bounds = bounds
        by_ratio = max(bounds.ratio_from_bytes, archive.stat().st_size * bounds.max_ratio)
        self.most = min(bounds.max_bytes, by_ratio)

    def expect(self, size: int) -> None:
        """`size` more are announced. Raises StartupError when they are too many."""
        if self.done + size > self.most:
            raise StartupError(
                f"{self.name}: unpacks to more than {self.most / 1e6:.0f} MB, too much for an archive of its size"
            )

    def spend(self, size: int) -> None:
        """`size` more have come."""
        self.expect(size)
        self.done += size


class _Plain:
    """The tar inside a compressed file, read in order and counted."""

    def __init__(self, source: Readable, budget: _Budget) -> None:
        self.source = source
        self.budget = budget
        self.header_left: int | None = None
        """While a header is read, the bytes that it may still take."""

    def read(self, size: int) -> bytes:
        data = self.source.read(size)
        self.budget.spend(len(data))
        if self.header_left is not None:
            self.header_left -= len(data)
            if self.header_left < 0:
                raise StartupError(f"{self.budget.name}: a header of more than {MAX_TAR_HEADER_BYTES} bytes in it")
        return data


class _Xz:
    """Like lzma.LZMAFile, for one stream, with a bound on its memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY_BYTES)

    def read(self, size: int) -> bytes:
        while not self.decoder.eof:
            block = b""
            if self.decoder.needs_input:
                block = self.file.read(COPY_BYTES)
                if not block:
                    raise EOFError("it ends early")
            data = self.decoder.decompress(block, size)
            if data:
                return data
        return b""


def _members(archive: Path, file: IO[bytes], budget: _Budget) -> Iterator[_Member]:
    head = file.read(len(XZ))
    file.seek(0)
    if head.startswith(GZIP):
        return _tar_members(_Plain(gzip.GzipFile(fileobj=file), budget))
    if head == XZ:
        return _tar_members(_Plain(_Xz(file), budget))
    if head.startswith(ZIP):
        return _zip_members(file, budget)
    raise StartupError(f"{archive.name}: not an archive; tar.gz, tar.xz and zip can be read")


def _tar_members(plain: _Plain) -> Iterator[_Member]:
    plain.header_left = MAX_TAR_HEADER_BYTES
    with tarfile.open(fileobj=plain, mode="r|") as tar:  # type: ignore[call-overload]  # read() is all that it needs
        while (info := tar.next()) is not None:
            plain.header_left = None
            kind = stat.S_IFDIR if info.isdir() else stat.S_IFREG
            if not (info.isdir() or info.isreg()) or info.issparse():
                kind = {
                    tarfile.SYMTYPE: stat.S_IFLNK,
                    tarfile.LNKTYPE: stat.S_IFLNK,
                    tarfile.FIFOTYPE: stat.S_IFIFO,
                    tarfile.CHRTYPE: stat.S_IFCHR,
                    tarfile.BLKTYPE: stat.S_IFBLK,
                }.get(info.type, 0)
            source = tar.extractfile(info) if kind == stat.S_IFREG else None
            yield _Member(info.name, kind, info.mode, info.size, source)
            plain.header_left = MAX_TAR_HEADER_BYTES
            tar.members.clear()  # else it keeps every header that it has read
    plain.header_left = None
    while plain.read(COPY_BYTES):
        """What fills the last block, and then the checksum over all of it."""


def _zip_members(file: IO[bytes], budget: _Budget) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            if info.flag_bits & ENCRYPTED:
                raise StartupError(f"{budget.name}: {shown(info.filename)} is encrypted")
            mode = info.external_attr >> 16
            # An archive made where files have no such mode says so by none.
            kind = stat.S_IFMT(mode) or stat.S_IFREG
            if info.is_dir() and kind == stat.S_IFREG:
                kind = stat.S_IFDIR
            if kind != stat.S_IFREG:
                yield _Member(info.filename, kind, mode, 0, None)
                continue
            with opened.open(info) as source:
                yield _Member(info.filename, kind, mode, info.file_size, source)
            budget.spend(info.file_size)


def _require_plain(archive: Path, member: _Member) -> None:
    kinds = {
        stat.S_IFLNK: "a link",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    if member.kind != stat.S_IFREG:
        what = kinds.get(member.kind, "neither a file nor a folder")
        raise StartupError(f"{archive.name}: {shown(member.name)} is {what}; only files and folders are unpacked")
    if member.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
        raise StartupError(f"{archive.name}: {shown(member.name)} is marked setuid, setgid or sticky: not unpacked")

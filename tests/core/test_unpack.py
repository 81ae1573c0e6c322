"""Archives as they should be, and every evil that one can hold."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from granville.errors import StartupError
from granville.fetch import unpack as module
from granville.fetch.members import Tree, safe_parts
from granville.fetch.unpack import Bounds, unpack

SMALL = Bounds(max_members=20, max_bytes=4 << 20, max_ratio=100, ratio_from_bytes=1 << 16)


def entry(name: str, data: bytes = b"data", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def folder_entry(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, b"", type=tarfile.DIRTYPE, mode=0o755)


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    """(name, data, st_mode) each."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return out.getvalue()


class Place:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "deep" / "inner"
        self.folder.mkdir(parents=True)

    def unpack(self, data: bytes, bounds: Bounds = SMALL) -> Path:
        archive = self.root / "archive"
        archive.write_bytes(data)

        async def main() -> Path:
            return await trio.to_thread.run_sync(lambda: unpack(archive, self.folder, bounds=bounds))

        return trio.run(main)

    def refuses(self, data: bytes, why: str, bounds: Bounds = SMALL) -> None:
        """It says why, and nothing was written beside the folder."""
        with pytest.raises(StartupError, match=why) as caught:
            self.unpack(data, bounds)
        assert len(caught.value.message) < 400
        assert caught.value.message.isprintable()
        assert sorted(path.name for path in self.root.iterdir()) == ["archive", "deep"]
        assert [path.name for path in self.folder.parent.iterdir()] == ["inner"]
        assert not [
            path for path in self.folder.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())
        ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


GOOD = [
    folder_entry("acme"),
    entry("acme/driver.json", b"{}"),
    entry("acme/lib/libacme.so", b"\x7fELF" * 1000, mode=0o755),
]


def check_good(top: Path) -> None:
    assert top.name == "acme"
    assert (top / "driver.json").read_bytes() == b"{}"
    library = top / "lib" / "libacme.so"
    assert library.read_bytes() == b"\x7fELF" * 1000
    assert library.stat().st_mode & 0o700 == 0o700
    assert not (top / "driver.json").stat().st_mode & 0o111


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gz", "xz"])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_as_it_should_be(place: Place, compress: Callable[[bytes], bytes], format: int) -> None:
    check_good(place.unpack(compress(tar(*GOOD, format=format))))


def test_a_zip_as_it_should_be(place: Place) -> None:
    check_good(
        place.unpack(
            zipped(
                ("acme/", b"", stat.S_IFDIR | 0o755),
                ("acme/driver.json", b"{}", 0),
                ("acme/lib/libacme.so", b"\x7fELF" * 1000, stat.S_IFREG | 0o755),
            )
        )
    )


def test_a_tar_of_the_current_folder_and_folders_that_are_only_implied(place: Place) -> None:
    data = gzip.compress(tar(folder_entry("./"), entry("./acme/driver.json", b"{}"), folder_entry("./acme")))
    assert place.unpack(data) == place.folder / "acme"


def test_empty_files_and_long_names(place: Place) -> None:
    long = "acme/" + "n" * 200
    assert place.unpack(gzip.compress(tar(entry(long, b""), entry("acme/é", b"")))).name == "acme"
    assert (place.folder / long).stat().st_size == 0


EVIL: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "parent": ([entry("../evil")], "'../evil' leads out of its folder"),
    "parent later": ([*GOOD, entry("acme/../../evil")], "leads out of its folder"),
    "absolute": ([entry("/tmp/evil")], "'/tmp/evil' is an absolute path"),
    "two slashes": ([entry("acme//evil")], "has an empty part"),
    "backslash": ([entry("acme\\..\\evil")], "has a backslash or a colon"),
    "drive": ([entry("C:/evil")], "has a backslash or a colon"),
    "symlink": ([entry("acme/l", b"", type=tarfile.SYMTYPE, linkname="/etc")], "'acme/l' is a link"),
    "symlink at the top": ([entry("acme", b"", type=tarfile.SYMTYPE, linkname="/tmp")], "is a link"),
    "hard link": ([*GOOD, entry("acme/l", b"", type=tarfile.LNKTYPE, linkname="acme/driver.json")], "is a link"),
    "fifo": ([entry("acme/p", b"", type=tarfile.FIFOTYPE)], "'acme/p' is a pipe"),
    "character device": ([entry("acme/d", b"", type=tarfile.CHRTYPE)], "is a device"),
    "block device": ([entry("acme/d", b"", type=tarfile.BLKTYPE)], "is a device"),
    "unknown type": ([entry("acme/x", b"", type=b"Z")], "is neither a file nor a folder|cannot be unpacked"),
    "twice": ([entry("acme/a"), entry("acme/a")], "'acme/a' is there twice"),
    "twice by case": ([entry("acme/a"), entry("acme/A")], "is there twice"),
    "twice by accent": ([entry("acme/é"), entry("acme/é")], "is there twice"),
    "folder twice": ([folder_entry("acme"), folder_entry("acme/")], "is there twice"),
    "file as folder": ([entry("acme/a"), entry("acme/a/b")], "needs a folder where there is a file"),
    "folder as file": ([entry("acme/a/b"), entry("acme/a")], "is there twice"),
    "folder by case": ([entry("acme/a/b"), entry("acme/A/c")], "spells 'acme/a' in another way"),
    "control": ([entry("acme/a\nb")], "has control characters"),
    "escape": ([entry("acme/\x1b[2Jb")], "has control characters"),
    "right to left": ([entry("acme/\u202eos.exe")], "has control characters"),
    "long": ([entry("acme/" + "x" * 300)], "has a part of more than 255 bytes"),
    "very long": ([entry("acme/" + "x/" * 1000 + "y")], "is 2006 bytes long, at most 1024"),
    "deep": ([entry("acme/" + "x/" * 40 + "y")], "has 42 folders, at most 32|has .* folders"),
    "setuid": ([entry("acme/su", mode=0o4755)], "'acme/su' is marked setuid"),
    "setgid": ([entry("acme/su", mode=0o2755)], "is marked setuid"),
    "two tops": ([*GOOD, entry("other/evil")], "'other/evil' lies beside 'acme'"),
    "two tops by case": ([*GOOD, entry("ACME/evil")], "lies beside 'acme'"),
    "no folder": ([entry("driver.json")], "lies in no folder"),
    "nothing": ([], "has nothing in it"),
    "only the root": ([folder_entry("./")], "has nothing in it"),
    "many": ([entry(f"acme/{n}") for n in range(21)], "more than 20 files"),
    "bomb": ([entry("acme/zeros", bytes(3 << 20))], "unpacks to more than"),
    "large": ([entry("acme/noise", os.urandom(5 << 20))], "unpacks to more than 4 MB"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_an_evil_tar(place: Place, kind: str) -> None:
    entries, why = EVIL[kind]
    place.refuses(gzip.compress(tar(*entries)), why)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("../evil", b"", 0)], "leads out"),
        ([("/evil", b"", 0)], "absolute"),
        ([("acme/l", b"/etc/passwd", stat.S_IFLNK | 0o777)], "'acme/l' is a link"),
        ([("acme/p", b"", stat.S_IFIFO | 0o644)], "is a pipe"),
        ([("acme/d/", b"", stat.S_IFLNK | 0o777)], "is a link"),
        ([("acme/s", b"", stat.S_IFSOCK | 0o644)], "is a socket"),
        ([("acme/su", b"x", stat.S_IFREG | 0o4755)], "setuid"),
        ([("acme/zeros", bytes(3 << 20), 0)], "unpacks to more than"),
        ([(f"acme/{n}", bytes(1 << 19), 0) for n in range(8)], "unpacks to more than"),
        ([("a/b", b"", 0), ("c/d", b"", 0)], "lies beside 'a'"),
    ],
)
def test_an_evil_zip(place: Place, members: list[tuple[str, bytes, int]], why: str) -> None:
    place.refuses(zipped(*members), why)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_name_twice(place: Place) -> None:
    place.refuses(zipped(("acme/a", b"1", 0), ("acme/a", b"2", 0)), "is there twice")


def test_an_encrypted_zip(place: Place) -> None:
    data = bytearray(zipped(("acme/a", b"secret", 0)))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    place.refuses(bytes(data), "'acme/a' is encrypted")


def test_a_zip_whose_headers_lie_about_a_size(place: Place) -> None:
    data = bytearray(zipped(("acme/a", os.urandom(1000), 0)))
    size_at = data.index(b"PK\x01\x02") + 24
    data[size_at : size_at + 4] = (100).to_bytes(4, "little")
    place.refuses(bytes(data), "cannot be unpacked")


def test_a_header_that_claims_a_gigabyte_is_not_read_into_memory(place: Place) -> None:
    """An extended header (type x) whose size is a gigabyte of zeros."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb") as file:
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(64):
            file.write(bytes(1 << 20))
    place.refuses(out.getvalue(), "a header of more than 1048576 bytes", Bounds())


def test_headers_within_headers(place: Place) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 0
    nested = info.tobuf(tarfile.USTAR_FORMAT) * 2000
    place.refuses(gzip.compress(nested + tar(*GOOD)), "cannot be unpacked|a header of more than")


def test_a_sparse_file(place: Place) -> None:
    sparse = entry("acme/hole", b"")
    sparse[0].pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"}
    place.refuses(gzip.compress(tar(sparse)), "neither a file nor a folder")


def test_an_xz_that_wants_all_memory(place: Place) -> None:
    data = bytearray(lzma.compress(tar(*GOOD), filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]))
    # The first block's header (.xz format, section 3.1): a filter's id, its properties' size, the dictionary's size.
    assert data[14:16] == b"\x21\x01"
    data[16] = 38  # 2 GiB
    data[20:24] = zlib.crc32(bytes(data[12:20])).to_bytes(4, "little")
    place.refuses(bytes(data), "cannot be unpacked: Memory usage limit exceeded")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:40] + bytes([data[40] ^ 0xFF]) + data[41:],
        lambda data: data[:3],
    ],
    ids=["no end", "half", "flipped", "three bytes"],
)
@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gz", "xz"])
def test_a_damaged_archive(place: Place, compress: Callable[[bytes], bytes], spoil: Callable[[bytes], bytes]) -> None:
    noise = entry("acme/noise", os.urandom(50_000))
    place.refuses(spoil(compress(tar(*GOOD, noise))), "cannot be unpacked|not an archive")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"PK\x03\x04", b"\x1f\x8b", gzip.compress(b"no tar" * 500)])
def test_what_is_no_archive(place: Place, data: bytes) -> None:
    place.refuses(data, "not an archive|cannot be unpacked")


def test_a_member_that_ends_early(place: Place) -> None:
    place.refuses(gzip.compress(tar(*GOOD, entry("acme/long", bytes(9000)))[:9000]), "cannot be unpacked")


def test_a_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_blocks", full)
    with pytest.raises(StartupError, match="No space left on device; make room"):
        place.unpack(gzip.compress(tar(*GOOD)))


def test_what_is_there_already_is_not_written_to(place: Place) -> None:
    (place.folder / "acme").mkdir()
    victim = place.root / "victim"
    victim.write_text("mine")
    (place.folder / "acme" / "driver.json").symlink_to(victim)
    with pytest.raises(StartupError):
        place.unpack(gzip.compress(tar(*GOOD)))
    assert victim.read_text() == "mine"


def test_names_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="is not valid UTF-8"):
        Tree(tmp_path, "a.tgz").add_file("acme/\udcff")


@pytest.mark.parametrize(("name", "parts"), [("a/b", ("a", "b")), ("./a/b/", ("a", "b")), ("./", ()), (".", ())])
def test_parts(name: str, parts: tuple[str, ...]) -> None:
    assert safe_parts(name) == parts


@pytest.mark.parametrize("name", ["a/./b", "././a", "a/..", "..", "a/../b", "//a", "./../a"])
def test_parts_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        safe_parts(name)

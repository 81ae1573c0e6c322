"""Downloads from a server that changes the file, compresses it, trickles, misleads, or fills the disk."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import trio

from granville.errors import StartupError
from granville.fetch import download as module
from granville.fetch import place
from granville.fetch.download import download
from granville.fetch.parts import read_state
from granville.fetch.place import DiskFull
from granville.fetch.sources import HttpSource, fetch
from granville.fetch.web import Limits
from tests.e2e.site import DATA, Site, serving

DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = b"GGUF\x03\0\0\0" + b"another version" * 100_000
QUICK = Limits(max_fruitless_attempts=3, first_backoff_s=0.001, max_backoff_s=0.002)
OLD = {"Last-Modified": "Wed, 01 Jan 2020 00:00:00 GMT"}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


async def get(
    site: Site, folder: Path, *, sha256: str | None = DIGEST, limits: Limits = QUICK, size: int | None = None
) -> bytes:
    destination = folder / "model.gguf"
    with trio.fail_after(30):
        await download(site.url, destination, sha256=sha256, size=size, limits=limits)
    return _read(destination)


def _read(path: Path) -> bytes:
    return path.read_bytes()


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


async def cut_off(site: Site, folder: Path, *, sha256: str | None = DIGEST, after: int = 1_000_000) -> None:
    """A first download of which only a part comes."""
    site.plan = [site.cut_after(after), *[site.status(503)] * QUICK.max_fruitless_attempts]
    with pytest.raises(StartupError, match="503"):
        await get(site, folder, sha256=sha256)
    site.plan = []
    site.headers.clear()
    site.ranges.clear()


@pytest.mark.parametrize("extra", [{"ETag": '"one"'}, OLD], ids=["etag", "last-modified"])
async def test_the_rest_is_asked_of_the_version_that_was_begun(
    site: Site, tmp_path: Path, extra: dict[str, str]
) -> None:
    site.extra = extra
    await cut_off(site, tmp_path, sha256=None)
    assert await get(site, tmp_path, sha256=None) == DATA
    (asked,) = site.headers
    assert asked["range"].startswith("bytes=")
    assert asked["if-range"] in extra.values()
    assert names(tmp_path) == {"model.gguf", ".model.gguf.verified"}


@pytest.mark.parametrize("sha256", [None, hashlib.sha256(OTHER).hexdigest()], ids=["unverified", "pinned"])
async def test_a_file_that_changes_between_two_attempts_is_begun_again(
    site: Site, tmp_path: Path, sha256: str | None
) -> None:
    site.extra = {"ETag": '"one"'}
    await cut_off(site, tmp_path, sha256=sha256)
    site.data, site.extra = OTHER, {"ETag": '"two"'}
    assert await get(site, tmp_path, sha256=sha256) == OTHER
    assert len(site.headers) == 1  # If-Range: the server sends all of the new one at once


async def test_a_server_that_ignores_if_range_gives_itself_away_by_its_etag(site: Site, tmp_path: Path) -> None:
    site.extra = {"ETag": '"one"'}
    await cut_off(site, tmp_path, sha256=None)
    site.data, site.extra = OTHER, {"ETag": '"two"'}

    def ignorant(request: BaseHTTPRequestHandler) -> None:
        del request.headers["If-Range"]
        site.serve(request)

    site.plan = [ignorant]
    assert await get(site, tmp_path, sha256=None) == OTHER
    assert site.ranges[1:] == [None]


async def test_a_file_of_another_size_gives_itself_away(site: Site, tmp_path: Path) -> None:
    await cut_off(site, tmp_path, sha256=hashlib.sha256(OTHER).hexdigest())
    site.data = OTHER
    assert await get(site, tmp_path, sha256=hashlib.sha256(OTHER).hexdigest()) == OTHER
    assert site.ranges[1:] == [None]


@pytest.mark.parametrize("extra", [{}, {"ETag": 'W/"weak"'}, {"Last-Modified": "soon"}])
async def test_without_a_hash_nothing_is_gone_on_with_that_cannot_be_compared(
    site: Site, tmp_path: Path, extra: dict[str, str]
) -> None:
    site.extra = extra
    await cut_off(site, tmp_path, sha256=None)
    assert await get(site, tmp_path, sha256=None) == DATA
    assert site.ranges == [None]


async def test_a_part_of_another_hash_is_not_gone_on_with(site: Site, tmp_path: Path) -> None:
    await cut_off(site, tmp_path, sha256="0" * 64)
    assert await get(site, tmp_path) == DATA
    assert site.ranges == [None]


async def test_a_part_that_was_whole_needs_no_server(site: Site, tmp_path: Path) -> None:
    """Killed between the last byte and its place."""
    await cut_off(site, tmp_path)
    with (tmp_path / "model.gguf.part").open("wb") as file:
        file.write(DATA)
    assert await get(site, tmp_path) == DATA
    assert site.ranges == []


@pytest.mark.parametrize("said", [None, "bytes 7-9/100", "bytes */3000008", "pages 1-2/3"])
async def test_a_content_range_that_makes_no_sense(site: Site, tmp_path: Path, said: str | None) -> None:
    def misleading(request: BaseHTTPRequestHandler) -> None:
        request.send_response(206)
        if said:
            request.send_header("Content-Range", said)
        request.send_header("Content-Length", "3")
        request.end_headers()
        request.wfile.write(b"bad")

    site.plan = [site.cut_after(1_000_000), misleading]
    assert await get(site, tmp_path) == DATA
    assert site.ranges[0] is None
    assert site.ranges[1] is not None
    assert site.ranges[2] is None


def compressed(site: Site, *, most: int | None = None) -> object:
    def answer(request: BaseHTTPRequestHandler) -> None:
        body = gzip.compress(site.data, 1)
        request.send_response(200)
        request.send_header("Content-Encoding", "gzip")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[:most])
        request.close_connection = most is not None

    return answer


@pytest.mark.parametrize("size", [None, len(DATA)])
async def test_a_compressed_answer_is_taken_whole_or_not_at_all(site: Site, tmp_path: Path, size: int | None) -> None:
    site.plan = [compressed(site, most=500_000), compressed(site)]  # type: ignore[list-item]
    assert await get(site, tmp_path, size=size) == DATA
    assert site.ranges == [None, None]


async def test_a_small_answer_that_unpacks_to_more_than_the_file(site: Site, tmp_path: Path) -> None:
    site.data = bytes(50_000_000)
    site.plan = [compressed(site)]  # type: ignore[list-item]
    with pytest.raises(StartupError, match="sent more than 3000008 bytes"):
        await get(site, tmp_path, size=len(DATA))
    assert names(tmp_path) == set()


async def test_a_server_that_trickles_is_left(site: Site, tmp_path: Path) -> None:
    def trickle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(site.data)))
        request.end_headers()
        request.close_connection = True
        try:
            for at in range(1000):
                request.wfile.write(site.data[at : at + 1])
                if site.go_on.wait(0.02):
                    return
        except (BrokenPipeError, ConnectionResetError):
            return

    site.plan = [trickle]
    limits = Limits(slow_window_s=0.1, first_backoff_s=0.001, max_backoff_s=0.002)
    assert await get(site, tmp_path, limits=limits) == DATA
    assert site.ranges[1] is not None  # what did come is kept


async def test_too_little_is_asked_for_until_it_is_given_up(site: Site, tmp_path: Path) -> None:
    """A server whose Content-Length is right and whose body is always short."""
    site.plan = [site.cut_after(10) for _ in range(10)]
    with pytest.raises(StartupError, match=r"127\.0\.0\.1"):
        await get(site, tmp_path)
    assert len(site.ranges) == QUICK.max_fruitless_attempts
    assert "model.gguf" not in names(tmp_path)


async def test_a_length_that_is_a_lie_is_refused(site: Site, tmp_path: Path) -> None:
    site.data = DATA + b"more"
    with pytest.raises(StartupError, match="has 3000012 bytes, 3000008 were expected"):
        await get(site, tmp_path, size=len(DATA))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/model.gguf", "data:,x"])
async def test_a_redirect_leads_to_the_web_alone(site: Site, tmp_path: Path, target: str) -> None:
    site.plan = [site.status(302, Location=target)]
    with pytest.raises(StartupError, match=f"redirects to {target.partition(':')[0]}://: not followed"):
        await get(site, tmp_path)
    assert names(tmp_path) == set()


async def test_a_redirect_to_no_url(site: Site, tmp_path: Path) -> None:
    site.plan = [site.status(302, Location="http://[::1/model.gguf")]
    with pytest.raises(StartupError, match="redirects to something that is no URL"):
        await get(site, tmp_path)


async def test_credentials_stay_at_the_host_that_they_are_for(site: Site, tmp_path: Path) -> None:
    with serving(Site()) as other:
        site.url = site.url.replace("http://", "http://user:hunter2@")
        site.plan = [site.status(302, Location="/again"), site.status(302, Location=other.url)]
        assert await get(site, tmp_path) == DATA
        assert [("authorization" in asked) for asked in site.headers] == [True, True]
        assert not [asked for asked in other.headers if "authorization" in asked or "cookie" in asked]
    kept = (tmp_path / ".model.gguf.verified").read_text()
    assert "hunter2" not in kept
    assert "127.0.0.1" in kept


def unresolvable(request: httpx.Request) -> httpx.ConnectError:
    error = httpx.ConnectError("[Errno -2] Name or service not known", request=request)
    error.__cause__ = socket.gaierror(-2, "Name or service not known")
    return error


async def test_a_host_that_is_not_known_is_said_at_once(tmp_path: Path) -> None:
    began = trio.current_time()
    with pytest.raises(StartupError, match=r"no host nowhere\.invalid is known here"):
        await download("http://nowhere.invalid/m.gguf", tmp_path / "m.gguf", sha256=DIGEST)
    assert trio.current_time() - began < Limits().connect_s


async def test_a_network_that_goes_away_half_way_may_come_back(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = httpx.AsyncHTTPTransport.handle_async_request, 0

    async def sometimes(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise unresolvable(request)
        return await real(self, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", sometimes)
    site.plan = [site.cut_after(1_000_000)]
    assert await get(site, tmp_path) == DATA
    assert asked == 3


async def test_a_disk_that_fills_up_meanwhile_ends_it_in_time_and_the_part_is_gone_on_with(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPACE_CHECK_BYTES", 500_000)
    free = iter([1 << 40, 1 << 40])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free, 1 << 20)))
    with pytest.raises(DiskFull, match=r"only 1 MB are free by now.*make room"):
        await get(site, tmp_path)
    part = tmp_path / "model.gguf.part"
    assert 500_000 < part.stat().st_size < len(DATA)
    assert read_state(part) is not None
    monkeypatch.undo()
    assert await get(site, tmp_path) == DATA
    assert site.ranges[1] is not None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_disk_that_is_full_all_at_once(site: Site, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC itself: the server does not say how much will come, and nothing is left to others."""
    monkeypatch.setattr(place, "FREE_MARGIN_BYTES", 0)

    def without_length(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        request.wfile.write(site.data)

    site.plan = [without_length]
    source, destination = HttpSource(site.url, DIGEST), small_disk / "model.gguf"
    with trio.fail_after(30), pytest.raises(DiskFull, match="No space left on device; make room"):
        await fetch(source, destination)
    assert (small_disk / "model.gguf.part").stat().st_size > 1_000_000
    await trio.run_process(["mount", "-o", "remount,size=10m", str(small_disk)])
    await fetch(source, destination)
    assert _read(destination) == DATA
    assert site.ranges[1] is not None


async def test_one_that_waits_says_so_and_takes_what_the_other_fetched(site: Site, tmp_path: Path) -> None:
    site.plan = [site.dribble]
    source, destination = HttpSource(site.url, DIGEST), tmp_path / "model.gguf"
    said: list[tuple[str, int, int | None]] = []

    def waiting(name: str, done: int, total: int | None, /) -> None:
        said.append((name, done, total))
        if done:
            site.go_on.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, source, destination)
            await trio.to_thread.run_sync(site.started.wait)
            await fetch(source, destination, waiting)
    assert said[-1][0] == "waiting for another download of model.gguf"
    assert said[-1][1] > 0
    assert len(site.ranges) == 1


async def test_nothing_of_a_signed_url_is_logged_or_kept(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    site.url += "?signature=hunter3"
    await cut_off(site, tmp_path)
    assert "503" in caplog.text
    assert "hunter" not in caplog.text
    assert "hunter" not in (tmp_path / ".model.gguf.part.json").read_text()

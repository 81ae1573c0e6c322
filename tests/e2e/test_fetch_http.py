"""Downloads from a real server on loopback that cuts off, refuses, redirects, lies and comes back."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from granville.errors import StartupError
from granville.fetch import place
from granville.fetch.download import download
from granville.fetch.progress import silent
from granville.fetch.sources import HttpSource, fetch
from granville.fetch.web import Limits, retry_after_s
from tests.e2e.site import DATA, Site, serving

DIGEST = hashlib.sha256(DATA).hexdigest()
QUICK = Limits(max_fruitless_attempts=3, first_backoff_s=0.001, max_backoff_s=0.002)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as made:
        yield made


async def get(site: Site, folder: Path, limits: Limits = QUICK, size: int | None = None) -> Path:
    destination = folder / "model.gguf"
    with trio.fail_after(30):
        await download(site.url, destination, sha256=DIGEST, size=size, limits=limits)
    return destination


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


async def test_a_whole_file_gets_there(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    destination = tmp_path / "model.gguf"
    await download(site.url, destination, sha256=DIGEST, progress=lambda *at: seen.append(at), limits=QUICK)
    assert destination.read_bytes() == DATA
    assert names(tmp_path) == {"model.gguf", ".model.gguf.verified"}
    assert seen[0] == ("model.gguf", 0, len(DATA))
    assert seen[-2:] == [(name, len(DATA), len(DATA)) for name in ("model.gguf", "verifying model.gguf")]
    assert len(seen) > 5
    assert site.ranges == [None]
    assert site.encodings == {"identity"}


async def test_a_cut_body_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.plan = [site.cut_after(1_500_000), site.cut_after(1_200_000)]
    assert (await get(site, tmp_path)).read_bytes() == DATA
    first, second, third = (int((asked or "=0-").split("=")[1][:-1]) for asked in site.ranges)
    assert first == 0 < second < third < len(DATA)


async def test_a_server_that_sends_less_than_the_range_is_asked_for_the_rest(site: Site, tmp_path: Path) -> None:
    site.plan = [site.cut_after(500_000), site.in_pieces, site.in_pieces]
    assert (await get(site, tmp_path)).read_bytes() == DATA
    assert len(site.ranges) == 4


async def test_a_server_without_ranges_begins_again(site: Site, tmp_path: Path) -> None:
    site.plan = [site.cut_after(1_500_000), site.without_ranges]
    assert (await get(site, tmp_path)).read_bytes() == DATA
    assert len(site.ranges) == 2


async def test_cut_after_cut_is_given_up(site: Site, tmp_path: Path) -> None:
    site.plan = [site.cut_after(1000) for _ in range(20)]
    with pytest.raises(StartupError, match=r"127\.0\.0\.1"):
        await get(site, tmp_path)
    assert len(site.ranges) == QUICK.max_fruitless_attempts
    assert "model.gguf" not in names(tmp_path)


async def test_attempts_that_bring_something_are_not_counted(site: Site, tmp_path: Path) -> None:
    limits = Limits(max_fruitless_attempts=2, fruitful_bytes=100_000, first_backoff_s=0.001, max_backoff_s=0.002)
    site.plan = [site.cut_after(600_000) for _ in range(4)]
    assert (await get(site, tmp_path, limits)).read_bytes() == DATA


async def test_wrong_bytes_never_get_there(site: Site, tmp_path: Path) -> None:
    site.data = DATA[:-1] + b"!"
    with pytest.raises(StartupError, match="expected SHA-256"):
        await get(site, tmp_path)
    assert names(tmp_path) == set()
    assert len(site.ranges) == 1


async def test_a_part_of_another_file_costs_one_more_download(site: Site, tmp_path: Path) -> None:
    (tmp_path / "model.gguf.part").write_bytes(bytes(5000))
    assert (await get(site, tmp_path)).read_bytes() == DATA
    assert site.ranges == ["bytes=5000-", None]


async def test_a_whole_part_needs_no_more_bytes(site: Site, tmp_path: Path) -> None:
    (tmp_path / "model.gguf.part").write_bytes(DATA)
    assert (await get(site, tmp_path)).read_bytes() == DATA
    assert site.ranges == [f"bytes={len(DATA)}-"]  # answered 416 with the size
    (tmp_path / "model.gguf.part").write_bytes(DATA)
    await get(site, tmp_path, size=len(DATA))
    assert len(site.ranges) == 1


async def test_a_part_that_is_too_long_begins_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "model.gguf.part").write_bytes(DATA + b"more")
    assert (await get(site, tmp_path)).read_bytes() == DATA
    assert site.ranges[1:] == [None]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
async def test_a_refusal_is_final(site: Site, tmp_path: Path, code: int) -> None:
    site.plan = [site.status(code)]
    with pytest.raises(StartupError, match=f"answered {code}"):
        await get(site, tmp_path)
    assert len(site.ranges) == 1


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path, code: int) -> None:
    past = "Thu, 01 Jan 1970 00:00:00 GMT"
    site.plan = [site.status(code, Retry_After="0"), site.status(code, Retry_After=past), site.status(code)]
    assert (await get(site, tmp_path, Limits(first_backoff_s=0.001, max_backoff_s=0.002))).read_bytes() == DATA
    assert len(site.ranges) == 4


async def test_retry_after_is_waited_for(site: Site, tmp_path: Path) -> None:
    site.plan = [site.status(503, Retry_After="1")]
    began = trio.current_time()
    await get(site, tmp_path)
    assert trio.current_time() - began >= 1


async def test_a_server_that_wants_to_be_left_alone_is(site: Site, tmp_path: Path) -> None:
    site.plan = [site.status(429, Retry_After="3600")]
    with pytest.raises(StartupError, match="come back in 3600 s"):
        await get(site, tmp_path)
    assert len(site.ranges) == 1


def test_retry_after_as_seconds_date_or_nonsense() -> None:
    assert retry_after_s("7", 0) == 7
    assert retry_after_s("Thu, 01 Jan 1970 00:02:00 GMT", 100) == 20
    assert retry_after_s("Thu, 01 Jan 1970 00:02:00 GMT", 200) == 0
    assert retry_after_s("soon", 0) is None
    assert retry_after_s(None, 0) is None


async def test_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    site.plan = [site.status(code, Location=f"/{code}") for code in (301, 302, 307, 308)]
    assert (await get(site, tmp_path)).read_bytes() == DATA


async def test_redirects_end(site: Site, tmp_path: Path) -> None:
    site.plan = [site.status(302, Location="/again") for _ in range(20)]
    with pytest.raises(StartupError, match="redirect"):
        await get(site, tmp_path)
    assert len(site.ranges) == QUICK.max_redirects + 1


async def test_https_does_not_become_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def redirect(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://host/model.gguf"})

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", redirect)
    with pytest.raises(StartupError, match="not followed"):
        await download("https://host/model.gguf", tmp_path / "model.gguf", sha256=DIGEST, limits=QUICK)
    assert asked == ["https://host/model.gguf"]


async def test_secrets_of_a_url_are_not_shown(site: Site, tmp_path: Path) -> None:
    site.plan = [site.status(403)]
    site.url = site.url.replace("http://", "http://user:hunter2@") + "?signature=hunter3"
    with pytest.raises(StartupError, match="403") as raised:
        await get(site, tmp_path)
    assert "hunter" not in raised.value.message


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=re.escape("http://127.0.0.1:1/model.gguf")):
        await download("http://127.0.0.1:1/model.gguf", tmp_path / "m", sha256=DIGEST, limits=QUICK)


async def test_another_size_than_the_known_one_is_refused_before_the_body(site: Site, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="were expected"):
        await get(site, tmp_path, size=len(DATA) + 1)
    assert names(tmp_path) == set()


async def test_a_file_over_the_bound_is_refused(site: Site, tmp_path: Path) -> None:
    limits = Limits(max_bytes=1_000_000)
    with pytest.raises(StartupError, match="at most 1000000"):
        await get(site, tmp_path, limits)
    site.plan = [site.endless]
    with pytest.raises(StartupError, match="sent more than 1000000"):
        await get(site, tmp_path, limits)
    assert names(tmp_path) == set()


async def test_a_full_disk_is_found_before_the_body(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "FREE_MARGIN_BYTES", 1 << 60)
    with pytest.raises(StartupError, match="make room"):
        await get(site, tmp_path)
    assert names(tmp_path) == set()


async def test_a_stalled_server_is_left_and_the_file_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.plan = [site.dribble]
    limits = Limits(stall_s=0.3, first_backoff_s=0.001, max_backoff_s=0.002)
    assert (await get(site, tmp_path, limits)).read_bytes() == DATA
    assert site.ranges[1] is not None


async def test_two_fetches_of_one_file_make_one_download(site: Site, tmp_path: Path) -> None:
    source = HttpSource(site.url, DIGEST)
    destination = tmp_path / "folder" / "model.gguf"
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(fetch, source, destination, silent)
    assert destination.read_bytes() == DATA
    assert len(site.ranges) == 1
    assert names(destination.parent) == {"model.gguf", ".model.gguf.verified"}


async def test_a_damaged_file_in_its_place_is_replaced(site: Site, tmp_path: Path) -> None:
    destination = tmp_path / "model.gguf"
    destination.write_bytes(b"damaged")
    await fetch(HttpSource(site.url, DIGEST), destination)
    assert destination.read_bytes() == DATA


async def test_a_cancelled_download_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    site.plan = [site.dribble]
    source, destination = HttpSource(site.url, DIGEST), tmp_path / "model.gguf"

    with trio.fail_after(30), trio.CancelScope() as scope:

        def cancel_half_way(name: str, done: int, total: int | None, /) -> None:
            if done > 500_000:
                scope.cancel()

        await fetch(source, destination, cancel_half_way)
    assert scope.cancelled_caught
    assert names(tmp_path) == {"model.gguf.part", ".model.gguf.part.json"}
    site.go_on.set()
    await fetch(source, destination)
    assert destination.read_bytes() == DATA
    assert site.ranges[1] is not None


async def test_a_folder_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StartupError, match="cannot be written"):
        await fetch(HttpSource(site.url, DIGEST), tmp_path / "file" / "model.gguf")


def command(site: Site, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "granville.cli.main", "download", f"{site.url}#sha256={DIGEST}"],
        env=os.environ | {"GRANVILLE_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_a_part_that_the_next_one_goes_on_with(
    site: Site, tmp_path: Path, sent: signal.Signals
) -> None:
    site.plan = [site.dribble]
    process = command(site, tmp_path)
    assert site.started.wait(30)
    folder = tmp_path / "models" / f"sha256-{DIGEST[:16]}"
    part = folder / "model.gguf.part"
    while not (part.exists() and part.stat().st_size > 0):
        assert process.poll() is None
    process.send_signal(sent)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert not (folder / "model.gguf").exists()
    assert part.stat().st_size > 0

    site.go_on.set()
    output, errors = command(site, tmp_path).communicate(timeout=30)
    assert (output.strip(), errors) == (str(folder / "model.gguf"), "")
    assert (folder / "model.gguf").read_bytes() == DATA
    assert site.ranges[1] is not None
    assert not part.exists()


def test_two_commands_at_once_make_one_download(site: Site, tmp_path: Path) -> None:
    site.plan = [site.dribble]
    processes = [command(site, tmp_path), command(site, tmp_path)]
    assert site.started.wait(30)
    site.go_on.set()
    for process in processes:
        output, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        assert Path(output.strip()).read_bytes() == DATA
    assert len(site.ranges) == 1

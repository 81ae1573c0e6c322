"""Fetching one file over HTTP: resumed where it was cut off, tried again where that may help, bounded."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NoReturn

import httpx
import trio

from granville.errors import StartupError
from granville.fetch.parts import PartState, drop, read_state, strong_date, strong_etag, write_state
from granville.fetch.place import part_of, put_in_place, require_margin, require_space, size_of
from granville.fetch.progress import Progress, silent
from granville.fetch.web import (
    USUAL,
    Interrupted,
    Limits,
    NoSuchHost,
    check_status,
    content_range,
    explained,
    parse_url,
    retrying,
    shown,
    web_client,
)

SPACE_CHECK_BYTES = 8 << 20
"""How much is written between two looks at the room that is left; far less than place.FREE_MARGIN_BYTES."""

log = logging.getLogger(__name__)


async def download(
    url: str,
    destination: Path,
    *,
    sha256: str | None,
    git_blob: str | None = None,
    size: int | None = None,
    source: str | None = None,
    headers: Mapping[str, str] | None = None,
    progress: Progress = silent,
    limits: Limits = USUAL,
) -> None:
    """Fetch `url` to `destination`, which is written only when the bytes have the hashes that are given.

    The caller holds `sole_writer(destination)`. Cancelled or failed half-way, a part is left that the next
    call goes on with. When the whole turns out wrong and its beginning came from an earlier call, it is fetched
    once more: the file may have changed in between. `headers` go to the URL's own host alone; `source` is what is
    remembered as its origin. Raises StartupError.
    """
    part = part_of(destination)
    job = _Download(
        parse_url(url),
        part,
        size,
        PartState(source=source or "", sha256=sha256),
        hashed=bool(sha256 or git_blob),
        headers=dict(headers or {}),
        progress=progress,
        limits=limits,
    )
    resumed = job.have() > 0
    for fresh in (False, True):
        await job.complete()
        try:
            await put_in_place(
                part,
                destination,
                sha256,
                git_blob=git_blob,
                source=source or shown(job.url),
                progress=progress,
            )
        except StartupError as error:
            drop(part)
            if fresh or not resumed:
                raise
            log.warning("%s; fetching it once more from the beginning", error)
        else:
            drop(part)
            return


class _Download:
    def __init__(
        self,
        url: httpx.URL,
        part: Path,
        size: int | None,
        wanted: PartState,
        *,
        hashed: bool,
        headers: dict[str, str],
        progress: Progress,
        limits: Limits,
    ) -> None:
        self.url = url
        self.part = part
        self.size = size
        self.headers = headers
        self.progress = progress
        self.limits = limits
        self.fruitless = 0
        """Attempts in a row, up to now, that brought next to nothing."""
        self.answered = False
        self.ranges = True
        """The server's partial answers can be made sense of."""
        self.state = wanted
        """Of the part; the version that it belongs to is added when a server names it."""
        found = read_state(part)
        if found is not None and self._is_same(found, hashed=hashed):
            self.state = PartState(
                found.url, wanted.source, wanted.sha256, found.total, found.etag, found.last_modified
            )
        elif found is not None or not hashed:
            drop(part)  # the beginning of another file, or of one that nothing can be held against

    def _is_same(self, found: PartState, *, hashed: bool) -> bool:
        if hashed:
            return found.sha256 in (None, self.state.sha256)
        return found.url == shown(self.url) and found.validator is not None

    def have(self) -> int:
        """Bytes that an earlier attempt left."""
        return size_of(self.part)

    async def complete(self) -> None:
        """Attempt after attempt until the part is whole."""
        limits = self.limits
        async with web_client(self.url, limits) as client:
            async for attempt in retrying(limits, lambda _: self.fruitless >= limits.max_fruitless_attempts):
                before = self.have()
                with attempt:
                    try:
                        await self._attempt(client)
                    except NoSuchHost:
                        # Nobody waits through a back-off for a typing error; a network that was there may come back.
                        if not self.answered:
                            self.fruitless = limits.max_fruitless_attempts
                        raise
                    finally:
                        fruitful = self.have() - before >= limits.fruitful_bytes
                        self.fruitless = 0 if fruitful else self.fruitless + 1

    async def _attempt(self, client: httpx.AsyncClient) -> None:
        total = self.size if self.size is not None else self.state.total
        if total is not None and self.have() >= total:
            if self.have() == total:
                return
            drop(self.part)
        have = self.have() if self.ranges else 0
        # A compressed transfer could be neither resumed nor measured.
        headers = {"Accept-Encoding": "identity", **self.headers}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.state.validator and self.state.url == shown(self.url):
                headers["If-Range"] = self.state.validator
        with explained(self.url):
            async with client.stream("GET", self.url, headers=headers) as response:
                self.answered = True
                await self._receive(response, have)

    async def _receive(self, response: httpx.Response, have: int) -> None:
        if response.status_code == 416 and have:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return
            self._begin_again("the part on disk does not fit the file")
        check_status(response, self.url, self.limits)
        encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
        start, total = 0, self.size
        if response.status_code == 206:
            start, total = self._partial(response, have, encoded=encoded)
        elif not encoded and (length := response.headers.get("Content-Length")) is not None:
            total = int(length)
        self._check_size(total, start)
        if start == 0:
            self._note(response, total)
        if encoded:
            done = await self._write_decoded(response, total)
        else:
            done = await self._write(response.aiter_raw(), start, total)
        if total is not None and done < total:
            raise Interrupted(f"{shown(self.url)}: the connection ended after {done} of {total} bytes")

    def _partial(self, response: httpx.Response, have: int, *, encoded: bool) -> tuple[int, int | None]:
        """Where a 206 begins, and the size of the whole. Raises Interrupted when it does not go on with the part."""
        found = content_range(response)
        if found is None or encoded or found[0] not in (0, have):
            self.ranges = False
            said = response.headers.get("Content-Range", "nothing")
            self._begin_again(f"asked for bytes from {have}, the server's Content-Range says {said}")
        etag, known = strong_etag(response.headers.get("ETag")), self.state
        another = etag is not None and known.etag is not None and known.url == shown(self.url) and etag != known.etag
        if another or (known.total is not None and found[1] is not None and found[1] != known.total):
            self._begin_again("the file on the server has changed")
        return found

    def _begin_again(self, why: str) -> NoReturn:
        drop(self.part)
        raise Interrupted(f"{shown(self.url)}: {why}; beginning again", wait_s=0)

    def _check_size(self, total: int | None, start: int) -> None:
        if total is None:
            return
        if self.size is not None and total != self.size:
            raise StartupError(f"{shown(self.url)}: has {total} bytes, {self.size} were expected")
        if total > self.limits.max_bytes:
            raise StartupError(f"{shown(self.url)}: has {total} bytes, at most {self.limits.max_bytes} are taken")
        require_space(self.part.parent, total - start)

    def _note(self, response: httpx.Response, total: int | None) -> None:
        """Which version of the file the part is the beginning of; before its first byte is written."""
        drop(self.part)
        headers = response.headers
        self.state = PartState(
            shown(self.url),
            self.state.source,
            self.state.sha256,
            total,
            strong_etag(headers.get("ETag")),
            strong_date(headers.get("Last-Modified"), headers.get("Date")),
        )
        write_state(self.part, self.state)

    async def _write_decoded(self, response: httpx.Response, total: int | None) -> int:
        """What was sent compressed although it was not to be: all of it, or nothing is kept."""
        self.ranges = False
        try:
            return await self._write(response.aiter_bytes(), 0, total)
        except BaseException:
            drop(self.part)
            raise

    async def _write(self, body: AsyncIterator[bytes], start: int, total: int | None) -> int:
        """Append the body after the first `start` bytes of the part; how many bytes it has then."""
        pace = _Pace(self.limits, start)
        problem: StartupError | OSError | None = None
        async with await trio.open_file(self.part, "ab") as file:
            await file.truncate(start)
            self.progress(self.part.stem, start, total)
            # Left at once, the generators inside httpx and httpcore would wait for the garbage collector; cancelled,
            # they end in order.
            with trio.CancelScope() as scope:
                async for block in body:
                    if problem is None:
                        try:
                            pace.done += len(block)
                            self._check_bound(pace.done, total)
                            await file.write(block)
                            self.progress(self.part.stem, pace.done, total)
                            pace.check(self.part, shown(self.url))
                        except (StartupError, OSError) as error:
                            problem = error
                            scope.cancel()
        if problem is not None:
            raise problem
        return pace.done

    def _check_bound(self, done: int, total: int | None) -> None:
        bound = self.limits.max_bytes if total is None else total
        if done > bound:
            drop(self.part)
            raise StartupError(f"{shown(self.url)}: sent more than {bound} bytes")


class _Pace:
    """How a body comes along: whether it trickles, and whether the disk has room for more."""

    def __init__(self, limits: Limits, start: int) -> None:
        self.limits = limits
        self.done = start
        """Bytes that the part has."""
        self._checked = self._window_from = start
        self._window_began = trio.current_time()

    def check(self, part: Path, where: str) -> None:
        """After each block. Raises DiskFull, or Interrupted for a server that trickles."""
        if self.done - self._checked >= SPACE_CHECK_BYTES:
            self._checked = self.done
            require_margin(part.parent)
        now, came = trio.current_time(), self.done - self._window_from
        if came >= self.limits.slow_bytes:
            self._window_from, self._window_began = self.done, now
        elif now - self._window_began > self.limits.slow_window_s:
            raise Interrupted(f"{where}: sent {came} bytes in {self.limits.slow_window_s:.0f} s")

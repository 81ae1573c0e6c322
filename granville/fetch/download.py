"""Fetching one file over HTTP: resumed where it was cut off, tried again where that may help, bounded."""

from __future__ import annotations

import email.utils
import logging
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import tenacity
import trio

from granville.errors import StartupError
from granville.fetch.place import part_of, put_in_place, require_space
from granville.fetch.progress import Progress, silent

WRITE_BYTES = 256 << 10
WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one download; times in seconds."""

    max_bytes: int = 256 << 30
    max_redirects: int = 5
    max_fruitless_attempts: int = 6
    """Attempts in a row that brought less than `fruitful_bytes`."""
    fruitful_bytes: int = WRITE_BYTES
    connect_s: float = 15.0
    stall_s: float = 30.0
    """A server that sends no byte for so long is given up, and the download resumed."""
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_retry_after_s: float = 120.0
    """A server that asks for a longer wait than this is not waited for."""


class _Interrupted(StartupError):
    """An attempt failed in a way that another one may not."""

    def __init__(self, message: str, *, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


async def download(
    url: str,
    destination: Path,
    *,
    sha256: str,
    size: int | None = None,
    progress: Progress = silent,
    limits: Limits = Limits(),
) -> None:
    """Fetch `url` to `destination`, which is written only when the bytes have this hash.

    The caller holds `sole_writer(destination)`. Cancelled or failed half-way, a part is left that the next
    call goes on with. When the whole turns out wrong and its beginning came from an earlier call, it is fetched
    once more: the file may have changed in between. Raises StartupError.
    """
    part = part_of(destination)
    job = _Download(url, part, size, progress, limits)
    resumed = job.have() > 0
    for fresh in (False, True):
        await job.complete()
        try:
            await put_in_place(part, destination, sha256)
        except StartupError:
            part.unlink()
            if fresh or not resumed:
                raise
        else:
            return


class _Download:
    def __init__(self, url: str, part: Path, size: int | None, progress: Progress, limits: Limits) -> None:
        try:
            self.url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise StartupError(f"{url!r} is not a URL: {error}") from None
        self.part = part
        self.name = part.stem
        self.size = size
        self.progress = progress
        self.limits = limits
        self.fruitless = 0
        """Attempts in a row, up to now, that brought next to nothing."""

    def have(self) -> int:
        """Bytes that an earlier attempt left."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    async def complete(self) -> None:
        """Attempt after attempt until the part is whole."""
        limits = self.limits
        backoff = tenacity.wait_random_exponential(limits.first_backoff_s, limits.max_backoff_s)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait_s if isinstance(error, _Interrupted) else None
            return backoff(state) if asked is None else asked

        async with self._client() as client:
            async for attempt in tenacity.AsyncRetrying(
                sleep=trio.sleep,
                retry=tenacity.retry_if_exception_type(_Interrupted),
                stop=lambda _: self.fruitless >= limits.max_fruitless_attempts,
                wait=wait,
                before_sleep=_say,
                reraise=True,
            ):
                before = self.have()
                with attempt:
                    try:
                        await self._attempt(client)
                    finally:
                        fruitful = self.have() - before >= limits.fruitful_bytes
                        self.fruitless = 0 if fruitful else self.fruitless + 1

    def _client(self) -> httpx.AsyncClient:
        async def refuse_downgrade(request: httpx.Request) -> None:
            if self.url.scheme == "https" and request.url.scheme != "https":
                raise StartupError(f"{_shown(self.url)} redirects to plain {request.url.scheme}: not followed")

        return httpx.AsyncClient(
            follow_redirects=True,
            max_redirects=self.limits.max_redirects,
            timeout=httpx.Timeout(self.limits.stall_s, connect=self.limits.connect_s),
            event_hooks={"request": [refuse_downgrade]},
        )

    async def _attempt(self, client: httpx.AsyncClient) -> None:
        have = self.have()
        if self.size is not None and have >= self.size:
            if have == self.size:
                return
            self.part.unlink()
            have = 0
        # A compressed transfer could be neither resumed nor measured.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            async with client.stream("GET", self.url, headers=headers) as response:
                await self._receive(response, have)
        except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
            raise StartupError(f"{_shown(self.url)}: {error}") from error
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise StartupError(f"{_shown(self.url)}: {error}") from error
            raise _Interrupted(f"{_shown(self.url)}: {error or type(error).__name__}") from error

    async def _receive(self, response: httpx.Response, have: int) -> None:
        where = _shown(self.url)
        if response.status_code == 416 and have:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return
            self.part.unlink()
            raise _Interrupted(f"{where}: the part on disk does not fit the file; beginning again", wait_s=0)
        if response.status_code in WORTH_ANOTHER_TRY:
            wait_s = _retry_after_s(response.headers.get("Retry-After"), time.time())
            if wait_s is not None and wait_s > self.limits.max_retry_after_s:
                raise StartupError(f"{where}: answered {response.status_code}, come back in {wait_s:.0f} s")
            raise _Interrupted(f"{where}: answered {_status(response)}", wait_s=wait_s)
        if response.status_code not in (200, 206):
            raise StartupError(f"{where}: answered {_status(response)}")

        if response.status_code == 206:
            start, total = _content_range(response)
            if start not in (0, have):
                raise StartupError(f"{where}: asked for bytes from {have}, the server sent them from {start}")
        else:
            length = response.headers.get("Content-Length")
            start, total = 0, self.size if length is None else int(length)
        self._check_size(total, start)
        done = await self._write(response.aiter_raw(WRITE_BYTES), start, total)
        if total is not None and done < total:
            raise _Interrupted(f"{where}: the connection ended after {done} of {total} bytes")

    def _check_size(self, total: int | None, start: int) -> None:
        if total is None:
            return
        if self.size is not None and total != self.size:
            raise StartupError(f"{_shown(self.url)}: has {total} bytes, {self.size} were expected")
        if total > self.limits.max_bytes:
            raise StartupError(f"{_shown(self.url)}: has {total} bytes, at most {self.limits.max_bytes} are taken")
        require_space(self.part.parent, total - start)

    async def _write(self, body: AsyncIterator[bytes], start: int, total: int | None) -> int:
        """Append the body after the first `start` bytes of the part; how many bytes it has then."""
        bound = self.limits.max_bytes if total is None else total
        done = start
        async with await trio.open_file(self.part, "ab") as file:
            await file.truncate(start)
            self.progress(self.name, done, total)
            async for block in body:
                done += len(block)
                if done > bound:
                    self.part.unlink()
                    raise StartupError(f"{_shown(self.url)}: sent more than {bound} bytes")
                await file.write(block)
                self.progress(self.name, done, total)
        return done


def _say(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("%s; trying again in %.1f s", error, state.upcoming_sleep)


def _content_range(response: httpx.Response) -> tuple[int, int | None]:
    """The first byte that a 206 brings, and the size of the whole (a server may send less than was asked for)."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None:
        raise StartupError(f"{_shown(response.url)}: answered 206 without a Content-Range that can be read")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds, or a date (RFC 9110, section 10.2.3); None when there is none that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def _status(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def _shown(url: httpx.URL) -> str:
    """A URL for people: without a password or a signature that may be in it."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))

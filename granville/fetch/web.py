"""What every request to a web server shares: safe redirects, tries, and words for failures."""

from __future__ import annotations

import email.utils
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import tenacity
import trio

from granville.errors import StartupError

WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one download; times in seconds."""

    max_bytes: int = 256 << 30
    max_redirects: int = 5
    max_fruitless_attempts: int = 6
    """Attempts in a row that brought less than `fruitful_bytes`."""
    fruitful_bytes: int = 256 << 10
    connect_s: float = 15.0
    stall_s: float = 30.0
    """A server that sends no byte for so long is given up, and the download resumed."""
    slow_window_s: float = 60.0
    slow_bytes: int = 64 << 10
    """A server that sends fewer than these in a window is given up as well: it trickles."""
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_retry_after_s: float = 120.0
    """A server that asks for a longer wait than this is not waited for."""


USUAL = Limits()


class Interrupted(StartupError):
    """An attempt failed in a way that another one may not."""

    def __init__(self, message: str, *, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        """How long the server asked to be left alone."""


class NoSuchHost(Interrupted):
    """The name of the server means nothing here: a typing error, or no network."""


def parse_url(text: str) -> httpx.URL:
    """Raises StartupError for what is no URL."""
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as error:
        raise StartupError(f"{text!r} is not a URL: {error}") from None


def web_client(first: httpx.URL, limits: Limits, *, follow: bool = True) -> httpx.AsyncClient:
    """A client whose requests begin at `first`. It follows redirects to http and https alone, never from https back to
    http, and takes credentials to no other host."""

    async def check_redirect(response: httpx.Response) -> None:
        if not response.has_redirect_location:
            return
        try:
            target = response.url.join(response.headers["Location"])
        except httpx.InvalidURL:
            raise StartupError(f"{shown(first)} redirects to something that is no URL") from None
        if target.scheme not in ("http", "https") or (response.url.scheme == "https" and target.scheme == "http"):
            raise StartupError(f"{shown(response.url)} redirects to {target.scheme}://: not followed")

    async def keep_credentials_home(request: httpx.Request) -> None:
        if origin(request.url) != origin(first):
            request.headers.pop("Authorization", None)

    return httpx.AsyncClient(
        follow_redirects=follow,
        max_redirects=limits.max_redirects,
        timeout=httpx.Timeout(limits.stall_s, connect=limits.connect_s),
        event_hooks={"request": [keep_credentials_home], "response": [check_redirect]},
    )


def origin(url: httpx.URL) -> tuple[str, str, int | None]:
    """Scheme, host and port. A port that is the scheme's own is None."""
    return url.scheme, url.host, url.port


def retrying(limits: Limits, give_up: Callable[[tenacity.RetryCallState], bool]) -> tenacity.AsyncRetrying:
    """Attempt after attempt while they are Interrupted, with jittered back-off or the wait that the server asked for,
    until `give_up` says so."""
    backoff = tenacity.wait_random_exponential(limits.first_backoff_s, limits.max_backoff_s)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait_s if isinstance(error, Interrupted) else None
        return backoff(state) if asked is None else asked

    return tenacity.AsyncRetrying(
        sleep=trio.sleep,
        retry=tenacity.retry_if_exception_type(Interrupted),
        stop=give_up,
        wait=wait,
        before_sleep=_say,
        reraise=True,
    )


@contextmanager
def explained(url: httpx.URL) -> Iterator[None]:
    """What httpx raises as Interrupted, or as StartupError where another attempt would not help."""
    try:
        yield
    except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
        raise StartupError(f"{shown(url)}: {error}") from error
    except httpx.RequestError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise StartupError(f"{shown(url)}: {error}") from error
        if _is_unknown_host(error):
            raise NoSuchHost(
                f"{shown(url)}: no host {url.host} is known here; is it written right, and is there a network?"
            ) from error
        raise Interrupted(f"{shown(url)}: {error or type(error).__name__}") from error


def check_status(response: httpx.Response, url: httpx.URL, limits: Limits) -> None:
    """Raises Interrupted for an answer that may be another one later, StartupError for one that is final."""
    where = shown(url)
    if response.status_code in WORTH_ANOTHER_TRY:
        wait_s = retry_after_s(response.headers.get("Retry-After"), time.time())
        if wait_s is not None and wait_s > limits.max_retry_after_s:
            raise StartupError(f"{where}: answered {response.status_code}, come back in {wait_s:.0f} s")
        raise Interrupted(f"{where}: answered {status_line(response)}", wait_s=wait_s)
    if response.status_code not in (200, 206):
        raise StartupError(f"{where}: answered {status_line(response)}")


def content_range(response: httpx.Response) -> tuple[int, int | None] | None:
    """The first byte that a 206 brings, and the size of the whole (a server may send less than was asked for). None
    when that cannot be read."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    return None if match is None else (int(match[1]), None if match[2] == "*" else int(match[2]))


def retry_after_s(value: str | None, now: float) -> float | None:
    """Seconds, or a date (RFC 9110, section 10.2.3); None when there is none that can be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def status_line(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def shown(url: httpx.URL) -> str:
    """A URL for people: without a password or a signature that may be in it."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


def _say(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("%s; trying again in %.1f s", error, state.upcoming_sleep)


def _is_unknown_host(error: BaseException | None) -> bool:
    """Whether a name could not be resolved, anywhere in the chain of causes."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False

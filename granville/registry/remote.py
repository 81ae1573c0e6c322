"""Reading one registry's index: from a file, or over HTTP with what was read last time to fall back on.

A copy of every index that was good is kept in `~/.granville/registries`. A server that still has the same one says so
by its ETag; one that cannot be reached, or sends what is no index, is stood in for by the copy, and its age is said. A
signature is verified each time, of a copy too; where it fails nothing stands in: nothing of that registry is used.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import trio

from granville.config import home
from granville.errors import StartupError
from granville.fetch.place import replace_file
from granville.fetch.web import Interrupted, Limits, check_status, explained, parse_url, retrying, shown, web_client
from granville.registry.schema import MAX_INDEX_BYTES, BadIndex, Index, embedded, parse_index
from granville.registry.settings import Registry, require_safe_url
from granville.registry.signing import MAX_SIGNATURE_FILE_BYTES, BadSignature, verify

LIMITS = Limits(connect_s=10.0, stall_s=20.0, max_fruitless_attempts=3)
READ_S = 60.0
"""For an index and its signature together."""
FUTURE_S = 300.0
"""A copy from further in the future than this was written when the clock was wrong."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A registry's index, verified where the registry has a key."""

    registry: Registry
    index: Index
    note: str | None = None
    """What a person should know of how it was read."""


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """What was read from a URL: exactly these bytes, and when the server last said that they are still right."""

    url: str
    data: bytes
    signature: bytes | None
    etag: str | None
    last_modified: str | None
    checked_at: float


async def load(registry: Registry, cache: Path | None = None, now: Callable[[], float] = time.time) -> Loaded:
    """Read an index, as it is now if that can be known. Raises StartupError, BadSignature or BadIndex."""
    match registry.location:
        case None:
            return Loaded(registry, embedded())
        case Path() as path:
            data, signature = await trio.to_thread.run_sync(_read_files, path, registry.key is not None)
            return Loaded(registry, _checked(registry, data, signature))
        case str():
            folder = home() / "registries" if cache is None else cache
            return await _Remote(registry, registry.location, folder, now).load()


def _checked(registry: Registry, data: bytes, signature: bytes | None) -> Index:
    where = registry.shown
    if registry.key is not None:
        verify(data, signature, registry.key, where)
    return parse_index(data, where)


def _read_files(path: Path, signed: bool) -> tuple[bytes, bytes | None]:
    return _read_file(path, MAX_INDEX_BYTES), _read_signature(path) if signed else None


def _read_file(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from None


def _read_signature(path: Path) -> bytes | None:
    beside = path.with_name(f"{path.name}.sig")
    return _read_file(beside, MAX_SIGNATURE_FILE_BYTES) if beside.exists() else None


class _Remote:
    def __init__(self, registry: Registry, url: str, folder: Path, now: Callable[[], float]) -> None:
        self.registry = registry
        self.url = parse_url(url)
        self.now = now
        self.file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.copy"

    async def load(self) -> Loaded:
        copy, index = self._recall()
        try:
            fresh = await self._ask(copy)
        except Interrupted as error:
            return self._stand_in(copy, index, error, f"registry {self.registry.shown} cannot be reached: {error}")
        if copy is not None and index is not None and fresh.data == copy.data:
            self._keep(fresh)
            return Loaded(self.registry, index)
        try:
            index_now = parse_index(fresh.data, self.registry.shown)
        except BadIndex as error:
            return self._stand_in(copy, index, error, f"the index is broken: {error}")
        self._keep(fresh)
        return Loaded(self.registry, index_now)

    def _stand_in(self, copy: Copy | None, index: Index | None, error: StartupError, problem: str) -> Loaded:
        if copy is None or index is None:
            raise error
        age = ago(self.now() - copy.checked_at)
        return Loaded(self.registry, index, f"{problem}; the copy of {age} is used in its place")

    async def _ask(self, copy: Copy | None) -> Copy:
        """What the server has now, its signature verified. Raises Interrupted when it cannot be asked now."""
        attempts = LIMITS.max_fruitless_attempts if copy is None else 1
        async with web_client(self.url, LIMITS) as client:
            with trio.move_on_after(READ_S):
                async for attempt in retrying(LIMITS, lambda state: state.attempt_number >= attempts):
                    with attempt:
                        return await self._ask_once(client, copy)
        raise Interrupted(f"{shown(self.url)}: not read within {READ_S:.0f} s")

    async def _ask_once(self, client: httpx.AsyncClient, copy: Copy | None) -> Copy:
        fresh = await self._get_both(client, copy)
        try:
            self._verify(fresh)
        except BadSignature:
            # The one may have been replaced between the two requests.
            fresh = await self._get_both(client, None)
            self._verify(fresh)
        return fresh

    def _verify(self, copy: Copy) -> None:
        if self.registry.key is not None:
            verify(copy.data, copy.signature, self.registry.key, self.registry.shown)

    async def _get_both(self, client: httpx.AsyncClient, copy: Copy | None) -> Copy:
        headers = {}
        if copy is not None and copy.etag:
            headers["If-None-Match"] = copy.etag
        elif copy is not None and copy.last_modified:
            headers["If-Modified-Since"] = copy.last_modified
        response, data = await self._get(client, self.url, headers, MAX_INDEX_BYTES)
        if response.status_code == 304 and copy is not None:
            return msgspec.structs.replace(copy, checked_at=self.now())
        if response.status_code != 200:
            raise StartupError(f"{shown(self.url)}: answered {response.status_code}, there is no index")
        signature = None
        if self.registry.key is not None:
            beside = self.url.copy_with(path=f"{self.url.path}.sig")
            answer, found = await self._get(client, beside, {}, MAX_SIGNATURE_FILE_BYTES)
            signature = found if answer.status_code == 200 else None
        return Copy(
            url=str(self.url),
            data=data,
            signature=signature,
            etag=response.headers.get("ETag"),
            last_modified=response.headers.get("Last-Modified"),
            checked_at=self.now(),
        )

    async def _get(
        self, client: httpx.AsyncClient, url: httpx.URL, headers: dict[str, str], most: int
    ) -> tuple[httpx.Response, bytes]:
        """An answer of 200, 304 or 404, and its body. Raises Interrupted, and StartupError for what is final."""
        with explained(url):
            async with client.stream("GET", url, headers={"Accept-Encoding": "identity", **headers}) as response:
                require_safe_url(str(response.url))
                if response.status_code in (304, 404, 410):
                    return response, b""
                check_status(response, url, LIMITS)
                parts: list[bytes] = []
                size = 0
                # Not decompressed: what is bounded is what was sent. Cancelled, not left: then httpx cleans up.
                with trio.CancelScope() as enough:
                    async for part in response.aiter_raw():
                        parts.append(part)
                        size += len(part)
                        if size > most:
                            enough.cancel()
                if size > most:
                    raise StartupError(f"{shown(url)}: sent more than {most} bytes")
                return response, b"".join(parts)

    def _recall(self) -> tuple[Copy, Index] | tuple[None, None]:
        """The copy, if there is one that is still good."""
        try:
            copy = msgspec.msgpack.decode(self.file.read_bytes(), type=Copy)
        except FileNotFoundError:
            return None, None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the copy of registry %s cannot be read: %s", self.registry.name, error)
            return None, None
        try:
            if copy.url != str(self.url) or copy.checked_at > self.now() + FUTURE_S:
                return None, None
            return copy, _checked(self.registry, copy.data, copy.signature)
        except StartupError as error:
            # A key that was added or changed since, or a file that someone has written to: the server is asked for all.
            log.warning("the copy of registry %s is not used: %s", self.registry.name, error)
            return None, None

    def _keep(self, copy: Copy) -> None:
        """Where that cannot be written, there is nothing to fall back on next time, and no more than that."""
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.file, msgspec.msgpack.encode(copy))
        except OSError as error:
            log.warning("no copy of registry %s is kept: %s", self.registry.name, error)


def ago(seconds: float) -> str:
    """An age for people."""
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "a moment ago"

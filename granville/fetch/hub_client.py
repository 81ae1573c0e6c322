"""Asking the hub about a file before it is fetched: its hash, its size, its commit, or why it cannot be had."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import NoReturn

import httpx
import tenacity

from granville.errors import StartupError
from granville.fetch.hub import TOKEN_VARIABLES, HubSource, endpoint, is_safe_for_token, resolve_url, token
from granville.fetch.web import (
    USUAL,
    Interrupted,
    Limits,
    NoSuchHost,
    check_status,
    explained,
    parse_url,
    retrying,
    status_line,
    web_client,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WebFile:
    """What is known of a file on a server before it is fetched. One on the hub has one of the hashes at least."""

    url: str
    """Of this very version, whatever becomes of its branch."""
    headers: dict[str, str]
    """For the hub's own host alone."""
    sha256: str | None
    git_blob: str | None
    """For a file that git itself keeps: SHA-1 of its content as git names it."""
    size: int | None
    commit: str | None


async def look_up(source: HubSource, limits: Limits = USUAL) -> WebFile:
    """Ask the hub. Raises StartupError with what to do for a file that cannot be had, or whose hash it does not say."""
    url = parse_url(resolve_url(source))
    headers = _authorization()

    def give_up(state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        return isinstance(error, NoSuchHost) or state.attempt_number >= limits.max_fruitless_attempts

    async for attempt in retrying(limits, give_up):
        with attempt:
            said = await _ask(source, url, headers, limits)
    return _understood(source, said, headers)


def _authorization() -> dict[str, str]:
    known = token()
    if known is None:
        return {}
    if not is_safe_for_token():
        log.warning("the token is not sent to %s: anybody on the way could read it; use https", endpoint())
        return {}
    return {"Authorization": f"Bearer {known}"}


async def _ask(source: HubSource, url: httpx.URL, headers: dict[str, str], limits: Limits) -> dict[str, str]:
    """The headers of the hub's own answers. A redirect inside the hub (a renamed repository) is followed; one to
    another host leads to the bytes, and what they should be has been said then."""
    said: dict[str, str] = {}
    async with web_client(url, limits, follow=False) as client:
        for _ in range(limits.max_redirects + 1):
            with explained(url):
                response = await client.head(url, headers=headers | {"Accept-Encoding": "identity"})
            said |= response.headers
            if not response.has_redirect_location:
                if response.status_code != 200:
                    _refuse(source, response, url, limits, with_token=bool(headers))
                return said
            target = response.url.join(response.headers["Location"])
            if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
                return said
            url = target
    raise StartupError(f"{source.text}: the hub redirects more than {limits.max_redirects} times")


def _understood(source: HubSource, said: dict[str, str], headers: dict[str, str]) -> WebFile:
    etag = (said.get("x-linked-etag") or said.get("etag") or "").removeprefix("W/").strip('"').lower()
    length = said.get("x-linked-size") or said.get("content-length") or ""
    commit = said.get("x-repo-commit", "")
    sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None
    git_blob = etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None
    size = int(length) if length.isdecimal() and ("x-linked-size" in said or "location" not in said) else None
    if sha256 is None and git_blob is None and source.sha256 is None:
        raise StartupError(f"{source.text}: the hub does not say its hash; add #sha256=HEX, or give --sha256 HEX")
    if source.sha256 is not None and sha256 not in (None, source.sha256):
        raise StartupError(f"{source.text}: the hub has the SHA-256 {sha256}, not {source.sha256}")
    if source.size is not None and size not in (None, source.size):
        raise StartupError(f"{source.text}: the hub has {size} bytes, {source.size} were expected")
    sure = commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None
    return WebFile(
        url=resolve_url(source, sure),
        headers=headers,
        sha256=source.sha256 or sha256,
        git_blob=git_blob,
        size=size if source.size is None else source.size,
        commit=sure,
    )


def _refuse(
    source: HubSource, response: httpx.Response, url: httpx.URL, limits: Limits, *, with_token: bool
) -> NoReturn:
    """What a person can do about a refusal. The hub says 401 for what is not there as well, so as not to tell."""
    page, code = f"{endpoint()}/{source.repo}", response.headers.get("X-Error-Code", "")
    variable = TOKEN_VARIABLES[0]
    match (response.status_code, code):
        case (401 | 403, "GatedRepo") | (403, _) if with_token:
            why = f"the account of your token has no access: ask for it at {page}, or use the token of another account"
        case (401 | 403, "GatedRepo") | (403, _):
            why = f"access has to be asked for at {page}; then set {variable} to a token of your account"
        case (401, _) if with_token:
            why = f"there is no such repository, or the token in {variable} is not (or no longer) valid for it"
        case (401, _):
            why = f"there is no such repository, or it is private: then set {variable} to a token that may read it"
        case (404, "EntryNotFound"):
            listed = f"{page}/tree/{source.revision}"
            why = f"{source.repo} has no file {source.path} in {source.revision}; {listed} shows what there is"
        case (404, "RevisionNotFound"):
            why = f"{source.repo} has no branch, tag or commit {source.revision}"
        case (404, "RepoNotFound"):
            why = f"there is no repository {source.repo}, or it is private: then set {variable}"
        case (404, _):
            why = f"there is no such file; {page} shows what there is"
        case _:
            check_status(response, url, limits)
            raise Interrupted(f"{source.text}: the hub answers {status_line(response)}")
    raise StartupError(f"{source.text}: the hub answers {status_line(response)}: {why}")

"""`http_get`: pages of the hosts that were allowed, and of no others, however a name resolves or a page redirects."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

import httpx
import trio
from msgspec import Meta

from granville.crucible.tools.function import tool
from granville.crucible.tools.interface import MAX_TOOL_OUTPUT_BYTES, Call, NotAllowed, ToolFailed

TOTAL_S = 60.0
"""Of one call, redirects counted in."""
QUIET_S = 15.0
"""For a connection, and between two pieces of an answer."""
MAX_REDIRECTS = 5
MAX_BODY_BYTES = MAX_TOOL_OUTPUT_BYTES - 4096
WITH_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""An IPv4 address in its last 32 bits: for a translator of the network's (RFC 6052), and the old way (RFC 4291)."""
HEADERS = {"user-agent": "granville-crucible", "accept-encoding": "identity"}


@tool(needs_allowance=True)
async def http_get(
    url: Annotated[str, Meta(max_length=8192, description="https://… or http://…, of a host that was allowed")],
    call: Call,
) -> dict[str, Any]:
    """Fetch a page: its status, content_type, and text (or body, if it is no text). Cut off where it is long."""
    with trio.move_on_after(TOTAL_S):
        # No proxy of the environment's: what it would reach is not what was checked.
        async with httpx.AsyncClient(timeout=QUIET_S, trust_env=False, transport=_Pinned(call.grants)) as client:
            try:
                return await _get(client, httpx.URL(url))
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                raise ToolFailed(f"http_get: {url:.200}: {error or type(error).__name__}") from None
    raise ToolFailed(f"http_get: {url:.200}: not there after {TOTAL_S:g} s")


async def _get(client: httpx.AsyncClient, url: httpx.URL) -> dict[str, Any]:
    for _ in range(MAX_REDIRECTS + 1):
        async with client.stream("GET", url, headers=HEADERS) as response:
            if response.next_request is not None:
                url = response.next_request.url
                continue
            body = bytearray()
            # Cancelled, not left: the generators below it then end where they are.
            with trio.CancelScope() as enough:
                # Not unpacked: a small answer would become as large as it likes.
                async for chunk in response.aiter_raw():
                    body += chunk[: MAX_BODY_BYTES - len(body)]
                    if len(body) >= MAX_BODY_BYTES:
                        enough.cancel()
            return _answer(response, bytes(body))
    raise ToolFailed(f"http_get: {url}: over {MAX_REDIRECTS} redirects")


def _answer(response: httpx.Response, body: bytes) -> dict[str, Any]:
    content_type = response.headers.get("content-type", "")
    answer = {
        "status": response.status_code,
        "url": str(response.url),
        "content_type": content_type,
        "cut": len(body) >= MAX_BODY_BYTES,
    }
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ToolFailed(f"http_get: {response.url}: sent packed, which was not asked for")
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind.endswith(("json", "xml", "yaml", "javascript")):
        try:
            text = body.decode(response.charset_encoding or "utf-8", errors="replace")
        except LookupError:
            text = body.decode(errors="replace")
        return {**answer, "text": text}
    return {**answer, "body": body}


class _Pinned(httpx.AsyncBaseTransport):
    """Resolves a name itself, and connects to the address that it has checked: a name that resolves to another one the
    next time gains nothing."""

    def __init__(self, grants: tuple[str, ...]) -> None:
        self._grants = {_bare(grant.lower()) for grant in grants}
        self._inner = httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = _bare(request.url.host.lower())
        if request.url.scheme not in ("http", "https"):
            raise ToolFailed(f"http_get: {request.url}: expected http:// or https://")
        # A URL does not say a port that is the scheme's own.
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        with_port = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if not {host, with_port} & self._grants:
            hosts = ", ".join(sorted(self._grants))
            raise NotAllowed(f"http_get: {host}: not one of the hosts that were allowed ({hosts})")
        address = await self._address(host, port)
        return await self._inner.handle_async_request(
            httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,  # with the name, as Host
                extensions={**request.extensions, "sni_hostname": host},
            )
        )

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _address(self, host: str, port: int) -> str:
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except OSError as error:
            raise ToolFailed(f"http_get: {host}: {error.strerror or error}") from None
        addresses = [str(one[4][0]) for one in found]
        for address in addresses:
            # An address, or this machine's own name, has been granted as what it is.
            said = address == host or host == "localhost" or address in self._grants
            if said or is_public(address):
                return address
        raise NotAllowed(
            f"http_get: {host} is {addresses[0]}, an address of this machine or its network; it can be allowed by that "
            f"address: --allow http_get:{addresses[0]}"
        )


def is_public(address: str) -> bool:
    """Of the internet, and not of this machine or its network. What is translated to an IPv4 address is that one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and any(found in network for network in WITH_IPV4):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.is_site_local:
            return False
    return found.is_global and not found.is_multicast


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host

"""The seam for HTTP callbacks: one POST, its status back. httpx by default, asks where it is installed and chosen."""

from __future__ import annotations

from typing import Protocol

from granville.errors import StartupError

HEADERS = {"content-type": "application/msgpack"}


class HttpTransport(Protocol):
    async def post(self, url: str, body: bytes, timeout_s: float) -> int:
        """POST one message and return the status. Redirects are not followed. Raises ConnectionError when the
        other side cannot be reached or breaks off, TimeoutError when it does not answer in time."""


class HttpxTransport:
    async def post(self, url: str, body: bytes, timeout_s: float) -> int:
        import httpx

        try:
            # Only http:// ever: reading the system's certificates for TLS would hold up the kernel for 20 ms.
            client = httpx.AsyncClient(timeout=timeout_s, follow_redirects=False, trust_env=False, verify=False)
            # A stream, of which nothing but the head is read: the body may be endless, or badly encoded.
            async with client, client.stream("POST", url, content=body, headers=HEADERS) as response:
                return response.status_code
        except httpx.TimeoutException as error:
            raise TimeoutError(str(error) or type(error).__name__) from error
        except httpx.TransportError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error


class AsksTransport:
    """asks pins an anyio that does not run under today's Trio, so it is never a dependency (docs/dependencies.md)."""

    async def post(self, url: str, body: bytes, timeout_s: float) -> int:
        import asks
        from asks.errors import AsksException

        try:
            response = await asks.post(
                url,
                data=body,
                headers=HEADERS,
                timeout=timeout_s,
                connection_timeout=timeout_s,
                follow_redirects=False,
            )
        except AsksException as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        status: int = response.status_code
        return status


def http_transport(name: str) -> HttpTransport:
    """`httpx` or `asks`. Raises StartupError for an unknown name or a library that is not installed."""
    if name == "httpx":
        return HttpxTransport()
    if name != "asks":
        raise StartupError(f"--callback-transport: expected httpx or asks, got {name!r}")
    try:
        import asks  # noqa: F401  (only to know whether it is there)
    except ImportError:
        raise StartupError("--callback-transport asks: it is not installed; `pip install --no-deps asks`") from None
    return AsksTransport()

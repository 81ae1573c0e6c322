"""One MCP server, by the official SDK: what it is asked, what it says, and what becomes of that here.

Nothing that a server does is trusted: its messages, its list of tools, its schemas and what it gives are bounded, and a
server that dies, hangs or floods fails the calls of its tools with a sentence, and nothing else. It may ask nothing
back: no sampling, no elicitation, no roots.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio
from mcp import Client, MCPError
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    Implementation,
    PaginatedRequestParams,
    TextContent,
    TextResourceContents,
)
from mcp_types import Tool as Offered

from granville import __version__
from granville.crucible.tools.function import MAX_DESCRIPTION_CHARS, NAME
from granville.crucible.tools.interface import Call, Tool, ToolFailed
from granville.crucible.tools.mcp_transport import Words, over_http, over_pipes
from granville.crucible.workflow.model import Server

MAX_TOOLS = 256
MAX_PAGES = 20
"""Of a server's list of tools."""
MAX_SCHEMA_BYTES = 64 << 10
MAX_ERROR_CHARS = 1000
MAX_PROPERTIES = 256
CHECKED = ("type", "enum", "const")
"""Of an argument's schema, before the server is asked. The rest is for the server: a pattern or a maze of references is
work that it could have us do without end."""
TYPES = frozenset(("string", "number", "integer", "boolean", "array", "object", "null"))
log = logging.getLogger(__name__)


class McpServer:
    """Its tools, as long as `run` runs."""

    def __init__(self, name: str, server: Server, folder: Path) -> None:
        self.name = name
        self.tools: dict[str, Tool] = {}
        self.ready = trio.Event()
        """It has told its tools, or failed."""
        self.ended = trio.Event()
        self._server = server
        self._folder = folder
        self._words = Words()
        self._failure: str | None = None
        self._client: Client | None = None
        self._enough = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Started by: `open_servers`. Ends when: `end` is called, or the server cannot be started. Cancelled by: the
        end of the run."""
        try:
            transport = (
                over_pipes(self._server.command, self._server.env, self._folder, self._words)
                if self._server.command
                else over_http(self._server.url or "")
            )
            about = Implementation(name="granville-crucible", version=__version__)
            with self._scope:
                async with Client(transport, client_info=about, cache=None) as client:
                    await self._list(client)
                    self._client = client
                    self.ready.set()
                    await self._enough.wait()
        except* ToolFailed as group:
            self._failure = str(_first(group))
        except* Exception as group:
            log.debug("mcp server failed name=%s", self.name, exc_info=True)
            self._failure = f"{type(_first(group)).__name__}: {str(_first(group))[:MAX_ERROR_CHARS]}"
        finally:
            self._client = None
            self.ready.set()
            self.ended.set()

    def end(self) -> None:
        """It may end by itself, unless it has not even started."""
        self._enough.set()
        if self._client is None:
            self._scope.cancel()

    def check(self) -> None:
        """Raises ToolFailed when it is not there, with why."""
        if self._client is None or self._words.failure:
            why = self._words.failure or self._failure or "it has ended"
            raise ToolFailed(f"the MCP server {self.name!r}: {why}{self.last_words}")

    @property
    def last_words(self) -> str:
        said = self._words.last
        return f"; it said: {said}" if said else ""

    async def _list(self, client: Client) -> None:
        cursor = None
        for _ in range(MAX_PAGES):
            page = await client.session.list_tools(params=PaginatedRequestParams(cursor=cursor))
            for offered in page.tools:
                if len(self.tools) >= MAX_TOOLS:
                    log.warning("mcp server=%s has over %d tools: the others are left out", self.name, MAX_TOOLS)
                    return
                self._take(offered)
            cursor = page.next_cursor
            if cursor is None:
                return

    def _take(self, offered: Offered) -> None:
        if offered.output_schema is not None:
            offered.output_schema.clear()  # the SDK would check what comes against it, whatever work that is
        name = f"{self.name}.{offered.name}"
        try:
            size = len(msgspec.json.encode(offered.input_schema))
        except RecursionError:
            size = MAX_SCHEMA_BYTES + 1
        if not NAME.fullmatch(name) or size > MAX_SCHEMA_BYTES:
            log.warning("mcp server=%s tool=%.80r left out: its name or its schema cannot be used", self.name, name)
            return
        self.tools[name] = Tool(
            name=name,
            description=" ".join((offered.description or "").split())[:MAX_DESCRIPTION_CHARS],
            parameters=offered.input_schema,
            function=partial(self._call, offered.name),
            once=not _is_harmless(offered),
            checks=outline(offered.input_schema),
        )

    async def _call(self, tool: str, arguments: Mapping[str, Any], call: Call) -> Any:
        name = f"{self.name}.{tool}"
        self.check()
        assert self._client is not None
        try:
            result = await self._client.call_tool(tool, msgspec.to_builtins(dict(arguments)))  # bytes as base64
        except MCPError as error:
            self.check()
            raise ToolFailed(f"{name}: {error.message[:MAX_ERROR_CHARS]}") from None
        except Exception as error:
            self.check()
            log.debug("mcp call failed name=%s run=%s step=%s", name, call.run_id, call.step, exc_info=True)
            raise ToolFailed(f"{name}: no answer that can be used: {str(error)[:MAX_ERROR_CHARS]}") from None
        return value_of(name, result)


def value_of(name: str, result: CallToolResult) -> Any:
    """What a tool has given: structured, if it is; else its one text, picture or sound, or the list of them."""
    parts = [_part(one) for one in result.content]
    texts = [part for part in parts if isinstance(part, str)]
    if result.is_error:
        raise ToolFailed(
            f"{name}: {' '.join(' '.join(texts).split())[:MAX_ERROR_CHARS] or 'failed, and did not say why'}"
        )
    if result.structured_content is not None:
        return result.structured_content
    if len(texts) == len(parts):
        return "\n".join(texts)
    return parts[0] if len(parts) == 1 else parts


def _part(part: ContentBlock) -> Any:
    match part:
        case TextContent():
            return part.text
        case ImageContent() | AudioContent():
            return base64.b64decode(part.data)
        case EmbeddedResource(resource=TextResourceContents() as resource):
            return resource.text
        case EmbeddedResource(resource=BlobResourceContents() as resource):
            return base64.b64decode(resource.blob)
        case _:
            return {"uri": str(getattr(part, "uri", "")), "name": getattr(part, "name", "")}


def outline(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with what can be checked in no time: names, and types of the arguments."""
    properties = schema.get("properties")
    required = schema.get("required")
    kept: dict[str, Any] = {"type": "object"}
    if isinstance(properties, Mapping) and len(properties) <= MAX_PROPERTIES:
        kept["properties"] = {str(name): _plain(one) for name, one in properties.items()}
        if schema.get("additionalProperties") is False:
            kept["additionalProperties"] = False
    if isinstance(required, list):
        kept["required"] = [one for one in required if isinstance(one, str)]
    return kept


def _plain(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        return {}
    kept = {key: schema[key] for key in CHECKED if key in schema}
    types = kept.get("type", [])
    if not all(isinstance(one, str) and one in TYPES for one in ([types] if isinstance(types, str) else types or [])):
        kept.pop("type")
    if not isinstance(kept.get("enum", []), list):
        kept.pop("enum")
    return kept


def _is_harmless(offered: Offered) -> bool:
    """It says of itself that it may be called twice."""
    hints = offered.annotations
    return hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

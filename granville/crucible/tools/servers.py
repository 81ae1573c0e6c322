"""MCP servers of a workflow: started, asked for their tools, and ended with the run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from granville.client.background import Background
from granville.crucible.tools.interface import Tool, ToolFailed
from granville.crucible.workflow.model import Server

if TYPE_CHECKING:
    from granville.crucible.tools.mcp import McpServer

MAX_SERVERS = 16
"""Of one workflow."""
END_S = 10.0
"""For servers to end; then the tasks that talk with them are cancelled."""
START_S = 30.0
"""For a server to have started and told its tools."""


@asynccontextmanager
async def open_servers(
    servers: Mapping[str, Server], folder: Path, *, taken: Sequence[str]
) -> AsyncIterator[dict[str, dict[str, Tool]]]:
    """By the servers' names, their tools by full name (`<server>.<tool>`). Raises ToolFailed for a server that cannot
    be had; `taken` are names that are tools already, which a server may not have."""
    if len(servers) > MAX_SERVERS:
        raise ToolFailed(f"the workflow has {len(servers)} MCP servers, and {MAX_SERVERS} are the most")
    reserved = {"shell", *(name.partition(".")[0] for name in taken)}
    for name in servers:
        if name in reserved:
            raise ToolFailed(f"the MCP server {name!r} has the name of a tool; give it another one in the workflow")
    kind = await trio.to_thread.run_sync(_imported)
    running = {name: kind(name, server, folder) for name, server in servers.items()}
    async with Background() as nursery:
        for one in running.values():
            nursery.start_soon(one.run)
        try:
            with trio.move_on_after(START_S) as scope:
                for one in running.values():
                    await one.ready.wait()
            if scope.cancelled_caught:
                late = [name for name, one in running.items() if not one.ready.is_set()]
                raise ToolFailed(
                    f"the MCP server {late[0]!r} has not started in {START_S:g} s{running[late[0]].last_words}"
                )
            for one in running.values():
                one.check()
            yield {name: one.tools for name, one in running.items()}
        finally:
            with trio.move_on_after(END_S, shield=True):
                for one in running.values():
                    one.end()
                for one in running.values():
                    await one.ended.wait()


def _imported() -> type[McpServer]:
    """It takes a second to import, so in a thread."""
    try:
        from granville.crucible.tools.mcp import McpServer
    except ImportError:
        raise ToolFailed("MCP servers need the package mcp: pip install 'granville[crucible]'") from None
    return McpServer

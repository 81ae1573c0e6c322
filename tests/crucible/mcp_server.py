"""An MCP server made with the SDK, for tests: over stdin and stdout, or by HTTP on the port that is its argument."""

from __future__ import annotations

import os
import sys
import time

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("test")


@server.tool()
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def fails() -> str:
    """Fail."""
    raise ToolError("there is no such thing")


@server.tool(structured_output=False)
def picture() -> Image:
    """A picture."""
    return Image(data=b"\x89PNG", format="png")


@server.tool(structured_output=False)
def says(text: str) -> str:
    """Say a text."""
    return text


@server.tool()
def secret() -> str:
    """What is in the environment."""
    return os.environ.get("API_KEY", "none") + os.environ.get("GIVEN", "")


@server.tool()
def dies() -> str:
    """End the server."""
    print("out of paper", file=sys.stderr, flush=True)
    os._exit(3)


@server.tool()
def hangs() -> str:
    """Take for ever."""
    time.sleep(600)
    return ""


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run(transport="streamable-http", port=int(sys.argv[1]), host="127.0.0.1")
    else:
        with open(os.environ.get("PID_FILE", os.devnull), "w") as file:
            file.write(str(os.getpid()))
        server.run()

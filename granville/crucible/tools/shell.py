"""Commands as tools, each allowed by its name: `shell:git` is the tool `shell.git`. No shell reads what it is given."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from granville.crucible.tools.function import FunctionTool, tool
from granville.crucible.tools.interface import MAX_TOOL_OUTPUT_BYTES, Call, ToolFailed
from granville.crucible.tools.process import environment, run_process

MAX_OUTPUT_BYTES = MAX_TOOL_OUTPUT_BYTES // 2
"""Of stdout and stderr together."""
MAX_ARGUMENTS = 1000
MAX_STDIN_BYTES = 16 << 20


def shell_tool(name: str, path: str) -> FunctionTool[..., Any]:
    """The tool for an executable."""

    async def run(
        call: Call,
        args: Annotated[tuple[str, ...], Meta(max_length=MAX_ARGUMENTS, description="its arguments, one by one")] = (),
        stdin: Annotated[str, Meta(description="what it reads")] = "",
        folder: Annotated[str, Meta(description="where it runs, beginning at the workflow's folder")] = ".",
    ) -> dict[str, Any]:
        return await _run(path, args, stdin, _folder(name, folder, call))

    return tool(
        name=f"shell.{name}", description=f"Run the command {name}; gives its exit status and what it printed.",
        once=True, needs_allowance=False,
    )(run)  # fmt: skip


async def _run(path: str, args: tuple[str, ...], stdin: str, folder: Path) -> dict[str, Any]:
    if len(stdin) > MAX_STDIN_BYTES:
        raise ToolFailed(f"stdin: {len(stdin)} characters, and {MAX_STDIN_BYTES} are the most")
    ended = await run_process(
        [path, *args], folder=folder, env=environment(), stdin=stdin.encode(errors="replace"),
        most_bytes=MAX_OUTPUT_BYTES,
    )  # fmt: skip
    text = partial(bytes.decode, errors="replace")
    return {"status": ended.status, "stdout": text(ended.stdout), "stderr": text(ended.stderr), "cut": ended.cut}


def _folder(name: str, folder: str, call: Call) -> Path:
    if not call.folder.is_absolute():
        raise ToolFailed(f"shell.{name}: a run that came over the wire has no folder to run it in")
    path = call.folder / folder
    if not path.is_dir():
        raise ToolFailed(f"shell.{name}: {folder!r} is no folder in {call.folder}")
    return path

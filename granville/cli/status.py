"""`granville status`: what the daemon is doing, or one of its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import trio
from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from granville.cli.options import Socket
from granville.cli.terminal import printable, show
from granville.client import connect
from granville.client.address import DEFAULT_ADDRESS

_STYLES = {"ready": "green", "failed": "red", "restarting": "yellow", "loading": "yellow", "unloading": "yellow"}
PIPE_COLUMNS = 160
"""Where there is no terminal to tell its width."""


def status(
    id: Annotated[str | None, Parameter(help="A job's id; without it the whole daemon is shown.")] = None,
    /,
    *,
    socket: Socket = DEFAULT_ADDRESS,
    json: Annotated[bool, Parameter(negative=(), show_default=False, help="Print the daemon's reply as JSON.")] = False,
) -> None:
    """Show the daemon and its models, or one job."""
    reply = trio.run(_ask, socket, id)
    if json:
        show(msgspec.json.format(msgspec.json.encode(reply)).decode(), end="\n")
    elif id is not None:
        make_console().print(job_table(reply))
    else:
        print_status(make_console(), reply)


async def _ask(address: str, id: str | None) -> dict[str, Any]:
    async with connect(address) as client:
        return await client.status(id)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Called while a BrokenPipeError is handled: it passes on, to the exit status that every command gives it."""
        raise


def make_console() -> Console:
    console = _Console(highlight=False)
    return console if console.is_terminal else _Console(highlight=False, width=PIPE_COLUMNS)


def print_status(console: Console, reply: Mapping[str, Any]) -> None:
    """The daemon's reply to `status`, as two tables."""
    console.print(_daemon_table(reply))
    console.print(model_table(reply["models"]))
    for model in reply["models"]:
        if model["state"] != "ready" and model.get("last_error"):
            console.print(Text(printable(f"{model['id']}: {model['last_error']}"), "red"))


def job_table(reply: Mapping[str, Any]) -> Table:
    table = _facts()
    table.add_row("job", Text(str(reply["id"])))
    table.add_row("state", Text(str(reply["state"])))
    if reply["position"]:
        table.add_row("position", str(reply["position"]))
    if reply["eta_ms"]:
        table.add_row("expected in", seconds(reply["eta_ms"] / 1000))
    return table


def _daemon_table(reply: Mapping[str, Any]) -> Table:
    queue, jobs = reply["queue"], reply["jobs"]
    by_class = ", ".join(f"{count} {name}" for name, count in queue["by_class"].items() if count)
    table = _facts()
    table.add_row(
        "granville", f"{reply['version']}, {reply['state']}, up {seconds(reply['uptime_s'])}, pid {reply['pid']}"
    )
    table.add_row(
        "queue",
        f"{queue['waiting']} of {queue['limit']} waiting"
        + (f" ({by_class})" if by_class else "")
        + (f", the oldest for {seconds(queue['oldest_wait_ms'] / 1000)}" if queue["oldest_wait_ms"] else ""),
    )
    if queue["service_rate_per_s"]:
        table.add_row("rate", f"{queue['service_rate_per_s']:.2f} jobs/s")
    table.add_row("jobs", ", ".join(f"{count} {name}" for name, count in jobs.items()))
    table.add_row("connections", f"{reply['connections']['open']} of {reply['connections']['limit']}")
    if (warm := reply.get("warm")) and (warm["kept"] or warm["hits"]):
        table.add_row(
            "kept warm", f"{warm['kept']} prompts, {_bytes(warm['bytes'])}; {warm['hits']} requests found theirs"
        )
    callbacks = reply["callbacks"]
    table.add_row("callbacks", ", ".join(f"{count} {name}" for name, count in callbacks.items()))
    if reply["unknown_fields"]:
        table.add_row("unknown fields", f"{reply['unknown_fields']} in requests, ignored")
    return table


def model_table(models: list[Mapping[str, Any]]) -> Table:
    """Of the daemon's listing; a model's figures of the moment are there in the reply to `status` only."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    table.add_column("state")
    restarted = any(model.get("restarts") for model in models)
    titles = ("running", "waiting", "tokens/s", "context", "memory", *(["restarts"] if restarted else []), "last step")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for model in models:
        table.add_row(
            Text(f"{model['id']}\n").append(_where(model), "dim"),
            Text(str(model["state"]), _STYLES.get(model["state"], "")),
            f"{model['running']}/{model['slots']}",
            str(model["waiting"]),
            f"{model.get('tokens_per_s') or 0:.1f}",
            str(model["context_size"]),
            _bytes(model["memory_bytes"]),
            *([str(model.get("restarts") or "")] if restarted else []),
            f"{seconds(model['stalled_s'])} ago" if model.get("stalled_s") else "",
        )
    return table


def _where(model: Mapping[str, Any]) -> str:
    """What runs it, and in which process when that is another than the daemon's."""
    isolated = f", pid {model.get('pid') or 'none'}" if model.get("isolated") else ""
    return f"{model['type']}, {model['driver']}{isolated}"


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _bytes(count: float) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"

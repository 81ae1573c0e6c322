"""`granville models show`: all about one model, and the memory that it needs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from granville.cli.models import AsJson

if TYPE_CHECKING:
    from rich.table import Table

    from granville.models.details import Details

DEFAULT_SLOTS = 8
"""As `granville serve` has it."""


def show(
    model: Annotated[str, Parameter(help="A name that `granville models` lists, a path, or a source it came from.")],
    /,
    *,
    context_size: Annotated[
        int, Parameter(help="Tokens a slot; 0 is what `serve` takes: the smaller of the model's own and 4096.")
    ] = 0,
    slots: Annotated[int, Parameter(help="Sequences that it is to run at once.")] = DEFAULT_SLOTS,
    as_json: AsJson = False,
) -> None:
    """Show all about a model, and the memory that it needs with so many slots and so much context.

    What it needs is its weights, the KV cache of all slots, and scratch: buffers, and the cache in which labels are
    scored. It is held against what a daemon on this machine takes by default (`serve --memory`), when it serves this
    model alone.
    """
    from granville.errors import StartupError
    from granville.models.details import describe
    from granville.models.store import ModelStore

    if slots < 1:
        raise StartupError(f"--slots: must be at least 1, got {slots}")
    if context_size < 0:
        raise StartupError(f"--context-size: must not be negative, got {context_size}")
    file = ModelStore().find(model)
    if file.path is None:
        raise StartupError(f"{file.name} is not on this disk; `granville download {file.name}` fetches it")
    details = describe(file, slots=slots, context_size=context_size)
    if as_json:
        print(json.dumps(_as_json(details), indent=2))
    else:
        _print(details)


def _as_json(details: Details) -> dict[str, Any]:
    file, header, tensors, tuning = details.file, details.file.header, details.tensors, details.tuning
    return {
        "name": file.name,
        "path": str(details.path),
        "size_bytes": file.size_bytes,
        "problem": details.problem,
        "header": asdict(header) if header else None,
        "parameters": tensors.parameters if tensors else None,
        "parameters_by_format": dict(tensors.elements) if tensors else None,
        "license": details.license,
        "source": details.source,
        "sha256": details.sha256,
        "sha256_from": details.sha256_from,
        "tuned": {"name": tuning.tuned.name, "type": tuning.tuned.type} if tuning and tuning.tuned else None,
        "memory": [
            {
                "file": need.path.name,
                "slots": need.memory.slots,
                "context_size": need.memory.context_size,
                "weights_bytes": need.memory.weights_bytes,
                "kv_bytes": need.memory.kv_bytes,
                "scratch_bytes": need.memory.overhead_bytes,
                "total_bytes": need.memory.total_bytes,
                "fits": need.refusal is None,
            }
            for need in details.needs
        ],
        "memory_budget_bytes": details.budget_bytes,
    }


def _print(details: Details) -> None:
    from rich.table import Table
    from rich.text import Text

    from granville.cli.status import make_console
    from granville.cli.terminal import printable

    console = make_console()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(details):
        facts.add_row(name, Text(printable(value)))
    console.print(facts)
    if details.needs:
        first = details.needs[0].memory
        console.print(f"\nmemory for {first.slots} slots of {first.context_size} tokens", style="bold")
        console.print(_memory_table(details))
    for need in details.needs:
        if need.refusal is not None:
            console.print(Text(printable(need.refusal), "red"))


def _facts(details: Details) -> list[tuple[str, str]]:
    file, header, tensors = details.file, details.file.header, details.tensors
    rows = [("model", file.name), ("file", f"{details.path}, {file.size_bytes / 1e6:.0f} MB")]
    if details.problem:
        rows.append(("problem", details.problem))
    if header is not None:
        rows += [
            ("name", header.name or "-"),
            ("architecture", f"{header.architecture}, {header.layers or '?'} layers of {header.embedding or '?'}"),
            ("quantisation", header.quantization or "-"),
            ("parameters", _parameters(details)),
            ("context", f"{header.context_length or '?'} tokens"),
            ("chat template", _template(details)),
            ("tokenizer", _tokenizer(details)),
        ]
    if tensors is not None:
        formats = ", ".join(f"{_count(count)} in {kind}" for kind, count in tensors.elements.most_common())
        rows.append(("tensors", f"{tensors.count}: {formats}"))
    rows += [
        ("licence", details.license or "not said"),
        ("source", details.source or "not known"),
        ("SHA-256", _sha256(details)),
        ("tuned", _tuned(details)),
    ]
    return rows


def _parameters(details: Details) -> str:
    header, tensors = details.file.header, details.tensors
    label = f" ({header.size_label})" if header and header.size_label else ""
    return f"{_count(tensors.parameters)}{label}" if tensors else "-"


def _count(count: int) -> str:
    if count >= 10**9:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count >= 10**6 else f"{count / 1e3:.1f} k"


def _template(details: Details) -> str:
    header = details.file.header
    if header is None or not header.has_chat_template:
        return "none: `text` is completed as it is"
    return "yes, and it knows tools" if header.template_has_tools else "yes; it has no words for tools of its own"


def _tokenizer(details: Details) -> str:
    header = details.file.header
    if header is None or header.tokenizer is None:
        return "-"
    behind = f" ({header.pre_tokenizer})" if header.pre_tokenizer else ""
    return f"{header.tokenizer}{behind}, {header.vocabulary} tokens"


def _sha256(details: Details) -> str:
    behind = {
        "verified": "",
        "changed": ", of the file as it was; it has changed since",
        "catalogue": ", says the catalogue; not compared yet",
    }
    if details.sha256 is None or details.sha256_from is None:
        return f"not known; `granville models verify {details.file.name}` computes it"
    return f"{details.sha256}{behind[details.sha256_from]}"


def _tuned(details: Details) -> str:
    tuning = details.tuning
    if details.file.kind not in (None, "gguf"):
        return "no; there is nothing to tune in a model of this kind"
    if details.tuning_problem is not None:
        return details.tuning_problem
    if tuning is None:
        return "no; `granville models tune` finds the form in which it is fastest here"
    file = "the file as it is" if tuning.tuned is None else f"{tuning.tuned.name} in {tuning.tuned.type}"
    return f"{file}, made {tuning.made[:10]} on {tuning.machine.cpu}"


def _memory_table(details: Details) -> Table:
    from rich import box
    from rich.table import Table

    from granville.scheduling.memory import size

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for need in details.needs:
        table.add_column(need.path.name, justify="right", overflow="fold")
    rows = (
        ("weights", [need.memory.weights_bytes for need in details.needs]),
        ("KV", [need.memory.kv_bytes for need in details.needs]),
        ("scratch", [need.memory.overhead_bytes for need in details.needs]),
        ("total", [need.memory.total_bytes for need in details.needs]),
    )
    for name, counts in rows:
        table.add_row(name, *map(size, counts))
    fits = ["fits" if need.refusal is None else "does not fit" for need in details.needs]
    table.add_row(f"of {size(details.budget_bytes)}", *fits)
    return table

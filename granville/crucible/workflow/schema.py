"""The JSON Schema of a workflow's YAML form, for editors: `crucible.schema.json` beside this module.

It is made out of the structs and their docstrings:
`python -m granville.crucible.workflow.schema > crucible.schema.json`.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

import msgspec

from granville.crucible.workflow import model
from granville.crucible.workflow.shape import EXPRESSIONS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_HIDDEN = ("Plain",)


def generate() -> dict[str, Any]:
    """The schema, as JSON's types."""
    made = msgspec.json.schema(model.Workflow)
    definitions = made["$defs"]
    for name, fields in _descriptions().items():
        if name in _HIDDEN or name not in definitions:
            continue
        definition = definitions[name]
        definition["description"] = fields[""]
        for field, schema in definition["properties"].items():
            if field in fields:
                schema["description"] = fields[field]
            if field in EXPRESSIONS and "$ref" not in schema:
                _also_constants(schema)
    workflow = definitions["Workflow"]
    workflow["required"].remove("name")  # a file's name stands in for it
    outputs = next(kind for kind in workflow["properties"]["outputs"]["anyOf"] if kind["type"] == "object")
    _also_constants(outputs["additionalProperties"])
    return {"$schema": DIALECT, "title": "A workflow of Crucible", **made}


def _also_constants(schema: dict[str, Any]) -> None:
    """An expression may be written as a boolean or a number."""
    if "anyOf" in schema:
        schema["anyOf"] += [{"type": "boolean"}, {"type": "number"}]
    else:
        schema["type"] = [schema["type"], "boolean", "number"]


def _descriptions() -> dict[str, dict[str, str]]:
    """The docstrings of each struct, by the names of the YAML form; its own under an empty name."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(model)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = {"": " ".join((ast.get_docstring(node) or "").split())}
        for before, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and _is_text(after):
                texts[before.target.id.rstrip("_")] = " ".join(ast.literal_eval(after.value).split())  # type: ignore[attr-defined]
        found[node.name] = texts
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def as_text() -> str:
    return msgspec.json.format(msgspec.json.encode(generate()), indent=2).decode() + "\n"


if __name__ == "__main__":
    print(as_text(), end="")

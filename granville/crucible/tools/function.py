"""`@tool` makes a tool of a function.

@tool
def price(article: Annotated[str, Meta(description="as in the catalogue")], pieces: int = 1) -> float:
    "What so many pieces of an article cost."

Its name, its description and the schema of its arguments are the function's name, docstring and annotations: whatever
msgspec knows, such as `list[int]`, `Literal["a", "b"]`, dataclasses, and `Annotated` with a `msgspec.Meta`. A parameter
annotated with `Call` gets what is known of the call, and is none of the arguments.
"""

from __future__ import annotations

import copy
import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints, overload

import msgspec

from granville.crucible.tools.interface import Call, Tool, ToolFailed
from granville.crucible.tools.threads import THREADS
from granville.crucible.workflow.suggest import did_you_mean

P = ParamSpec("P")
R = TypeVar("R")

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a model can be told of (docs/protocol.md)."""
MAX_DESCRIPTION_CHARS = 4096


@dataclass(frozen=True, slots=True)
class FunctionTool(Tool, Generic[P, R]):
    """A tool that is a function, and can be called as one. It checks its arguments itself."""

    plain: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        assert self.plain is not None
        return self.plain(*args, **kwargs)


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None, once: bool = False, needs_allowance: bool = False
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(
    function: Callable[P, R] | None = None, /, *, name: str | None = None, description: str | None = None,
    once: bool = False, needs_allowance: bool = False,
) -> FunctionTool[P, R] | Callable[[Callable[P, R]], FunctionTool[P, R]]:  # fmt: skip
    """A tool of a function: an async one runs on Trio, any other in a thread.

    `once` and `needs_allowance` are those of Tool. Raises TypeError for a function whose arguments cannot be given by
    name, or have types that no schema can be made of, and ValueError for a name that is none.
    """
    if function is None:
        return partial(_tool, name=name, description=description, once=once, needs_allowance=needs_allowance)
    return _tool(function)


def _tool(
    function: Callable[P, R], *, name: str | None = None, description: str | None = None, once: bool = False,
    needs_allowance: bool = False,
) -> FunctionTool[P, R]:  # fmt: skip
    name = name or str(getattr(function, "__name__", ""))
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a tool: 1 to 64 letters, digits or any of _ . -")
    description = " ".join((description or inspect.getdoc(function) or "").split())
    form, call_name = _form(name, function)
    return FunctionTool(
        name=name,
        description=description[:MAX_DESCRIPTION_CHARS],
        parameters=_schema(name, form),
        function=partial(_run, name, function, form, call_name),
        once=once,
        needs_allowance=needs_allowance,
        checks={},
        plain=function,
    )


async def _run(
    name: str, function: Callable[..., Any], form: type[msgspec.Struct], call_name: str | None,
    arguments: Mapping[str, Any], call: Call,
) -> Any:  # fmt: skip
    """Raises ToolFailed for arguments that do not fit, and whatever the function raises."""
    given = msgspec.structs.asdict(_read(name, form, arguments))
    if call_name is not None:
        given[call_name] = call
    if inspect.iscoroutinefunction(function):
        return await function(**given)
    return await THREADS.run(name, partial(function, **given))


def _form(name: str, function: Callable[..., Any]) -> tuple[type[msgspec.Struct], str | None]:
    """The arguments as a struct, and the name of the parameter that gets the Call."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{name}: an annotation names what is not known where the module begins: {error}") from None
    fields: list[tuple[str, Any, Any]] = []
    call_name = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{name}: the parameter {parameter} cannot be given by name, as a tool's have to be")
        hint = hints.get(parameter.name, Any)
        if _is_call(hint):
            call_name = parameter.name
        elif parameter.default is parameter.empty:
            fields.append((parameter.name, hint, msgspec.NODEFAULT))
        elif isinstance(parameter.default, list | dict | set | bytearray):
            fields.append(
                (parameter.name, hint, msgspec.field(default_factory=partial(copy.deepcopy, parameter.default)))
            )
        else:
            fields.append((parameter.name, hint, parameter.default))
    return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True), call_name


def _is_call(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return Call in get_args(hint)
    return hint is Call


def _schema(name: str, form: type[msgspec.Struct]) -> dict[str, Any]:
    try:
        (schema,), definitions = msgspec.json.schema_components([form], ref_template="#/$defs/{name}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: no schema can be made of its annotations: {error}") from None
    parameters: dict[str, Any] = definitions.pop(schema["$ref"].removeprefix("#/$defs/"))
    parameters.pop("title", None)
    if definitions:
        parameters["$defs"] = definitions
    return parameters


def _read(name: str, form: type[msgspec.Struct], arguments: Mapping[str, Any]) -> msgspec.Struct:
    try:
        return msgspec.convert(arguments, form)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if unknown and not path:
        raise ToolFailed(
            f"{name}: it has no argument `{unknown[1]}`; {did_you_mean(unknown[1], form.__struct_fields__)}"
        )
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing and not path:
        raise ToolFailed(f"{name}: the argument `{missing[1]}` is missing")
    where = path.strip("`").removeprefix("$").removeprefix(".")
    raise ToolFailed(f"{name}: the argument `{where}`: {text[0].lower()}{text[1:]}")

"""A workflow as plain objects. The field names are those of the YAML form; docs/crucible.md has a line on each.

Workflow(name="hello", inputs={"who": Input(type="text")}, steps=(
    Step(id="greet", model_type="inference", input="Greet {{ who }}.", output="greeting"),
))
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from granville.wire.messages import Class, ModelType

MAX_LISTED_STEPS = 500
"""Of one workflow, groups counted with what is in them."""
MAX_ITEMS = 10_000
"""Of one `for_each`."""
MAX_PARALLEL = 64
MAX_ROUNDS = 1000
"""Of one `repeat`."""
MAX_ATTEMPTS = 20
MAX_GROUP_DEPTH = 8
"""Groups in groups, and workflows in workflows."""
DEFAULT_PARALLEL = 4
DEFAULT_MAX_STEPS = 1000

Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
"""Of steps, inputs and outputs: what expressions can name."""
Kind = Literal["text", "number", "integer", "boolean", "list", "object", "audio", "any"]
Seconds = Annotated[float, Meta(gt=0, le=7 * 86_400)]
Cause = Literal[
    "any", "driver_failed", "no_model", "queue_full", "deadline_exceeded", "connection_lost", "no_daemon", "internal",
    "tool_failed", "bad_output",
]  # fmt: skip


class Plain(
    Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, rename={"with_": "with"}
):
    """Values that are compared, written to the journal as they are, and refused with a field they do not know."""


class Input(Plain, frozen=True, kw_only=True):
    """What a run is given."""

    type: Kind = "any"
    description: str = ""
    default: Any = None
    required: bool | None = None
    """None: required unless it has a default."""

    @property
    def is_required(self) -> bool:
        return self.default is None if self.required is None else self.required


class Retry(Plain, frozen=True, kw_only=True):
    """Try again after a failure, with exponential back-off and jitter. A full queue's `retry_after_ms` is heeded."""

    attempts: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)] = 3
    """In all, the first one counted."""
    backoff_s: Annotated[float, Meta(ge=0, le=3600)] = 0.5
    """Before the second attempt; doubled for each one after it."""
    max_backoff_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    on: tuple[Cause, ...] = ("any",)
    """Failures that another attempt may mend; a wrong request (400, 413, 422) is never tried again."""


class ForEach(Plain, frozen=True, kw_only=True):
    """Run the step once for each item of a list. Its value is the list of the runs' values, in the items' order."""

    items: str
    """An expression."""
    name: Identifier = "item"
    """What the item is called inside; its place in the list is `index`, from 0."""
    parallel: Annotated[int, Meta(ge=1, le=MAX_PARALLEL)] = DEFAULT_PARALLEL


class Repeat(Plain, frozen=True, kw_only=True):
    """Run the step again until an expression is true. Its value is the last round's."""

    until: str
    """An expression, evaluated after each round; it sees what the round has put out, and `round`, from 0."""
    max: Annotated[int, Meta(ge=1, le=MAX_ROUNDS)]
    """Rounds at most; then the step ends as if `until` were true, and `steps.<id>.exhausted` is true."""
    start: dict[str, Any] = {}
    """What names of the body hold in the first round, before the body has put them out."""


class Limits(Plain, frozen=True, kw_only=True):
    """A run's budget. Over it the run fails with `budget_exceeded`; what was put out stays to be seen."""

    steps: Annotated[int, Meta(ge=1)] = DEFAULT_MAX_STEPS
    """Model, tool and workflow steps that are started, each attempt and round counted."""
    tokens: Annotated[int, Meta(ge=1)] | None = None
    """Prompt tokens that were not cached, and completion tokens."""


class Instead(Plain, frozen=True, kw_only=True):
    """`on_error: {use: …}`: go on with this value."""

    use: Any


class Server(Plain, frozen=True, kw_only=True):
    """An MCP server, started for the length of a run or reached by HTTP. Its tools are `<name>.<tool>`."""

    command: tuple[str, ...] | None = None
    url: str | None = None
    env: dict[str, str] = {}


class Step(Plain, frozen=True, kw_only=True):
    """Exactly one of `model_type`, `tool`, `workflow` and `steps` says what it does.

    Strings of `input`, `system`, `messages`, `documents`, `with`, `session`, `json_schema`, `on_error.use` and
    `repeat.start` are templates: `{{ expression }}`, and `{% if %}`, `{% for %}` in text. A string that is one
    `{{ expression }}` and nothing else is the expression's value, whatever its type. An `input` that is a bare name
    (`question`, `steps.search.output`) is the value of that name. Strings of `should_run`, `for_each`, `until` and
    `result` are expressions, without braces.
    """

    id: Identifier
    description: str = ""
    model_type: ModelType | None = None
    tool: str | None = None
    workflow: str | Workflow | None = None
    """A file's path, beside the one that names it, or a workflow itself."""
    steps: tuple[Step, ...] | None = None
    """A group: names that are put out inside stay inside, `result` is its value."""

    input: Any = None
    output: Identifier | None = None
    """The name that its value gets; without one its `id`."""
    should_run: str | None = None
    """When false the step is skipped, and its name holds null, or what it held before."""
    needs: tuple[Identifier, ...] = ()
    """Steps that have to end first though no value of theirs is read."""
    for_each: ForEach | str | None = None
    repeat: Repeat | None = None
    retry: Retry | None = None
    timeout_s: Seconds | None = None
    """Of one attempt."""
    on_error: Literal["fail", "continue"] | Instead = "fail"
    """After the last attempt: fail the run, go on with null, or with another value."""
    priority: Class | None = None
    session: str | None = None
    """A conversation of this run by a name of its own: steps of one session read what was said in it before.
    A template; empty for none although the workflow has one."""
    result: str | None = None
    """An expression: the value of the step, in place of what it would be. It sees that as `value`."""

    with_: dict[str, Any] | None = None
    """Arguments of a tool, inputs of a workflow."""

    system: str | None = None
    messages: Any = None
    """A list of {role, content}, in place of `input`."""
    model_id: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    grammar: str | None = None
    json_schema: Any = None
    """The value is then what the answer says as JSON, not its text."""
    tools: tuple[str, ...] | None = None
    """Tools that the model may call, by name. The value is then {tool, arguments, text}: `tool` null for an answer in
    words. Nothing is called by that: a tool step does it."""
    tool_choice: str | None = None
    language: str | None = None
    voice: str | None = None
    speed: float | None = None
    documents: Any = None
    """Of a rerank step, a list of texts, or of objects with `text`."""
    top: Annotated[int, Meta(ge=1)] | None = None
    """Of a rerank step: how many of the best to keep."""

    @property
    def name(self) -> str:
        """What its value is called."""
        return self.output or self.id

    @property
    def kind(self) -> Literal["model", "tool", "workflow", "group"]:
        if self.model_type is not None:
            return "model"
        if self.tool is not None:
            return "tool"
        return "workflow" if self.workflow is not None else "group"


class Workflow(Plain, frozen=True, kw_only=True):
    """Steps over the models of Granville, with what a run is given and what it gives back."""

    crucible: Literal[1] = 1
    """The version of the form."""
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str = ""
    inputs: dict[Identifier, Input] = {}
    steps: Annotated[tuple[Step, ...], Meta(min_length=1)]
    outputs: dict[Identifier, str] | None = None
    """Expressions. None: what the last step puts out, under its name."""
    priority: Class | None = None
    session: str | None = None
    """Of every inference step that names none."""
    timeout_s: Seconds | None = None
    """Of the whole run. No request outlives it."""
    retry: Retry | None = None
    """Of every step that says nothing of it."""
    limits: Limits = Limits()
    servers: dict[Identifier, Server] = {}
    """MCP servers whose tools the steps name."""

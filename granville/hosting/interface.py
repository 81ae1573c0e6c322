"""The step interface: what the kernel asks of a driver, and all that a driver imports of Granville.

A driver is synchronous and is called from one thread a model, for the model's whole life. The kernel submits
jobs while the model has free slots, then calls `step` again and again; a step is one bounded call, and what it
brought comes back as events. docs/drivers.md walks through it with a small driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from granville.hosting.shortening import shortened as shortened

FinishReason = Literal["stop", "length", "tool"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What to load. Zero means "choose": context_size the smaller of the model's own and 4096, threads the cores."""

    path: Path
    slots: int = 8
    context_size: int = 0
    """Tokens a slot can hold, prompt and answer together."""
    threads: int = 0
    verbose: bool = False
    """Let the backend write its own log to stderr; otherwise it is silent."""
    options: Mapping[str, object] = field(default_factory=dict)
    """The driver's own settings, from flags, manifest.yaml or driver.json (`gpu_layers`, `flash_attention`, ...)."""
    type: str = "inference"
    """What the model is loaded for: a model type of the protocol."""
    fingerprint: str = ""
    """A digest that tells the file from others; without one nothing of it is kept on disk."""
    kv_ram_bytes: int = 0
    """How much of cached and parked states may be kept in memory; `Model.limit_cache` changes it later."""
    kv_disk_bytes: int = 0
    kv_dir: Path | None = None
    """A folder of this model's own for states on disk, made by the driver, mode 0700; None keeps none there."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the kernel may ask of a loaded model; a request that needs more is refused with 422."""

    types: frozenset[str] = frozenset({"inference"})
    interruptible: bool = True
    """`interrupt` ends a step early. When false a step may last as long as a whole answer."""
    messages: bool = True
    """A whole conversation can be given; when false only a single user turn."""
    sampling: bool = True
    """It heeds `Generate.sampling`; when false only requests that leave it as it is are taken."""
    park: bool = False
    constrain: bool = False
    """`grammar` and `json_schema`."""
    tools: bool = False
    score: bool = False
    """It takes `Score` beside its slots."""
    drop_oldest: bool = False
    """`Generate.drop_oldest`."""
    warm: bool = False
    """It takes `Warm` beside its slots."""
    resume: bool = False
    """It takes `Generate.produced`: a job that a failure has cut short goes on where its client has read to."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known once a model is loaded."""

    architecture: str
    context_size: int
    """Tokens a slot."""
    memory_bytes: int
    """Weights and KV cache together."""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str
    token_ids: tuple[int, ...] = ()
    """Of what this model said itself: the tokens as they were sampled. Where they spell `content` they stand for it,
    because text does not always re-tokenise to what was sampled."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Names and meanings are llama.cpp's. temperature 0 is greedy; seed None is drawn anew for each job."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that the model may call."""

    name: str
    description: str
    parameters: Mapping[str, object]
    """JSON schema of the arguments, an object."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str
    """A JSON object that fits the tool's schema."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole answer has to be."""

    kind: Literal["gbnf", "json_schema"]
    source: str
    """The grammar, or the schema as JSON."""


@dataclass(frozen=True, slots=True)
class Generate:
    """One job, as a driver sees it. A model without a chat template completes a single turn's text raw."""

    id: str
    messages: tuple[Message, ...]
    max_tokens: int = 256
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    urgency: int = 2
    """The job's class, 0 critical to 3 low: a critical job's prefill is not held back for others' streams."""
    session: str | None = None
    """The conversation that this is a turn of: its state is kept under this name for the next turn, which comes only
    when this one has ended."""
    reset_cache: bool = False
    """Forget what was kept for the session and take nothing from a cache."""
    constraint: Constraint | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or the name of the tool to call."""
    drop_oldest: bool = False
    """Of a conversation that leaves no room for an answer the oldest turns may be left out: `shortened` does it, and
    `Usage.dropped_turns` says how many they were."""
    produced: tuple[int, ...] = ()
    """The tokens of this job's earlier `Token` events, of a life of the model that a failure has ended; only with the
    `resume` capability. Its answer begins with them: they count in `max_tokens` and in the usage, stop strings and
    constraints see them, and no event tells of them or of their text again."""


@dataclass(frozen=True, slots=True)
class Score:
    """How likely each label is to follow the prompt. Takes no slot: a model with the `score` capability answers it
    beside whatever runs, from a sequence of its own, and reads again only what differs from the prompt before."""

    id: str
    prompt: str
    """Plain text: names of control tokens in it are text."""
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Warm:
    """Have in memory what the prompt of a conversation begins with, whatever its next turn will say. Takes no slot, and
    reads only in time that no job wants; `Output` ends it. From then on the state is kept in memory before others, as
    far as there is room, until `cancel`, or the session's next turn."""

    id: str
    messages: tuple[Message, ...]
    session: str | None = None
    """Whose state it is, if there is one: nobody else's next turn goes on from there."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    urgency: int = 3
    """Beside streams of a higher class nothing is read."""


@dataclass(frozen=True, slots=True)
class Embed:
    """A vector for each text. Takes a slot."""

    id: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rerank:
    """How well each document answers the query. Takes a slot."""

    id: str
    query: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Transcribe:
    """What is said in a recording. Takes a slot. Text comes as `Token` events without ids, then `Output` ends it."""

    id: str
    audio: bytes | None = None
    """A file's contents: WAV, FLAC, MP3, ... at any rate, with any number of channels. None: it is in `path`."""
    path: Path | None = None
    language: str | None = None
    """ISO 639-1; None: to be found out."""
    words: bool = False
    """Times of words besides those of segments."""


@dataclass(frozen=True, slots=True)
class Speak:
    """A text read aloud. Takes a slot. Sound comes as `Audio` events, a sentence or so each, then `Output` ends it."""

    id: str
    text: str
    voice: str | None = None
    """A voice of the model's by the driver's name for it; None: the first."""
    speed: float = 1.0
    """2 is twice as fast, within 0.25 to 4."""


Task = Generate | Score | Warm | Embed | Rerank | Transcribe | Speak


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, taken from a cache and not prefilled again."""
    completion_tokens: int = 0
    dropped_turns: int = 0
    """Of the conversation, its oldest but for system messages: left out of the prompt."""


@dataclass(frozen=True, slots=True)
class Token:
    """Text that is final. `text` may be empty while a character or a stop string is still in doubt; the tokens
    and texts of a job, joined in order, are its whole answer. With the `resume` capability the text of all events up
    to one follows from their tokens; text without a token comes only in the step that ends the job."""

    id: str
    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Audio:
    """Sound that is final. All of a job has one rate; joined in order it is the whole answer."""

    id: str
    pcm: bytes
    """Samples of one channel, 16-bit signed little-endian."""
    sample_rate: int
    """Hz."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The job has ended and its slot is free."""

    id: str
    finish_reason: FinishReason
    usage: Usage
    call: ToolCall | None = None
    """With finish_reason `tool`."""


@dataclass(frozen=True, slots=True)
class Output:
    """A job that gives a value instead of text has ended, and its slot, if it had one, is free."""

    id: str
    value: list[float] | list[list[float]] | dict[str, Any]
    """Score: a natural logarithm of a probability for each label. Warm: one number, how many tokens of the prompt are
    in memory; 0 where nothing could be kept. Embed: a vector for each text. Rerank: a score for
    each document. Transcribe: `language`, `duration_s` and `segments`, a list of {start, end, text}, in seconds, with
    `words`, a list of {start, end, word, probability}, when they were asked for. Speak: `duration_s`."""
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has ended without an answer and its slot is free. `error` is a wire error's name, such as
    `prompt_too_long`, `unsupported`, `bad_request` or `driver_failed`."""

    id: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Parked:
    """The job is off its slot with its state kept: `resume` goes on where it stopped, `cancel` forgets it."""

    id: str


Event = Token | Audio | Finished | Output | Failed | Parked


class DriverError(Exception):
    """A driver cannot do what was asked: a model that does not load, a backend that failed. The message is shown
    to a person as it is."""


@runtime_checkable
class Model(Protocol):
    """A loaded model. Every call comes from the model's one thread, except `interrupt` and `stats`."""

    @property
    def slots(self) -> int: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def info(self) -> ModelInfo: ...

    def submit(self, request: Task) -> None:
        """Take a job into a free slot; the kernel never submits more than `slots`, those that take none not counted.
        Whatever is wrong with the job comes out of the next step as Failed."""

    def step(self, prefill_ms: float | None) -> list[Event]:
        """At most one decode of all running jobs and at most `prefill_ms` of prefill beside them (None: the
        driver's own choice). With nothing to run, returns at once. Raises DriverError when the model is lost."""

    def cancel(self, id: str) -> None:
        """Forget a job, running or parked, or keep no longer what is warm. Its slot is free when this returns and no
        more events name it; an unknown id is not an error."""

    def park(self, id: str) -> None:
        """Take a running job off its slot and keep its state; the next step says Parked."""

    def resume(self, id: str) -> None:
        """Put a parked job back on a free slot; it produces just the tokens that it would have produced."""

    def limit_cache(self, kv_ram_bytes: int) -> None:
        """Keep no more than this of cached states in memory from now on; the least valuable go first, states of
        parked jobs last of all."""

    def stats(self) -> Mapping[str, int | float | str]:
        """Figures for `granville status`, under the driver's own names: `threads`, `kv_ram_bytes`, `kv_disk_bytes`, …
        Called from any thread, returns at once."""

    def interrupt(self) -> None:
        """Called from any thread at any time: end the current step soon. The next step clears it."""

    def close(self) -> None:
        """Free everything. The model is not used again."""


@runtime_checkable
class Driver(Protocol):
    """Named by an entry point in the group `granville.drivers`: a class, made without arguments."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def load(self, spec: ModelSpec) -> Model:
        """Load a model. Raises DriverError with a sentence for a person: what is wrong with the file or the
        settings, and what would be right."""


@runtime_checkable
class Configurable(Protocol):
    """What a driver has besides when its options are checked before anything is loaded, wherever they were given."""

    @property
    def config_schema(self) -> Mapping[str, Any] | None:
        """JSON Schema of `ModelSpec.options`, a flat object; docs/drivers.md has the keywords that may be in it. None:
        not known, and the driver checks them itself when it loads."""


@runtime_checkable
class Tunable(Protocol):
    """What a driver has besides when its models can be tuned for the machine (`granville models tune`)."""

    @property
    def name(self) -> str: ...

    @property
    def backend(self) -> str:
        """Name and version of what computes, said without loading it: what was measured holds for no other."""

    @property
    def tuning_module(self) -> str:
        """A module that does one command a process (`python -m MODULE COMMAND`): docs/drivers.md has the commands."""

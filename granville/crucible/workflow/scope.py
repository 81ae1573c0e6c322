"""Which names a field of a step can see, and what is said of one that it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from granville.crucible.workflow.kinds import ANYTHING, Known, in_words
from granville.crucible.workflow.model import Input, Step
from granville.crucible.workflow.reads import readable_paths
from granville.crucible.workflow.suggest import did_you_mean

RECORD = ("output", "state", "error", "attempts", "exhausted", "usage", "text", "segments", "language")
"""What `steps.<id>` has."""
_ONLY = {"exhausted": "a step with `repeat`", "segments": "an stt step", "language": "an stt step"}
RUN = ("id", "workflow")
RESERVED = frozenset(
    (
        "steps", "inputs", "run", "range", "self", "super", "caller", "varargs", "kwargs", "true", "false",
        "none", "True", "False", "None", "and", "or", "not", "in", "is", "if", "else",
    )
)  # fmt: skip
"""Names that expressions have already."""


@dataclass(slots=True)
class Scope:
    """What is known at one place of a workflow."""

    inputs: Mapping[str, Input]
    names: dict[str, Known] = field(default_factory=dict)
    ended: dict[str, Step] = field(default_factory=dict)
    """Steps that have ended by then, by id."""
    later: dict[str, Step] = field(default_factory=dict)
    """Names that steps of the same list put out, but not before."""
    reader: str = ""
    """What the step puts out that is being looked at."""
    everywhere: Mapping[str, str] = field(default_factory=dict)
    """The ids of all steps of the workflow, with the group that each is in; empty for none."""
    inner: Mapping[str, str] = field(default_factory=dict)
    """Names that are put out in groups, with the group."""
    repeats: bool = False
    """It is the body of a `repeat`."""
    loops: Mapping[str, str] = field(default_factory=dict)
    """What the loops around it call their own, with the id of the step whose loop it is."""

    def within(self) -> Scope:
        """For the steps of a group that stands here."""
        return Scope(
            self.inputs, dict(self.names), dict(self.ended), everywhere=self.everywhere, inner=self.inner,
            loops=dict(self.loops),
        )  # fmt: skip

    def known(self, path: tuple[str, ...]) -> Known:
        """What a path gives, `anything` for all that is not certain."""
        if path[0] == "steps" and len(path) == 3 and path[2] == "output" and path[1] in self.ended:
            step = self.ended[path[1]]
            return self.names.get(f"steps.{step.id}", ANYTHING)
        if path[0] == "inputs" and len(path) == 2 and path[1] in self.inputs:
            return Known(self.inputs[path[1]].type, f"the input `{path[1]}`")
        return self.names.get(path[0], ANYTHING) if len(path) == 1 else ANYTHING

    def wrong(self, path: tuple[str, ...], also: Iterable[str] = (), *, bare: bool = False) -> str | None:
        """What is wrong with a name. `also` are names that are there beside these; `bare`: it is the whole of an
        `input`, and may have been meant as a word."""
        first, rest = path[0], path[1:]
        if first == "steps":
            return self._wrong_step(rest)
        if first in ("run", "inputs"):
            return self._wrong_part(first, rest)
        if first not in self.names:
            return self._unknown(first, also, bare)
        known = self.names[first]
        if rest and known.kind in ("text", "number", "integer", "boolean", "audio") and not rest[0].isdecimal():
            return f"`{first}` is {in_words(known.kind)}: there is no `{rest[0]}` in it"
        if rest and known.kind == "list" and not rest[0].isdecimal():
            return f"`{first}` is a list: `{first}[0].{rest[0]}` is that of its first item"
        return None

    def _unknown(self, name: str, also: Iterable[str], bare: bool) -> str:
        said = self._missing(name, also, bare)
        if self.inputs or "did you mean" in said:
            return said
        return f"{said}; what a run is given is declared, as in `inputs: {{{name}: {{type: text}}}}`"

    def _missing(self, name: str, also: Iterable[str], bare: bool) -> str:
        if name in self.later:
            step = self.later[name]
            who = step.id
            if step.name == self.reader:
                return f"`{name}` is what this step puts out itself; nothing has put it out before"
            if not self.repeats and self.reader in {path[0] for path in readable_paths(step)}:
                return f"`{self.reader}` and `{name}`: two steps read what the other puts out, and neither can begin"
            start = f", or give `{name}` a first value in the group's `repeat.start`" if self.repeats else ""
            return f"`{name}` is read before step `{who}` has put it out; list `{who}` before this one{start}"
        if name in self.inner:
            group = self.inner[name]
            return f"`{name}` is put out in the group `{group}` and stays there; `{group}` is the group's own value"
        seen = [*(known for known in self.names if "." not in known), *also]
        hint = did_you_mean(name, [*seen, "inputs", "steps", "run"] if seen else [])
        if bare and not hint.startswith("did you mean"):
            hint += f"; a word that is meant as it stands is written \"{{{{ '{name}' }}}}\""
        return f"there is no `{name}`; {hint}"

    def _wrong_step(self, rest: tuple[str, ...]) -> str | None:
        if not rest:
            return "which step? Write it out, as in `steps.search.output`"
        id = rest[0]
        if id not in self.everywhere:
            return f"there is no step `{id}`; {did_you_mean(id, self.everywhere)}"
        if id not in self.ended:
            group = self.everywhere[id]
            inside = f"; what is in the group `{group}` stays there" if group else "; list it before this one"
            return f"step `{id}` has not ended by then{inside}"
        if len(rest) < 2:
            return None
        part, step = rest[1], self.ended[id]
        if part not in RECORD:
            return f"`steps.{id}` has no `{part}`; {did_you_mean(part, RECORD)}"
        has = {"exhausted": step.repeat is not None}.get(part, step.model_type == "stt")
        if part in _ONLY and not has:
            return f"`steps.{id}` has no `{part}`: {_ONLY[part]} has"
        return None

    def _wrong_part(self, first: str, rest: tuple[str, ...]) -> str | None:
        parts = RUN if first == "run" else tuple(self.inputs)
        if rest and rest[0] not in parts:
            return f"there is no `{first}.{rest[0]}`; {did_you_mean(rest[0], parts)}"
        return None

"""Which models a daemon is to serve, as they were typed: `[type:][id:]path[?driver=NAME]`, separated by commas.

| typed | means |
| --- | --- |
| `smollm2` | a model under an id of its own making |
| `ranker:tiny.gguf` | a prefix that is a type of the protocol is the type |
| `main:llama7b.gguf` | any other prefix is the id, used as it is |
| `ranker:small:tiny.gguf` | both |
| `a.gguf,a.gguf` | the same file twice: two instances |
| `a\\,b.gguf` | one file with a comma in its name |

A prefix has two characters or more out of `A-Za-z0-9._-` and is not followed by `//`, so `pypi://…` is a source.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from granville.errors import StartupError
from granville.hosting.options import Layer
from granville.models.identity import model_id
from granville.wire.messages import MAX_NAME_CHARS, ModelType

MAX_MODELS = 64
"""In one daemon."""
RESERVED_IDS = ("sessions",)
"""Of folders beside the models' own in `--kv-dir`."""
TYPES: tuple[ModelType, ...] = get_args(ModelType)
_ID = re.compile(r"[A-Za-z0-9._-]{2,}")
_PREFIX = re.compile(rf"({_ID.pattern}):(?!//)")
_DRIVER = re.compile(r"\?driver=([^?&#]*)$")
_COMMA = re.compile(r"(?<!\\),")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model as it was asked for. What was not said is None."""

    ref: str
    """What `parse_ref` takes: a path, a name, a source."""
    type: ModelType | None = None
    id: str | None = None
    driver: str | None = None
    slots: int | None = None
    config: Layer | None = field(default=None, compare=False)
    """Options for its driver, from the manifest."""

    @property
    def text(self) -> str:
        """As `parse_model` takes it."""
        driver = "" if self.driver is None else f"?driver={self.driver}"
        return ":".join(filter(None, (self.type, self.id, self.ref.replace(",", "\\,")))) + driver


def parse_models(texts: Iterable[str]) -> list[Wanted]:
    """All models of a command line, in order. Raises StartupError, which names the part that is wrong."""
    return check_models([parse_model(part) for text in texts for part in _COMMA.split(text)])


def check_models(found: list[Wanted]) -> list[Wanted]:
    """Raises StartupError for more than a daemon serves, or an id that comes twice."""
    if len(found) > MAX_MODELS:
        raise StartupError(f"{len(found)} models; a daemon serves at most {MAX_MODELS}")
    twice = [id for id, count in Counter(one.id for one in found if one.id).items() if count > 1]
    if twice:
        raise StartupError(f"{twice[0]}: two models have this id; give each its own, as in {twice[0]}-2:PATH")
    return found


def parse_model(text: str) -> Wanted:
    """One `[type:][id:]path[?driver=NAME]`. Raises StartupError."""
    ref = text.strip().replace("\\,", ",")
    driver = _DRIVER.search(ref)
    if driver is not None:
        ref = ref[: driver.start()]
        if not driver[1]:
            raise StartupError(f"{text.strip()}: ?driver= needs a name, for example ?driver=granville-llama")
    type: ModelType | None = None
    id: str | None = None
    if (prefix := _PREFIX.match(ref)) and prefix[1] in TYPES:
        type = next(known for known in TYPES if known == prefix[1])
        ref = ref[prefix.end() :]
        prefix = _PREFIX.match(ref)
    if prefix:
        id = prefix[1]
        ref = ref[prefix.end() :]
    if not ref:
        raise StartupError(f"{text.strip() or 'a comma'}: a model is missing; expected [type:][id:]path")
    if id is not None:
        try:
            check_id(id)
        except StartupError as error:
            raise StartupError(f"{text.strip()}: {error.message}; expected [type:][id:]path") from None
    return Wanted(ref, type, id, driver[1] if driver else None)


def check_id(id: str) -> None:
    """Raises StartupError for what cannot be a model's own id."""
    if _ID.fullmatch(id) is None:
        reason = "cannot be an id: two characters or more out of A-Z, a-z, 0-9, dot, underscore and dash"
    elif id in TYPES:
        reason = "is a type, not an id"
    elif id.startswith(".") or id in RESERVED_IDS:
        reason = "cannot be an id: folders are named after them"
    elif len(id) > MAX_NAME_CHARS:
        reason = f"has {len(id)} characters; {MAX_NAME_CHARS} are the most for an id"
    else:
        return
    raise StartupError(f"{id[:80]} {reason}")


def ids(known: Sequence[tuple[Wanted, str, str]], taken: Iterable[str] = ()) -> list[str]:
    """An id for each (wanted, architecture, fingerprint), in order: its own, else one of the file and of how many
    models of this file came before without one. Raises StartupError when an id given belongs to another."""
    used = {wanted.id for wanted, _, _ in known if wanted.id} | set(taken)
    made: list[str] = []
    instances: Counter[str] = Counter()
    for wanted, architecture, fingerprint in known:
        id = wanted.id
        while id is None:
            candidate = model_id(architecture, fingerprint, instances[fingerprint])
            instances[fingerprint] += 1
            id = candidate if candidate not in used else None
        used.add(id)
        made.append(id)
    return made

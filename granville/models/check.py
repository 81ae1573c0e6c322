"""Is a model on this disk still what it should be: its bytes, its head, and the bounds of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import trio

from granville.errors import StartupError
from granville.fetch.progress import Progress, silent
from granville.fetch.verify import forget, remember, remembered, sha256_file
from granville.models.store import ModelFile
from granville.models.tensors import read_model
from granville.models.tuned import read_tuning, tuned_path

Against = Literal["catalogue", "hub", "download", "tuning"]
"""Who says what the hash should be: the catalogue; a model hub, when it was fetched; what it was when it was fetched;
or what it was when tuning made it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One file. It is right when `problem` is None; then, without `against`, only its form could be checked."""

    name: str
    path: str
    sha256: str
    against: Against | None
    problem: str | None


async def verify(file: ModelFile, progress: Progress = silent) -> list[Verdict]:
    """Read a model, and its tuned form if there is one, from the first byte to the last. What is right is remembered,
    so that it is not read again at the next start; what is wrong is no longer taken for verified."""
    assert file.path is not None
    path, old = file.path, remembered(file.path)
    expected: str | None = None
    against: Against | None = None
    if file.entry is not None:
        expected, against = file.entry.sha256, "catalogue"
    elif old is not None:
        expected = old.sha256
        against = "hub" if (old.source or "").startswith("hf://") else "download"
    sha256 = await sha256_file(path, progress)
    problem: str | None = None
    try:
        if file.kind in (None, "gguf"):  # of others nobody here can read more than the bytes
            await trio.to_thread.run_sync(read_model, path)
    except StartupError as error:
        problem = error.message
    if expected is not None and sha256 != expected:
        problem = f"its SHA-256 is {sha256}, {expected} was expected; the file is damaged or another one"
        forget(path)
    elif expected is not None:
        remember(path, sha256)
    found = [Verdict(file.name, str(path), sha256, against, problem)]
    return [*found, *await _verify_tuned(file, progress)]


async def _verify_tuned(file: ModelFile, progress: Progress) -> list[Verdict]:
    assert file.path is not None
    tuned = tuned_path(file.path)
    try:
        tuning = read_tuning(file.path)
        if tuning is None or tuning.tuned is None:
            return []
        sha256 = await sha256_file(tuned, progress)
    except FileNotFoundError:
        return [Verdict(tuned.name, str(tuned), "", "tuning", "it is missing; `granville models tune` makes it")]
    except ValueError as error:
        return [Verdict(tuned.name, str(tuned), "", "tuning", f"what tuning has noted cannot be read: {error}")]
    problem = None
    if sha256 != tuning.tuned.sha256:
        problem = f"its SHA-256 is {sha256}, {tuning.tuned.sha256} was expected; `granville models tune` makes it anew"
    return [Verdict(tuned.name, str(tuned), sha256, "tuning", problem)]

"""Tuning a model: candidates made and measured in turn, the best one put beside the original.

Everything that computes runs in child processes (`hosting.tuner`). What is made lies in one hidden folder beside the
model, which is gone when this ends, however it ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import trio

from granville.errors import StartupError
from granville.fetch.place import require_space, sole_writer
from granville.hosting.interface import Tunable
from granville.hosting.tuner import TuningFailed, run_command
from granville.models.gguf import read_header
from granville.models.identity import fingerprint
from granville.models.tune import (
    BITS,
    DEFAULTS,
    MEMORY_SHARE,
    SEQUENCES,
    Candidate,
    Original,
    Settings,
    Speed,
    Trial,
    TunedFile,
    Tuning,
    beside,
    best_settings,
    candidate_types,
    choose,
    expected_bytes,
    in_pairs,
    loss_percent,
    median_speed,
    perplexity,
    settings_to_try,
    speedup,
    trials_of,
)
from granville.models.tuned import is_tuned_file, sha256, this_machine, tuned_path, tuning_path

TEXT_TOKENS, QUICK_TEXT_TOKENS = 8176, 4088
"""Of the texts that perplexity is measured on: sixteen windows, or eight."""
PREFILL_TOKENS, QUICK_PREFILL_TOKENS = 256, 128
STEPS, QUICK_STEPS = 24, 10
ROUNDS, QUICK_ROUNDS = 3, 2

Report = Callable[[str, float], None]
"""Called with what is being done, and the share of the whole that is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for."""

    quick: bool = False
    max_loss_percent: float = 0.5
    types: tuple[str, ...] = ()
    """Formats to try in place of those that suit the original's."""


@dataclass
class Outcome:
    """What was found. Nothing is kept before `keep`."""

    tuning: Tuning
    path: Path
    made: Path | None
    """The chosen file where it was made; None when the original is the best."""

    async def keep(self) -> None:
        """Put the file and what is known of it beside the original, each in one step; an earlier tuning is replaced.
        Raises StartupError when the folder cannot be written to."""
        try:
            # Between the two steps a tuning and a file that do not match are there: neither is used then.
            await trio.to_thread.run_sync(_keep, self.path, self.made, msgspec.json.encode(self.tuning))
        except OSError as error:
            raise StartupError(f"{self.path.parent}: the tuned model cannot be kept: {error.strerror}") from error


@dataclass
class _Run:
    """A tuning under way. `weights` of `_steps` are shares of the time that it takes, as far as they can be told."""

    path: Path
    driver: Tunable
    wish: Wish
    report: Report
    files: dict[str, Path] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    _done: float = 0.0
    _whole: float = 1.0

    @property
    def _reading(self) -> int:
        """Units of work that a reading of the texts is."""
        return 10 if self.wish.quick else 20

    async def command(self, what: str, weight: float, **command: Any) -> dict[str, Any]:
        """One command of the driver's, of so many units of work."""

        def progress(share: float) -> None:
            self.report(what, min(1.0, (self._done + weight * share) / self._whole))

        progress(0.0)
        try:
            return await run_command(self.driver.tuning_module, command, progress)
        finally:
            self._done += weight

    async def run(self, folder: Path) -> tuple[Candidate, list[Trial]]:
        facts = await self.command("asking the driver", 0, op="describe")
        kinds = self._kinds(facts["types"])
        rounds = QUICK_ROUNDS if self.wish.quick else ROUNDS
        # A unit is about a second for a small model: writing 2, a timing 2, reading 10 or 20, each trial of settings 1.
        settings = settings_to_try(facts["threads"], this_machine().cores, quick=self.wish.quick)
        self._whole = (
            len(kinds) * 2 + (len(kinds) + 1) * (rounds * 2 + self._reading) + len(in_pairs(settings)) * rounds
        )
        for kind in kinds:
            await self._make(kind, folder)
        speeds = await self._time(rounds)
        originals = speeds[self.candidates[0].type]
        base = median_speed(originals)
        for candidate in self.candidates:
            if of_this := speeds.get(candidate.type):
                candidate.speed = beside(of_this, originals, base)
                candidate.speedup = speedup(candidate.speed, base)
        await self._read()
        best = choose(self.candidates, self.wish.max_loss_percent)
        return best, await self._try_settings(best, settings, rounds)

    def _kinds(self, known: Sequence[str]) -> list[str]:
        """What to try; the original is noted as the first candidate. Raises StartupError for a format that the driver
        does not write, and when there is no room for the files."""
        size = self.path.stat().st_size
        header = read_header(self.path)
        own = header.quantization or "?"
        for kind in self.wish.types:
            if kind not in known:
                raise StartupError(f"--types: {self.driver.name} writes {', '.join(known)}, not {kind}")
        kinds = [k for k in dict.fromkeys(self.wish.types) if k != own] if self.wish.types else candidate_types(
            header.quantization, known, quick=self.wish.quick
        )  # fmt: skip
        self.candidates = [Candidate(type=own, size_bytes=size)]
        self.files[own] = self.path
        free = _free_memory()
        fitting = []
        for kind in kinds:
            expected = expected_bytes(size, header.quantization if own in BITS else None, kind)
            if free is not None and expected > MEMORY_SHARE * free:
                problem = f"not tried: about {expected / 1e6:.0f} MB, and {free / 1e6:.0f} MB of memory are free"
                self.candidates.append(Candidate(type=kind, size_bytes=expected, problem=problem))
            else:
                fitting.append((kind, expected))
        require_space(self.path.parent, sum(expected for _, expected in fitting))
        return [kind for kind, _ in fitting]

    async def _make(self, kind: str, folder: Path) -> None:
        target = folder / f"{kind.replace('/', '-')}.part"
        candidate = Candidate(type=kind, size_bytes=0)
        self.candidates.append(candidate)
        try:
            done = await self.command(
                f"writing it as {kind}", 2, op="quantise", source=str(self.path), target=str(target), type=kind
            )
        except TuningFailed as error:
            candidate.problem = error.message
            return
        candidate.size_bytes = done["size_bytes"]
        self.files[kind] = target

    async def _time(self, rounds: int) -> dict[str, list[Speed]]:
        """Every file once a round, so that a machine that is slower for a while is so for all."""
        speeds: dict[str, list[Speed]] = {}
        for number in range(rounds):
            for candidate in self.candidates:
                if candidate.problem is not None:
                    continue
                what = f"timing {candidate.type}, round {number + 1} of {rounds}"
                try:
                    found = await self._speed(what, 2, self.files[candidate.type], [(DEFAULTS, SEQUENCES)])
                except TuningFailed as error:
                    if candidate is self.candidates[0]:
                        raise
                    candidate.problem = error.message
                    speeds.pop(candidate.type, None)
                    continue
                candidate.load_s = min(found["load_s"], candidate.load_s or found["load_s"])
                candidate.memory_bytes = found["memory_bytes"]
                speeds.setdefault(candidate.type, []).append(_speed(found["speeds"][0]))
        return speeds

    async def _read(self) -> None:
        """The perplexity of the original and of what is faster; with `quick` of no more than it takes to choose."""
        original, *others = self.candidates
        faster = sorted(
            (c for c in others if c.problem is None and (c.speedup or 0) > 1), key=lambda c: -(c.speedup or 0)
        )
        theirs: list[float] | None = None
        for candidate in faster if self.wish.quick else [c for c in others if c.problem is None]:
            if theirs is None:
                theirs = await self._losses(original)
                original.perplexity = perplexity(theirs)
            try:
                losses = await self._losses(candidate)
            except TuningFailed as error:
                candidate.problem = error.message
                continue
            candidate.perplexity = perplexity(losses)
            candidate.loss_percent, candidate.loss_error_percent = loss_percent(losses, theirs)
            if self.wish.quick and candidate.loss_percent <= self.wish.max_loss_percent:
                break

    async def _losses(self, candidate: Candidate) -> list[float]:
        what = f"reading a text with {candidate.type}"
        path = str(self.files[candidate.type])
        tokens = QUICK_TEXT_TOKENS if self.wish.quick else TEXT_TOKENS
        found = await self.command(what, self._reading, op="perplexity", path=path, tokens=tokens)
        losses: list[float] = found["losses"]
        return losses

    async def _try_settings(self, best: Candidate, settings: Sequence[Settings], rounds: int) -> list[Trial]:
        """Each of the settings but the first right after that one, once a round."""
        pairs = in_pairs(settings)
        speeds = []
        for number in range(rounds):
            what = f"trying settings, round {number + 1} of {rounds}"
            found = await self._speed(what, len(pairs), self.files[best.type], pairs)
            speeds.append([_speed(one) for one in found["speeds"]])
        return trials_of(settings, speeds)

    async def _speed(
        self, what: str, weight: float, path: Path, settings: Sequence[tuple[Settings, Sequence[int]]]
    ) -> dict[str, Any]:
        """The driver's answer for settings, each with the decodes to time."""
        quick = self.wish.quick
        one_alone = len(settings) == 1
        return await self.command(
            what,
            weight,
            op="speed",
            path=str(path),
            settings=[{**msgspec.to_builtins(one), "sequences": sequences} for one, sequences in settings],
            prefill_tokens=QUICK_PREFILL_TOKENS if quick and one_alone else PREFILL_TOKENS if one_alone else 512,
            steps=QUICK_STEPS if quick else STEPS,
            sequences=SEQUENCES,
        )


async def tune(path: Path, driver: Tunable, wish: Wish, report: Report, decide: Callable[[Outcome], bool]) -> Outcome:
    """Measure a model's file and what it could be written as, and keep the best when `decide` says so. Raises
    StartupError. One tuning of a file at a time: another waits."""
    if is_tuned_file(path):
        raise StartupError(f"{path.name} is a tuned file already; tune the model that it was made from")
    async with sole_writer(tuned_path(path)):
        _sweep(path)
        with _folder(path) as folder:
            run = _Run(path, driver, wish, report)
            best, trials = await run.run(folder)
            made = None if best is run.candidates[0] else run.files[best.type]
            report("done", 1.0)
            print_of, whole = ("", "")
            if made is not None:
                print_of, whole = fingerprint(made), await trio.to_thread.run_sync(sha256, made)
            original = run.candidates[0]
            tuning = Tuning(
                made=datetime.now(UTC).isoformat(timespec="seconds"),
                driver=driver.name,
                backend=driver.backend,
                machine=this_machine(),
                original=Original(path.name, original.type, original.size_bytes, fingerprint(path)),
                tuned=None
                if made is None
                else TunedFile(tuned_path(path).name, best.type, best.size_bytes, print_of, whole),
                settings=best_settings(trials),
                max_loss_percent=wish.max_loss_percent,
                candidates=run.candidates,
                trials=trials,
            )
            outcome = Outcome(tuning, path, made)
            if decide(outcome):
                await outcome.keep()
            return outcome


def _speed(found: dict[str, Any]) -> Speed:
    return msgspec.convert(found, Speed)


def _keep(path: Path, made: Path | None, tuning: bytes) -> None:
    beside = tuning_path(path)
    part = beside.with_name(f".{beside.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(msgspec.json.format(tuning, indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if made is not None:
            with made.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(made, tuned_path(path))
        os.replace(part, beside)
        if made is None:
            tuned_path(path).unlink(missing_ok=True)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    try:
        made = tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent)
    except OSError as error:
        raise StartupError(f"{path.parent}: cannot be written to: {error.strerror}") from error
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _prefix(path: Path) -> str:
    return f".{path.stem}.tuning-"


def _sweep(path: Path) -> None:
    """Folders of tunings that were killed: whoever holds the lock is the only one at work."""
    for entry in path.parent.iterdir():
        if entry.name.startswith(_prefix(path)) and entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)


def _free_memory() -> int | None:
    """Bytes that programs can still get, as the system guesses; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) << 10

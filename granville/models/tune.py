"""What to choose for a model on a machine, from what was measured: the file's format, threads, batch and KV type. Pure.

The same weights in another format are the same model at another speed, because a processor multiplies some formats
much faster than others. Which one is fastest cannot be told without trying, nor what a format loses: both files read a
text, and how well each foresaw it is compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct, field

FORMAT_VERSION = 1
"""Of the file that a tuning is kept in."""
LEAST_GAIN = 1.05
"""A file that is not faster by so much is not worth its place on the disk."""
LEAST_SETTING_GAIN = 1.08
"""Less than this between two settings is what a machine does by itself from one minute to the next."""
SEQUENCES = (1, 4, 8)
"""At once, in the decodes that are timed."""
MEMORY_SHARE = 0.6
"""Of the memory that is free: a candidate whose weights would take more is not tried."""

BITS = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q5_K_S": 5.6, "Q5_1": 6.0,
    "Q5_0": 5.5, "Q4_K_M": 4.9, "Q4_K_S": 4.6, "Q4_1": 5.0, "Q4_0": 4.6, "IQ4_NL": 4.6, "IQ4_XS": 4.3, "Q3_K_L": 4.3,
    "Q3_K_M": 3.9, "Q3_K_S": 3.5, "Q2_K": 3.2,
}  # fmt: skip
"""A weight's, roughly, its block's scale included."""
FEWEST_BITS = 2.0
"""Of a format that is not in the table."""


class Machine(Struct, frozen=True):
    cpu: str
    """As the system names the processor."""
    cores: int
    """That the process may use, hyper-threads too."""


class Settings(Struct, frozen=True):
    """How a model is run. Names are those of the driver's options."""

    threads: int = 0
    """0 is the driver's own choice."""
    batch_tokens: int = 128
    kv_type: str = "f16"


DEFAULTS = Settings()


class Speed(Struct, frozen=True):
    """Tokens a second."""

    prefill: float
    decode: dict[str, float] = field(default_factory=dict)
    """By the number of sequences at once."""


class Trial(Struct, frozen=True):
    """Settings, and how fast the chosen file was with them."""

    settings: Settings
    speed: Speed


class Candidate(Struct, kw_only=True):
    """A file that was measured. The first of a tuning is the original."""

    type: str
    size_bytes: int
    load_s: float | None = None
    memory_bytes: int | None = None
    """The most that a process with eight short sequences had."""
    speed: Speed | None = None
    speedup: float | None = None
    """Against the original: see `speedup`."""
    perplexity: float | None = None
    loss_percent: float | None = None
    """How much higher its perplexity is than the original's; less than nothing is lower."""
    loss_error_percent: float | None = None
    """The standard error of that."""
    problem: str | None = None
    """Why it is out."""


class TunedFile(Struct, frozen=True):
    name: str
    """In the original's folder."""
    type: str
    size_bytes: int
    fingerprint: str
    sha256: str


class Original(Struct, frozen=True):
    name: str
    type: str
    size_bytes: int
    fingerprint: str


class Tuning(Struct, kw_only=True, frozen=True):
    """All that is kept of a tuning, in `<stem>.tuned.json`: what was chosen, and what it holds for."""

    version: int = FORMAT_VERSION
    made: str
    """When, ISO 8601."""
    driver: str
    backend: str
    """Name and version of what computes."""
    machine: Machine
    original: Original
    tuned: TunedFile | None
    """None: the original is the best there is."""
    settings: Settings
    max_loss_percent: float
    candidates: list[Candidate]
    trials: list[Trial]


def candidate_types(quantization: str | None, known: Sequence[str], *, quick: bool = False) -> list[str]:
    """The formats worth trying for a file of one, of those that the driver knows: what a CPU computes well and does not
    lose what the file has, then smaller ones that may. `Q8_0/Q4_1` is Q8_0 with attention's values and output as they
    were."""
    bits = BITS.get(quantization or "", FEWEST_BITS)
    if bits >= BITS["F16"]:
        wanted = ["Q8_0"] if quick else ["Q8_0", "Q6_K", "Q4_0"]
    elif quantization == "Q8_0":
        wanted = ["Q6_K", "Q4_0"]
    else:
        wanted = ["Q8_0", f"Q8_0/{quantization}", *([] if quick else ["Q4_0"])]
    return [kind for kind in wanted if kind in known and kind != quantization]


def expected_bytes(size_bytes: int, quantization: str | None, kind: str) -> int:
    """How large the file will be as `kind`, generously."""
    return int(
        1.1 * size_bytes * BITS.get(kind.partition("/")[0], BITS["Q8_0"]) / BITS.get(quantization or "", FEWEST_BITS)
    )


def median_speed(speeds: Sequence[Speed]) -> Speed:
    """Of the same thing in several rounds, not each of which may have timed every decode."""
    counts = dict.fromkeys(count for speed in speeds for count in speed.decode)
    return Speed(
        statistics.median(speed.prefill for speed in speeds),
        {count: statistics.median(s.decode[count] for s in speeds if count in s.decode) for count in counts},
    )


def beside(speeds: Sequence[Speed], others: Sequence[Speed], base: Speed) -> Speed:
    """What was measured in several rounds, each time right beside one of `others`, as it is where those are as fast as
    `base`. A machine that is a fifth slower for some seconds is so for both: in their ratio it falls out."""
    pairs = list(zip(speeds, others, strict=True))
    return Speed(
        base.prefill * statistics.median(one.prefill / other.prefill for one, other in pairs),
        {
            count: base.decode[count]
            * statistics.median(one.decode[count] / other.decode[count] for one, other in pairs)
            for count in speeds[0].decode
        },
    )


def speedup(speed: Speed, other: Speed) -> float:
    """How many times as fast, all in all: the geometric mean of the ratios, of prefill and of each decode."""
    ratios = [speed.prefill / other.prefill, *(speed.decode[count] / other.decode[count] for count in other.decode)]
    return statistics.geometric_mean(ratios)


def perplexity(losses: Sequence[float]) -> float:
    """e to the mean loss a token."""
    return math.exp(statistics.fmean(losses))


def loss_percent(losses: Sequence[float], original: Sequence[float]) -> tuple[float, float]:
    """How much higher the perplexity is, and the standard error of that, in percent. Token by token, so that what makes
    a text hard for both falls out. Raises ValueError when they are not of the same text."""
    differences = [ours - theirs for ours, theirs in zip(losses, original, strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return 100 * math.expm1(mean), 100 * math.exp(mean) * error


def choose(candidates: Sequence[Candidate], max_loss_percent: float) -> Candidate:
    """The fastest of those that lose no more than they may; the original, which comes first, unless another is worth
    its place. What stands in the way of each other is noted as its problem."""
    original, *others = candidates
    best = original
    for candidate in others:
        candidate.problem = candidate.problem or _problem(candidate, max_loss_percent)
        if candidate.problem is None and _gain(candidate) > _gain(best):
            best = candidate
    return best


def _problem(candidate: Candidate, max_loss_percent: float) -> str | None:
    if _gain(candidate) < LEAST_GAIN:
        return "not faster"
    if candidate.loss_percent is None:
        return "its perplexity was not needed"
    if candidate.loss_percent > max_loss_percent:
        return f"loses more than {max_loss_percent:g} %"
    return None


def _gain(candidate: Candidate) -> float:
    return candidate.speedup or 1.0


def settings_to_try(threads: int, cpus: int, *, quick: bool = False) -> list[Settings]:
    """The defaults, then one thing changed at a time. `threads` is what the driver takes by itself, `cpus` what there
    are. KV types that need flash attention are not tried: with it results depend on what else runs."""
    counts = {1 << power for power in range(cpus.bit_length())} | {cpus}
    tried = [DEFAULTS]
    tried += [Settings(threads=count) for count in sorted(counts - {threads}) if count <= cpus]
    tried += [Settings(batch_tokens=tokens) for tokens in ((256,) if quick else (64, 256, 512))]
    if not quick:
        tried.append(Settings(kv_type="f32"))
    return tried


def in_pairs(settings: Sequence[Settings]) -> list[tuple[Settings, tuple[int, ...]]]:
    """The order in which to time settings in a round, with the decodes to time: the first, which are the defaults,
    before each other. A batch size changes prefill alone, so no decode is timed for it."""
    default, *others = settings
    return [
        (one, SEQUENCES if other.batch_tokens == default.batch_tokens else ())
        for other in others
        for one in (default, other)
    ]


def trials_of(settings: Sequence[Settings], rounds: Sequence[Sequence[Speed]]) -> list[Trial]:
    """Trials out of what was measured in rounds of `in_pairs`."""
    default, *others = settings
    base = median_speed([speed for speeds in rounds for speed in speeds[::2]])
    trials = [Trial(default, base)]
    for number, other in enumerate(others):
        by, own = ([speeds[2 * number + which] for speeds in rounds] for which in (0, 1))
        trials.append(Trial(other, beside(own, by, base)))
    return trials


def best_settings(trials: Sequence[Trial]) -> Settings:
    """Each setting by itself: the best of its trials, the default (the first trial's) unless one is clearly faster."""
    default, *others = trials
    chosen: dict[str, object] = {}
    for name in Settings.__struct_fields__:
        best, gain = getattr(default.settings, name), LEAST_SETTING_GAIN
        for trial in others:
            value = getattr(trial.settings, name)
            if value != getattr(default.settings, name):
                faster = speedup(trial.speed, Speed(default.speed.prefill, _same(default, trial)))
                if faster > gain:
                    best, gain = value, faster
        chosen[name] = best
    return Settings(**chosen)  # type: ignore[arg-type]  # by the names of its own fields


def _same(default: Trial, trial: Trial) -> dict[str, float]:
    """The default's decodes that the trial has too."""
    return {count: rate for count, rate in default.speed.decode.items() if count in trial.speed.decode}


def why_not(tuning: Tuning, fingerprint: str, driver: str, backend: str, machine: Machine) -> str | None:
    """Why a tuning does not hold here: one clause for a log line, or None."""
    if tuning.version != FORMAT_VERSION:
        return f"it is of format {tuning.version}, this Granville reads {FORMAT_VERSION}"
    if tuning.original.fingerprint != fingerprint:
        return "it was made from another file"
    if tuning.driver != driver:
        return f"it is for the driver {tuning.driver}"
    if tuning.backend != backend:
        return f"it was measured with {tuning.backend}, this is {backend}"
    if tuning.machine.cpu != machine.cpu:
        return f"it was measured on {tuning.machine.cpu}, this is {machine.cpu}"
    return None

"""What a tuning chooses, and when one is left aside."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from granville.hosting.interface import Driver, Model, ModelSpec
from granville.models.identity import fingerprint
from granville.models.tune import (
    Candidate,
    Machine,
    Original,
    Settings,
    Speed,
    Trial,
    TunedFile,
    Tuning,
    best_settings,
    candidate_types,
    choose,
    expected_bytes,
    in_pairs,
    loss_percent,
    median_speed,
    settings_to_try,
    speedup,
    trials_of,
)
from granville.models.tuned import is_tuned_file, sha256, this_machine, tuned_path, tuning_path, with_tuning

KNOWN = ("F16", "Q8_0", "Q6_K", "Q4_0", "Q8_0/Q4_1")


class Driven:
    """A driver whose models can be tuned."""

    name, version, backend, tuning_module = "test", "1", "test 1", "nothing"

    def load(self, spec: ModelSpec) -> Model:
        raise NotImplementedError


def candidate(type: str, speedup: float, loss: float | None = None) -> Candidate:
    return Candidate(type=type, size_bytes=1, speedup=speedup, loss_percent=loss)


def test_the_fastest_that_loses_little_is_chosen() -> None:
    all = [candidate("Q4_1", 1), candidate("Q8_0", 1.5, 0.4), candidate("Q6_K", 1.3, 0), candidate("Q4_0", 3, 9)]
    assert choose(all, 0.5).type == "Q8_0"
    assert all[3].problem == "loses more than 0.5 %"
    assert choose([replace_problem(one) for one in all], 10).type == "Q4_0"


def replace_problem(one: Candidate) -> Candidate:
    return candidate(one.type, one.speedup or 1, one.loss_percent)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (candidate("Q8_0", 1.04, 0), "not faster"),
        (candidate("Q8_0", 2, None), "its perplexity was not needed"),
        (Candidate(type="Q8_0", size_bytes=1, speedup=2, loss_percent=0, problem="SIGILL"), "SIGILL"),
    ],
)
def test_the_original_stays_unless_another_is_worth_it(other: Candidate, problem: str) -> None:
    assert choose([candidate("Q4_1", 1), other], 0.5).type == "Q4_1"
    assert other.problem == problem


def test_losses_are_compared_token_by_token() -> None:
    original = [1.0, 5.0, 2.0, 9.0]
    percent, error = loss_percent([loss + 0.01 for loss in original], original)
    assert percent == pytest.approx(100 * math.expm1(0.01))
    assert error == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="longer"):
        loss_percent([1.0], original)


def test_speed_is_the_geometric_mean_of_medians() -> None:
    rounds = [Speed(100, {"1": 10}), Speed(900, {"1": 1}), Speed(200, {"1": 12})]
    middle = median_speed(rounds)
    assert middle == Speed(200, {"1": 10})
    assert speedup(Speed(400, {"1": 5}), middle) == pytest.approx(1.0)


def test_what_is_tried_depends_on_what_the_file_is() -> None:
    assert candidate_types("Q4_1", KNOWN) == ["Q8_0", "Q8_0/Q4_1", "Q4_0"]
    assert candidate_types("Q4_1", KNOWN, quick=True) == ["Q8_0", "Q8_0/Q4_1"]
    assert candidate_types("F16", KNOWN) == ["Q8_0", "Q6_K", "Q4_0"]
    assert candidate_types("Q8_0", KNOWN) == ["Q6_K", "Q4_0"]
    assert candidate_types(None, ("Q8_0",)) == ["Q8_0"]
    assert candidate_types("Q4_0", KNOWN) == ["Q8_0"]


def test_room_is_asked_for_generously() -> None:
    assert expected_bytes(98_362_432, "Q4_1", "Q8_0") > 144_811_072
    assert expected_bytes(100, None, "Q8_0") > 400


def test_one_setting_is_changed_at_a_time() -> None:
    tried = settings_to_try(4, 6)
    assert tried[0] == Settings()
    assert {one.threads for one in tried} == {0, 1, 2, 6}
    for one in tried[1:]:
        assert sum(getattr(one, name) != getattr(Settings(), name) for name in Settings.__struct_fields__) == 1
    assert in_pairs([Settings(), Settings(threads=2), Settings(batch_tokens=256)]) == [
        (Settings(), (1, 4, 8)),
        (Settings(threads=2), (1, 4, 8)),
        (Settings(), ()),
        (Settings(batch_tokens=256), ()),
    ]


def test_a_machine_that_is_slower_for_a_while_does_not_choose() -> None:
    """Twice as slow for the last pair of the first round and the first pair of the second: the ratios stay."""

    def measured(slow: float, prefill: float, decode: float | None) -> Speed:
        return Speed(prefill / slow, {} if decode is None else {"1": decode / slow})

    settings = [Settings(), Settings(threads=1), Settings(batch_tokens=256)]
    rounds = [
        [
            measured(slow[0], 100, 10),
            measured(slow[0], 60, 8),
            measured(slow[1], 100, None),
            measured(slow[1], 90, None),
        ]
        for slow in ((1, 2), (2, 1), (1, 1))
    ]
    default, one_thread, larger = trials_of(settings, rounds)
    assert default == Trial(Settings(), Speed(100, {"1": 10}))
    assert one_thread.speed.prefill == pytest.approx(60)
    assert one_thread.speed.decode["1"] == pytest.approx(8)
    assert larger.speed.prefill == pytest.approx(90)
    assert not larger.speed.decode


def test_a_setting_changes_only_for_a_clear_gain() -> None:
    default = Trial(Settings(), Speed(100, {"1": 10}))
    trials = [
        default,
        Trial(Settings(threads=1), Speed(101, {"1": 10.1})),
        Trial(Settings(batch_tokens=256), Speed(110)),
        Trial(Settings(batch_tokens=512), Speed(120)),
        Trial(Settings(kv_type="f32"), Speed(90, {"1": 11})),
    ]
    assert best_settings(trials) == Settings(batch_tokens=512)
    assert best_settings([default]) == Settings()


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    tuned_path(path).write_bytes(b"GGUF" + bytes(2000))
    return path


def tuning_of(path: Path, **changes: object) -> Tuning:
    tuned = tuned_path(path)
    tuning = Tuning(
        made="2026-01-01",
        driver="test",
        backend="test 1",
        machine=this_machine(),
        original=Original(path.name, "Q4_1", path.stat().st_size, fingerprint(path)),
        tuned=TunedFile(tuned.name, "Q8_0", tuned.stat().st_size, fingerprint(tuned), sha256(tuned)),
        settings=Settings(threads=3, batch_tokens=256),
        max_loss_percent=0.5,
        candidates=[],
        trials=[],
    )
    return msgspec.structs.replace(tuning, **changes)


def keep(path: Path, tuning: Tuning) -> None:
    tuning_path(path).write_bytes(msgspec.json.encode(tuning))


def spec_of(path: Path, driver: Driver | None = None, **fields: object) -> ModelSpec:
    return with_tuning(replace(ModelSpec(path), **fields), driver or Driven())  # type: ignore[arg-type]  # by name


def test_a_tuning_that_holds_is_used(original: Path) -> None:
    assert spec_of(original) == ModelSpec(original), "there is none yet"
    keep(original, tuning_of(original))
    spec = spec_of(original)
    assert (spec.path, spec.fingerprint) == (tuned_path(original), fingerprint(tuned_path(original)))
    assert spec.options == {"most_threads": 3, "batch_tokens": 256}
    assert is_tuned_file(tuned_path(original))
    assert not is_tuned_file(original)


def test_what_the_user_sets_stays(original: Path) -> None:
    keep(original, tuning_of(original))
    assert spec_of(original, threads=1, options={"batch_tokens": 64}).options == {"batch_tokens": 64}
    assert spec_of(original, type="embedding").path == original


def test_settings_without_a_file(original: Path) -> None:
    keep(original, tuning_of(original, tuned=None, settings=Settings(kv_type="f32")))
    assert spec_of(original) == replace(ModelSpec(original), options={"kv_type": "f32"})


def test_threads_hold_for_as_many_cores(original: Path) -> None:
    machine = this_machine()
    keep(original, tuning_of(original, machine=Machine(machine.cpu, machine.cores + 1)))
    assert spec_of(original).options == {"batch_tokens": 256}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "of format 2"),
        ({"driver": "other"}, "for the driver other"),
        ({"backend": "test 0"}, "measured with test 0, this is test 1"),
        ({"machine": Machine("Z80", 1)}, "measured on Z80"),
        ({"original": Original("model.gguf", "Q4_1", 1, "00")}, "from another file"),
        ({"tuned": TunedFile("../other.gguf", "Q8_0", 1, "00", "00")}, "names the file ../other.gguf"),
    ],
)
def test_a_tuning_that_does_not_hold_is_left_aside(
    original: Path, changes: dict[str, object], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(original, tuning_of(original, **changes))
    refused(original, says, caplog)


def refused(original: Path, says: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert spec_of(original) == ModelSpec(original)
    (record,) = caplog.records
    assert says in record.getMessage()
    assert "granville models tune" in record.getMessage()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(1999)), "not the file that was made"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(1999) + b"x"), "not the file that was made"),
    ],
)
def test_a_damaged_file_is_refused(original: Path, damage: object, says: str, caplog: pytest.LogCaptureFixture) -> None:
    keep(original, tuning_of(original))
    damage(tuned_path(original))  # type: ignore[operator]
    refused(original, says, caplog)


def test_damage_between_the_blocks_of_the_fingerprint_is_seen(original: Path, caplog: pytest.LogCaptureFixture) -> None:
    tuned = tuned_path(original)
    tuned.write_bytes(bytes(4 << 20))
    keep(original, tuning_of(original))
    before = fingerprint(tuned)
    with tuned.open("r+b") as file:
        file.seek((1 << 20) + 40_000)
        file.write(b"x")
    assert fingerprint(tuned) == before
    refused(original, "damaged", caplog)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"version": 1}', b"\xff"])
def test_what_is_no_tuning_is_left_aside(original: Path, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    tuning_path(original).write_bytes(text)
    refused(original, "cannot be read", caplog)

"""The promotion gate: equal models stay out, better ones get in, thin evidence is refused."""

from __future__ import annotations

import numpy as np
import pytest

from core.promotion import NotPromotedError, Verdict, decide

Samples = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def two_models(rng: np.random.Generator, *, units: int = 150, rows: int = 6, gain: float = 0.0) -> Samples:
    """Champion, challenger, target, unit. Each unit is easy or hard for each model as a whole, as cards are."""
    unit = np.repeat(np.arange(units), rows)
    target = np.repeat(rng.random(units) < 0.4, rows) & (rng.random(units * rows) < 0.5)
    luck = [np.repeat(rng.normal(size=units), rows) + 0.3 * rng.normal(size=units * rows) for _ in range(2)]
    return target * 1.5 + luck[0], target * (1.5 + gain) + luck[1], target, unit


@pytest.mark.parametrize("metric", ["ap", "auc"])
def test_an_equal_model_is_promoted_about_one_time_in_twenty(metric: str) -> None:
    rng = np.random.default_rng(0)
    verdicts = [decide(*two_models(rng), metric=metric, replicates=150, seed=i) for i in range(150)]  # type: ignore[arg-type]
    promoted = np.mean([v.promote for v in verdicts])
    higher = np.mean([v.difference > 0 for v in verdicts])
    assert promoted <= 0.08  # 5 % and two standard errors of 150 draws
    assert 0.35 < higher < 0.65, "the ungated rule promotes an equal model every second time"


def test_the_same_model_is_never_promoted() -> None:
    champion, _, target, unit = two_models(np.random.default_rng(1))
    verdict = decide(champion, champion, target, unit, replicates=50)
    assert (verdict.promote, verdict.difference, verdict.low) == (False, 0.0, 0.0)
    assert "does not exceed" in verdict.reasons[0]


@pytest.mark.parametrize("metric", ["ap", "auc"])
def test_a_clearly_better_model_is_promoted(metric: str) -> None:
    rng = np.random.default_rng(2)
    verdicts = [decide(*two_models(rng, gain=1.2), metric=metric, replicates=150, seed=i) for i in range(20)]  # type: ignore[arg-type]
    assert sum(v.promote for v in verdicts) >= 19
    assert all(v.low < v.difference < v.high for v in verdicts)


def test_a_clearly_worse_model_is_not_promoted() -> None:
    champion, challenger, target, unit = two_models(np.random.default_rng(3), gain=1.5)
    assert not decide(challenger, champion, target, unit, replicates=150).promote


def test_a_gain_below_the_minimum_is_not_enough() -> None:
    samples = two_models(np.random.default_rng(4), gain=1.2)
    gained = decide(*samples, replicates=300)
    assert gained.promote
    refused = decide(*samples, replicates=300, minimum_gain=gained.difference)
    assert not refused.promote
    assert refused.difference == gained.difference


def test_lower_brier_score_is_better() -> None:
    _, _, target, unit = two_models(np.random.default_rng(5))
    good, bad = np.where(target, 0.8, 0.1), np.where(target, 0.6, 0.3)
    up, down = (decide(a, b, target, unit, metric="brier", replicates=100) for a, b in ((bad, good), (good, bad)))
    assert up.promote
    assert up.low > 0.0
    assert not down.promote
    assert down.difference == pytest.approx(-up.difference)


def test_a_callable_metric_takes_any_target() -> None:
    rng = np.random.default_rng(6)
    hours, unit = rng.exponential(100.0, 600), np.repeat(np.arange(60), 10)

    def minus_rmse(target_N: np.ndarray, score_N: np.ndarray, weight_N: np.ndarray) -> float:
        return -float(np.sqrt(np.average((target_N - score_N) ** 2, weights=weight_N)))

    rough, fine = hours + rng.normal(0, 30, 600), hours + rng.normal(0, 15, 600)
    verdict = decide(rough, fine, hours, unit, metric=minus_rmse, replicates=200)
    assert verdict.promote
    assert "minus_rmse: gain +1" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("units", "kind"), [(29, "29 units with a positive"), (31, "1 units with a negative")], ids=["positive", "negative"]
)
def test_thin_evidence_is_refused_with_a_reason(units: int, kind: str) -> None:
    unit = np.repeat(np.arange(200 if units == 29 else 31), 2)
    target = unit < (29 if units == 29 else 30)
    verdict = decide(np.zeros(len(unit)), target.astype(float), target, unit)
    assert not verdict.promote
    assert f"too little evidence: {kind}, at least 30" in verdict.reasons[0]
    assert np.isnan(verdict.low)


def test_many_rows_of_few_units_are_few() -> None:
    rng = np.random.default_rng(7)
    target = rng.random(5000) < 0.3
    verdict = decide(rng.normal(size=5000), target + rng.normal(size=5000), target, np.arange(5000) % 10)
    assert not verdict.promote
    assert (verdict.units, verdict.positive_units) == (10, 10)


def test_integer_targets_and_text_units_mean_the_same() -> None:
    champion, challenger, target, unit = two_models(np.random.default_rng(8), gain=0.8)
    plain = decide(champion, challenger, target, unit, replicates=50)
    names = np.array([f"card {u:04d}" for u in unit])
    assert decide(champion, challenger, target.astype(np.int8), names, replicates=50) == plain


def test_nonsense_is_refused_by_name() -> None:
    champion, challenger, target, unit = two_models(np.random.default_rng(9))
    with pytest.raises(ValueError, match="others"):
        decide(champion, challenger, np.where(target, 1, -1), unit)
    with pytest.raises(ValueError, match=r"finite. Received: 1 "):
        decide(np.append(champion[1:], np.nan), challenger, target, unit)
    with pytest.raises(ValueError, match=r"\(900,\), \(899,\)"):
        decide(champion, challenger[1:], target, unit)
    with pytest.raises(ValueError, match=r"confidence=0\.4"):
        decide(champion, challenger, target, unit, confidence=0.4)
    with pytest.raises(ValueError, match="minimum_gain=-1"):
        decide(champion, challenger, target, unit, minimum_gain=-1.0)


def test_a_refusal_has_exit_code_three() -> None:
    assert NotPromotedError("x").exit_code == 3
    assert Verdict(False, ("x",), 0.0, 0.0, 0.0, 1, 1).reasons == ("x",)

"""Monthly retraining: signatures correct the probabilities, only when newer studies agree, and keep what is shown."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from scipy.special import expit

from pipelines.defs import medical_imaging
from pipelines.resources import VarResource
from solutions.medical_imaging import operate
from solutions.medical_imaging.exports.writer import export
from solutions.medical_imaging.gate import open_series
from solutions.medical_imaging.models import CALIBRATION, Models
from solutions.medical_imaging.phantom import Phantom
from solutions.medical_imaging.retraining import Retrained, Signed, read_signed, retrain, save_challenger
from solutions.medical_imaging.signing import Signature, sign
from tests.solutions.medical_imaging.examples import truth_detection


def signed(studies: int, *, shift: float, slope: float = 1.0, seed: int = 0) -> Signed:
    """Two nodules a study whose true logit is slope * what was said + shift."""
    rng = np.random.default_rng(seed)
    said = rng.normal(0.5, 1.5, 2 * studies)
    truth = rng.random(2 * studies) < expit(slope * said + shift)
    return Signed(np.repeat([f"s{i:04d}" for i in range(studies)], 2), expit(said), truth)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models.load()


def test_over_confidence_is_taken_out_and_what_is_shown_stays(models: Models) -> None:
    made = retrain(models, signed(400, shift=-2.0))
    assert isinstance(made, Retrained)
    assert made.verdict.promote
    assert made.metrics["ece_after"] < 0.5 * made.metrics["ece_before"]
    before, after = models.calibration, made.calibration
    evidence = np.random.default_rng(0).normal(0.0, 2.0, (300, len(before.nodule) - 1))
    first, second = expit(before.nodule_logit(evidence)), expit(after.nodule_logit(evidence))
    assert np.array_equal(np.argsort(first), np.argsort(second))
    for name in ("show", "sure"):
        assert np.array_equal(first >= getattr(before, name), second >= getattr(after, name))
    assert second.mean() < first.mean()


def test_probabilities_that_were_right_are_not_replaced(models: Models) -> None:
    promoted = [retrain(models, signed(150, shift=0.0, seed=s)).verdict.promote for s in range(8)]  # type: ignore[union-attr]
    assert sum(promoted) <= 1


@pytest.mark.parametrize(
    ("case", "why"),
    [(Signed(np.array(["a", "b"]), np.array([0.5, 0.6]), np.array([True, True])), "both accepted and rejected")],
)
def test_too_little_is_said(models: Models, case: Signed, why: str) -> None:
    assert why in str(retrain(models, case))


def test_signatures_against_the_ranking_change_nothing(models: Models) -> None:
    assert "contradict the ranking" in str(retrain(models, signed(200, shift=0.0, slope=-1.0)))


def test_few_studies_do_not_pass_the_gate(models: Models) -> None:
    made = retrain(models, signed(20, shift=-2.0))
    assert isinstance(made, Retrained)
    assert not made.verdict.promote
    assert "too little evidence" in made.verdict.reasons[0]


def test_the_last_word_on_every_nodule_is_read_from_reviews_of_the_same_model(
    series_dir: Path, fine_phantom: Phantom, tmp_path: Path
) -> None:
    series = open_series(series_dir)
    detection = truth_detection(fine_phantom, series)
    export(series, detection, tmp_path / "one")
    for action in ("accept", "reject"):
        sign(tmp_path / "one", Signature(1, action, "seen", "reader", {}))  # type: ignore[arg-type]
    found = read_signed([tmp_path / "one", tmp_path / "none"], detection.model_digest[:16])
    assert found.is_nodule_N.tolist() == [False]
    assert found.probability_N[0] == pytest.approx(detection.nodules[0].confidence, abs=1e-3)
    assert len(read_signed([tmp_path / "one"], "another")) == 0


def test_the_monthly_job_promotes_and_the_next_review_uses_it(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VIGIL_VAR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    var = VarResource(path=str(tmp_path / "var"))
    monkeypatch.setattr("solutions.medical_imaging.retraining.read_signed", lambda *_: signed(300, shift=-2.0))
    assets = [medical_imaging.imaging_challenger, medical_imaging.imaging_gate, medical_imaging.imaging_champion]
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(assets, resources={"var": var}, instance=instance)
        assert done.success
        var.tracker().close(done.run_id)
        weights, name = operate.serving_weights(var.tracker())
        assert name.endswith("/1")
        assert Models.load(weights).digest != models.digest
        monkeypatch.setattr("solutions.medical_imaging.retraining.read_signed", lambda *_: signed(2, shift=0.0))
        dg.materialize(assets, resources={"var": var}, instance=instance)
        assert operate.serving_weights(var.tracker())[1] == name


def test_a_kill_while_saving_leaves_no_half_model(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = retrain(models, signed(400, shift=-2.0))
    assert isinstance(made, Retrained)
    monkeypatch.setattr(
        "solutions.medical_imaging.retraining.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        save_challenger(made, operate.WEIGHTS, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    monkeypatch.undo()
    save_challenger(made, operate.WEIGHTS, tmp_path / "m")
    assert (tmp_path / "m" / CALIBRATION).is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]

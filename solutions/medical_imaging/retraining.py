"""Monthly retraining from signatures: what clinicians accepted and rejected corrects the probabilities of the detector.

Outlines and ranking stay as they were trained; slope and shift of the nodule's logit are learnt from the older signed studies
and judged on the newer ones. N signed nodules.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from core.calibration import Platt, expected_calibration_error
from core.promotion import Verdict, decide
from core.tracking import Tracker
from solutions.medical_imaging.exports.writer import complete
from solutions.medical_imaging.models import BOOSTED, CALIBRATION, CONTEXT, NETWORK, Calibration, Models
from solutions.medical_imaging.signing import labels

MODEL_NAME = "medical_imaging"
CARD = "card.json"
LEARNT_SHARE = 0.7  # of the signed studies, the older ones; the others judge
LEAST_PERCENT = 0.05  # probabilities are reported to a tenth of a percent
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Signed:
    """Nodules on which a clinician had the last word, in the order of their studies' signatures.

    Args:
        probability_N: that the review gave. study_N: pseudonymous keys.
    """

    study_N: NDArray[Any]
    probability_N: F64
    is_nodule_N: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.study_N)


def read_signed(folders: Sequence[Path], model: str) -> Signed:
    """Signed nodules of the finished reviews that this model, by the first digits of its digest, made."""
    rows = []
    for folder in folders:
        found = complete(folder)
        if found is None or found["model_digest"] != model:
            continue
        by_uid = {n["tracking_uid"]: n["confidence_percent"] for n in found["nodules"]}
        rows += [
            (label["time"], found["study_key"], by_uid[label["tracking_uid"]] / 100.0, label["is_nodule"])
            for label in labels(folder)
        ]
    rows.sort()
    least = LEAST_PERCENT / 100.0
    return Signed(
        np.array([r[1] for r in rows]),
        np.clip(np.array([r[2] for r in rows], np.float64), least, 1.0 - least),
        np.array([r[3] for r in rows], bool),
    )


@dataclass(frozen=True)
class Retrained:
    """A corrected calibration, and whether it may serve."""

    calibration: Calibration
    verdict: Verdict
    metrics: dict[str, float]


def retrain(models: Models, signed: Signed) -> Retrained | str:
    """Learn from the older studies, judge on the newer; a text says why there is nothing to learn.

    A study is on one side only. What was shown is still shown, and in the same order: thresholds move with the probabilities.
    """
    studies = list(dict.fromkeys(signed.study_N.tolist()))
    older = np.isin(signed.study_N, studies[: int(LEARNT_SHARE * len(studies))])
    if len(np.unique(signed.is_nodule_N[older])) < 2:
        return f"{len(studies)} signed studies: both accepted and rejected nodules are needed"
    said = logit(signed.probability_N)
    platt = Platt.fit(said[older], signed.is_nodule_N[older])
    if platt.slope <= 0.0:
        return "the signatures contradict the ranking: a recalibration can not mend it"
    champion, challenger = expit(said[~older]), platt(said[~older])
    truth = signed.is_nodule_N[~older].astype(int)
    verdict = decide(champion, challenger, truth, signed.study_N[~older], metric="brier")
    metrics = {
        "signed": float(len(signed)),
        "accepted_share": float(signed.is_nodule_N.mean()),
        "brier_before": float(np.mean((champion - truth) ** 2)),
        "brier_after": float(np.mean((challenger - truth) ** 2)),
        "ece_before": float(expected_calibration_error(champion, truth)),
        "ece_after": float(expected_calibration_error(challenger, truth)),
    }
    return Retrained(corrected(models.calibration, platt), verdict, metrics)


def corrected(c: Calibration, platt: Platt) -> Calibration:
    """With the nodule's logit, and the thresholds on it, moved."""
    show, sure = (float(np.clip(platt(logit(p)), 1e-6, 1.0 - 1e-6)) for p in (c.show, c.sure))
    *weights, shift = c.nodule
    moved = (*(platt.slope * w for w in weights), platt.slope * shift + platt.intercept)
    return replace(c, nodule=moved, show=show, sure=max(show, sure))  # type: ignore[arg-type]


def save_challenger(made: Retrained, champion: Path, out: Path) -> None:
    """A model folder with the corrected calibration and its evaluation card; moved into place at the end."""
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name in (BOOSTED, NETWORK, CONTEXT):
        shutil.copyfile(champion / name, beside / name)
    made.calibration.save(beside / CALIBRATION)
    card = {"promote": made.verdict.promote, "reasons": list(made.verdict.reasons), **made.metrics}
    (beside / CARD).write_text(json.dumps(card, indent=1) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)


def register_champion(tracker: Tracker, run_id: str, folder: Path, fingerprint: str) -> int:
    """Register a model folder and make it the champion."""
    signature = {"inputs": ["ct_series"], "outputs": ["segmentation", "report", "findings"]}
    version = tracker.register(run_id, folder, MODEL_NAME, signature=signature, fingerprint=fingerprint)
    tracker.promote(MODEL_NAME, version)
    return version

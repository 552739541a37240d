"""What the shipped models are worth on patients that they have not seen; about one CPU-minute.

    python -m benchmarks.imaging_quality

Rows: the shipped models; the response of the Laplacian of Gaussian; ranking by size; the one complete scan that was held
out, which gives counts, not rates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from benchmarks.common import CACHE, RESULTS, Clock, data
from core.calibration import expected_calibration_error
from core.results import Results, bootstrap_interval, measured, sha256_file, summarise
from solutions.medical_imaging.candidates import laplacian
from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.data import LidcData, RealScan, load_scan
from solutions.medical_imaging.detect import MOST_LOOKED_AT, second_stage
from solutions.medical_imaging.froc import RATES, Reference, ScanResult, Scored, bootstrap_froc, match
from solutions.medical_imaging.insertion import GRID_MM, insert, make_patch
from solutions.medical_imaging.lidc import Nodule
from solutions.medical_imaging.models import Models
from solutions.medical_imaging.training import (
    HELD_OUT_SCAN,
    Placed,
    false_candidates,
    nodules_of,
    place_nodules,
)

CROPS = "ct/lidc_nodule_crops/nodules.csv"
INSERTED, PER_SCAN = 3, 10
LEAST_READERS, LEAST_MM = 3, 3.0  # LUNA16's reference: nodules from 3 mm, marked by 3 of 4 readers
Metrics = dict[str, dict[str, float]]


def main() -> None:
    path, say, models = data(CROPS), Clock(), Models.load()
    lidc = LidcData.find(path.parents[2])
    with measured() as cost:
        lung = load_scan(lidc, HELD_OUT_SCAN, CACHE)
        false = false_candidates(lung)
        say("held-out lung read")
        held = nodules_of(lidc, "test")
        placed = place_nodules(held, [lung], 0)
        say(f"{len(held)} held-out nodules placed")
        shipped = segmentation(placed) | ratings(models, placed, false)
        by_size: Metrics = {"malignancy_auc": size_auc(placed)}
        found = inserted(models, lung, held)
        say(f"{INSERTED} scans with inserted nodules rated")
        rows: list[dict[str, Any]] = [
            {"model": "shipped", "source": "measured", "metrics": shipped | rates(found["shipped"])},
            {"model": "log_response", "source": "measured", "metrics": rates(found["log_response"])},
            {"model": "size", "source": "measured", "metrics": by_size},
        ]
        rows.append({"model": f"real_{HELD_OUT_SCAN}", "source": "measured", "metrics": real(models, lung)})
    results = Results(
        task="medical_imaging",
        protocol="lidc_held_out",
        data={"name": "LIDC-IDRI crops, one held-out scan", "sha256": sha256_file(path), "rows": len(held)},
        seeds=[0],
        champion="shipped",
        cost=cost,
        rows=rows,
        extra={"inserted_scans": INSERTED, "per_scan": PER_SCAN, "model_digest": models.digest[:16]},
    )
    results.print()
    results.write(RESULTS / "imaging_quality.json")


def segmentation(placed: list[Placed]) -> Metrics:
    """Median Dice with the readers' consensus, and the median relative error of the volume."""
    dice = np.array([p.dice for p in placed])
    ratio = np.log([max(p.found, 0.5) / p.true for p in placed])
    patient = np.array([p.patient for p in placed])
    bias = {key: float(np.expm1(value)) for key, value in median(ratio, patient).items()}
    return {"dice": median(dice, patient), "volume_bias": bias}


def median(value_N: NDArray[Any], patient_N: NDArray[Any]) -> dict[str, float]:
    """With 95 % bootstrap bounds over patients."""
    rng = np.random.default_rng(0)
    groups = [value_N[patient_N == p] for p in np.unique(patient_N)]
    drawn = [
        np.median(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))])) for _ in range(1000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(np.median(value_N)), "low": float(low), "high": float(high)}


def ratings(models: Models, placed: list[Placed], false_NF: NDArray[Any]) -> Metrics:
    """Nodule or not, against the false candidates of the held-out lung; malignancy as readers rate it."""
    c = models.calibration
    output = models.second.outputs(np.stack([p.feature_F for p in placed]))
    score = np.concatenate([output[:, 0], models.second.outputs(false_NF)[:, 0]])
    is_nodule = np.repeat([1, 0], [len(placed), len(false_NF)])
    patient = np.array([p.patient for p in placed])
    unit = np.unique(np.concatenate([patient, [f"false {i}" for i in range(len(false_NF))]]), return_inverse=True)[1]
    nodule = bootstrap_interval("auc", is_nodule, score, unit)
    target = np.array([p.target_H[1] for p in placed])
    known = np.isfinite(target)
    malignant, probability = (
        target[known].astype(int),
        expit(c.malignancy_scale * output[known, 1] + c.malignancy_shift),
    )
    auc = bootstrap_interval("auc", malignant, logit(np.clip(probability, 1e-6, 1 - 1e-6)), _unit(patient[known]))
    silent = (probability > c.abstain_low) & (probability < c.abstain_high)
    wrong = (probability >= 0.5) != (malignant > 0)
    return {
        "candidate_auc": summarise([nodule.mean], nodule),
        "malignancy_auc": summarise([auc.mean], auc),
        "ece": {"mean": float(expected_calibration_error(probability, malignant))},
        "abstained": {"mean": float(silent.mean())},
        "errors_removed": {"mean": float((wrong & silent).sum() / max(int(wrong.sum()), 1))},
    }


def size_auc(placed: list[Placed]) -> dict[str, float]:
    known = [p for p in placed if np.isfinite(p.target_H[1])]
    auc = bootstrap_interval(
        "auc",
        np.array([int(p.target_H[1]) for p in known]),
        np.log([p.true for p in known]),
        _unit(np.array([p.patient for p in known])),
    )
    return summarise([auc.mean], auc)


def _unit(patient_N: NDArray[Any]) -> NDArray[Any]:
    return np.unique(patient_N, return_inverse=True)[1]


def inserted(models: Models, lung: RealScan, held: list[Nodule]) -> dict[str, list[ScanResult]]:
    """LUNA16's rule on copies of the held-out lung, each with other held-out nodules."""
    fit = [n for n in held if n.readers >= LEAST_READERS and n.diameter_mm >= LEAST_MM]
    order = np.random.default_rng(0).permutation(len(fit))[: INSERTED * PER_SCAN].reshape(INSERTED, PER_SCAN)
    avoid = [(round(z), round(y), round(x)) for z, y, x in lung.avoid()]
    excluded = [_reference(c, 10.0) for c in lung.avoid()]
    found: dict[str, list[ScanResult]] = {"shipped": [], "log_response": []}
    for seed, picked in enumerate(order):
        patches = [make_patch(fit[i], context="nodule") for i in picked]
        scan = insert(lung.crop.hu_ZYX, lung.crop.lung_ZYX, patches, seed, avoid=avoid)
        crop = LungCrop(scan.hu_ZYX, lung.crop.lung_ZYX, lung.crop.geometry)
        truth = [_reference(c, d) for c, d in zip(scan.centres, scan.diameters_mm, strict=True)]
        candidates = laplacian(crop)[:MOST_LOOKED_AT]
        rated = second_stage(models, crop, candidates)
        found["shipped"].append(match([Scored(_mm(r.candidate.centre), r.logit) for r in rated], truth, excluded))
        found["log_response"].append(match([Scored(_mm(c.centre), c.score) for c in candidates], truth, excluded))
    return found


def _mm(centre: Any) -> tuple[float, float, float]:
    z, y, x = (float(v) * GRID_MM for v in centre)
    return z, y, x


def _reference(centre: Any, diameter: float) -> Reference:
    return Reference(_mm(centre), diameter)


def rates(results: list[ScanResult]) -> Metrics:
    curve = bootstrap_froc(results)
    reached = np.concatenate([np.isfinite(r.hits_R) for r in results])
    return {
        "cpm": {"mean": curve.estimate.cpm, "low": curve.cpm_low, "high": curve.cpm_high},
        "sensitivity_1fp": {"mean": curve.estimate.at_one, "low": curve.at_one_low, "high": curve.at_one_high},
        "candidate_recall": {"mean": float(reached.mean())},
        "nodules": {"mean": float(len(reached))},
    }


def real(models: Models, scan: RealScan) -> Metrics:
    """Nodules of LUNA16 in the complete scan: how many are candidates, and how many are found at some rates."""
    rated = second_stage(models, scan.crop, laplacian(scan.crop)[:MOST_LOOKED_AT])
    position = scan.crop.geometry.to_patient([r.candidate.centre for r in rated])
    scored = [Scored((float(x), float(y), float(z)), r.logit) for (x, y, z), r in zip(position, rated, strict=True)]
    result = match(scored, scan.nodules, scan.excluded)
    before = [int((result.false_N >= hit).sum()) for hit in result.hits_R if np.isfinite(hit)]
    counts = {"nodules": len(scan.nodules), "candidates": len(before)}
    counts |= {f"found_at_{rate:g}_fp": sum(b <= rate for b in before) for rate in RATES if rate >= 1}
    return {name: {"mean": float(value)} for name, value in counts.items()}


if __name__ == "__main__":
    main()

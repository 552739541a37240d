"""`vigil imaging evaluate`: what models are worth on patients that they have not seen.

Rows: the shipped models (candidates, then network and boosting fused); the network's outline alone, boosting alone, and the
response of the Laplacian of Gaussian, on the same candidates; ranking by size; the complete scans, which give counts, not
rates; the cost of a study beside nnU-Net's network.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit

from core.calibration import expected_calibration_error
from core.results import Results, bootstrap_interval, measured, sha256_file, summarise
from solutions.medical_imaging.candidates import laplacian
from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.cubes import M
from solutions.medical_imaging.data import LidcData, RealScan, load_scan
from solutions.medical_imaging.detect import MOST_LOOKED_AT, Rated, detect, second_stage
from solutions.medical_imaging.froc import RATES, Reference, ScanResult, Scored, bootstrap_froc, match
from solutions.medical_imaging.gate import open_series
from solutions.medical_imaging.insertion import GRID_MM, insert, make_patch
from solutions.medical_imaging.lidc import Nodule
from solutions.medical_imaging.models import Models
from solutions.medical_imaging.training import (
    HELD_OUT_SCAN,
    TRAINING_SCANS,
    Views,
    false_places,
    nodules_of,
    opinions,
    view,
)

INSERTED, PER_SCAN = 12, 10
LEAST_READERS, LEAST_MM = 3, 3.0  # LUNA16's reference: nodules from 3 mm, marked by 3 of 4 readers
WINDOW, TIMED_WINDOWS = 128, 2  # of nnU-Net's network
Metrics = dict[str, dict[str, float]]
# how candidates are ranked
ROWS: dict[str, Callable[[Rated], float]] = {
    "shipped": lambda r: r.logit,
    "network_outline": lambda r: _top(r),
    "boosting": lambda r: float(r.boosted_H[0]),
}


def evaluate(lidc: LidcData, models: Models, cache: Path, say: Callable[[str], None]) -> Results:
    """All rows, on the LIDC crops of the test patients and on complete scans.

    Args:
        cache: where the lungs of the complete scans are kept between calls.
    """
    torch.set_num_threads(1)
    with measured() as cost:
        lung = load_scan(lidc, HELD_OUT_SCAN, cache)
        false = opinions(models.second, models.network, lung, false_places(lung))
        say("held-out lung read")
        held = nodules_of(lidc, "test")
        views = view(models.second, models.network, held, [lung], 0)
        say(f"{len(held)} held-out nodules placed")
        shipped = segmentation(views, models.calibration.outline_level) | ratings(models, views, false)
        found = inserted(models, lung, held)
        say(f"{INSERTED} scans with inserted nodules rated")
        rows: list[dict[str, Any]] = [
            {
                "model": name,
                "source": "measured",
                "metrics": (shipped if name == "shipped" else {}) | rates(found[name]),
            }
            for name in (*ROWS, "log_response")
        ]
        rows.append({"model": "size", "source": "measured", "metrics": {"malignancy_auc": size_auc(views)}})
        for name in (HELD_OUT_SCAN, *TRAINING_SCANS):
            scan = load_scan(lidc, name, cache)
            rows.append({"model": f"real_{name}", "source": "measured", "metrics": real(models, scan)})
        say("real scans counted")
        rows += seconds(models, lidc)
    return Results(
        task="medical_imaging",
        protocol="lidc_held_out",
        data={
            "name": "LIDC-IDRI crops, one held-out scan",
            "sha256": sha256_file(lidc.crops / "nodules.csv"),
            "rows": len(held),
        },
        seeds=[0],
        champion="shipped",
        cost=cost,
        rows=rows,
        extra={"inserted_scans": INSERTED, "per_scan": PER_SCAN, "model_digest": models.digest[:16]},
    )


def seconds(models: Models, lidc: LidcData) -> list[dict[str, Any]]:
    """CPU-seconds of a whole study, and of nnU-Net's network over the same volume: a few windows, times their number."""
    from monai.networks.nets.dynunet import DynUNet

    with tempfile.TemporaryDirectory() as scratch:
        folder = lidc.unpack(HELD_OUT_SCAN, Path(scratch))
        began = time.process_time()
        series = open_series(folder)
        detect(series, models)
        ours = time.process_time() - began
    shape = np.asarray(series.volume.hu_ZYX.shape)
    kernels, strides = [3] * 6, [1, 2, 2, 2, 2, 2]
    theirs = DynUNet(3, 1, 2, kernels, strides, strides[1:], filters=[32, 64, 128, 256, 320, 320]).eval()
    window = torch.zeros(1, 1, WINDOW, WINDOW, WINDOW)
    with torch.inference_mode():
        theirs(window)
        began = time.process_time()
        for _ in range(TIMED_WINDOWS):
            theirs(window)
    each = (time.process_time() - began) / TIMED_WINDOWS
    windows = int(
        np.prod(np.ceil(np.maximum(shape - WINDOW, 0) / (WINDOW / 2)) + 1)
    )  # half overlapping, as is its default
    return [
        {
            "model": "study",
            "source": "measured",
            "metrics": {"cpu_seconds": {"mean": ours}, "of_dynunet": {"mean": ours / (each * windows)}},
        },
        {
            "model": "dynunet",
            "source": "measured",
            "metrics": {"cpu_seconds": {"mean": each * windows}, "windows": {"mean": float(windows)}},
        },
    ]


def _top(rated: Rated) -> float:
    """How sure the outline is of its surest voxels near the middle."""
    near = slice(M // 2 - 4, M // 2 + 4)
    return float(np.sort(rated.map_MMM[near, near, near], axis=None)[-27:].mean())


def segmentation(views: Views, level: float) -> Metrics:
    """Median Dice with the readers' consensus, and the median relative error of the volume."""
    ratio = np.log(np.maximum(views.volumes(level), 1.0) / views.true_volumes)
    bias = {key: float(np.expm1(value)) for key, value in median(ratio, views.patient_N).items()}
    return {"dice": median(views.dice(level), views.patient_N), "volume_bias": bias}


def median(value_N: NDArray[Any], patient_N: NDArray[Any]) -> dict[str, float]:
    """With 95 % bootstrap bounds over patients."""
    rng = np.random.default_rng(0)
    groups = [value_N[patient_N == p] for p in np.unique(patient_N)]
    drawn = [
        np.median(np.concatenate([groups[g] for g in rng.integers(len(groups), size=len(groups))])) for _ in range(1000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(np.median(value_N)), "low": float(low), "high": float(high)}


def ratings(models: Models, views: Views, false: tuple[NDArray[Any], NDArray[Any]]) -> Metrics:
    """Nodule or not, against the false candidates of the held-out lung; malignancy as readers rate it."""
    c = models.calibration
    score = np.concatenate([c.nodule_logit(b[:, 0], n[:, 0]) for b, n in ((views.boosted_NH, views.network_NH), false)])
    is_nodule = np.repeat([1, 0], [len(views.patient_N), len(false[0])])
    names = [*views.patient_N, *[f"false {i}" for i in range(len(false[0]))]]
    nodule = bootstrap_interval("auc", is_nodule, score, _unit(np.array(names)))
    known = np.isfinite(views.target_NH[:, 1])
    malignant = views.target_NH[known, 1].astype(int)
    volume = views.volumes(c.outline_level)
    probability = c.malignancy_probability(views.boosted_NH[:, 1], views.network_NH[:, 1], volume)[known]
    auc = bootstrap_interval(
        "auc", malignant, logit(np.clip(probability, 1e-6, 1 - 1e-6)), _unit(views.patient_N[known])
    )
    silent = (probability > c.abstain_low) & (probability < c.abstain_high)
    wrong = (probability >= 0.5) != (malignant > 0)
    return {
        "candidate_auc": summarise([nodule.mean], nodule),
        "malignancy_auc": summarise([auc.mean], auc),
        "ece": {"mean": float(expected_calibration_error(probability, malignant))},
        "abstained": {"mean": float(silent.mean())},
        "errors_removed": {"mean": float((wrong & silent).sum() / max(int(wrong.sum()), 1))},
    }


def size_auc(views: Views) -> dict[str, float]:
    """By the readers' own volumes."""
    known = np.isfinite(views.target_NH[:, 1])
    auc = bootstrap_interval(
        "auc",
        views.target_NH[known, 1].astype(int),
        np.log(views.true_volumes[known]),
        _unit(views.patient_N[known]),
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
    found: dict[str, list[ScanResult]] = {name: [] for name in (*ROWS, "log_response")}
    for seed, picked in enumerate(order):
        patches = [make_patch(fit[i], context="nodule") for i in picked]
        scan = insert(lung.crop.hu_ZYX, lung.crop.lung_ZYX, patches, seed, avoid=avoid)
        crop = LungCrop(scan.hu_ZYX, lung.crop.lung_ZYX, lung.crop.geometry)
        truth = [_reference(c, d) for c, d in zip(scan.centres, scan.diameters_mm, strict=True)]
        candidates = laplacian(crop)[:MOST_LOOKED_AT]
        rated = second_stage(models, crop, candidates)
        for name, score in ROWS.items():
            found[name].append(match([Scored(_mm(r.candidate.centre), score(r)) for r in rated], truth, excluded))
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

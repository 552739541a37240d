"""`vigil imaging evaluate`: what models are worth on patients that they have not seen.

Rows: the shipped models (candidates, then network and boosting fused); one piece of their evidence alone, on the same
candidates; the U-Net alone, over the whole lungs; the plain Laplacian of Gaussian; a threshold; ranking by size; the complete
scans, which give counts, not rates; the cost of a study beside nnU-Net's network.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from core.calibration import expected_calibration_error
from core.results import Results, bootstrap_interval, measured, sha256_file, summarise
from solutions.medical_imaging.calibrating import Views, malignancy_columns, texture_of, view
from solutions.medical_imaging.candidates import Candidate, blobs
from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.data import LidcData, RealScan, load_scan
from solutions.medical_imaging.detect import MOST_LOOKED_AT, Rated, detect, second_stage
from solutions.medical_imaging.examples import HEADS
from solutions.medical_imaging.froc import RATES, Reference, ScanResult, Scored, bootstrap_froc, match
from solutions.medical_imaging.gate import open_series
from solutions.medical_imaging.heat import heat_map, peaks
from solutions.medical_imaging.insertion import GRID_MM, insert, make_patch
from solutions.medical_imaging.lidc import Nodule
from solutions.medical_imaging.models import Models
from solutions.medical_imaging.placing import CLEAR_MM, nodules_of
from solutions.medical_imaging.texture import FIRM, SOFT
from solutions.medical_imaging.training import HELD_OUT_SCAN, TRAINING_SCANS

INSERTED, PER_SCAN = 12, 10
LEAST_READERS, LEAST_MM = 3, 3.0  # LUNA16's reference: nodules from 3 mm, marked by 3 of 4 readers
WINDOW, TIMED_WINDOWS = 128, 2  # of nnU-Net's network
Metrics = dict[str, dict[str, float]]
# how candidates are ranked
ROWS: dict[str, Callable[[Rated], float]] = {
    "shipped": lambda r: r.logit,
    "network_outline": lambda r: r.outline_logit,
    "network_rating": lambda r: float(r.network_H[0]),
    "boosting": lambda r: float(r.boosted_H[0]),
    "blob_response": lambda r: r.candidate.score,
}
# what does without the second stage: candidates of its own, ranked by their score
ALONE: dict[str, Callable[[Models, LungCrop], list[Candidate]]] = {
    "unet_alone": lambda models, crop: peaks(heat_map(models.network, crop)),
    "log_response": lambda _, crop: blobs(crop, roundness=False),
    "threshold": lambda _, crop: bright_components(crop),
}
BRIGHT_HU = -400.0
# head -> name, and which of its targets, (rating - 3) / 2 or a logit's 0 and 1, count as marked: from the middle rating on
TRAITS: dict[int, tuple[str, Callable[[NDArray[Any]], NDArray[Any]]]] = {
    HEADS.index("texture"): ("not_solid", lambda target_N: target_N <= 0.0),
    HEADS.index("spiculation"): ("spiculated", lambda target_N: target_N >= 0.0),
    HEADS.index("lobulation"): ("lobulated", lambda target_N: target_N >= 0.0),
    HEADS.index("calcified"): ("calcified", lambda target_N: target_N > 0.5),
}


def evaluate(lidc: LidcData, models: Models, cache: Path, say: Callable[[str], None]) -> Results:
    """All rows, on the LIDC crops of the test patients and on complete scans.

    Args:
        cache: where the lungs of the complete scans are kept between calls.
    """
    torch.set_num_threads(1)
    with measured() as cost:
        lung = load_scan(lidc, HELD_OUT_SCAN, cache)
        say("held-out lung read")
        held = nodules_of(lidc, "test")
        views = view(models.second, models.network, held, [lung], 0)
        say(f"{len(held)} held-out nodules placed")
        shipped = segmentation(views, models.calibration.outline_level) | ratings(models, views)
        shipped |= textures(models, held)
        found = inserted(models, lung, held)
        say(f"{INSERTED} scans with inserted nodules rated")
        rows: list[dict[str, Any]] = [
            {
                "model": name,
                "source": "measured",
                "metrics": (shipped if name == "shipped" else {}) | rates(found[name]),
            }
            for name in (*ROWS, *ALONE)
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


def ratings(models: Models, views: Views) -> Metrics:
    """Malignancy as readers rate it, with the calibration error that perfect probabilities would show by chance; the traits."""
    c = models.calibration
    known = np.isfinite(views.target_NH[:, 1])
    malignant = views.target_NH[known, 1].astype(int)
    probability = c.malignancy_probability(malignancy_columns(views, c.outline_level))[known]
    auc = bootstrap_interval(
        "auc", malignant, logit(np.clip(probability, 1e-6, 1 - 1e-6)), _unit(views.patient_N[known])
    )
    silent = (probability > c.abstain_low) & (probability < c.abstain_high)
    wrong = (probability >= 0.5) != (malignant > 0)
    rng = np.random.default_rng(0)
    chance = [expected_calibration_error(probability, rng.random(len(probability)) < probability) for _ in range(200)]
    return {
        "malignancy_auc": summarise([auc.mean], auc),
        "ece": {"mean": float(expected_calibration_error(probability, malignant))},
        "ece_by_chance": {"mean": float(np.mean(chance)), "high": float(np.quantile(chance, 0.95))},
        "abstained": {"mean": float(silent.mean())},
        "errors_removed": {"mean": float((wrong & silent).sum() / max(int(wrong.sum()), 1))},
    } | traits(views)


def traits(views: Views) -> Metrics:
    """How well marked spiculation and lobulation, soft texture and calcium are told from their absence."""
    found: Metrics = {}
    for i, (name, marked) in TRAITS.items():
        wanted = views.target_NH[:, i]
        known = np.isfinite(wanted)
        said = (views.boosted_NH[known, i] + views.network_NH[known, i]) / 2.0
        sign = -1.0 if name == "not_solid" else 1.0
        auc = bootstrap_interval("auc", marked(wanted[known]).astype(int), sign * said, _unit(views.patient_N[known]))
        found[f"{name}_auc"] = summarise([auc.mean], auc)
    return found


def textures(models: Models, held: list[Nodule]) -> Metrics:
    """How well the rule tells soft nodules, within the readers' outline, and how many of each kind it calls by name."""
    rule = models.calibration.texture
    bright, diameter, rating = texture_of(held)
    patient = _unit(np.array([n.patient for n in held if n.traits["texture"] > 0]))
    auc = bootstrap_interval("auc", (rating <= 3.0).astype(int), -rule.firmness(bright, diameter), patient)
    called = np.array([rule(b, d) for b, d in zip(bright, diameter, strict=True)])
    kinds = {"ground_glass": rating < SOFT, "part_solid": (rating >= SOFT) & (rating < FIRM), "solid": rating >= FIRM}
    recall = {
        f"{name}_recall": {"mean": float((called[kind] == name.replace("_", "-")).mean())}
        for name, kind in kinds.items()
    }
    return {"not_solid_by_density_auc": summarise([auc.mean], auc)} | recall


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


@dataclass(frozen=True)
class Copy:
    """A copy of a lung with nodules inserted, and all its candidates after the second stage."""

    crop: LungCrop
    truth: list[Reference]
    excluded: list[Reference]
    rated: list[Rated]


def rated_copies(models: Models, lung: RealScan, held: list[Nodule]) -> Iterator[Copy]:
    """Copies of the held-out lung, each with other held-out nodules."""
    fit = [n for n in held if n.readers >= LEAST_READERS and n.diameter_mm >= LEAST_MM]
    order = np.random.default_rng(0).permutation(len(fit))[: INSERTED * PER_SCAN].reshape(INSERTED, PER_SCAN)
    avoid = [(round(z), round(y), round(x)) for z, y, x in lung.avoid()]
    excluded = [_reference(lung.crop, c, 10.0) for c in lung.avoid()]
    for seed, picked in enumerate(order):
        patches = [make_patch(fit[i], context="nodule") for i in picked]
        scan = insert(lung.crop.hu_ZYX, lung.crop.lung_ZYX, patches, seed, avoid=avoid)
        crop = LungCrop(scan.hu_ZYX, lung.crop.lung_ZYX, lung.crop.geometry)
        truth = [_reference(crop, c, d) for c, d in zip(scan.centres, scan.diameters_mm, strict=True)]
        yield Copy(crop, truth, excluded, second_stage(models, crop, blobs(crop)[:MOST_LOOKED_AT]))


def inserted(models: Models, lung: RealScan, held: list[Nodule]) -> dict[str, list[ScanResult]]:
    """LUNA16's rule on all copies, for every way of ranking."""
    found: dict[str, list[ScanResult]] = {name: [] for name in (*ROWS, *ALONE)}
    for copy in rated_copies(models, lung, held):
        for name, score in ROWS.items():
            scored = [Scored(r.position, score(r)) for r in copy.rated]
            found[name].append(match(scored, copy.truth, copy.excluded))
        for name, places in ALONE.items():
            scored = [Scored(_mm(copy.crop, c.centre), c.score) for c in places(models, copy.crop)]
            found[name].append(match(scored, copy.truth, copy.excluded))
    return found


def bright_components(crop: LungCrop) -> list[Candidate]:
    """The plainest detector: connected voxels of soft tissue within the lungs, the largest ball-like ones first."""
    from scipy import ndimage

    labels, count = ndimage.label((crop.hu_ZYX > BRIGHT_HU) & crop.lung_ZYX)
    voxels = np.bincount(labels.ravel(), minlength=count + 1)
    kept = np.flatnonzero(voxels >= 8)
    kept = kept[kept > 0]
    boxes = ndimage.find_objects(labels)
    centres = ndimage.center_of_mass(labels > 0, labels, kept) if len(kept) else []
    found = []
    for label, centre in zip(kept, centres, strict=True):
        sides = [p.stop - p.start for p in boxes[int(label) - 1]]
        diameter = float((6.0 * voxels[label] / np.pi) ** (1 / 3))
        z, y, x = (float(v) for v in centre)
        found.append(Candidate((z, y, x), diameter / max(sides), diameter * GRID_MM))
    return found


def _mm(crop: LungCrop, centre: Any) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in crop.geometry.to_patient([centre])[0])
    return x, y, z


def _reference(crop: LungCrop, centre: Any, diameter: float) -> Reference:
    return Reference(_mm(crop, centre), diameter)


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
    rated = second_stage(models, scan.crop, blobs(scan.crop)[:MOST_LOOKED_AT])
    result = match([Scored(r.position, r.logit) for r in rated], scan.nodules, scan.excluded)
    before = [int((result.false_N >= hit).sum()) for hit in result.hits_R if np.isfinite(hit)]
    counts = {"nodules": len(scan.nodules), "candidates": len(before)}
    counts |= {f"found_at_{rate:g}_fp": sum(b <= rate for b in before) for rate in RATES if rate >= 1}
    marked = [np.asarray(r.position) for r in (*scan.nodules, *scan.excluded)]
    counts["called_nodule_elsewhere"] = sum(
        expit(r.logit) >= models.calibration.sure
        and all(np.linalg.norm(np.subtract(r.position, place)) > CLEAR_MM for place in marked)
        for r in rated
    )
    return {name: {"mean": float(value)} for name, value in counts.items()}

"""What request and record add to the image: simulated words on real nodules of held-out patients; some minutes of one core.

    python -m benchmarks.imaging_context [SEEDS]

LUNA16's rule on the copies of the held-out lung that `imaging_quality` uses, ranked by the image alone, with a request that an
earlier reader might have written (missed, misplaced and gone nodules included), with the request of another scan. Log loss on
scans with as many nodules as in LUNA16, with request, with record (whose influence is assumed), with both. Seeds draw words.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.common import CACHE, RESULTS, Clock, data
from core.results import Results, measured, sha256_file, summarise
from solutions.medical_imaging.context import Batch, Known, Seen
from solutions.medical_imaging.context_training import Pool, draw, write_request
from solutions.medical_imaging.data import LidcData, load_scan
from solutions.medical_imaging.detect import seen_of
from solutions.medical_imaging.evaluate import Copy, rated_copies, rates
from solutions.medical_imaging.froc import ScanResult, Scored, match
from solutions.medical_imaging.models import Models
from solutions.medical_imaging.placing import nodules_of
from solutions.medical_imaging.rules import Person
from solutions.medical_imaging.text import extract
from solutions.medical_imaging.training import HELD_OUT_SCAN

NATURAL = 1_000  # scans with as many nodules as in LUNA16
ARMS = {"image_only": (), "with_request": ("request",), "with_record": ("person",), "with_both": ("request", "person")}


def words(copy: Copy, rng: np.random.Generator) -> Known:
    """What an earlier reader might have said of the nodules of a copy."""
    truth = [Seen(0.0, r.diameter_mm, *copy.crop.place(r.position)) for r in copy.truth]
    return Known(extract(write_request(truth, rng), past=True))


def ranked(copy: Copy, seen: list[Seen], models: Models, known: Known) -> ScanResult:
    shift_N = models.context.shifts(seen, known)
    scored = [Scored(r.position, r.logit + s) for r, s in zip(copy.rated, shift_N, strict=True)]
    return match(scored, copy.truth, copy.excluded)


def pool_of(copies: list[Copy], seen: list[list[Seen]]) -> Pool:
    """Nodules that are candidates, and what is none in the first copy."""
    nodules, false = [], []
    for i, (copy, candidates) in enumerate(zip(copies, seen, strict=True)):
        for r, s in zip(copy.rated, candidates, strict=True):
            distance = [float(np.linalg.norm(np.subtract(r.position, t.position))) for t in copy.truth]
            if any(d < t.diameter_mm / 2.0 for d, t in zip(distance, copy.truth, strict=True)):
                nodules.append(s)
            elif i == 0 and all(np.linalg.norm(np.subtract(r.position, e.position)) > 15.0 for e in copy.excluded):
                false.append(s)
    return Pool(tuple(nodules), tuple(false))


def kept(known: Known, parts: tuple[str, ...]) -> Known:
    """The same with everything else absent."""
    known = known if "request" in parts else replace(known, request=None)
    return known if "person" in parts else replace(known, person=Person())


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    path, say = data("ct/lidc_nodule_crops/nodules.csv"), Clock()
    lidc, models = LidcData.find(path.parents[2]), Models.load()
    with measured() as cost:
        lung, held = load_scan(lidc, HELD_OUT_SCAN, CACHE), nodules_of(lidc, "test")
        copies = list(rated_copies(models, lung, held))
        seen = [seen_of(copy.rated, copy.crop) for copy in copies]
        say(f"{len(copies)} copies rated")
        image = rates([ranked(c, s, models, Known()) for c, s in zip(copies, seen, strict=True)])
        found: dict[str, dict[str, list[float]]] = {name: {} for name in (*ARMS, "with_request_of_another_scan")}
        pool = pool_of(copies, seen)
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            told = [words(copy, rng) for copy in copies]
            for name, requests in (("with_request", told), ("with_request_of_another_scan", [*told[1:], told[0]])):
                by_rule = rates([ranked(c, s, models, k) for c, s, k in zip(copies, seen, requests, strict=True)])
                for metric in ("cpm", "sensitivity_1fp"):
                    found[name].setdefault(metric, []).append(by_rule[metric]["mean"])
            pairs, target_N = draw([pool], NATURAL, seed)
            logit_N = np.array([s.logit for s, _ in pairs])
            for name, parts in ARMS.items():
                with torch.inference_mode():
                    shift_N = models.context(Batch.of([(s, kept(k, parts)) for s, k in pairs])).numpy()
                logit = logit_N + shift_N
                loss = (np.logaddexp(0.0, logit) - target_N * logit).sum() / NATURAL
                found[name].setdefault("log_loss_per_scan", []).append(float(loss))
            say(f"seed {seed}: {found}")
    rows: list[dict[str, Any]] = [
        {"model": name, "source": "measured", "metrics": {m: summarise(v) for m, v in metrics.items()}}
        for name, metrics in found.items()
    ]
    rows[0]["metrics"] |= {m: image[m] for m in ("cpm", "sensitivity_1fp")}
    results = Results(
        task="medical_imaging",
        protocol="simulated_context",
        data={
            "name": "LIDC-IDRI crops, one held-out scan; simulated words",
            "sha256": sha256_file(path),
            "rows": len(held),
        },
        seeds=list(range(seeds)),
        champion="with_request",
        cost=cost,
        rows=rows,
        extra={
            "natural_scans": NATURAL,
            "nodules": len(pool.nodules),
            "false": len(pool.false),
            "model_digest": models.digest[:16],
        },
    )
    results.print()
    results.write(RESULTS / "imaging_context.json")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

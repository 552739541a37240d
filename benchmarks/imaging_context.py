"""What request and record add to the image: simulated words on real nodules of held-out patients; some minutes of one core.

    python -m benchmarks.imaging_context [SEEDS]

Nodules and other candidates are those of `imaging_quality`, rated in copies of the held-out lung. Scans with as many nodules as
in LUNA16 are drawn from them, with a request that an earlier reader might have written (missed, misplaced and gone nodules
included) and a record, whose influence is assumed. Control: the request of another scan. Seeds draw scans and words.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import CACHE, RESULTS, Clock, data
from core.results import Results, measured, sha256_file, summarise
from solutions.medical_imaging.context import Batch, Known, Seen
from solutions.medical_imaging.context_training import Pool, draw
from solutions.medical_imaging.data import LidcData, load_scan
from solutions.medical_imaging.detect import seen_of
from solutions.medical_imaging.evaluate import Copy, rated_copies
from solutions.medical_imaging.froc import ScanResult, froc
from solutions.medical_imaging.models import Models
from solutions.medical_imaging.placing import CLEAR_MM, nodules_of
from solutions.medical_imaging.rules import Person
from solutions.medical_imaging.training import HELD_OUT_SCAN

SCANS = 1_000
# what is known of a scan
ARMS = {"image_only": (), "with_request": ("request",), "with_record": ("person",), "with_both": ("request", "person")}
OTHERS = "with_request_of_another_scan"


def pool_of(copies: list[Copy], seen: list[list[Seen]]) -> Pool:
    """Nodules that are candidates, and what is none in the first copy."""
    nodules, false = [], []
    for i, (copy, candidates) in enumerate(zip(copies, seen, strict=True)):
        for r, s in zip(copy.rated, candidates, strict=True):
            if any(math.dist(r.position, t.position) < t.diameter_mm / 2.0 for t in copy.truth):
                nodules.append(s)
            elif i == 0 and all(math.dist(r.position, f.position) > CLEAR_MM for f in (*copy.truth, *copy.excluded)):
                false.append(s)
    return Pool(tuple(nodules), tuple(false))


def kept(known: Known, parts: tuple[str, ...]) -> Known:
    """The same with everything else absent."""
    known = known if "request" in parts else replace(known, request=None)
    return known if "person" in parts else replace(known, person=Person())


def requests_of_others(knowns: list[Known]) -> list[Known]:
    """Each scan gets the request of the next one."""
    scans = list({id(k): k for k in knowns}.values())
    following = {id(k): replace(n, person=Person()) for k, n in zip(scans, [*scans[1:], scans[0]], strict=True)}
    return [following[id(k)] for k in knowns]


def measure(shift_N: NDArray[Any], logit_N: NDArray[Any], target_N: NDArray[Any]) -> dict[str, float]:
    joined_N = logit_N + shift_N
    nothing = ScanResult(np.zeros(0), np.zeros(0))
    curve = froc([ScanResult(joined_N[target_N == 1], joined_N[target_N == 0]), *[nothing] * (SCANS - 1)])
    loss = float((np.logaddexp(0.0, joined_N) - target_N * joined_N).sum() / SCANS)
    return {"cpm": curve.cpm, "sensitivity_1fp": curve.at_one, "log_loss_per_scan": loss}


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    path, say = data("ct/lidc_nodule_crops/nodules.csv"), Clock()
    lidc, models = LidcData.find(path.parents[2]), Models.load()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*ARMS, OTHERS)}
    with measured() as cost:
        lung, held = load_scan(lidc, HELD_OUT_SCAN, CACHE), nodules_of(lidc, "test")
        copies = list(rated_copies(models, lung, held))
        pool = pool_of(copies, [seen_of(copy.rated, copy.crop) for copy in copies])
        say(f"{len(pool.nodules)} nodules and {len(pool.false)} other candidates rated")
        for seed in range(seeds):
            pairs, target_N = draw([pool], SCANS, seed)
            seen, knowns = [s for s, _ in pairs], [k for _, k in pairs]
            logit_N = np.array([s.logit for s in seen])
            told = {name: [kept(k, parts) for k in knowns] for name, parts in ARMS.items()}
            for name, given in (told | {OTHERS: requests_of_others(knowns)}).items():
                with torch.inference_mode():
                    shift_N = models.context(Batch.of(list(zip(seen, given, strict=True)))).numpy()
                found[name].append(measure(shift_N, logit_N, target_N))
                say(f"seed {seed}, {name}: {found[name][-1]}")
    rows = [
        {"model": name, "source": "measured", "metrics": {m: summarise([v[m] for v in values]) for m in values[0]}}
        for name, values in found.items()
    ]
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
        extra={"scans": SCANS, "nodules": len(pool.nodules), "false": len(pool.false)},
    )
    results.print()
    results.write(RESULTS / "imaging_context.json")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

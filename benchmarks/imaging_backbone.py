"""What the shared backbone brings at the bottleneck of the nodule network; about fifteen CPU-minutes.

    python -m benchmarks.imaging_backbone [SEEDS]

Short trainings of the same length, data and seeds: with the mixture of experts, with its dense control of equal active width,
and without a backbone. Trained on one lung, judged on another with nodules of validation patients: test patients are not
looked at.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import CACHE, RESULTS, Clock, data
from core.moe import load_report
from core.results import Results, bootstrap_interval, measured, sha256_file, summarise
from solutions.medical_imaging.data import LidcData, load_scan
from solutions.medical_imaging.looking import look
from solutions.medical_imaging.network import NetworkSettings, NoduleNet
from solutions.medical_imaging.network_training import NoduleSource, to_batch, train_network
from solutions.medical_imaging.placing import false_places, nodules_of, target_array
from solutions.medical_imaging.training import TRAINING_SCANS

EPOCHS = 5
TRAINED_ON = 400
WHOLE = NetworkSettings()
assert WHOLE.backbone is not None
ARMS = {
    "moe": WHOLE,
    "dense": replace(WHOLE, backbone=replace(WHOLE.backbone, moe=False)),
    "plain_unet": replace(WHOLE, backbone=None),
}


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    path, say = data("ct/lidc_nodule_crops/nodules.csv"), Clock()
    lidc = LidcData.find(path.parents[2])
    with measured() as cost:
        lungs = [load_scan(lidc, name, CACHE) for name in TRAINING_SCANS]
        seen, held = (false_places(lung) for lung in lungs)
        train, validation = nodules_of(lidc, "train", TRAINED_ON), nodules_of(lidc, "validation")
        source = NoduleSource(train, target_array(train), lungs[:1], [(0, c) for c in seen])
        judged = NoduleSource(validation, target_array(validation), lungs[1:], [(0, c) for c in held])
        rng = np.random.default_rng(0)
        nodules = [judged.nodule(i, rng, plain=True) for i in range(len(validation))]
        none = [judged.none(i, rng, plain=True) for i in range(len(held))]
        found: dict[str, dict[str, list[float]]] = {}
        for name, settings in ARMS.items():
            for seed in range(seeds):
                net = train_network(source, settings, epochs=EPOCHS, seed=seed, half=True, say=lambda _: None)
                for metric, value in judge(net, nodules, none).items():
                    found.setdefault(name, {}).setdefault(metric, []).append(value)
                say(f"{name}, seed {seed + 1} of {seeds}: {found[name]['dice'][-1]:.3f}")
    rows: list[dict[str, Any]] = [
        {"model": name, "source": "measured", "metrics": {k: summarise(v) for k, v in metrics.items()}}
        for name, metrics in found.items()
    ]
    results = Results(
        task="medical_imaging",
        protocol="lidc_validation",
        data={"name": "LIDC-IDRI crops", "sha256": sha256_file(path), "rows": len(validation)},
        seeds=list(range(seeds)),
        champion="moe",
        cost=cost,
        rows=rows,
    )
    results.print()
    results.write(RESULTS / "imaging_backbone.json")


def judge(net: NoduleNet, nodules: list[Any], none: list[Any]) -> dict[str, float]:
    """Median Dice at the best of some levels, how well nodules are told from other candidates, use of the experts."""
    maps, rating = look(net, nodules)
    _, other = look(net, none)
    truth = np.stack([s.mask_MMM for s in nodules]) > 0
    is_nodule = np.repeat([1, 0], [len(nodules), len(none)])
    score = np.concatenate([rating[:, 0], other[:, 0]])
    auc = bootstrap_interval("auc", is_nodule, score, np.arange(len(score)), replicates=1)
    figures = {"dice": max(_dice(maps >= t, truth) for t in (0.3, 0.4, 0.5)), "candidate_auc": auc.mean}
    return figures | ({"utilisation": utilisation(net, nodules)} if net.backbone and net.backbone.settings.moe else {})


def _dice(found: NDArray[Any], truth: NDArray[Any]) -> float:
    both = (found & truth).sum((1, 2, 3))
    return float(np.median(2.0 * both / np.maximum(found.sum((1, 2, 3)) + truth.sum((1, 2, 3)), 1)))


def utilisation(net: NoduleNet, nodules: list[Any]) -> float:
    """Mean over largest load of the experts, averaged over layers."""
    assert net.backbone is not None
    loads: list[torch.Tensor] = []
    hook = net.backbone.register_forward_hook(lambda _, __, out: loads.append(torch.stack(list(out.loads))))
    with torch.inference_mode():
        for begin in range(0, len(nodules), 16):
            x, step, _, _ = to_batch(nodules[begin : begin + 16])
            net(x, step)
    hook.remove()
    total = torch.stack(loads).sum(0)
    return float(np.mean([load_report(layer).utilisation for layer in total]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)

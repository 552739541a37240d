"""Making of the shipped models: boosting and a network, on candidates of two real lungs and on real nodules placed in them.

Everything is split by patient: the third lung and the test patients stay out. Besides the shipped pair two more pairs are
trained, each on one lung and half of the training patients: what they say of the other lung and the other half calibrates.
N examples, F features, H heads.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.calibrating import Unseen, calibrate, texture_of, unseen, view, weigh
from solutions.medical_imaging.context_training import fit_context
from solutions.medical_imaging.data import LidcData, load_scan
from solutions.medical_imaging.examples import HEADS
from solutions.medical_imaging.models import BOOSTED, CALIBRATION, CONTEXT, NETWORK, load_network, save_network
from solutions.medical_imaging.network import NetworkSettings
from solutions.medical_imaging.placing import Placed, false_places, features_at, nodules_of, place_nodules, target_array
from solutions.medical_imaging.texture import fit_texture

F32 = NDArray[np.float32]
Say = Callable[[str], None]
TRAINING_SCANS, HELD_OUT_SCAN = ("0002", "0003"), "0001"
TRAINED_ON = 400  # nodules of a boosted rater: a random choice of its patients'
EPOCHS, CONTEXT_EPOCHS = 10, 2  # of a network, and of those behind the context


def fit_rater(placed: Sequence[Placed], false: Sequence[F32], seed: int = 0) -> BoostedRater:
    """Nodules against the false candidates of some lungs."""
    negative = np.concatenate(false)
    unknown = np.full((len(negative), len(HEADS)), np.nan, np.float32)
    unknown[:, 0] = 0.0
    feature = np.concatenate([np.stack([p.feature_F for p in placed]), negative])
    return BoostedRater.fit(feature, np.concatenate([np.stack([p.target_H for p in placed]), unknown]), seed=seed)


def half_of(patient: str) -> int:
    """0 or 1, by a hash of the patient that the split does not use."""
    return hashlib.sha256(f"half {patient}".encode()).digest()[0] % 2


def build(data: Path, out: Path, cache: Path, *, processes: int = 2, seed: int = 0, say: Say = print) -> None:
    """Train, calibrate and write the files of a model folder.

    Args:
        cache: where the lungs of the complete scans are kept between calls, and the cross-fitted pairs.
        processes: trainings at a time, one thread each; the result does not depend on it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lidc = LidcData.find(data)
    for name in TRAINING_SCANS:
        load_scan(lidc, name, cache)
    say("lungs read")
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        whole = pool.submit(train_pair, data, out, cache, None, seed)
        halves = [pool.submit(judge_half, data, cache, half, seed) for half in range(len(TRAINING_SCANS))]
        parts = []
        for half in halves:
            parts.append(half.result())
            say(f"cross-fitted pair {len(parts)} of {len(halves)}")
        whole.result()
    say("shipped pair trained")
    rater, network = BoostedRater.load(out / BOOSTED), load_network(out / NETWORK)
    lungs = [load_scan(lidc, name, cache) for name in TRAINING_SCANS]
    views = view(rater, network, nodules_of(lidc, "validation"), lungs, seed + 1)
    texture = fit_texture(*texture_of(nodules_of(lidc, "train")))
    calibration = calibrate(views, parts, texture)
    calibration.save(out / CALIBRATION)
    say(f"calibrated: {calibration}")
    build_context(data, out, cache, processes=processes, seed=seed, say=say)


def build_context(data: Path, out: Path, cache: Path, *, processes: int = 2, seed: int = 0, say: Say = print) -> None:
    """Fit what joins the image with text and record, and write its file.

    The pairs behind it are trained shortly: what words are worth does not depend on how much the image says, as long as its
    probabilities are right, and these pairs are weighed for themselves.
    """
    lidc = LidcData.find(data)
    for name in TRAINING_SCANS:
        load_scan(lidc, name, cache)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        halves = [pool.submit(judge_half, data, cache, h, seed, CONTEXT_EPOCHS) for h in range(len(TRAINING_SCANS))]
        parts = [half.result() for half in halves]
    say("short pairs trained")
    nodule = weigh(parts)
    fit_context([part.pool(nodule) for part in parts], seed=seed).save(out / CONTEXT)
    say("request and record fitted")


def train_pair(
    data: Path, out: Path, cache: Path, half: int | None, seed: int, epochs: int = EPOCHS, say: Say = print
) -> None:
    """Train boosting and network on one lung and half of the training patients, or on all (None), and write both to `out`."""
    import torch

    from solutions.medical_imaging.network_training import NoduleSource, train_network

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    lidc = LidcData.find(data)
    scans = TRAINING_SCANS if half is None else TRAINING_SCANS[half : half + 1]
    lungs = [load_scan(lidc, name, cache) for name in scans]
    nodules = [n for n in nodules_of(lidc, "train") if half is None or half_of(n.patient) == half]
    places = [false_places(lung) for lung in lungs]
    say(f"to train on: {len(nodules)} nodules, {sum(map(len, places))} false candidates")
    few = np.sort(np.random.default_rng(seed).permutation(len(nodules))[:TRAINED_ON])
    rater = fit_rater(
        place_nodules([nodules[i] for i in few], lungs, seed),
        [features_at(lung, found) for lung, found in zip(lungs, places, strict=True)],
        seed,
    )
    false = [(k, c) for k, found in enumerate(places) for c in found]
    source = NoduleSource(nodules, target_array(nodules), lungs, false)
    network = train_network(source, NetworkSettings(), epochs=epochs, seed=seed, half=True, say=say)
    save_network(network, out / NETWORK)
    rater.save(out / BOOSTED)


def judge_half(data: Path, cache: Path, half: int, seed: int, epochs: int = EPOCHS, say: Say = print) -> Unseen:
    """Train on a half, judge what it has not seen: the other lung, the other half of the patients."""
    folder = cache / f"half-{half}-{epochs}"
    train_pair(data, folder, cache, half, seed, epochs, say)
    lidc = LidcData.find(data)
    nodules = [n for n in nodules_of(lidc, "train") if half_of(n.patient) != half]
    lung = load_scan(lidc, TRAINING_SCANS[1 - half], cache)
    return unseen(BoostedRater.load(folder / BOOSTED), load_network(folder / NETWORK), nodules, lung, seed + 1 + half)

"""Training of the context fuser, on simulated requests and records: the data have none.

Nodules and false candidates are real, and rated by networks that could not have learnt them (`calibrating.unseen`). Scans are
drawn from them, and what an earlier report might have said of each is written in words and read by the same rules as any text:
readers miss about a third of the nodules, misplace some, and mention some that are gone. How a record changes the number of
nodules is assumed, not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from core.training import TrainingSettings, fit
from solutions.medical_imaging.context import SIZES, Batch, ContextFuser, Known, Seen
from solutions.medical_imaging.rules import Person
from solutions.medical_imaging.text import extract

PER_SCAN = 1186 / 888  # nodules, in LUNA16
HARDEST = 60  # false candidates of a scan that are learnt from
MENTIONED = {5.0: 0.45, 8.0: 0.65, np.inf: 0.85}  # share that an earlier reader mentioned, up to a diameter in mm
GONE = 0.3  # nodules per request that are no longer there, or never were
WRONG_SIDE, WRONG_LOBE, SIZE_ERROR = 0.03, 0.15, 0.25  # of the logarithm, growth included
# times as many nodules; assumed
ASSUMED_ODDS = {"emphysema": 1.5, "known_cancer": 2.0, "immunosuppressed": 1.3}
ASSUMED_PER_DECADE = 1.2
MEAN_TIMES = 1.3  # what these odds come to on average
SHARES = {"family_history": 0.1, "emphysema": 0.2, "known_cancer": 0.15, "immunosuppressed": 0.05, "screening": 0.3}
DROPPED = 0.5  # how often a modality goes missing in training


@dataclass(frozen=True)
class Pool:
    """Candidates of one lung: nodules that were put there, and what is none."""

    nodules: tuple[Seen, ...]
    false: tuple[Seen, ...]


def say(seen: Seen, rng: np.random.Generator) -> str:
    """A sentence of an earlier report on a nodule, with a reader's errors."""
    left = seen.left != (rng.random() < WRONG_SIDE)
    zone = min(int(3.0 * seen.height), 2)
    if rng.random() < WRONG_LOBE:
        zone = int(np.clip(zone + rng.choice((-1, 1)), 0, 2))
    lobe = ("lower", "middle", "upper")[zone]
    if left and lobe == "middle":  # the left lung has none
        lobe = str(rng.choice(["upper", "lower"]))
    size = seen.diameter_mm * float(np.exp(rng.normal(0.0, SIZE_ERROR)))
    words = f"{size:.0f} mm nodule" if rng.random() < 0.7 else "nodule"
    place = f"in the {'left' if left else 'right'} {lobe} lobe" if rng.random() < 0.75 else ""
    if not place and rng.random() < 0.6:
        place = f"on the {'left' if left else 'right'}"
    return f"Prior CT: {words} {place}".strip() + "."


def write_request(nodules: Sequence[Seen], rng: np.random.Generator) -> str:
    """What a request says of a scan with these nodules."""
    share = [next(p for most, p in MENTIONED.items() if n.diameter_mm <= most) for n in nodules]
    told = [say(n, rng) for n, p in zip(nodules, share, strict=True) if rng.random() < p]
    for _ in range(rng.poisson(GONE)):
        gone = Seen(0.0, float(rng.uniform(4.0, 15.0)), bool(rng.random() < 0.5), float(rng.random()))
        told.append(say(gone, rng))
    if not told:
        return "Prior CT: no pulmonary nodule." if rng.random() < 0.5 else "Cough for three weeks."
    return " ".join(str(s) for s in rng.permutation(told))


def draw_person(rng: np.random.Generator) -> tuple[Person, float]:
    """A record, some of it unknown, and how many times as many nodules it goes with."""
    age = int(np.clip(rng.normal(62.0, 11.0), 20, 95))
    flags = {name: bool(rng.random() < share) for name, share in SHARES.items()}
    times = ASSUMED_PER_DECADE ** ((age - 62) / 10.0) * float(
        np.prod([odds for name, odds in ASSUMED_ODDS.items() if flags[name]])
    )
    told = {name: value if rng.random() < 0.8 else None for name, value in flags.items()}
    return replace(Person(age=age if rng.random() < 0.9 else None), **told), times  # type: ignore[arg-type]


def moved(seen: Seen, rng: np.random.Generator) -> Seen:
    """The same elsewhere and slightly larger or smaller: there are few candidates, and none is to be remembered."""
    size = seen.diameter_mm * float(np.exp(rng.normal(0.0, 0.15)))
    return replace(seen, diameter_mm=size, left=bool(rng.random() < 0.5), height=float(rng.random()))


def draw(pools: Sequence[Pool], scans: int, seed: int) -> tuple[list[tuple[Seen, Known]], NDArray[np.float32]]:
    """(candidate, what was known) of simulated scans, and whether each is a nodule."""
    rng = np.random.default_rng(seed)
    pairs: list[tuple[Seen, Known]] = []
    target: list[float] = []
    for _ in range(scans):
        pool = pools[int(rng.integers(len(pools)))]
        person, times = draw_person(rng)
        count = min(int(rng.poisson(PER_SCAN * times / MEAN_TIMES)), len(pool.nodules))
        nodules = [moved(pool.nodules[i], rng) for i in rng.choice(len(pool.nodules), count, replace=False)]
        known = Known(extract(write_request(nodules, rng), past=True), person)
        false = [moved(s, rng) for s in sorted(pool.false, key=lambda s: -s.logit)[:HARDEST]]
        pairs += [(seen, known) for seen in (*nodules, *false)]
        target += [1.0] * len(nodules) + [0.0] * len(false)
    return pairs, np.array(target, np.float32)


def fit_context(pools: Sequence[Pool], *, scans: int = 3_000, epochs: int = 8, seed: int = 0) -> ContextFuser:
    """Likelihood of the truth under the image's logit and all evidence; modalities go missing in training.

    What the image alone is worth is learnt beside the rest, so that the difference to it, the shift, is what words add.
    """
    torch.manual_seed(seed)
    pairs, target = draw(pools, scans, seed)
    batch, target_N = Batch.of(pairs), torch.from_numpy(target)
    logit_N = torch.tensor([seen.logit for seen, _ in pairs])
    network, size = ContextFuser(), 512

    def batches(epoch: int) -> list[torch.Tensor]:
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(pairs)))
        return list(order[: len(order) // size * size].view(-1, size))

    def loss_of(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, ContextFuser)
        part = batch.at(rows)
        kept = torch.rand(len(rows), len(SIZES)) >= DROPPED
        kept[:, 0] = True
        said = model.evidence(part, part.present() & kept)
        return F.binary_cross_entropy_with_logits(logit_N[rows] + said, target_N[rows])

    fit(network, batches, loss_of, TrainingSettings(epochs=epochs, learning_rate=3e-3, weight_decay=0.01))
    return network.eval()

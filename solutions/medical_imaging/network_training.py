"""Training of the nodule network: real nodules in random real lung, and what is none.

What is none: candidates of the training lungs, other structures of the nodules' crops with the crops' own densities, any place
of a lung. Nodules keep their own surroundings or only their rim; false candidates are blended into other lung by the same
weights half of the time, so that a seam tells nothing. Some nodules lie far from the middle: they are only outlined. The crops'
densities are estimates: gain, offset, noise and sharpness vary.

N samples, B batch, M side of a cube, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from core.training import rebalance_routers
from solutions.medical_imaging.candidates import Candidate
from solutions.medical_imaging.cubes import COARSEST_MM, FINEST_MM, M, cut_cube, scaled, voxel_mm
from solutions.medical_imaging.data import RealScan
from solutions.medical_imaging.examples import HEADS, LOGITS
from solutions.medical_imaging.insertion import GRID_MM, Layers, layers_of
from solutions.medical_imaging.lidc import Nodule
from solutions.medical_imaging.looking import Cube
from solutions.medical_imaging.network import NetworkSettings, NoduleNet
from solutions.medical_imaging.structures import other_structures

F32 = NDArray[np.float32]
WORKING = (GRID_MM,) * 3
SEEN_SPREAD = 0.25  # of the logarithm of the diameter that a candidate comes with
ALONE = 0.4  # share of nodules that bring only their rim
ASIDE, ASIDE_VOXELS = 0.15, 9.0  # share of nodules that lie aside, and how far
WEIGHTS = {"nodule": 0.7, "malignancy": 0.5, "texture": 0.2}  # of the heads in the loss; 0.1 for the others
FROM_CROPS, ANYWHERE = 0.35, 0.1  # share of the negatives: structures of the crops, random places of the lungs


@dataclass(frozen=True)
class Sample(Cube):
    """A cube with the outline, and what each head should say (NaN: unknown)."""

    mask_MMM: F32
    target_H: F32


class NoduleSource:
    """Nodules, false candidates and lung to put them in; every draw is another view."""

    def __init__(
        self,
        nodules: Sequence[Nodule],
        target_NH: F32,
        lungs: Sequence[RealScan],
        false: Sequence[tuple[int, Candidate]],
    ) -> None:
        """false: number of the lung, and a candidate in it."""
        self.whole = [layers_of(n, context="crop") for n in nodules]
        self.alone = [layers_of(n, context="nodule") for n in nodules]
        self.diameter = [float((6.0 * n.volume_mm3 / np.pi) ** (1 / 3)) for n in nodules]
        self.target_NH, self.lungs, self.false = target_NH, lungs, false
        self.structures = [(k, s) for k, n in enumerate(nodules) for s in other_structures(n, self.whole[k])]
        self._inside = [np.flatnonzero(lung.crop.lung_ZYX.ravel()) for lung in lungs]

    def nodule(self, i: int, rng: np.random.Generator, *, plain: bool = False) -> Sample:
        """plain: with its surroundings, from where a candidate would see it, and densities as they are."""
        layers: Layers = self.alone[i] if not plain and rng.random() < ALONE else self.whole[i]
        step = voxel_mm(self.diameter[i] * float(np.exp(rng.normal(0.0, 0.1 if plain else SEEN_SPREAD))))
        aside = not plain and rng.random() < ASIDE
        shift = rng.uniform(-ASIDE_VOXELS * step, ASIDE_VOXELS * step, 3) if aside else rng.normal(0.0, 0.8, 3)
        z, y, x = (float(v) for v in np.asarray(layers.centre) + shift / np.asarray(layers.spacing))
        hu, alpha = self._blended(layers, (z, y, x), step, rng)
        signed = cut_cube(layers.signed_ZYX, layers.spacing, (z, y, x), step)
        mask = ((signed > 0.0) & (alpha > 0.0)).astype(np.float32)
        target = np.full_like(self.target_NH[i], np.nan) if aside else self.target_NH[i]
        return _view(hu, step, mask, target, rng, plain=plain)

    def none(self, i: int, rng: np.random.Generator, *, plain: bool = False) -> Sample:
        """A false candidate of a scan."""
        which, candidate = self.false[i]
        step = voxel_mm(candidate.diameter_mm * float(np.exp(rng.normal(0.0, 0.0 if plain else 0.15))))
        z, y, x = (
            float(c + v) for c, v in zip(candidate.centre, rng.normal(0.0, 0.0 if plain else 0.5, 3), strict=True)
        )
        hu = cut_cube(self.lungs[which].crop.hu_ZYX, WORKING, (z, y, x), step)
        if not plain and rng.random() < 0.5:
            layers = self.whole[int(rng.integers(len(self.whole)))]
            alpha = cut_cube(layers.alpha_ZYX, layers.spacing, layers.centre, step) * _within(
                layers, layers.centre, step
            )
            hu = alpha * hu + (1.0 - alpha) * self._lung(rng, step)
        return self._negative(hu, step, rng, plain=plain)

    def any_none(self, rng: np.random.Generator) -> Sample:
        """A false candidate, another structure of a nodule's crop, or any place of a lung."""
        kind = rng.random()
        if kind < FROM_CROPS and self.structures:
            k, structure = self.structures[int(rng.integers(len(self.structures)))]
            layers = self.whole[k]
            step = voxel_mm(structure.diameter_mm * float(np.exp(rng.normal(0.0, SEEN_SPREAD))))
            z, y, x = (
                float(c + v / s)
                for c, v, s in zip(structure.centre, rng.normal(0.0, 0.8, 3), layers.spacing, strict=True)
            )
            hu, _ = self._blended(layers, (z, y, x), step, rng)
            signed = cut_cube(layers.signed_ZYX, layers.spacing, (z, y, x), step)
            sample = self._negative(hu, step, rng, plain=False, mask=(signed > 0.0).astype(np.float32))
        elif kind < FROM_CROPS + ANYWHERE:
            step = float(rng.uniform(FINEST_MM, COARSEST_MM))
            sample = self._negative(self._lung(rng, step), step, rng, plain=False)
        else:
            sample = self.none(int(rng.integers(len(self.false))), rng)
        return sample

    def _blended(
        self, layers: Layers, centre: tuple[float, float, float], step: float, rng: np.random.Generator
    ) -> tuple[F32, F32]:
        """Densities of a cube, where the layers end those of a random place of a lung; and the share of the layers."""
        hu = cut_cube(layers.hu_ZYX, layers.spacing, centre, step)
        alpha = cut_cube(layers.alpha_ZYX, layers.spacing, centre, step) * _within(layers, centre, step)
        return alpha * hu + (1.0 - alpha) * self._lung(rng, step), alpha

    def _negative(
        self, hu: F32, step: float, rng: np.random.Generator, *, plain: bool, mask: F32 | None = None
    ) -> Sample:
        """mask: of a nodule that is in sight, but not in the middle."""
        target = np.full(self.target_NH.shape[1], np.nan, np.float32)
        target[0] = 0.0
        return _view(hu, step, np.zeros((M, M, M), np.float32) if mask is None else mask, target, rng, plain=plain)

    def _lung(self, rng: np.random.Generator, step: float) -> F32:
        which = int(rng.integers(len(self.lungs)))
        crop = self.lungs[which].crop
        z, y, x = np.unravel_index(int(rng.choice(self._inside[which])), crop.lung_ZYX.shape)
        return cut_cube(crop.hu_ZYX, WORKING, (float(z), float(y), float(x)), step)


def _within(layers: Layers, centre: tuple[float, float, float], step: float) -> F32:
    """1 where the cube lies on the nodule's own grid, 0 beyond it."""
    axes = [
        (c + (np.arange(M) - (M - 1) / 2.0) * step / s, n)
        for c, s, n in zip(centre, layers.spacing, layers.hu_ZYX.shape, strict=True)
    ]
    z, y, x = (((index > -0.5) & (index < n - 0.5)).astype(np.float32) for index, n in axes)
    inside: F32 = z[:, None, None] * y[None, :, None] * x[None, None, :]
    return inside


def _view(hu: F32, step: float, mask: F32, target: F32, rng: np.random.Generator, *, plain: bool) -> Sample:
    if not plain:
        from scipy import ndimage

        if rng.random() < 0.5:
            hu = ndimage.gaussian_filter(hu, float(rng.uniform(0.2, 0.8)), truncate=2.5)
        hu = hu * float(rng.normal(1.0, 0.05)) + float(rng.normal(0.0, 35.0))
        hu = hu + rng.normal(0.0, float(rng.uniform(0.0, 40.0)), hu.shape).astype(np.float32)
        flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
        quarter = int(rng.integers(4))
        hu, mask = (np.flip(np.rot90(v, quarter, (1, 2)), flips) for v in (hu, mask))
    return Sample(np.ascontiguousarray(scaled(hu)), step, np.ascontiguousarray(mask), target)


def to_batch(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cubes (B, 1, M, M, M), log voxel sizes (B,), outlines (B, M, M, M), targets (B, H)."""
    x = torch.from_numpy(np.stack([s.x_MMM for s in samples]))[:, None]
    step = torch.log(torch.tensor([s.step_mm for s in samples], dtype=torch.float32))
    return (
        x,
        step,
        torch.from_numpy(np.stack([s.mask_MMM for s in samples])),
        torch.from_numpy(np.stack([s.target_H for s in samples])),
    )


def loss_of(net: NoduleNet, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Cross-entropy and soft Dice of the outline, cross-entropy of the heads that are logits, distance of the ratings."""
    x, step, mask, target = batch
    out = net(x, step)
    logit, rating = out.mask_BMMM.float(), out.rating_BH.float()
    outline = F.binary_cross_entropy_with_logits(logit, mask)
    real = mask.flatten(1).sum(1) > 0
    dice = torch.zeros(())
    if real.any():
        p, m = torch.sigmoid(logit[real]).flatten(1), mask[real].flatten(1)
        dice = (1.0 - (2.0 * (p * m).sum(1) + 1.0) / (p.sum(1) + m.sum(1) + 1.0)).mean()
    return 5.0 * outline + dice + _known(rating, target)


def _known(rating: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros(())
    for head, name in enumerate(HEADS):
        known = torch.isfinite(target[:, head])
        if known.any():
            said, wanted = rating[known, head], target[known, head]
            logit = name in LOGITS
            part = F.binary_cross_entropy_with_logits(said, wanted) if logit else F.smooth_l1_loss(said, wanted)
            total = total + WEIGHTS.get(name, 0.1) * part
    return total


def train_network(
    source: NoduleSource,
    settings: NetworkSettings,
    *,
    epochs: int,
    batch_size: int = 8,
    learning_rate: float = 2e-3,
    seed: int = 0,
    half: bool = False,
    say: Callable[[str], None] = print,
) -> NoduleNet:
    """Five nodules and three negatives in a batch of eight; an epoch sees every nodule once.

    half: bfloat16 arithmetic in the convolutions, where the processor has it.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = NoduleNet(settings)
    real = batch_size * 5 // 8
    steps = len(source.whole) // real * epochs
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.15)
    step, recent = 0, []
    for epoch in range(epochs):
        net.train()
        order = rng.permutation(len(source.whole))
        for begin in range(0, len(order) - real + 1, real):
            samples = [source.nodule(int(i), rng) for i in order[begin : begin + real]]
            samples += [source.any_none(rng) for _ in range(batch_size - real)]
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = loss_of(net, to_batch(samples))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            rebalance_routers(net, 1.0 - step / steps)
            schedule.step()
            step += 1
            recent.append(float(loss.detach()))
            if step % 100 == 0:
                say(f"epoch {epoch + 1} of {epochs}, step {step} of {steps}: loss {np.mean(recent[-100:]):.3f}")
    return net.eval()

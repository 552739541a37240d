"""The nodule network at work: cubes in, outlines and ratings out.

N cubes, M side of a cube, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from solutions.medical_imaging.network import NoduleNet

F32 = NDArray[np.float32]
BATCH = 16


@dataclass(frozen=True)
class Cube:
    """Scaled densities, and the size of a voxel."""

    x_MMM: F32
    step_mm: float


def look(network: NoduleNet, cubes: Sequence[Cube]) -> tuple[F32, F32]:
    """Probabilities (N, M, M, M) of the outlines, and logits and ratings (N, H). One thread: the same bits every time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    masks, ratings = [], []
    try:
        with torch.inference_mode():
            for begin in range(0, len(cubes), BATCH):
                part = cubes[begin : begin + BATCH]
                x = torch.from_numpy(np.stack([c.x_MMM for c in part]))[:, None]
                out = network(x, torch.log(torch.tensor([c.step_mm for c in part], dtype=torch.float32)))
                masks.append(torch.sigmoid(out.mask_BMMM).numpy())
                ratings.append(out.rating_BH.numpy())
    finally:
        torch.set_num_threads(threads)
    return np.concatenate(masks), np.concatenate(ratings)

"""Real LIDC-IDRI nodules as crops with up to four reader masks, brought to one grid. Split by patient.

Z slices, Y rows, X columns.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.geometry import Mask

F32 = NDArray[np.float32]
Split = Literal["train", "validation", "test"]
SCAN_PATIENTS = ("LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0003")  # complete scans are here: never trained on
TRAITS = ("texture", "calcification", "spiculation", "lobulation", "margin", "sphericity", "subtlety")


@dataclass(frozen=True)
class Nodule:
    """One nodule on its original grid.

    Args:
        hu_ZYX: estimated densities: crops were quantised to 8 bit.
        votes_ZYX: how many readers included a voxel.
        traits: median reader ratings, 1 to 5 (calcification 1 to 6); malignancy among them.
    """

    key: int
    patient: str
    hu_ZYX: F32
    votes_ZYX: NDArray[np.uint8]
    readers: int
    spacing: tuple[float, float, float]
    diameter_mm: float
    traits: dict[str, float]

    @property
    def consensus_ZYX(self) -> Mask:
        """Voxels of at least half of the readers."""
        return 2 * self.votes_ZYX.astype(int) >= max(self.readers, 1)

    @property
    def volume_mm3(self) -> float:
        return float(self.consensus_ZYX.sum()) * float(np.prod(self.spacing))


def split_of(patient: str) -> Split:
    """By a hash of the patient, so that it never depends on what else is loaded."""
    if patient in SCAN_PATIENTS:
        return "test"
    share = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 2**32
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"


def load_nodules(folder: Path, *, clean: bool = True) -> Iterator[Nodule]:
    """Nodules of the crop set.

    Args:
        clean: only those with trusted densities, an annotation behind every mask and nothing cut off.
    """
    import pandas as pd

    rows = pd.read_csv(folder / "nodules.csv")
    with lzma.open(folder / "image.npy.xz") as file:
        image = np.load(file)
    with lzma.open(folder / "mask_bits.npy.xz") as file:
        bits = np.load(file)
    calibration = np.load(folder / "hu_calibration.npz")
    for row in rows.itertuples():
        if clean and not (row.hu_ok == 1 and row.match == "full" and row.mask_frac_lost_by_64px_crop == 0):
            continue
        part = slice(int(row.start), int(row.start) + int(row.n_slices))
        scale, offset = calibration["hu_scale"][part], calibration["hu_offset"][part]
        hu = offset[:, None, None] + image[part].astype(np.float32) * scale[:, None, None]
        votes = np.unpackbits(bits[part][..., None], axis=-1, bitorder="little")[..., :4].sum(-1, dtype=np.uint8)
        yield Nodule(
            key=int(row.idx),
            patient=str(row.patient_id),
            hu_ZYX=np.clip(hu, -1024, 1500).astype(np.float32),
            votes_ZYX=votes,
            readers=int(row.n_reader_masks),
            spacing=(float(row.slice_spacing_mm), float(row.pixel_spacing_mm), float(row.pixel_spacing_mm)),
            diameter_mm=float(row.mean_max_diameter_mm),
            traits=_traits(row),
        )


def _traits(row: Any) -> dict[str, float]:
    return {name: float(getattr(row, f"{name}_median")) for name in (*TRAITS, "malignancy")}

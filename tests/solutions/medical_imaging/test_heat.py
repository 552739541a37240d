"""The map over whole lungs and its peaks, and the other structures of a crop, on shapes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.geometry import Geometry
from solutions.medical_imaging.heat import FULL, heat_map, peaks
from solutions.medical_imaging.insertion import GRID_MM, layers_of
from solutions.medical_imaging.lidc import TRAITS, Nodule
from solutions.medical_imaging.network import NetworkOutput
from solutions.medical_imaging.structures import AWAY_MM, other_structures

SHAPE = (50, 60, 70)
PLACES = {(12, 15, 20): 4, (34, 44, 52): 6}  # centre and radius in voxels


class Bright(nn.Module):
    """A "network" that calls every bright voxel nodule."""

    def forward(self, x_B1MMM: Tensor, log_mm_B: Tensor) -> NetworkOutput:
        return NetworkOutput(20.0 * x_B1MMM[:, 0], torch.zeros(len(log_mm_B), 6))


def balls() -> np.ndarray:
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    inside = np.zeros(SHAPE, bool)
    for (cz, cy, cx), radius in PLACES.items():
        inside |= (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    return inside


@pytest.fixture(scope="module")
def crop() -> LungCrop:
    geometry = Geometry(
        origin=(0.0, 0.0, 0.0),
        spacing=(GRID_MM,) * 3,
        row_cosine=(1.0, 0.0, 0.0),
        column_cosine=(0.0, 1.0, 0.0),
        shape=SHAPE,
    )
    lung = np.ones(SHAPE, bool)
    lung[:, :, 64:] = False
    return LungCrop(np.where(balls(), 100.0, -850.0).astype(np.float32), lung, geometry)


def test_the_tiles_join_to_one_map_without_gaps_or_shifts(crop: LungCrop) -> None:
    heat = heat_map(Bright(), crop)  # type: ignore[arg-type]
    assert heat.dtype == np.uint8
    assert np.array_equal(heat > FULL // 2, balls() & crop.lung_ZYX)


def test_nothing_is_said_outside_the_lung(crop: LungCrop) -> None:
    everywhere = LungCrop(np.full(SHAPE, 300.0, np.float32), crop.lung_ZYX, crop.geometry)
    assert heat_map(Bright(), everywhere)[~crop.lung_ZYX].max() == 0  # type: ignore[arg-type]


def test_every_ball_is_one_peak_with_its_size(crop: LungCrop) -> None:
    found = peaks(heat_map(Bright(), crop))  # type: ignore[arg-type]
    for centre, radius in PLACES.items():
        near = [c for c in found if np.linalg.norm(np.asarray(c.centre) - centre) < radius]
        assert len(near) == 1
        assert near[0].diameter_mm == pytest.approx(2.0 * radius * GRID_MM, rel=0.15)


def nodule_with_vessel() -> Nodule:
    hu = np.full((8, 64, 64), -850.0, np.float32)
    z, y, x = np.ogrid[:8, :64, :64]
    nodule = np.sqrt(((z - 3.5) * 2.0) ** 2 + ((y - 20) * 0.7) ** 2 + ((x - 20) * 0.7) ** 2) < 3.0
    hu[nodule] = 0.0
    hu[:, 45:49, 40:44] = 50.0  # a vessel that runs through all slices
    return Nodule(
        key=1,
        patient="p",
        hu_ZYX=hu,
        votes_ZYX=(3 * nodule).astype(np.uint8),
        readers=3,
        spacing=(2.0, 0.7, 0.7),
        diameter_mm=6.0,
        traits=dict.fromkeys((*TRAITS, "malignancy"), 3.0),
    )


def test_a_vessel_of_a_crop_is_found_and_its_nodule_is_not() -> None:
    nodule = nodule_with_vessel()
    layers = layers_of(nodule, context="crop")
    found = other_structures(nodule, layers)
    assert found
    for structure in found:
        offset = (np.asarray(structure.centre) - layers.centre) * layers.spacing
        assert np.linalg.norm(offset) > AWAY_MM
    first = np.asarray(found[0].centre)
    assert abs(first[1] - 46.5) < 3
    assert abs(first[2] - 41.5) < 3

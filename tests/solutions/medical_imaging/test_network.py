"""The nodule network and the cubes that it sees: where they lie, what it learns, the same bits for the same study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core.backbone import BackboneSettings
from solutions.medical_imaging.cubes import COARSEST_MM, FINEST_MM, M, cube_geometry, cut_cube, scaled, voxel_mm
from solutions.medical_imaging.examples import HEADS
from solutions.medical_imaging.geometry import Geometry
from solutions.medical_imaging.looking import Cube, look
from solutions.medical_imaging.models import Models, load_network, save_network
from solutions.medical_imaging.network import NetworkSettings, NoduleNet
from solutions.medical_imaging.network_training import Sample, loss_of, to_batch

GRID = Geometry(
    origin=(-50.0, -40.0, 10.0),
    spacing=(2.5, 0.7, 0.7),
    row_cosine=(1.0, 0.0, 0.0),
    column_cosine=(0.0, 1.0, 0.0),
    shape=(30, 90, 90),
)


def ball(radius_mm: float, centre: tuple[float, float, float]) -> np.ndarray:
    """Densities on GRID: a soft ball at an index in lung."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in GRID.shape], indexing="ij"), axis=-1)
    distance = np.linalg.norm((index - centre) * np.asarray(GRID.spacing), axis=-1)
    return np.where(distance < radius_mm, 30.0, -850.0).astype(np.float32)


def target(**known: float) -> np.ndarray:
    return np.array([known.get(name, np.nan) for name in HEADS], np.float32)


@pytest.mark.parametrize("diameter", [3.0, 8.0, 20.0, 60.0])
def test_a_cube_is_fine_for_small_and_coarse_for_large_nodules(diameter: float) -> None:
    step = voxel_mm(diameter)
    assert FINEST_MM <= step <= COARSEST_MM
    if step < COARSEST_MM:
        assert M * step >= 1.5 * diameter


def test_a_cube_lies_where_its_geometry_says() -> None:
    centre = (14.3, 41.0, 52.6)
    step = voxel_mm(9.0)
    cube, where = cut_cube(ball(4.5, centre), GRID.spacing, centre, step), cube_geometry(GRID, centre, step)
    bright = np.argwhere(cube > -400.0)
    middle = where.to_patient([bright.mean(0)])[0]
    assert middle == pytest.approx(GRID.to_patient([centre])[0], abs=0.3)
    volume = len(bright) * step**3
    assert volume == pytest.approx(4.0 / 3.0 * np.pi * 4.5**3, rel=0.25)


def test_beyond_the_edge_the_nearest_value_is_taken() -> None:
    values = np.full(GRID.shape, -850.0, np.float32)
    assert (cut_cube(values, GRID.spacing, (0.0, 0.0, 0.0), 2.0) == -850.0).all()


@pytest.mark.parametrize("plain", [False, True])
def test_the_network_gives_outline_and_ratings_with_and_without_the_backbone(plain: bool) -> None:
    torch.manual_seed(0)
    settings = NetworkSettings(backbone=None) if plain else NetworkSettings()
    net = NoduleNet(settings).eval()
    out = net(torch.zeros(2, 1, M, M, M), torch.zeros(2))
    assert out.mask_BMMM.shape == (2, M, M, M)
    assert out.rating_BH.shape == (2, len(HEADS))
    assert sum(p.numel() for p in net.parameters()) < 1_500_000
    assert (net.backbone is None) == plain


def test_a_backbone_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"as wide as the bottleneck. Received: width=32"):
        NetworkSettings(backbone=BackboneSettings(width=32))


def test_the_backbone_changes_what_is_seen() -> None:
    torch.manual_seed(0)
    net = NoduleNet(NetworkSettings()).eval()
    x, step = torch.randn(1, 1, M, M, M), torch.zeros(1)
    before = net(x, step).mask_BMMM
    net.backbone = None
    assert not torch.equal(before, net(x, step).mask_BMMM)


def test_it_learns_to_outline_and_to_tell_apart_in_a_few_steps() -> None:
    torch.manual_seed(0)
    z, y, x = np.ogrid[:M, :M, :M]
    inside = ((z - 15.5) ** 2 + (y - 15.5) ** 2 + (x - 15.5) ** 2) < 36.0
    lung = np.full((M, M, M), -850.0, np.float32)
    nodule = Sample(
        scaled(np.where(inside, 40.0, lung)), 1.0, inside.astype(np.float32), target(nodule=1.0, malignancy=1.0)
    )
    nothing = Sample(scaled(lung), 1.0, np.zeros((M, M, M), np.float32), target(nodule=0.0))
    net = NoduleNet(replace(NetworkSettings(), widths=(4, 8, 16, 16), backbone=BackboneSettings(width=16, heads=2)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = loss_of(net, to_batch([nodule, nothing]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]
    maps, ratings = look(net.eval(), [nodule, nothing])
    found = maps[0] > 0.5
    assert 2.0 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.8
    assert ratings[0, 0] > ratings[1, 0]


def test_weights_survive_the_file_and_give_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_network(NoduleNet(NetworkSettings()), tmp_path / "n.npz")
    first, second = load_network(tmp_path / "n.npz"), load_network(tmp_path / "n.npz")
    rng = np.random.default_rng(0)
    cubes = [Cube(rng.normal(size=(M, M, M)).astype(np.float32), 1.0) for _ in range(3)]
    maps, ratings = look(first, cubes)
    again, _ = look(second, cubes)
    assert np.array_equal(maps, again)
    assert np.allclose(look(first, cubes[1:2])[1][0], ratings[1], atol=1e-4)


def test_the_shipped_network_outlines_a_ball() -> None:
    centre = (14.0, 45.0, 45.0)
    step = voxel_mm(12.0)
    hu = cut_cube(ball(6.0, centre), GRID.spacing, centre, step)
    models = Models.load()
    maps, _ = look(models.network, [Cube(scaled(hu), step)])
    volume = float((maps[0] >= models.calibration.outline_level).sum()) * step**3
    assert volume == pytest.approx(4.0 / 3.0 * np.pi * 6.0**3, rel=0.35)

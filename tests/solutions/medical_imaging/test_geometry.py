"""Grids, resampling and measurement against shapes whose size is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solutions.medical_imaging.geometry import Geometry, resample
from solutions.medical_imaging.measure import axes, measure, outline


def grid(spacing: tuple[float, float, float] = (2.0, 0.7, 0.8), shape: tuple[int, int, int] = (30, 60, 50)) -> Geometry:
    c, s = math.cos(0.1), math.sin(0.1)
    return Geometry(
        origin=(-12.0, 30.0, 5.0), spacing=spacing, row_cosine=(c, s, 0.0), column_cosine=(-s, c, 0.0), shape=shape
    )


def test_indices_and_positions_are_inverse() -> None:
    g = grid()
    index = np.random.default_rng(0).uniform(0, 30, (20, 3))
    np.testing.assert_allclose(g.to_index(g.to_patient(index)), index, atol=1e-9)
    # one column further lies one pixel along the row direction
    step = g.to_patient([[0, 0, 1]])[0] - g.to_patient([[0, 0, 0]])[0]
    np.testing.assert_allclose(step, 0.8 * np.array(g.row_cosine))


def test_cropping_keeps_positions_and_resampling_the_extent() -> None:
    g = grid()
    part = g.cropped((3, 10, 7), (5, 5, 5))
    np.testing.assert_allclose(part.to_patient([[0, 0, 0]]), g.to_patient([[3, 10, 7]]))
    fine = g.resampled((1.0, 0.35, 0.4))
    np.testing.assert_allclose(fine.to_patient([[-0.5] * 3]), g.to_patient([[-0.5] * 3]))
    assert fine.shape == (60, 120, 100)


def test_a_linear_field_survives_resampling() -> None:
    g = grid()
    target = g.resampled((1.3, 1.1, 0.9))
    z, y, x = np.meshgrid(*[np.arange(n) for n in g.shape], indexing="ij")
    position = g.to_patient(np.stack([z, y, x], -1).reshape(-1, 3))
    out = resample((position @ [1.0, -2.0, 0.5]).reshape(g.shape), g, target, order=1)
    tz, ty, tx = 10, 15, 20
    expected = target.to_patient([[tz, ty, tx]])[0] @ [1.0, -2.0, 0.5]
    assert out[tz, ty, tx] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("diameter", [6.0, 10.0, 20.0])
def test_a_ball_is_measured(diameter: float) -> None:
    source = grid((1.25, 1.25, 1.25), (40, 40, 40))
    target = grid((2.5, 0.7, 0.7), (20, 70, 70))
    z, y, x = np.ogrid[:40, :40, :40]
    centre = (20.3, 19.6, 20.1)
    distance = np.sqrt(sum((a - c) ** 2 for a, c in zip((z, y, x), centre, strict=True))) * 1.25
    soft = np.clip((diameter / 2 - distance) / 1.25 + 0.5, 0.0, 1.0)
    found = outline(soft, source, target, centre, 18.0)
    assert found is not None
    m = measure(found)
    assert m.volume_mm3 == pytest.approx(math.pi / 6 * diameter**3, rel=0.12)
    assert m.mean_mm == pytest.approx(diameter, abs=0.8)
    assert np.linalg.norm(np.array(m.centre) - source.to_patient([centre])[0]) <= 0.5


def test_axes_of_a_rectangle() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:16, 5:25] = True
    long_mm, short_mm, _ = axes(mask, (0.5, 1.0))
    assert long_mm == pytest.approx(math.hypot(3.0, 20.0), abs=0.01)
    assert 3.0 <= short_mm <= 6.0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="`spacing` must be > 0"):
        grid((0.0, 1.0, 1.0))

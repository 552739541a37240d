"""The reservoir: uniform over all that was seen, or fair to rare classes, and the same after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.continual.replay import Reservoir


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    number = np.arange(start, stop)
    return {"x": np.stack([number, -number], 1).astype(np.float32), "target": (number % 50 == 0).astype(np.int8)}


def test_every_row_stays_with_the_same_probability() -> None:
    counts = np.zeros(200)
    for seed in range(2000):
        reservoir = Reservoir(20, seed)
        for start in range(0, 200, 40):
            reservoir.add({"i": np.arange(start, start + 40)})
        counts[reservoir.rows["i"]] += 1
    # 200 expected per row, binomial deviation 13.4
    assert abs(counts - 200).max() < 4 * 13.4
    assert counts[:100].sum() == pytest.approx(20_000, rel=0.01)


def test_batches_and_single_rows_have_the_same_law() -> None:
    kept = {size: np.zeros(60) for size in (1, 60)}
    for seed in range(600):
        for size, counts in kept.items():
            reservoir = Reservoir(6, seed)
            for start in range(0, 60, size):
                reservoir.add({"i": np.arange(start, start + size)})
            counts[reservoir.rows["i"]] += 1
    for counts in kept.values():
        assert abs(counts - 60).max() < 4.5 * 7.3  # 60 expected, binomial deviation 7.3


def test_arrays_of_a_row_stay_together() -> None:
    reservoir = Reservoir(30)
    for start in range(0, 600, 70):
        reservoir.add(rows(start, start + 70))
    held = reservoir.sample(500)
    np.testing.assert_array_equal(held["x"][:, 0], -held["x"][:, 1])
    np.testing.assert_array_equal(held["target"], held["x"][:, 0] % 50 == 0)
    assert len(np.unique(reservoir.rows["x"][:, 0])) == 30


def test_before_it_is_full_everything_is_kept_and_nothing_else_is_drawn() -> None:
    reservoir = Reservoir(100)
    reservoir.add(rows(1, 11))
    assert len(reservoir) == 10
    assert set(reservoir.sample(300)["x"][:, 0]) == set(range(1, 11))


def test_the_plain_reservoir_keeps_the_mix_and_the_balanced_one_the_rare_class() -> None:
    plain, fair = Reservoir(100, 3), Reservoir(100, 3, balance="target")
    for start in range(0, 5000, 250):
        plain.add(rows(start, start + 250))
        fair.add(rows(start, start + 250))
    assert plain.rows["target"].sum() < 10  # 2 % of the stream
    assert fair.rows["target"].sum() == 50  # of the 100 that came
    np.testing.assert_array_equal(fair.rows["target"], fair.rows["x"][:, 0] % 50 == 0)
    assert len(np.unique(fair.rows["x"][:, 0])) == 100


def test_all_of_a_class_smaller_than_its_share_is_kept() -> None:
    fair = Reservoir(100, balance="target")
    fair.add(rows(0, 1000))
    assert sorted(fair.rows["x"][fair.rows["target"] == 1, 0]) == list(range(0, 1000, 50))


def test_within_a_class_the_balanced_reservoir_is_uniform() -> None:
    early = []
    for seed in range(120):
        fair = Reservoir(40, seed, balance="target")
        for start in range(0, 2000, 500):
            fair.add(rows(start, start + 500))
        common = fair.rows["x"][fair.rows["target"] == 0, 0]
        early.append((common < 1000).mean())
    assert np.mean(early) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("balance", [None, "target"])
def test_a_restart_goes_on_as_if_nothing_had_happened(tmp_path: Path, balance: str | None) -> None:
    whole = Reservoir(40, 5, balance=balance)
    whole.add(rows(0, 300))
    whole.save(tmp_path / "reservoir.npz")
    again = Reservoir.load(tmp_path / "reservoir.npz")
    for reservoir in (whole, again):
        reservoir.add(rows(300, 900))
    first, second = whole.sample(200), again.sample(200)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype
    assert [p.name for p in tmp_path.iterdir()] == ["reservoir.npz"]


def test_seeds_decide() -> None:
    kept = []
    for seed in (1, 1, 2):
        reservoir = Reservoir(10, seed)
        reservoir.add({"i": np.arange(500)})
        kept.append(reservoir.rows["i"].tolist())
    assert kept[0] == kept[1] != kept[2]


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        Reservoir(0)
    with pytest.raises(ValueError, match="empty"):
        Reservoir(1).sample(1)
    reservoir = Reservoir(5)
    with pytest.raises(ValueError, match="'b': 2"):
        reservoir.add({"a": np.zeros(3), "b": np.zeros(2)})
    reservoir.add({"a": np.zeros(3, np.int64)})
    with pytest.raises(ValueError, match=r"a int64\[\]. Received: a float64\[\]"):
        reservoir.add({"a": np.full(3, 0.5)})
    with pytest.raises(TypeError, match="objects"):
        Reservoir(5).add({"a": np.array(["x", None], object)})
    with pytest.raises(ValueError, match="`kind` must be a vector"):
        Reservoir(5, balance="kind").add({"a": np.zeros(2)})

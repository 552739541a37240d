"""The results object and the bootstrap behind its intervals."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from core.results import (
    Cost,
    Results,
    bootstrap_interval,
    git_commit,
    measured,
    sha256_file,
    summarise,
    versions,
    weighted_auc,
    weighted_average_precision,
)


def some_results(**changes: Any) -> Results:
    row = {"model": "fused", "source": "measured", "metrics": {"ap": {"mean": 0.7, "std": 0.1}}}
    fields: dict[str, Any] = {
        **{"task": "fraud", "protocol": "handbook", "data": {"name": "x", "sha256": "0", "rows": 3}, "seeds": [0]},
        **{"champion": "fused", "cost": Cost(1.0, 2.0, 3.0), "rows": [row]},
    }
    return Results(**(fields | changes))


def samples(n: int = 3000, units: int = 200, seed: int = 0, decimals: int = 1) -> tuple[np.ndarray, ...]:
    """Targets, scores full of ties, units, weights with zeros."""
    rng = np.random.default_rng(seed)
    target = rng.random(n) < 0.1
    score = np.round(rng.normal(size=n) + target, decimals)
    return target, score, rng.integers(units, size=n), rng.integers(0, 4, size=n).astype(float)


@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_weighted_metrics_equal_sklearn_also_with_ties(decimals: int, seed: int) -> None:
    target, score, _, weight = samples(decimals=decimals, seed=seed)
    ap = average_precision_score(target, score, sample_weight=weight)
    auc = roc_auc_score(target, score, sample_weight=weight)
    assert weighted_average_precision(target, score, weight) == pytest.approx(ap, abs=1e-12)
    assert weighted_auc(target, score, weight) == pytest.approx(auc, abs=1e-12)
    assert weighted_auc(target, score) == pytest.approx(roc_auc_score(target, score), abs=1e-12)


def test_order_inside_a_tie_earns_nothing() -> None:
    assert weighted_average_precision([1, 0, 0, 0], [0.5] * 4) == pytest.approx(0.25)
    assert weighted_average_precision([0, 0, 0, 1], [0.5] * 4) == pytest.approx(0.25)
    assert weighted_auc([1, 0, 0, 0], [0.5] * 4) == pytest.approx(0.5)


@pytest.mark.parametrize("metric", ["ap", "auc", "brier"])
def test_replicates_equal_a_slow_bootstrap_that_repeats_rows(metric: str) -> None:
    target, score, unit, _ = samples(n=400, units=40)
    score = 1 / (1 + np.exp(-score))
    other = np.round(score + 0.1 * np.sin(unit), 1).clip(0, 1)
    slow = {"ap": average_precision_score, "auc": roc_auc_score, "brier": brier_score_loss}[metric]
    fast = bootstrap_interval(metric, target, score, unit, against_N=other, replicates=20, seed=5)  # type: ignore[arg-type]
    rng = np.random.default_rng(5)
    names = np.unique(unit)
    expected = []
    for _ in range(20):
        drawn = rng.integers(len(names), size=len(names))
        rows = np.concatenate([np.flatnonzero(unit == names[u]) for u in drawn])
        expected.append(slow(target[rows], score[rows]) - slow(target[rows], other[rows]))
    np.testing.assert_allclose(fast.replicates_R, expected, atol=1e-10)


def test_strata_are_measured_one_by_one_and_averaged() -> None:
    target, score, unit, _ = samples()
    fold = (np.arange(len(target)) > 1000).astype(int)
    whole = bootstrap_interval("ap", target, score, unit, strata_N=fold, replicates=10)
    by_hand = np.mean([average_precision_score(target[fold == f], score[fold == f]) for f in (0, 1)])
    assert whole.mean == pytest.approx(by_hand, abs=1e-12)
    assert whole.low <= whole.mean <= whole.high


def test_rows_of_one_unit_widen_the_interval() -> None:
    target, score, _, _ = samples(n=1000)
    copied = [np.repeat(a, 10) for a in (target, score, np.arange(1000))]
    by_unit = bootstrap_interval("auc", copied[0], copied[1], copied[2])
    by_row = bootstrap_interval("auc", copied[0], copied[1], np.arange(10_000))
    assert by_unit.high - by_unit.low > 2.0 * (by_row.high - by_row.low)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(100):  # one level per unit: AUC of a standard normal pair shifted by one is .7602
        target = np.repeat(rng.random(120) < 0.5, 2)
        score = np.repeat(rng.normal(size=120), 2) + target + 1e-9 * rng.normal(size=240)
        interval = bootstrap_interval("auc", target, score, np.repeat(np.arange(120), 2), replicates=200, seed=i)
        covered += interval.low <= 0.7602 <= interval.high
    assert 88 <= covered <= 99


def test_a_quarter_million_rows_take_seconds() -> None:
    rng = np.random.default_rng(0)
    target, unit = rng.random(250_000) < 0.01, rng.integers(5000, size=250_000)
    score = rng.normal(size=250_000) + target
    start = time.process_time()
    bootstrap_interval("ap", target, score, unit, replicates=200)
    assert time.process_time() - start < 20.0


def test_a_callable_metric_receives_the_weights() -> None:
    target, score, unit, _ = samples(n=300, units=30)

    def top(target_N: np.ndarray, score_N: np.ndarray, weight_N: np.ndarray) -> float:
        chosen = score_N > 1.0
        return float((weight_N * target_N)[chosen].sum() / max(weight_N[chosen].sum(), 1.0))

    interval = bootstrap_interval(top, target, score, unit, replicates=50)
    assert interval.mean == pytest.approx(target[score > 1.0].mean())
    assert interval.low < interval.mean < interval.high


def test_unknown_labels_nan_scores_and_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 others"):
        weighted_average_precision(np.array([1, 0, -1], np.int8), np.zeros(3))
    with pytest.raises(ValueError, match=r"finite. Received: 2"):
        weighted_auc([1, 0, 1], [np.nan, 0.0, np.inf])
    with pytest.raises(ValueError, match=r"\(2,\), \(3,\)"):
        weighted_auc([1, 0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="undefined"):
        bootstrap_interval("ap", [0, 0], [0.1, 0.2], [0, 1])
    with pytest.raises(ValueError, match="metric='f1'"):
        bootstrap_interval("f1", [0, 1], [0.1, 0.2], [0, 1])  # type: ignore[arg-type]


def test_integer_targets_mean_the_same_as_booleans() -> None:
    target, score, unit, _ = samples(n=500)
    as_bool = bootstrap_interval("ap", target, score, unit, replicates=20)
    as_int = bootstrap_interval("ap", target.astype(np.int8), score, unit, replicates=20)
    np.testing.assert_array_equal(as_bool.replicates_R, as_int.replicates_R)


def test_written_object_has_the_fields_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.json"
    some_results(data={"name": "x", "sha256": "0", "rows": np.int64(3)}, extra={"note": np.float32(0.5)}).write(path)
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(read) == {
        *("task", "protocol", "data", "seeds", "champion", "seconds", "cpu_seconds", "peak_rss_mb"),
        *("commit", "versions", "rows", "note"),
    }
    assert (read["data"]["rows"], read["note"], read["seconds"]) == (3, 0.5, 1.0)
    assert [p.name for p in path.parent.iterdir()] == ["out.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    some_results().write(path)
    before = path.read_text()
    with pytest.raises(TypeError, match="object"):
        some_results(extra={"bad": object()}).write(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"model": "fused", "source": "guessed", "metrics": {}}, "source='guessed'"),
        ({"model": "fused", "metrics": {}}, "source=None"),
        ({"model": "fused", "source": "measured", "metrics": {"ap": {"std": 0.1}}}, "must hold mean"),
        (
            {"model": "fused", "source": "measured", "metrics": {"ap": {"mean": float("nan")}}},
            "`ap` of `fused`.*finite",
        ),
    ],
)
def test_a_malformed_row_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        some_results(rows=[row])


def test_champion_is_a_row_and_extra_hides_nothing() -> None:
    with pytest.raises(ValueError, match="champion='best'"):
        some_results(champion="best")
    with pytest.raises(ValueError, match=r"\['seeds'\]"):
        some_results(extra={"seeds": [1]})


def test_table_shows_every_model_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"ap": {"mean": 0.7, "low": 0.65, "high": 0.75}, "money_saved": {"mean": 1234.5}}
    rows = [
        {"model": "fused", "source": "measured", "metrics": metrics},
        {"model": "old_published", "source": "published", "metrics": {"ap": {"mean": 0.6}}},
    ]
    some_results(rows=rows).print()
    text = capsys.readouterr().out
    for part in ("fused", "old_published", "0.7000 [0.650, 0.750]", "0.6000", "1,23"):
        assert part in text


def test_summary_is_mean_population_deviation_and_bounds() -> None:
    assert summarise([1.0, 3.0]) == {"mean": 2.0, "std": 1.0}
    interval = bootstrap_interval("auc", [1, 0, 1, 0], [0.9, 0.1, 0.4, 0.6], [0, 1, 2, 3])
    assert summarise([1.0], interval) == {"mean": 1.0, "std": 0.0, "low": interval.low, "high": interval.high}
    with pytest.raises(ValueError, match="at least one"):
        summarise([])


def test_cost_is_filled_also_when_the_block_fails() -> None:
    def fail() -> None:
        time.sleep(0.02)
        raise RuntimeError

    with pytest.raises(RuntimeError), measured() as cost:
        fail()
    assert 0.02 <= cost.seconds < 2.0
    assert cost.cpu_seconds < cost.seconds + 0.02
    assert cost.peak_rss_mb > 10.0


def test_the_memory_of_a_parent_is_not_that_of_its_child() -> None:
    held = bytearray(b"\1") * (400 << 20)  # written, so that it is resident
    code = "from core.results import measured\nwith measured() as cost: pass\nprint(cost.peak_rss_mb)"
    peak = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert peak < len(held) / 2**20


def test_file_hash_equals_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"vigil" * 1000)
    shell = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert sha256_file(path) == shell


def test_missing_packages_are_left_out_of_the_versions() -> None:
    assert versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}
    assert git_commit() == "unknown" or len(git_commit().rstrip("+")) >= 7

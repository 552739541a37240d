"""The results object that every evaluation and every benchmark writes, and the bootstrap behind its intervals.

N samples, U units of independence, R replicates.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
PACKAGES = ("torch", "lightgbm", "numpy", "pandas", "numba")


@dataclass
class Cost:
    """Wall and processor seconds of a block, and the peak memory of the process so far."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_mb: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """`with measured() as cost:` fills `cost` when the block ends."""
    cost, wall, cpu = Cost(), time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = round(time.perf_counter() - wall, 2)
        cost.cpu_seconds = round(time.process_time() - cpu, 2)
        cost.peak_rss_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_commit() -> str:
    """Short hash of the checkout, with "+" when it has local changes; "unknown" outside one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def summarise(values: list[float]) -> dict[str, float]:
    """Mean and population deviation of repeated measurements."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


@dataclass(frozen=True)
class Results:
    """One JSON object (see `docs/results.md` for the fields)."""

    task: str
    protocol: str
    data: dict[str, Any]
    seeds: list[int]
    champion: str
    cost: Cost
    rows: list[dict[str, Any]]
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **{"task": self.task, "protocol": self.protocol, "data": self.data, "seeds": self.seeds},
            **{"champion": self.champion, "seconds": self.cost.seconds, "cpu_seconds": self.cost.cpu_seconds},
            **{"peak_rss_mb": self.cost.peak_rss_mb, "commit": git_commit(), "versions": versions()},
            **self.extra,
            "rows": self.rows,
        }

    def write(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(path.suffix + ".tmp")
        temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        os.replace(temporary, path)

    def print(self, metrics: tuple[str, ...] | None = None) -> None:
        """Print one row per model."""
        from rich.console import Console
        from rich.table import Table

        shown = metrics or tuple(dict.fromkeys(name for row in self.rows for name in row["metrics"]))
        table = Table(title=f"{self.task}: {self.protocol} ({self.data.get('name')}, seeds {self.seeds})")
        table.add_column("model")
        for name in shown:
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(row["model"], *(_cell(row["metrics"].get(name)) for name in shown))
        Console(width=max(60, 26 + 22 * len(shown))).print(table)


def _cell(metric: dict[str, float] | None) -> str:
    if metric is None:
        return ""
    text = f"{metric['mean']:.4f}" if abs(metric["mean"]) < 100 else f"{metric['mean']:,.0f}"
    if "low" in metric:
        return f"{text} [{metric['low']:.3f}, {metric['high']:.3f}]"
    return f"{text} ±{metric['std']:.3f}" if metric.get("std") else text


@dataclass(frozen=True)
class Interval:
    """Estimate on the sample and its 95 % percentile interval."""

    mean: float
    low: float
    high: float
    replicates_R: F64


def weighted_average_precision(target_N: NDArray[np.bool_], order_N: NDArray[np.int64], weight_N: F64) -> float:
    """Average precision with sample weights; `order_N` sorts by falling score (ties in that order)."""
    weight = weight_N[order_N]
    hit = weight * target_N[order_N]
    total = hit.sum()
    if total <= 0.0:
        return float("nan")
    seen = np.cumsum(weight)
    return float((np.cumsum(hit) / np.maximum(seen, 1e-12) * hit).sum() / total)


def weighted_auc(target_N: NDArray[np.bool_], order_N: NDArray[np.int64], weight_N: F64) -> float:
    """Area under the ROC curve with sample weights; `order_N` as above."""
    weight, target = weight_N[order_N], target_N[order_N]
    positive, negative = weight * target, weight * ~target
    if positive.sum() <= 0.0 or negative.sum() <= 0.0:
        return float("nan")
    below = negative.sum() - np.cumsum(negative)
    return float((positive * below).sum() / (positive.sum() * negative.sum()))


WEIGHTED = {"ap": weighted_average_precision, "auc": weighted_auc}


def bootstrap_interval(
    metric: Literal["ap", "auc"],
    target_N: NDArray[np.bool_],
    score_N: F64,
    unit_N: NDArray[Any],
    *,
    strata_N: NDArray[Any] | None = None,
    against_N: F64 | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> Interval:
    """Bootstrap over units: all samples of a unit come and go together.

    Args:
        strata_N: the metric is computed within each stratum and averaged (folds).
        against_N: scores of another model on the same samples; the interval is that of the paired difference.
    """
    rng = np.random.default_rng(seed)
    _, unit = np.unique(unit_N, return_inverse=True)
    strata = np.zeros(len(target_N), int) if strata_N is None else np.asarray(strata_N)
    parts = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    measure = WEIGHTED[metric]

    def value(weight_N: F64) -> float:
        differences = []
        for part, own, other in zip(parts, orders, other_orders, strict=True):
            v = measure(target_N[part], own, weight_N[part])
            differences.append(v - measure(target_N[part], other, weight_N[part]) if other is not None else v)
        return float(np.mean(differences))

    orders = [np.argsort(-score_N[part], kind="stable") for part in parts]
    other_orders = [None if against_N is None else np.argsort(-against_N[part], kind="stable") for part in parts]
    estimate = value(np.ones(len(target_N)))
    units = int(unit.max()) + 1
    replicates_R = np.array(
        [value(rng.multinomial(units, np.full(units, 1.0 / units))[unit].astype(float)) for _ in range(replicates)]
    )
    low, high = np.nanquantile(replicates_R, [0.025, 0.975])
    return Interval(estimate, float(low), float(high), replicates_R)

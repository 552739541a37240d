"""The results object that every evaluation and every benchmark writes, and the bootstrap behind its intervals.

N samples, U units of independence (card, patient, machine), S strata (folds), G groups of tied scores that hold a
positive, R replicates.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.files import replacing

F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
PACKAGES = ("torch", "lightgbm", "numpy", "pandas", "numba")
SOURCES = ("published", "measured")
METRIC_KEYS = ("mean", "std", "low", "high")


@dataclass
class Cost:
    """Wall and processor seconds of a block, and the peak memory of the process so far."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_rss_mb: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """`with measured() as cost:` fills `cost` at the end of the block, also when it raises. Children that have ended count."""
    cost, wall, cpu = Cost(), time.perf_counter(), _cpu_seconds()
    try:
        yield cost
    finally:
        cost.seconds = round(time.perf_counter() - wall, 2)
        cost.cpu_seconds = round(_cpu_seconds() - cpu, 2)
        cost.peak_rss_mb = round(_peak_kb() / 1024, 1)


def _peak_kb() -> int:
    """VmHWM where there is one: `ru_maxrss` of a process begins with what its parent held when it was started."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


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


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions; packages that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Interval:
    """Estimate on the sample, its percentile interval, and the replicates behind it.

    `undefined` counts the replicates without a positive or without a negative, which the interval leaves out.
    """

    mean: float
    low: float
    high: float
    replicates_R: F64
    undefined: int = 0


def summarise(values: Sequence[float], interval: Interval | None = None) -> dict[str, float]:
    """One metric entry: mean and population deviation over seeds or folds, and the bounds of `interval` when given."""
    if not len(values):
        raise ValueError("`values` must hold at least one measurement. Received: none.")
    entry = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return entry if interval is None else entry | {"low": interval.low, "high": interval.high}


@dataclass(frozen=True)
class Results:
    """One JSON object: what was measured, on which data, by which commit, at what cost. One row per model.

    Args:
        data: name, sha256 and rows of the file.
        champion: the model of `rows` that would serve.
        rows: {"model", "source": published | measured, "metrics": {name: {"mean"[, "std", "low", "high"]}}}.
        extra: further fields of the object; none may hide one of the contract.
    """

    task: str
    protocol: str
    data: dict[str, Any]
    seeds: list[int]
    champion: str
    cost: Cost
    rows: list[dict[str, Any]]
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            _check_row(row)
        models = [row["model"] for row in self.rows]
        if self.champion not in models:
            raise ValueError(f"`champion` must be one of the rows {models}. Received: champion={self.champion!r}.")
        if hidden := set(self.extra) & set(self._contract()):
            raise ValueError(f"`extra` must not hide a field of the contract. Received: {sorted(hidden)}.")

    def _contract(self) -> dict[str, Any]:
        return {
            **{"task": self.task, "protocol": self.protocol, "data": self.data, "seeds": self.seeds},
            **{"champion": self.champion, "seconds": self.cost.seconds, "cpu_seconds": self.cost.cpu_seconds},
            "peak_rss_mb": self.cost.peak_rss_mb,
        }

    def to_json(self) -> dict[str, Any]:
        stamp = {"commit": git_commit(), "versions": versions()}
        return {**self._contract(), **stamp, **self.extra, "rows": self.rows}

    def write(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False, default=_plain) + "\n")

    def print(self, metrics: tuple[str, ...] | None = None) -> None:
        """Print one row per model; published rows are marked."""
        from rich.console import Console
        from rich.table import Table

        shown = metrics or tuple(dict.fromkeys(name for row in self.rows for name in row["metrics"]))
        table = Table(title=f"{self.task}: {self.protocol} ({self.data.get('name')}, seeds {self.seeds})")
        table.add_column("model", no_wrap=True)
        for name in shown:
            table.add_column(name, justify="right")
        for row in self.rows:
            style = "dim" if row["source"] == "published" else "bold" if row["model"] == self.champion else None
            table.add_row(row["model"], *(_cell(row["metrics"].get(name)) for name in shown), style=style)
        Console(width=max(60, 32 + 22 * len(shown))).print(table)


def _check_row(row: Mapping[str, Any]) -> None:
    if set(row) != {"model", "source", "metrics"} or row["source"] not in SOURCES:
        raise ValueError(
            f"a row must hold `model`, `source` (one of {', '.join(SOURCES)}) and `metrics`. "
            f"Received: {sorted(row)}, source={row.get('source')!r}."
        )
    for name, entry in row["metrics"].items():
        if "mean" not in entry or not set(entry) <= set(METRIC_KEYS):
            raise ValueError(
                f"metric `{name}` of `{row['model']}` must hold mean and may hold std, low, high. "
                f"Received: {sorted(entry)}."
            )
        if not all(math.isfinite(value) for value in entry.values()):
            raise ValueError(f"metric `{name}` of `{row['model']}` must be finite. Received: {entry}.")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.name  # a full path would name a machine
    raise TypeError(f"a result must be plain JSON. Received: {type(value).__name__}.")


def _cell(metric: Mapping[str, float] | None) -> str:
    if metric is None:
        return ""
    text = f"{metric['mean']:.4f}" if abs(metric["mean"]) < 100 else f"{metric['mean']:,.0f}"
    if "low" in metric and "high" in metric:
        low, high = (f"{metric[k]:.3f}" if abs(metric[k]) < 100 else f"{metric[k]:,.0f}" for k in ("low", "high"))
        return f"{text} [{low}, {high}]"
    return f"{text} ±{metric['std']:.3f}" if metric.get("std") else text


# --- weighted metrics and the bootstrap over units ---

WeightedMetric = Callable[[NDArray[Any], F64, F64], float]  # (target_N, score_N, weight_N) -> value, higher is better
Metric = Literal["ap", "auc", "brier"] | WeightedMetric
METRICS = ("ap", "auc", "brier")


class _Ranking:
    """Samples sorted once by falling score. Replicates change only how often each unit counts.

    Scores that tie form one threshold: the order inside a tie carries no information and must not earn precision.
    """

    def __init__(self, target_N: Bool, score_N: F64, unit_N: NDArray[np.int64]) -> None:
        order_N = np.argsort(-score_N, kind="stable")
        score, target = score_N[order_N], target_N[order_N]
        last_N = np.append(score[1:] != score[:-1], True)  # last sample of each group of ties
        end_N = np.flatnonzero(last_N)
        positive = np.flatnonzero(target)
        group = np.searchsorted(end_N, positive)  # group of ties of each positive
        last_positive_G = np.flatnonzero(np.append(group[1:] != group[:-1], True)) if len(group) else group
        self.unit_N, self.positive_unit = unit_N[order_N], unit_N[order_N][positive]
        self.last_positive_G = last_positive_G
        self.end_G = end_N[group[last_positive_G]]
        self.before_G = np.where(group[last_positive_G] > 0, end_N[group[last_positive_G] - 1], -1)

    def _sums(self, weight_U: F64) -> tuple[F64, F64, F64]:
        """Weight of all samples up to each position, and of the positives up to and in each group."""
        seen_N = np.cumsum(weight_U[self.unit_N])
        reached_G = np.cumsum(weight_U[self.positive_unit])[self.last_positive_G]
        return seen_N, reached_G, np.diff(reached_G, prepend=0.0)

    def average_precision(self, weight_U: F64) -> float:
        seen_N, reached_G, hit_G = self._sums(weight_U)
        if not len(reached_G) or reached_G[-1] <= 0.0:
            return math.nan
        return float((hit_G * reached_G / np.maximum(seen_N[self.end_G], 1e-300)).sum() / reached_G[-1])

    def auc(self, weight_U: F64) -> float:
        seen_N, reached_G, hit_G = self._sums(weight_U)
        positives = reached_G[-1] if len(reached_G) else 0.0
        negatives = seen_N[-1] - positives
        if positives <= 0.0 or negatives <= 0.0:
            return math.nan
        above_G = np.where(self.before_G >= 0, seen_N[self.before_G], 0.0) - (reached_G - hit_G)
        tied_G = seen_N[self.end_G] - reached_G - above_G
        return float((hit_G * (negatives - above_G - 0.5 * tied_G)).sum() / (positives * negatives))


def prepare_metric(
    metric: Metric, target_N: NDArray[Any], score_N: F64, unit_N: NDArray[np.int64], units: int
) -> Callable[[F64], float]:
    """The metric as a function of the weight of each unit (U,); what weights do not change is done once."""
    if callable(metric):
        return lambda weight_U: float(metric(target_N, score_N, weight_U[unit_N]))
    if metric == "brier":
        error_U = np.bincount(unit_N, (score_N - target_N) ** 2, units)
        size_U = np.bincount(unit_N, minlength=units).astype(float)
        return lambda weight_U: float(weight_U @ error_U / max(float(weight_U @ size_U), 1e-300))
    if metric in METRICS:
        ranking = _Ranking(target_N, score_N, unit_N)
        return ranking.average_precision if metric == "ap" else ranking.auc
    raise ValueError(f"`metric` must be one of {', '.join(METRICS)} or a callable. Received: metric={metric!r}.")


def _weighted(metric: Metric, target_N: ArrayLike, score_N: ArrayLike, weight_N: ArrayLike | None) -> float:
    target, score, own = check_samples(target_N, score_N, None)
    weight = np.ones(len(target)) if weight_N is None else np.asarray(weight_N, np.float64)
    if weight.shape != target.shape or not (weight >= 0.0).all():
        raise ValueError(f"`weight_N` must hold {len(target)} weights >= 0. Received: shape {weight.shape}.")
    return prepare_metric(metric, target, score, own, len(target))(weight)


def weighted_average_precision(target_N: ArrayLike, score_N: ArrayLike, weight_N: ArrayLike | None = None) -> float:
    """Average precision with sample weights; tied scores are one threshold. NaN without a positive."""
    return _weighted("ap", target_N, score_N, weight_N)


def weighted_auc(target_N: ArrayLike, score_N: ArrayLike, weight_N: ArrayLike | None = None) -> float:
    """Area under the ROC curve with sample weights; a tie counts half. NaN without a positive or a negative."""
    return _weighted("auc", target_N, score_N, weight_N)


def check_samples(
    target_N: ArrayLike, score_N: ArrayLike, unit_N: ArrayLike | None, *, binary: bool = True
) -> tuple[NDArray[Any], F64, NDArray[np.int64]]:
    """Targets (as booleans when `binary`), finite scores and unit codes 0..U-1 of one length.

    Raises:
        ValueError: lengths differ, nothing came, a target is not 0 or 1 (unknown labels must be left out), a score is
            not finite.
    """
    target, score = np.asarray(target_N), np.asarray(score_N, np.float64)
    unit = np.arange(len(target)) if unit_N is None else np.asarray(unit_N)
    if not (target.ndim == score.ndim == unit.ndim == 1 and len(target) == len(score) == len(unit) > 0):
        raise ValueError(
            "targets, scores and units must be vectors of one length, at least one sample. "
            f"Received: {target.shape}, {score.shape}, {unit.shape}."
        )
    if binary and (bad := int((~np.isin(target, (0, 1))).sum())):
        raise ValueError(f"targets must be 0 or 1; leave samples with unknown labels out. Received: {bad} others.")
    if bad := int((~np.isfinite(score)).sum()):
        raise ValueError(f"scores must be finite. Received: {bad} that are not.")
    codes = np.unique(unit, return_inverse=True)[1]
    return target.astype(bool) if binary else target, score, codes.astype(np.int64)


def bootstrap_interval(
    metric: Metric,
    target_N: ArrayLike,
    score_N: ArrayLike,
    unit_N: ArrayLike,
    *,
    strata_N: ArrayLike | None = None,
    against_N: ArrayLike | None = None,
    replicates: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over units: all samples of a unit come and go together (Efron and Tibshirani 1993, ch. 13).

    Args:
        unit_N: what is independent; a unit that occurs in several strata is still one unit.
        strata_N: the metric is computed within each stratum and averaged (folds).
        against_N: scores of another model on the same samples; the interval is that of the paired difference.
    """
    if replicates < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            "`replicates` must be >= 1 and `confidence` in (0, 1). "
            f"Received: replicates={replicates}, confidence={confidence}."
        )
    binary = not callable(metric)
    target, score, unit = check_samples(target_N, score_N, unit_N, binary=binary)
    other = None if against_N is None else check_samples(target_N, against_N, unit_N, binary=binary)[1]
    strata = np.zeros(len(target), int) if strata_N is None else np.asarray(strata_N)
    if strata.shape != target.shape:
        raise ValueError(f"`strata_N` must hold {len(target)} values. Received: shape {strata.shape}.")
    units = int(unit.max()) + 1
    plus, minus = [], []
    for stratum in np.unique(strata):
        part = strata == stratum
        plus.append(prepare_metric(metric, target[part], score[part], unit[part], units))
        if other is not None:
            minus.append(prepare_metric(metric, target[part], other[part], unit[part], units))

    def value(weight_U: F64) -> float:
        return (sum(f(weight_U) for f in plus) - sum(f(weight_U) for f in minus)) / len(plus)

    estimate = value(np.ones(units))
    if math.isnan(estimate):
        raise ValueError(f"`{metric}` is undefined: every stratum needs a positive and a negative. Received: one kind.")
    rng = np.random.default_rng(seed)
    # counts of U draws with replacement are multinomial; drawing is ten times faster than Generator.multinomial
    replicates_R = np.array(
        [value(np.bincount(rng.integers(units, size=units), minlength=units).astype(float)) for _ in range(replicates)]
    )
    undefined = int(np.isnan(replicates_R).sum())
    if undefined == replicates:
        raise ValueError(f"`{metric}` was undefined in all {replicates} replicates: too few units.")
    low, high = np.nanquantile(replicates_R, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(estimate, float(low), float(high), replicates_R, undefined)

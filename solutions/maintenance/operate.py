"""The steps of the maintenance solution as plain functions over one directory: ingest, score, train, judge, promote.

scores/ASSET/DATE.parquet    scored hours of an asset-day     quality/ASSET/DATE.parquet   its ill sensors
models/RUN/                  a trained challenger             evaluations/RUN.parquet      scores of its held-out days
updates/RUN.json             what an updated challenger answers to, and what the gate said
cases.json                   all cases                        champion.json                which run serves
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from core.files import replacing
from core.promotion import Verdict, decide
from core.refusals import did_you_mean
from core.results import sha256_file
from core.tracking import Tracker
from solutions.maintenance.alarms import episodes
from solutions.maintenance.cases import Case, CaseBook, outcomes_of, with_findings
from solutions.maintenance.data import HOUR, History, InputError, load_history
from solutions.maintenance.explain import explain
from solutions.maintenance.intervals import CoverageMonitor
from solutions.maintenance.labels import make_labels
from solutions.maintenance.model import Prepared, Progress
from solutions.maintenance.monitor import LOOK_BACK, Monitor, fit_monitor
from solutions.maintenance.panel import LONGEST_GAP, hours_of
from solutions.maintenance.quality import Finding
from solutions.maintenance.task import Task
from solutions.maintenance.work_orders import WorkOrder, draft

MODEL_NAME = "maintenance"
BASELINE = "lightgbm"
TOLERANCE = 0.05  # of the base rate's Brier score that a first champion may lose to the baseline
DAY = 24 * HOUR


@dataclass(frozen=True)
class Workspace:
    """Where the maintenance solution keeps its files. Names of assets are quoted: they are data, not paths."""

    root: Path

    def scores(self, asset: str, day: str) -> Path:
        return self.root / "scores" / quote(asset, safe="") / f"{day}.parquet"

    def quality(self, asset: str, day: str) -> Path:
        return self.root / "quality" / quote(asset, safe="") / f"{day}.parquet"

    def model(self, run: str) -> Path:
        return self.root / "models" / run

    def evaluation(self, run: str) -> Path:
        return self.root / "evaluations" / f"{run}.parquet"

    def update(self, run: str) -> Path:
        return self.root / "updates" / f"{run}.json"

    @property
    def cases(self) -> Path:
        return self.root / "cases.json"

    @property
    def champion(self) -> Path:
        return self.root / "champion.json"


@dataclass(frozen=True)
class Source:
    """A folder of tables and how to read it."""

    folder: Path
    columns: str = ""

    def load(self) -> History:
        return load_history(self.folder, self.columns)


def _write(frame: pd.DataFrame, path: Path) -> None:
    """Replace a parquet file in one step."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def days_of(history: History) -> list[str]:
    """The days that have readings."""
    return sorted(history.readings["time"].dt.strftime("%Y-%m-%d").unique())


def score_day(monitor: Monitor, history: History, asset: str, day: str, workspace: Workspace) -> int:
    """Score every hour of an asset-day by event time and write it; the same readings give the same file.

    Returns the number of hours. An asset without readings on the day and the look-back before it is left out.
    """
    end = np.datetime64(day, "us") + DAY
    part = history.of([asset])
    inside = (part.readings["time"] > end - DAY - LOOK_BACK * HOUR) & (part.readings["time"] <= end)
    part = replace(
        part,
        readings=part.readings[inside].reset_index(drop=True),
        events=part.events[part.events["time"] <= end].reset_index(drop=True),
    )
    if part.readings.empty:
        return 0
    prepared, findings = monitor.prepare(part)
    first = int(hours_of(np.array([end - DAY]))[0])
    rows = np.flatnonzero((prepared.panel.hour_R > first) & (prepared.panel.hour_R <= first + 24))
    frame = monitor.frame(prepared, rows)
    _write(frame, workspace.scores(asset, day))
    ill = [asdict(f) | {"advice": f.advice} for f in findings if f.last_hour > first]
    columns = ["asset", "sensor", "cause", "first_hour", "last_hour", "advice"]
    _write(pd.DataFrame(ill, columns=columns), workspace.quality(asset, day))
    return len(frame)


def read_scores(workspace: Workspace) -> pd.DataFrame:
    """All scored hours, by asset and time."""
    files = sorted((workspace.root / "scores").glob("*/*.parquet"))
    if not files:
        raise InputError(f"nothing is scored under {workspace.root.name}/scores. Run `vigil maintenance score` first.")
    frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    return frame.sort_values(["asset", "hour"]).reset_index(drop=True)


def open_cases(monitor: Monitor, scores: pd.DataFrame, book: CaseBook, history: History) -> list[Case]:
    """Alarms over all scores; returns the cases that are new. Failures, repairs and time close them.

    Running it again opens nothing twice: a case is known by its asset and the hour it opened.
    """
    assets = sorted(scores["asset"].unique())
    frame = scores.sort_values(["asset", "hour"])
    asset_N = pd.Index(assets).get_indexer(frame["asset"]).astype(np.int64)
    p, hour_N = frame[f"p_{monitor.horizon:g}"].to_numpy(float), frame["hour"].to_numpy(np.int64)
    found = episodes(p, asset_N, hour_N, monitor.alarm)
    return book.take(found, assets, outcomes_of(history), now=int(hour_N.max()))


def train_challenger(
    history: History,
    task: Task,
    *,
    holdout_days: float,
    seed: int,
    book: CaseBook | None = None,
    progress: Progress = lambda _: None,
) -> tuple[Monitor, pd.DataFrame]:
    """Train on all but the last days; returns the monitor and the scores of those days.

    The window has one row per asset and hour whose label is known: asset, time, failed (within the alarm horizon), and a
    probability for "fused" and for the baseline, gradient boosting on the same features.
    """
    history, refused = without_jumps(history if book is None else with_findings(history, book))
    for asset, why in refused.items():
        progress(f"{asset} is left out: {why}")
    cut = history.readings["time"].max().to_datetime64() - int(holdout_days * 24) * HOUR
    if cut <= history.readings["time"].min().to_datetime64():
        raise InputError(f"{history.name}: shorter than the {holdout_days:g} days that are held out.")
    monitor, _, _ = fit_monitor(history, task, seed=seed, cut=cut, progress=progress)
    prepared, _ = monitor.prepare(history)
    return monitor, held_out(monitor, prepared, cut)


def held_out(monitor: Monitor, prepared: Prepared, cut: np.datetime64) -> pd.DataFrame:
    """Scores of the rows from `cut` on, whose outcome is known."""
    panel, model = prepared.panel, monitor.model
    labels = make_labels(prepared.history, panel)
    positive, known = labels.within(monitor.horizon)
    rows = np.flatnonzero((panel.hour_R >= int(hours_of(np.array([cut]))[0])) & known)
    if not len(rows):
        raise InputError("no held-out row has a known outcome: hold more days out.")
    raw = model.raw(prepared, rows)
    p = {name: model.curves_of(raw, name).fails_within(monitor.horizon) for name in model.names}
    assets = np.asarray(panel.assets, object)[panel.asset_R[rows]]
    return pd.DataFrame({"asset": assets, "time": panel.time_R()[rows], "failed": positive[rows].astype(np.int8), **p})


def window_metrics(window: pd.DataFrame) -> dict[str, float]:
    """Average precision and Brier score of every model of the window."""
    from core.calibration import brier
    from core.results import weighted_average_precision

    names = [name for name in ("fused", "network", BASELINE) if name in window]
    found = {f"{n}_ap": weighted_average_precision(window["failed"], window[n]) for n in names}
    found |= {f"{n}_brier": brier(window[n], window["failed"]) for n in names}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def judge(window: pd.DataFrame, champion_N: np.ndarray | None, *, least_units: int = 10) -> Verdict:
    """The gate: Brier score against the champion; units are machines.

    The first challenger has two rivals: the base rate of the window itself, which it must beat, and gradient boosting on
    the same features, to which it may lose no more than TOLERANCE of the base rate's score. It need not beat boosting,
    which is a part of it. The Brier score is defined for every resample of machines, also for one in which few of them fail.
    """

    def against(rival_N: np.ndarray) -> Verdict:
        return decide(
            rival_N,
            window["fused"].to_numpy(float),
            window["failed"].to_numpy(),
            window["asset"].to_numpy(),
            metric="brier",
            least_units=least_units,
        )

    if champion_N is not None:
        verdict = against(champion_N)
        return replace(verdict, reasons=("against the champion", *verdict.reasons))
    rate = float(window["failed"].mean())
    verdict = against(np.full(len(window), rate))
    reasons = ("against the base rate (no champion yet)", *verdict.reasons)
    most = TOLERANCE * rate * (1.0 - rate)
    low = against(window[BASELINE].to_numpy(float)).low if BASELINE in window else 0.0
    loses = low < -most
    if loses:
        reasons = (*reasons, f"boosting alone may be better by {-low:.4f}, at most {most:.4f} is allowed")
    return replace(verdict, promote=verdict.promote and not loses, reasons=reasons)


def champion_scores(tracker: Tracker, history: History, window: pd.DataFrame) -> np.ndarray | None:
    """The champion's probabilities for the rows of a window, or None when there is no champion."""
    if tracker.version_of(MODEL_NAME, "champion") is None:
        return None
    directory, _ = tracker.resolve(f"{MODEL_NAME}@champion")
    monitor = Monitor.load(directory)
    prepared, _ = monitor.prepare(history)
    panel = prepared.panel
    keys = pd.MultiIndex.from_arrays([np.asarray(panel.assets, object)[panel.asset_R], panel.time_R()])
    rows = keys.get_indexer(pd.MultiIndex.from_arrays([window["asset"], window["time"]]))
    assert (rows >= 0).all(), "the window was made from another history"
    return np.asarray(monitor.model.curves(prepared, rows.astype(np.int64)).fails_within(monitor.horizon))


def save_challenger(monitor: Monitor, window: pd.DataFrame, workspace: Workspace, run: str) -> dict[str, float]:
    """Write monitor and window; returns the metrics to track."""
    monitor.save(workspace.model(run))
    _write(window, workspace.evaluation(run))
    return window_metrics(window)


def register_challenger(tracker: Tracker, run_id: str, workspace: Workspace, run: str) -> int:
    """Register the run's monitor with its signature and data fingerprint; it serves only when it is promoted."""
    signature = {
        "inputs": ["sensors", "errors", "maintenance", "failures", "work_orders", "assets"],
        "outputs": ["p_24", "p_72", "p_168", "rul", "rul_low", "rul_high", "anomaly"],
    }
    fingerprint = sha256_file(workspace.evaluation(run))
    return tracker.register(run_id, workspace.model(run), MODEL_NAME, signature=signature, fingerprint=fingerprint)


def register_champion(tracker: Tracker, run_id: str, workspace: Workspace, run: str) -> int:
    """Register the run's monitor and make it the champion."""
    return promote_challenger(tracker, register_challenger(tracker, run_id, workspace, run), workspace, run)


def promote_challenger(tracker: Tracker, version: int, workspace: Workspace, run: str) -> int:
    """Make a registered version the champion."""
    tracker.promote(MODEL_NAME, version)
    with replacing(workspace.champion) as temporary:
        temporary.write_text(json.dumps({"version": version, "run": run}))
    return version


def champion_run(workspace: Workspace) -> str | None:
    """The run whose monitor serves; None without a champion."""
    return str(json.loads(workspace.champion.read_text())["run"]) if workspace.champion.exists() else None


def newest_moment(history: History) -> tuple[np.datetime64, dict[str, str]]:
    """The newest reading of the fleet, and the assets whose clock runs ahead of it, with why.

    One clock in the future must not make all other assets look silent. A clock is ahead when its asset has readings later
    than all that the rest of the fleet has by more than the look-back, after a gap as long, or nothing but such readings.
    """
    long_silence = LOOK_BACK * pd.Timedelta(hours=1)
    by_asset = history.readings.groupby("asset")["time"]
    first, newest = by_asset.min(), by_asset.max()
    gap = by_asset.diff().groupby(history.readings["asset"]).max()
    steady = newest[~(gap > long_silence) & (first <= newest.median())]
    if steady.empty:
        return newest.max().to_datetime64(), {}
    ahead = newest[~newest.index.isin(steady.index) & (newest > steady.max() + long_silence)]
    moment = newest.drop(ahead.index).max()
    why = f"its clock runs ahead of the fleet, whose newest reading is of {moment:%Y-%m-%d %H:%M}; correct its times"
    return moment.to_datetime64(), dict.fromkeys(ahead.index.astype(str), why)


def without_jumps(history: History) -> tuple[History, dict[str, str]]:
    """The history without the assets whose clock has jumped, and why; the others can be trained on and scored."""
    _, refused = newest_moment(history)
    gaps = history.readings.groupby("asset")["time"].diff().groupby(history.readings["asset"]).max()
    for asset in gaps.index[gaps > LONGEST_GAP * pd.Timedelta(hours=1)]:
        refused.setdefault(
            str(asset), f"more than {LONGEST_GAP} hours between two readings: has its clock jumped? Correct the times"
        )
    kept = sorted(set(history.readings["asset"]) - set(refused))
    if not kept:
        raise InputError(f"{history.name}: the clock of every asset has jumped. Check the times.")
    return (history.of(kept) if refused else history), refused


def _day(moment: np.datetime64 | pd.Timestamp) -> str:
    return f"{pd.Timestamp(moment):%Y-%m-%d %H:%M}"


@dataclass(frozen=True)
class Scored:
    """The last day of a fleet: a row per asset and hour, ill sensors, and the assets that could not be scored, with why."""

    frame: pd.DataFrame
    findings: list[Finding]
    refused: dict[str, str]

    @property
    def assets(self) -> int:
        return int(self.frame["asset"].nunique())


def score_days(
    monitor: Monitor, history: History, moment: np.datetime64, workspace: Workspace, *, hours: int = 24
) -> Scored:
    """Score the hours before a moment for all assets at once, and write them to the files of their asset-days.

    An asset that can not be scored (a clock that jumped) is named with the cause; the others go on.
    """
    known = history.known_at(moment)
    if known.readings.empty:
        first = history.readings["time"].min()
        raise InputError(f"{history.name}: no reading had arrived by {_day(moment)}. The first is of {_day(first)}.")
    refused: dict[str, str] = {}
    recent = known.readings[known.readings["time"] > moment - LOOK_BACK * HOUR]
    for asset in sorted(set(known.readings["asset"].unique()) - set(recent["asset"].unique())):
        refused[str(asset)] = f"silent for more than {LOOK_BACK} hours: check its gateway"
    if recent.empty:
        raise InputError(
            f"{history.name}: every asset is silent for more than {LOOK_BACK} hours before {_day(moment)}. The newest "
            f"reading is of {_day(known.readings['time'].max())}: choose --at within what has been read."
        )
    frame, findings = monitor.score(history, moment, hours=hours)
    day_N = np.datetime64("1970-01-01") + (frame["hour"].to_numpy() - 1) // 24  # hours (0, 24] of a day
    for (asset, day), rows in frame.groupby(["asset", np.datetime_as_string(day_N)]):
        path = workspace.scores(str(asset), str(day))
        if path.exists():  # hours of the day that an earlier call scored stay
            before = pd.read_parquet(path)
            rows = pd.concat([before[~before["hour"].isin(rows["hour"])], rows]).sort_values("hour")
        _write(rows, path)
    return Scored(frame, findings, refused)


def draft_order(
    monitor: Monitor, history: History, asset: str, moment: np.datetime64, workspace: Workspace
) -> WorkOrder:
    """The work order of one asset as known at a moment."""
    known = sorted(history.readings["asset"].unique())
    if asset not in known:
        raise InputError(
            f"no asset `{asset}` in {history.name}.{did_you_mean(asset, known)} It has {len(known)} assets."
        )
    prepared, findings = monitor.prepare(history.of([asset]), until=moment)
    row = len(prepared.panel) - 1
    explanation = explain(monitor, prepared, row)
    whole = replace(prepared, history=history.known_at(moment))  # past orders of the whole fleet
    case = next((c for c in CaseBook(workspace.cases).active() if c.asset == asset), None)
    return draft(monitor, whole, row, explanation, findings=findings, case=case)


def newest_days(history: History) -> list[tuple[str, str, int]]:
    """(asset, day, newest hour) of every asset; the day that its newest reading belongs to."""
    newest = history.readings.groupby("asset")["time"].max()
    hours = hours_of(newest)
    days = np.datetime_as_string(np.datetime64("1970-01-01") + (hours - 1) // 24)
    return [(str(a), str(d), int(h)) for a, d, h in zip(newest.index, days, hours, strict=True)]


def observed_coverage(monitor: Monitor, scores: pd.DataFrame, history: History) -> CoverageMonitor:
    """Intervals of the past against the lives that have become known since: one score per asset and week."""
    watched = CoverageMonitor()
    cap, newest = monitor.model.task.cap, int(hours_of(history.readings["time"]).max())
    failures = {str(a): np.sort(hours_of(f["time"])) for a, f in history.failures().groupby("asset")}
    first = scores.groupby(["asset", scores["hour"] // 168]).head(1).sort_values("hour")
    for row in first.itertuples():
        when = failures.get(str(row.asset), np.zeros(0, np.int64))
        later = when[when > row.hour]
        life = float(later[0] - row.hour) if len(later) else np.inf
        if life < np.inf or row.hour + cap <= newest:
            watched.add(row.rul_low, row.rul_high, min(life, cap))
    return watched

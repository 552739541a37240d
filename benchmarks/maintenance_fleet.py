"""The simulated fleet, whose causes are known: alarms, root causes, the deletion test, cost, dead sensors, speed.

python -m benchmarks.maintenance_fleet [SEEDS]
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, Clock
from core.results import Results, measured
from solutions.maintenance.alarms import AlarmSettings, Costs, episodes, f1_threshold, judge
from solutions.maintenance.causes import Principal, rank, windowed
from solutions.maintenance.data import HOUR, History, load_history
from solutions.maintenance.evaluate import Collected, failures_in, mean_score
from solutions.maintenance.explain import explain
from solutions.maintenance.labels import make_labels
from solutions.maintenance.model import Prepared
from solutions.maintenance.monitor import Monitor, fit_monitor, normal_rows
from solutions.maintenance.panel import hours_of
from solutions.maintenance.simulator import FLEET_COLUMNS, FleetSettings, simulate, write_fleet
from solutions.maintenance.task import recurring_task

TRAIN_DAYS, DAYS, ASSETS, BEFORE = 90, 120, 60, 24
SHOWN = ("ap_72", "ap_24_72", "recall", "lead_hours", "false_per_asset_month", "hit_1", "hit_3")


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    clock, rows, extra = Clock(), {}, {"costs": [], "alarms": [], "deletion": [], "training_cpu_seconds": []}
    with tempfile.TemporaryDirectory() as scratch, measured() as cost:
        for seed in range(seeds):
            folder = Path(scratch) / str(seed)
            tables = write_fleet(FleetSettings(assets=ASSETS, days=DAYS), seed, folder)
            history = load_history(folder, FLEET_COLUMNS)
            cut = history.readings["time"].min().to_datetime64() + TRAIN_DAYS * 24 * HOUR
            with measured() as training:
                monitor, held, _ = fit_monitor(history, recurring_task(), seed=seed, cut=cut)
            extra["training_cpu_seconds"].append(training.cpu_seconds)
            clock(f"seed {seed}: trained")
            prepared, _ = monitor.prepare(history)
            judge_seed(monitor, held, prepared, cut, rows, extra)
            causes(monitor, prepared, cut, tables["truth"], rows, extra)
            clock(f"seed {seed}: judged")
        extra["scoring"] = speed(monitor)
    results = Results(
        task="maintenance",
        protocol="simulated_fleet",
        data={
            "name": f"simulated fleet of {ASSETS} pumps, {DAYS} days",
            "sha256": history.sha256,
            "rows": history.rows,
        },
        seeds=list(range(seeds)),
        champion="fused",
        cost=cost,
        rows=[collected.row(name) for name, collected in rows.items()],
        extra=extra,
    )
    results.print(SHOWN)
    results.write(RESULTS / "maintenance_fleet.json")


def judge_seed(
    monitor: Monitor,
    held: Any,
    prepared: Prepared,
    cut: np.datetime64,
    rows: dict[str, Collected],
    extra: dict[str, Any],
) -> None:
    panel, costs = prepared.panel, Costs()
    cut_hour = int(hours_of(np.array([cut]))[0])
    tested = np.flatnonzero(panel.hour_R >= cut_hour)
    labels = make_labels(prepared.history, panel)
    truth, unit = labels.at(tested), panel.asset_R[tested]
    positive, known = truth.within(72.0)
    between = known & ~truth.within(24.0)[0]
    raw = monitor.model.raw(prepared, tested)
    for name in monitor.model.names:
        p = monitor.model.curves_of(raw, name).fails_within(72.0)
        found = rows.setdefault(name, Collected())
        found.add("ap_72", "ap", positive[known], p[known], unit[known])
        found.add("ap_24_72", "ap", positive[between], p[between], unit[between])
    random = np.random.default_rng(0).random(len(tested))
    rows.setdefault("random", Collected()).add("ap_72", "ap", positive[known], random[known], unit[known])
    rows.setdefault("always_alarm", Collected()).add(
        "ap_72", "ap", positive[known], np.ones(int(known.sum())), unit[known]
    )
    residual = Principal.fit(_normal(prepared, cut_hour)).residual(
        windowed(prepared.features.z_RS, panel.start_R)[tested]
    )
    rows.setdefault("pca_residual", Collected()).add(
        "ap_72", "ap", positive[known], np.abs(residual).max(axis=1)[known], unit[known]
    )
    p = monitor.model.curves_of(raw, "fused").fails_within(72.0)
    failures = failures_in(panel, prepared.history, tested)
    opened = episodes(p, unit, panel.hour_R[tested], monitor.alarm)
    figures = judge(opened, failures, float(len(tested)))
    rows["fused"].put(
        recall=figures.recall, lead_hours=figures.lead_hours, false_per_asset_month=figures.false_per_asset_month
    )
    own = monitor.model.curves_of({"fused": held.raw["fused"]}, "fused").fails_within(72.0)
    before = make_labels(prepared.history, panel, until_hour=cut_hour - 1).at(held.rows).within(72.0)[0]
    f1 = f1_threshold(own, before)
    customary = episodes(p, unit, panel.hour_R[tested], AlarmSettings(threshold=float(np.clip(f1, 1e-6, 1.0))))
    ours, theirs = costs.of(opened, failures), costs.of(customary, failures)
    extra["costs"].append({"cost_optimal": ours, "f1_optimal": theirs, "ratio": ours / theirs})
    extra["alarms"].append(asdict(figures) | {"threshold": monitor.alarm.threshold, "f1_threshold": f1})


def _normal(prepared: Prepared, cut_hour: int) -> np.ndarray:
    panel = prepared.panel
    labels = make_labels(prepared.history, panel, until_hour=cut_hour - 1)
    rows = (panel.hour_R < cut_hour) & normal_rows(panel, prepared.history, labels)
    average = windowed(prepared.features.z_RS, panel.start_R)[rows]
    return average[np.isfinite(average).all(axis=1)]


def causes(
    monitor: Monitor,
    prepared: Prepared,
    cut: np.datetime64,
    truth: Any,
    rows: dict[str, Collected],
    extra: dict[str, Any],
) -> None:
    """Rank sensors a day before each failure of the test days; the primary sensor of its cause is the truth."""
    panel, linear = prepared.panel, Principal.fit(_normal(prepared, int(hours_of(np.array([cut]))[0])))
    average = windowed(prepared.features.z_RS, panel.start_R)
    hits: dict[str, list[tuple[float, float]]] = {"fused": [], "pca_residual": []}
    drops, units, suspects = [], [], []
    for fault in truth[truth["time"] > cut + BEFORE * HOUR].itertuples():
        asset = panel.assets.index(fault.asset)
        hour = int(hours_of(np.array([fault.time], "datetime64[us]"))[0]) - BEFORE
        row = int(np.flatnonzero((panel.asset_R == asset) & (panel.hour_R == hour))[0])
        explanation = explain(monitor, prepared, row)
        by_pca = rank(linear.residual(average[[row]])[0], monitor.alive)
        for name, ranked in (("fused", explanation.sensors), ("pca_residual", by_pca)):
            order = [sensor for sensor, _ in ranked]
            hits[name].append((float(order[0] == fault.primary), float(fault.primary in order[:3])))
        test = explanation.deletion
        drops.append((test.risk - test.without_top, test.risk - test.without_random))
        units.append(asset)
        suspects.append(float(explanation.suspects[0][0] == fault.cause))
    unit = np.array(units)
    for name, values in hits.items():
        table = np.array(values)
        for i, metric in enumerate(("hit_1", "hit_3")):
            rows[name].add(metric, mean_score, np.zeros(len(unit)), table[:, i], unit)
    rows["fused"].put(suspect_accuracy=float(np.mean(suspects)))
    top, others = np.array(drops).mean(axis=0)
    extra["deletion"].append({"faults": len(unit), "drop_top_3": top, "drop_random_3": others, "ratio": top / others})


def speed(monitor: Monitor) -> dict[str, float]:
    """Processor seconds to score one hour of 1,000 assets from ten days of readings."""
    tables = simulate(FleetSettings(assets=200, days=20, stuck=0), 99)
    with tempfile.TemporaryDirectory() as scratch:
        for name, frame in tables.items():
            frame.to_parquet(Path(scratch) / f"{name}.parquet")
        small = load_history(Path(scratch), FLEET_COLUMNS)
    history = _times_five(small)
    now = history.readings["time"].max().to_datetime64()
    with measured() as cost:
        frame, _ = monitor.score(history, now)
    assert len(frame) == 1000
    return {"assets": 1000, "cpu_seconds": cost.cpu_seconds, "peak_rss_mb": cost.peak_rss_mb}


def _times_five(history: History) -> History:
    import pandas as pd

    def copies(frame: Any) -> Any:
        return pd.concat([frame.assign(asset=frame["asset"] + f"-{i}") for i in range(5)], ignore_index=True)

    assets = pd.concat([history.assets.set_axis(history.assets.index + f"-{i}") for i in range(5)])
    return replace(history, readings=copies(history.readings), events=copies(history.events), assets=assets)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)

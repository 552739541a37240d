"""Alarms, causes, cost, ill sensors and speed of the monitor: on the simulated fleet, and alarms on the Azure PdM machines.

    python -m benchmarks.maintenance_fleet [SEEDS]
    python -m benchmarks.maintenance_fleet azure [SEEDS]
    python -m benchmarks.maintenance_fleet scoring

Everything is chosen on training days, thresholds on out-of-fold scores; the test days are scored once. The simulated
causes say that the machinery finds what moves sensors; they do not say how large the signs of your machines are.

recall, lead_hours, false_per_asset_month: a case warns of a failure within 168 h (the longest horizon); recall_72 and
false_72: a case counts only within 72 h. hit_1, hit_3: primary sensor of the cause, a day before the failure, of the
failures that give a sign at all.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.common import RESULTS, Clock, data
from core.results import Results, measured, weighted_average_precision
from solutions.maintenance.alarms import (
    HOURS_PER_MONTH,
    AlarmSettings,
    Costs,
    EventFigures,
    Policy,
    cost_curve,
    episodes,
    f1_threshold,
    judge,
)
from solutions.maintenance.causes import Principal, rank, windowed
from solutions.maintenance.data import HOUR, History, load_history
from solutions.maintenance.evaluate import Collected, failures_in, mean_score
from solutions.maintenance.explain import explain
from solutions.maintenance.labels import make_labels
from solutions.maintenance.model import HeldOut, Prepared
from solutions.maintenance.monitor import BUDGET, LOOK_BACK, Monitor, fit_monitor, normal_rows
from solutions.maintenance.panel import hours_of
from solutions.maintenance.protocols import load_azure
from solutions.maintenance.simulator import FLEET_COLUMNS, FleetSettings, simulate, write_fleet
from solutions.maintenance.task import recurring_task

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
TRAIN_DAYS, DAYS, ASSETS, BEFORE, STUCK = 90, 120, 60, 24, 48
FLEET = f"simulated fleet of {ASSETS} pumps, {DAYS} days"
SHOWN = (
    *("ap_72", "ap_24_72", "recall", "lead_hours", "false_per_asset_month"),
    *("recall_72", "false_72", "cost_per_asset_month", "hit_1", "hit_3"),
)


def simulated(folder: Path, seed: int) -> tuple[dict[str, pd.DataFrame], History, np.datetime64]:
    """A fleet, what is read back of it, and where its test days begin."""
    tables = write_fleet(FleetSettings(assets=ASSETS, days=DAYS), seed, folder)
    history = load_history(folder, FLEET_COLUMNS)
    return tables, history, history.readings["time"].min().to_datetime64() + TRAIN_DAYS * 24 * HOUR


def fleet(seeds: int) -> None:
    clock, rows = Clock(), dict[str, Collected]()
    extra: dict[str, Any] = {k: [] for k in ("costs", "alarms", "deletion", "ill_sensors", "training_cpu_seconds")}
    with tempfile.TemporaryDirectory() as scratch, measured() as cost:
        for seed in range(seeds):
            tables, history, cut = simulated(Path(scratch) / str(seed), seed)
            with measured() as training:
                monitor, held, _ = fit_monitor(history, recurring_task(), seed=seed, cut=cut)
            extra["training_cpu_seconds"].append(training.cpu_seconds)
            clock(f"seed {seed}: trained")
            prepared, _ = monitor.prepare(history)
            judge_seed(monitor, held, prepared, cut, rows, extra)
            causes(monitor, prepared, cut, tables["truth"], rows, extra)
            clock(f"seed {seed}: judged")
            ill = ill_sensors(monitor, history, cut, seed)
            rows["fused"].put(**{f"change_{name}": ill[name] for name in ("dead_mean", "dead_worst", "missing_30")})
            rows["fused"].put(training_cpu_seconds=training.cpu_seconds)
            extra["ill_sensors"].append(ill)
            clock(f"seed {seed}: {ill}")
    finish("simulated_fleet", FLEET, history, seeds, cost, rows, extra, "maintenance_fleet.json")


def scoring() -> None:
    """What it takes to score 1,000 assets with the model of one such fleet."""
    found = Collected()
    with tempfile.TemporaryDirectory() as scratch, measured() as cost:
        _, history, cut = simulated(Path(scratch) / "fleet", 0)
        monitor, _, _ = fit_monitor(history, recurring_task(), seed=0, cut=cut)
        monitor.save(Path(scratch) / "model")
        found.put(**speed_elsewhere(Path(scratch) / "model"))
    results = Results(
        task="maintenance",
        protocol="simulated_fleet_scoring",
        data={"name": f"trained on {FLEET}; 1,000 others are scored", "sha256": history.sha256, "rows": history.rows},
        seeds=[0],
        champion="fused",
        cost=cost,
        rows=[found.row("fused")],
    )
    results.print()
    results.write(RESULTS / "maintenance_scoring.json")


def azure(seeds: int) -> None:
    clock, rows = Clock(), dict[str, Collected]()
    extra: dict[str, Any] = {k: [] for k in ("costs", "alarms", "training_cpu_seconds")}
    history, cut = load_azure(data("maintenance/azure_pdm"))
    with measured() as cost:
        for seed in range(seeds):
            with measured() as training:
                monitor, held, _ = fit_monitor(history, recurring_task(), seed=seed, cut=cut)
            extra["training_cpu_seconds"].append(training.cpu_seconds)
            clock(f"seed {seed}: trained")
            prepared, _ = monitor.prepare(history)
            judge_seed(monitor, held, prepared, cut, rows, extra)
    finish(
        "azure_60_30_alarms", "Azure PdM, 20 machines, 90 days", history, seeds, cost, rows, extra,
        "maintenance_alarms_azure.json",
    )  # fmt: skip


def finish(
    protocol: str,
    name: str,
    history: History,
    seeds: int,
    cost: Any,
    rows: dict[str, Collected],
    extra: dict[str, Any],
    file: str,
) -> None:
    ratio = np.array([c["ratio"] for c in extra["costs"]])
    extra["cost_ratio"] = {"mean": float(ratio.mean()), "std": float(ratio.std(ddof=1)) if len(ratio) > 1 else 0.0}
    results = Results(
        task="maintenance",
        protocol=protocol,
        data={"name": name, "sha256": history.sha256, "rows": history.rows},
        seeds=list(range(seeds)),
        champion="fused",
        cost=cost,
        rows=[collected.row(model) for model, collected in rows.items()],
        extra=extra,
    )
    results.print(SHOWN)
    results.write(RESULTS / file)


def judge_seed(
    monitor: Monitor,
    held: HeldOut,
    prepared: Prepared,
    cut: np.datetime64,
    rows: dict[str, Collected],
    extra: dict[str, Any],
) -> None:
    """Probabilities, and the cases of every model, on the rows from the cut on."""
    panel = prepared.panel
    cut_hour = int(hours_of(np.array([cut]))[0])
    tested = np.flatnonzero(panel.hour_R >= cut_hour)
    trained = held.rows[np.lexsort((panel.hour_R[held.rows], held.asset_N))]
    order = np.lexsort((panel.hour_R[held.rows], held.asset_N))
    raw = monitor.model.raw(prepared, tested)
    residual_R = Principal.fit(_normal(prepared, cut_hour)).residual(windowed(prepared.features.z_RS, panel.start_R))
    deviation_R = np.abs(residual_R).max(axis=1)
    chance_R = np.random.default_rng(0).random(len(panel))
    # score of the out-of-fold training rows, in order of asset and time, and of the test rows
    scores: dict[str, tuple[F64, F64]] = {
        name: (
            monitor.model.curves_of({name: held.raw[name][order]}, name).fails_within(monitor.horizon),
            monitor.model.curves_of(raw, name).fails_within(monitor.horizon),
        )
        for name in monitor.model.names
    }
    squashed_R = deviation_R / (1.0 + deviation_R)
    scores["pca_residual"] = squashed_R[trained], squashed_R[tested]
    scores["random"] = chance_R[trained], chance_R[tested]
    scores["always_alarm"] = np.ones(len(trained)), np.ones(len(tested))
    truth, unit = make_labels(prepared.history, panel).at(tested), panel.asset_R[tested]
    positive, known = truth.within(monitor.horizon)
    between = known & ~truth.within(24.0)[0]
    for name, (before, p) in scores.items():
        found = rows.setdefault(name, Collected())
        found.add("ap_72", "ap", positive[known], p[known], unit[known])
        found.add("ap_24_72", "ap", positive[between], p[between], unit[between])
        alarms(name, before, p, trained, tested, prepared, cut_hour, found, extra)
        if name == "fused":  # the same scores with the threshold that warns most
            most = rows.setdefault("fused_most_warnings", Collected())
            alarms(name, before, p, trained, tested, prepared, cut_hour, most, extra, policy="warnings")


def alarms(
    name: str,
    before: F64,
    p: F64,
    trained: I64,
    tested: I64,
    prepared: Prepared,
    cut_hour: int,
    found: Collected,
    extra: dict[str, Any],
    policy: Policy = "cost",
) -> None:
    """The threshold that the training days chose within the budget, as `fit_monitor` does, judged on test days."""
    panel, costs = prepared.panel, Costs()
    past = [f for f in failures_in(panel, prepared.history, trained) if f[1] < cut_hour]
    curve = cost_curve(
        before, panel.asset_R[trained], panel.hour_R[trained], past, costs=costs, settings=AlarmSettings()
    )
    setting = AlarmSettings(threshold=curve.choose(policy, budget=BUDGET))
    failures = failures_in(panel, prepared.history, tested)
    asset_N, hour_N = panel.asset_R[tested], panel.hour_R[tested]
    opened = episodes(p, asset_N, hour_N, setting)
    months = len(tested) / HOURS_PER_MONTH
    wide, narrow = (judge(opened, failures, float(len(tested)), horizon=h) for h in (168.0, 72.0))
    _add(found, wide, failures, np.unique(asset_N), months, "recall", "false_per_asset_month")
    _add(found, narrow, failures, np.unique(asset_N), months, "recall_72", "false_72")
    leads = np.array(wide.leads)
    caught = np.isfinite(leads)
    if caught.any():
        owner = np.array([asset for asset, _ in sorted(failures, key=lambda f: f[1])])
        found.add("lead_hours", median, np.zeros(int(caught.sum())), leads[caught], owner[caught])
    bill = costs.of(opened, failures)
    found.put(cost_per_asset_month=bill / months)
    if name == "fused" and policy == "cost":
        labels = make_labels(prepared.history, panel, until_hour=cut_hour - 1).at(trained)
        f1 = float(np.clip(f1_threshold(before, labels.within(72.0)[0]), 1e-6, 1.0))
        customary = costs.of(episodes(p, asset_N, hour_N, AlarmSettings(threshold=f1)), failures)
        found.put(cost_of_f1_optimal=bill / customary)
        extra["costs"].append(
            {
                **{"cost_optimal": bill, "f1_optimal": customary, "ratio": bill / customary},
                **{"run_to_failure": costs.of([], failures), "threshold": setting.threshold, "f1_threshold": f1},
            }
        )
        extra["alarms"].append({"failures": wide.failures, "caught": wide.caught, "false": wide.false})


def _add(
    found: Collected,
    figures: EventFigures,
    failures: list[tuple[int, int]],
    assets: I64,
    months: float,
    recall: str,
    false: str,
) -> None:
    owner = np.array([asset for asset, _ in sorted(failures, key=lambda f: f[1])])
    caught = np.isfinite(np.array(figures.leads)).astype(float)
    found.add(recall, mean_score, np.zeros(len(owner)), caught, owner)
    each = np.array([figures.false_assets.count(int(a)) for a in assets]) / (months / len(assets))
    found.add(false, mean_score, np.zeros(len(assets)), each, assets)


def median(target_N: F64, score_N: F64, weight_N: F64) -> float:
    """Weighted median."""
    order = np.argsort(score_N, kind="stable")
    total = np.cumsum(weight_N[order])
    return float(score_N[order][np.searchsorted(total, total[-1] / 2.0)])


def _normal(prepared: Prepared, cut_hour: int) -> F64:
    panel = prepared.panel
    labels = make_labels(prepared.history, panel, until_hour=cut_hour - 1)
    rows = (panel.hour_R < cut_hour) & normal_rows(panel, prepared.history, labels)
    average = windowed(prepared.features.z_RS, panel.start_R)[rows]
    return average[np.isfinite(average).all(axis=1)]


def causes(
    monitor: Monitor,
    prepared: Prepared,
    cut: np.datetime64,
    truth: pd.DataFrame,
    rows: dict[str, Collected],
    extra: dict[str, Any],
) -> None:
    """Rank sensors a day before each failure of the test days that gave a sign; the primary sensor is the truth."""
    panel, linear = prepared.panel, Principal.fit(_normal(prepared, int(hours_of(np.array([cut]))[0])))
    average = windowed(prepared.features.z_RS, panel.start_R)
    hits: dict[str, list[tuple[float, float]]] = {"fused": [], "pca_residual": [], "random": []}
    drops, units, suspects = [], [], []
    rng = np.random.default_rng(0)
    tested = truth[truth["time"] > cut + BEFORE * HOUR]
    for fault in tested[tested["onset"].notna()].itertuples():
        asset = panel.assets.index(str(fault.asset))
        hour = int(hours_of(np.array([fault.time], "datetime64[us]"))[0]) - BEFORE
        row = int(np.flatnonzero((panel.asset_R == asset) & (panel.hour_R == hour))[0])
        explanation = explain(monitor, prepared, row)
        by_pca = rank(linear.residual(average[[row]])[0], monitor.alive)
        by_chance = [(str(name), 0.0) for name in rng.permutation(monitor.alive)]
        for name, ranked in (("fused", explanation.sensors), ("pca_residual", by_pca), ("random", by_chance)):
            order = [sensor for sensor, _ in ranked]
            hits[name].append((float(order[0] == fault.primary), float(fault.primary in order[:3])))
        test = explanation.deletion
        drops.append((test.risk, test.risk - test.without_top, test.risk - test.without_random, float(test.passed)))
        units.append(asset)
        suspects.append(float(explanation.suspects[0][0] == fault.cause))
    unit = np.array(units)
    for name, values in hits.items():
        table = np.array(values)
        for i, metric in enumerate(("hit_1", "hit_3")):
            rows[name].add(metric, mean_score, np.zeros(len(unit)), table[:, i], unit)
    rows["fused"].add("suspect_accuracy", mean_score, np.zeros(len(unit)), np.array(suspects), unit)
    risk, top, others, passed = np.array(drops).mean(axis=0)
    extra["deletion"].append(
        {
            **{"faults": len(unit), "without_sign": int(tested["onset"].isna().sum()), "risk": risk},
            **{"drop_top_3": top, "drop_random_3": others, "ratio": top / max(others, 1e-9), "passed": passed},
        }
    )


def ill_sensors(monitor: Monitor, history: History, cut: np.datetime64, seed: int) -> dict[str, Any]:
    """Average precision with each sensor dead from the cut on, with 30 % of readings missing; what stuck sensors do."""
    recent = history.readings["time"] > cut - LOOK_BACK * HOUR
    part = replace(history, readings=history.readings[recent].reset_index(drop=True))
    after = (part.readings["time"] > cut).to_numpy()
    cut_hour = int(hours_of(np.array([cut]))[0])

    def score(readings: pd.DataFrame) -> tuple[Prepared, I64, F64, list[Any]]:
        prepared, findings = monitor.prepare(replace(part, readings=readings))
        rows = np.flatnonzero(prepared.panel.hour_R >= cut_hour)
        return prepared, rows, monitor.model.curves(prepared, rows).fails_within(monitor.horizon), findings

    def precision(readings: pd.DataFrame) -> float:
        prepared, rows, p, _ = score(readings)
        positive, known = make_labels(prepared.history, prepared.panel).at(rows).within(monitor.horizon)
        return weighted_average_precision(positive[known], p[known])

    whole = precision(part.readings)
    dead = {}
    for sensor in part.sensors:
        changed = part.readings.copy()
        changed.loc[after, sensor] = np.nan
        dead[sensor] = precision(changed) / whole - 1.0
    changed = part.readings.copy()
    for sensor in part.sensors:
        lost = np.random.default_rng([seed, part.sensors.index(sensor)]).random(len(changed)) < 0.3
        changed.loc[after & lost, sensor] = np.nan
    sparse = precision(changed) / whole - 1.0
    return {
        "ap_72": whole,
        "dead_mean": float(np.mean(list(dead.values()))),
        "dead_worst": float(min(dead.values())),
        "dead": dead,
        "missing_30": sparse,
        "stuck": stuck_sensors(monitor, part, score, seed),
    }


def stuck_sensors(monitor: Monitor, part: History, score: Any, seed: int) -> dict[str, float]:
    """Hold one sensor of each asset for two days of normal operation: how many are reported, and which cases that opens."""
    prepared, rows, quiet, _ = score(part.readings)
    panel, rng = prepared.panel, np.random.default_rng(seed)
    calm = normal_rows(panel, part, make_labels(part, panel))
    readings, held = part.readings.copy(), []
    for code, name in enumerate(panel.assets):
        mine = rows[panel.asset_R[rows] == code]
        begins = [r for r in mine[:-STUCK] if calm[r : r + STUCK].all()]
        if not begins:
            continue
        first = int(panel.hour_R[int(rng.choice(begins))])
        sensor = str(rng.choice(part.sensors))
        hour = hours_of(readings["time"])
        window = (readings["asset"] == name).to_numpy() & (hour >= first) & (hour < first + STUCK)
        value = readings.loc[window, sensor].dropna()
        if len(value):
            readings.loc[window, sensor] = value.iloc[0]
            held.append((code, name, sensor, first))
    _, _, p, findings = score(readings)
    reported = {(f.asset, f.sensor) for f in findings if f.cause == "stuck"}

    def opened(score_N: F64) -> set[tuple[int, int]]:
        found = episodes(score_N, panel.asset_R[rows], panel.hour_R[rows], monitor.alarm)
        return {(code, first) for code, _, _, first in held for e in found
                if e.asset == code and first <= e.opened < first + STUCK + 24}  # fmt: skip

    with_it, without = opened(p), opened(quiet)
    return {
        "sensors": float(len(held)),
        "reported": float(np.mean([(name, sensor) in reported for _, name, sensor, _ in held])),
        "cases_opened": float(len(with_it)),
        "cases_opened_when_healthy": float(len(without)),
        "cases_due_to_it": float(len(with_it - without)),
        "largest_change_of_risk": float(np.abs(p - quiet).max()),
    }


def speed_elsewhere(model: Path) -> dict[str, float]:
    """`speed` in a process of its own, whose memory is not that of the training nor of the simulator."""
    tables = simulate(FleetSettings(assets=200, days=20, stuck=0), 99)
    with tempfile.TemporaryDirectory() as scratch:
        for name, frame in tables.items():
            copies = [frame.assign(asset=frame["asset"] + f"-{i}") for i in range(5)] if "asset" in frame else [frame]
            pd.concat(copies, ignore_index=True).to_parquet(Path(scratch) / f"{name}.parquet")
        command = [sys.executable, "-m", "benchmarks.maintenance_fleet", "speed", str(model), scratch]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def speed(model: Path, folder: Path) -> dict[str, float]:
    """Processor seconds and memory to score one hour of 1,000 assets from twenty days of readings, files included."""
    with measured() as cost:
        monitor, history = Monitor.load(model), load_history(folder, FLEET_COLUMNS)
        with measured() as alone:
            frame, _ = monitor.score(history, history.readings["time"].max().to_datetime64())
    assert len(frame) == 1000
    return {
        **{"assets": 1000, "cpu_seconds": alone.cpu_seconds, "cpu_seconds_with_loading": cost.cpu_seconds},
        "peak_rss_mb": cost.peak_rss_mb,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = sys.argv[1:]
    if words[:1] == ["speed"]:
        print(json.dumps(speed(Path(words[1]), Path(words[2]))))
    elif words[:1] == ["scoring"]:
        scoring()
    elif words[:1] == ["azure"]:
        azure(int(words[1]) if len(words) > 1 else 3)
    else:
        fleet(int(words[0]) if words else 3)

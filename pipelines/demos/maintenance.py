"""The maintenance solution on one machine: a simulated fleet, Dagster trains, gates and registers, then the last day is
scored, cases open, and the most pressing one becomes a work-order draft beside a picture of the fleet."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ASSETS = 30
DAYS = 75
HOLDOUT_DAYS = 21.0


def run_pipeline(folder: Path, var_dir: Path, seed: int) -> bool:
    """Materialise challenger, gate and champion in this process; returns whether the gate let it through."""
    import dagster as dg

    from pipelines.defs import maintenance
    from pipelines.resources import VarResource, dagster_instance
    from solutions.maintenance.simulator import FLEET_COLUMNS

    var = VarResource(path=str(var_dir))
    fleet = maintenance.FleetResource(
        folder=str(folder), columns=FLEET_COLUMNS, holdout_days=HOLDOUT_DAYS, quick=True, seed=seed
    )
    with dagster_instance() as instance:
        result = dg.materialize(
            [maintenance.maintenance_challenger, maintenance.maintenance_champion, maintenance.maintenance_gate],
            resources={"var": var, "fleet": fleet},
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    var.tracker().close(result.run_id, "FINISHED" if result.success else "FAILED")
    return bool(result.success)


def fleet_picture(scores: pd.DataFrame, book: Any, threshold: float, horizon: str, path: Path) -> Path:
    """Risk of every asset over the last days, a row per asset; open cases are marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = scores.pivot_table(index="asset", columns="hour", values=horizon)
    table = table.loc[table.iloc[:, -1].fillna(0.0).sort_values(ascending=False).index]
    figure, axes = plt.subplots(figsize=(9, 0.16 * len(table) + 1.4), layout="constrained")
    days = (np.asarray(table.columns) - table.columns[-1]) / 24.0
    image = axes.imshow(table, aspect="auto", cmap="inferno_r", vmin=0, vmax=1, extent=(days[0], 0, len(table), 0))
    axes.set_yticks(np.arange(len(table)) + 0.5, list(table.index), fontsize=6)
    active = {case.asset for case in book.active()}
    for i, asset in enumerate(table.index):
        if asset in active:
            axes.text(0.02 * -days[0], i + 0.8, "open case", fontsize=6, color="#c4453c")
    axes.set_xlabel("days before now")
    figure.colorbar(image, label=f"P(failure within {horizon[2:]} h); alarm from {threshold:.2f}")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def run_demo(var_dir: Path, *, seed: int = 0) -> None:
    """Run everything and print a summary; picture and work order lie under `var_dir`/demo/maintenance."""
    import warnings

    from rich.console import Console

    warnings.filterwarnings("ignore", message=".*(beta|preview|experimental).*")
    for noisy in ("dagster", "mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    import torch

    from core.tracking import Tracker
    from solutions.maintenance.alarms import episodes, judge
    from solutions.maintenance.cases import CaseBook
    from solutions.maintenance.data import HOUR, load_history
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.operate import Workspace, draft_order, open_cases, score_days, window_metrics
    from solutions.maintenance.simulator import FLEET_COLUMNS, FleetSettings, write_fleet

    torch.set_num_threads(1)
    console, begin = Console(), time.perf_counter()
    out = var_dir / "demo" / "maintenance"
    out.mkdir(parents=True, exist_ok=True)
    with console.status("Machines: simulating a fleet of pumps") as status:
        tables = write_fleet(FleetSettings(assets=ASSETS, days=DAYS), seed, out / "fleet")
        status.update("Machines: Dagster trains, gates and registers (under a minute)")
        passed = run_pipeline(out / "fleet", var_dir, seed)
        workspace = Workspace(var_dir / "maintenance")
        newest = max((workspace.root / "evaluations").glob("*.parquet"), key=lambda p: p.stat().st_mtime)
        window = pd.read_parquet(newest)
        status.update("Machines: scoring the fleet")
        if passed:
            directory, version = Tracker(f"sqlite:///{var_dir / 'mlflow.db'}").resolve("maintenance@champion")
            verdict = f"promoted; registered as maintenance@champion ({version})"
        else:
            directory, verdict = workspace.model(newest.stem), "refused; the pictures show the challenger"
        monitor = Monitor.load(directory)
        history = load_history(out / "fleet", FLEET_COLUMNS)
        now = _busy_moment(window, tables["failures"])
        scored = score_days(monitor, history, now, workspace, hours=120)
        book = CaseBook(workspace.cases)
        book.cases.clear()
        open_cases(monitor, scored.frame, book, history.known_at(now))
        book.save()
        horizon = f"p_{monitor.horizon:g}"
        picture = fleet_picture(scored.frame, book, monitor.alarm.threshold, horizon, out / "fleet.png")
        last = scored.frame.groupby("asset").tail(1).set_index("asset")[horizon]
        waiting = [case.asset for case in book.active()]
        top = str(last[waiting].idxmax() if waiting else last.idxmax())
        order = draft_order(monitor, history, top, now, workspace)
        page = order.write(out / "work_orders")
    codes = {name: i for i, name in enumerate(sorted(window["asset"].unique()))}
    failures = tables["failures"]
    hours = (window["time"].to_numpy("datetime64[us]").astype(np.int64) // HOUR.astype(np.int64)).astype(np.int64)
    inside = failures["time"].between(window["time"].min(), window["time"].max(), inclusive="right")
    events = [
        (codes[a], int(t.to_datetime64().astype("datetime64[us]").astype(np.int64) // HOUR.astype(np.int64)))
        for a, t in zip(failures.loc[inside, "asset"], failures.loc[inside, "time"], strict=True)
    ]
    asset_N = window["asset"].map(codes).to_numpy(np.int64)
    found = judge(episodes(window["fused"].to_numpy(float), asset_N, hours, monitor.alarm), events, float(len(window)))
    metrics = window_metrics(window)
    console.print(
        f"Held-out days of the fleet (simulated): average precision at {monitor.horizon:g} h "
        f"{metrics['fused_ap']:.3f} fused, {metrics['lightgbm_ap']:.3f} gradient boosting"
    )
    console.print(
        f"Alarms on them: {found.caught} of {found.failures} failures caught, median warning {found.lead_hours:.0f} h, "
        f"{found.false_per_asset_month:.2f} false cases per asset-month"
    )
    console.print(f"Gate: {verdict}")
    truth = tables["truth"]
    later = truth[(truth["asset"] == top) & (truth["time"] > now)]
    fields = order.fields
    console.print(
        f"Top case: {top}, {fields['probability'][f'{monitor.horizon:g}']:.0%} within {monitor.horizon:g} h, suspected "
        f"{fields['suspected_item']}, latest safe date {fields['latest_safe_date']}"
    )
    if len(later):
        hours_left = (later["time"].iat[0] - pd.Timestamp(now)) / pd.Timedelta(hours=1)
        console.print(f"What the simulator knows: {later['cause'].iat[0]} fails in {hours_left:.0f} h")
    console.print(f"Fleet picture: {picture}")
    console.print(f"Work order: {page}")
    console.print(f"Done in {time.perf_counter() - begin:.0f} s.")


def _busy_moment(window: pd.DataFrame, failures: pd.DataFrame) -> np.datetime64:
    """A moment of the held-out days some hours before a failure, so that there is something to see."""
    later = failures[failures["time"] > window["time"].min() + pd.Timedelta(days=6)].sort_values("time")
    if later.empty:
        return np.datetime64(window["time"].max(), "us")
    return np.datetime64(later["time"].iat[len(later) // 2] - pd.Timedelta(hours=30), "us")

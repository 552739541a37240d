"""New operation and new failure modes on the simulated fleet: what an update gains, and what it forgets.

    python -m benchmarks.maintenance_update regime [SEEDS]
    python -m benchmarks.maintenance_update mode [SEEDS]

regime: from day 100 on pumps run at a load that nobody has seen, seven stretches in ten. The champion is trained on 90
days. Every third day from day 103 to 135 the updater sees what is known by then, and what it promotes takes over. All are
judged on days 135-150; the twin is the same fleet without the new load. from_scratch is trained on days 0-135.
mode: the champion has seen four failure modes; fifty machines with failures of the fifth are shown to it by
`vigil maintenance update --finding`, and all are judged on another fleet in which all five occur. from_scratch has the
champion's history and 150 failures of the fifth mode.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.common import RESULTS, Clock
from core.continual.updater import UpdatePlan
from core.results import Results, measured, summarise, weighted_average_precision
from solutions.maintenance.change import Change
from solutions.maintenance.data import HOUR, History, load_history
from solutions.maintenance.labels import make_labels
from solutions.maintenance.monitor import Monitor, fit_monitor
from solutions.maintenance.panel import hours_of
from solutions.maintenance.simulator import CAUSES, FLEET_COLUMNS, FleetSettings, simulate
from solutions.maintenance.task import recurring_task
from solutions.maintenance.update import UpdateSettings, carry_out
from solutions.maintenance.watch import look, risks

F64 = NDArray[np.float64]
TRAINED, CHANGED, FIRST, LAST, END, EVERY = 90, 100, 103, 135, 150, 3
EXAMPLES = (5, 20, 50)
FULL = 150


def load(settings: FleetSettings, seed: int, *, prefix: str = "", only: set[str] | None = None) -> History:
    """A simulated fleet through the same files as everybody's."""
    tables = simulate(settings, seed)
    with tempfile.TemporaryDirectory() as scratch:
        for name, frame in tables.items():
            kept = frame if only is None else frame[frame["asset"].isin(only)]
            kept.assign(asset=prefix + kept["asset"]).to_parquet(Path(scratch) / f"{name}.parquet", index=False)
        return load_history(Path(scratch), FLEET_COLUMNS)


def until(history: History, day: int) -> History:
    return history.known_at(moment(history, day))


def moment(history: History, day: int) -> np.datetime64:
    begin: np.datetime64 = history.readings["time"].min().to_datetime64()
    return begin + day * 24 * HOUR


def hour_of(history: History, day: int) -> int:
    return int(hours_of(np.array([moment(history, day)]))[0])


def precision(monitor: Monitor, history: History, first: int, last: int) -> float:
    """Average precision at the alarm horizon on some days whose outcome is known."""
    prepared, _ = monitor.prepare(history)
    panel = prepared.panel
    positive, known = make_labels(history, panel).within(monitor.horizon)
    rows = np.flatnonzero(known & (panel.hour_R >= first) & (panel.hour_R < last))
    p = monitor.model.curves(prepared, rows).fails_within(monitor.horizon)
    return weighted_average_precision(positive[rows], p)


def serve(champion: Monitor, history: History, seed: int, clock: Clock) -> tuple[Monitor, list[dict[str, Any]]]:
    """Look every few days, update when told to, and go on with what was promoted."""
    updates: list[dict[str, Any]] = []
    serving, tried = champion, set[str]()
    reference = hour_of(history, TRAINED), hour_of(history, CHANGED)
    prepared, _ = serving.prepare(until(history, LAST))
    p_R = risks(serving, prepared)
    for day in range(FIRST, LAST + 1, EVERY):
        known_by = hour_of(history, day)
        outlook = look(serving, prepared, p_R, reference, known_by)
        attempt = f"{sum(u['kept'] for u in updates)}-{outlook.attempt}"
        clock(f"day {day}: {outlook.plan.scope}, {outlook.plan.why}")
        if outlook.change is None or outlook.plan.scope == "none" or attempt in tried:
            continue
        tried.add(attempt)
        with measured() as cost:
            update = carry_out(serving, until(history, day), outlook.change, outlook.plan, seed=seed)
        updates.append({"day": day, **update.record(), "cpu_seconds": cost.cpu_seconds})
        clock(f"day {day}: {updates[-1]}")
        if update.kept:
            serving = update.monitor
            reference = int(outlook.change.since_hour or reference[0]), known_by
            prepared, _ = serving.prepare(until(history, LAST))
            p_R = risks(serving, prepared)
    return serving, updates


def regime(seed: int, clock: Clock) -> dict[str, Any]:
    settings = FleetSettings(days=END)
    twin, history = load(settings, seed), load(replace(settings, new_regime_day=CHANGED), seed)
    with measured() as training:
        champion, _, _ = fit_monitor(twin, recurring_task(), seed=seed, cut=moment(twin, TRAINED))
    clock(f"seed {seed}: champion trained")
    served, updates = serve(champion, history, seed, clock)
    _, calm_updates = serve(champion, twin, seed, clock)
    with measured() as scratch_cost:
        scratch, _, _ = fit_monitor(history, recurring_task(), seed=seed, cut=moment(history, LAST))
    first, last = hour_of(history, LAST), hour_of(history, END)
    before = precision(champion, twin, hour_of(twin, TRAINED), hour_of(twin, CHANGED))
    old = precision(champion, twin, first, last)
    rows = {}
    for name, monitor in (("frozen", champion), ("vigil_updater", served), ("from_scratch", scratch)):
        rows[name] = {
            "ap_72": precision(monitor, history, first, last),
            "ap_72_before": before,
            "ap_72_without_change": old,
            "forgetting_twin": old - precision(monitor, twin, first, last),
        }
    rows["frozen"]["cpu_seconds"] = training.cpu_seconds
    rows["from_scratch"]["cpu_seconds"] = scratch_cost.cpu_seconds
    rows["vigil_updater"] |= {
        "updates_tried": float(len(updates)),
        "updates_kept": float(sum(u["kept"] for u in updates)),
        "updates_tried_without_change": float(len(calm_updates)),
        "updates_kept_without_change": float(sum(u["kept"] for u in calm_updates)),
        "cpu_seconds": float(sum(u["cpu_seconds"] for u in updates)),
    }
    return {"rows": rows, "updates": updates, "updates_without_change": calm_updates}


def mode(seed: int, clock: Clock) -> dict[str, Any]:
    """Each seed leaves another mode out."""
    new = CAUSES[-1 - seed % len(CAUSES)].name
    others = tuple(cause.name for cause in CAUSES if cause.name != new)
    old = load(FleetSettings(days=TRAINED + 30, only=others), seed)
    champion, _, _ = fit_monitor(old, recurring_task(), seed=seed, cut=moment(old, TRAINED))
    clock(f"seed {seed}: champion trained without {new}")
    # machines that had one failure of the new mode, and months in which nothing of it happened
    source = FleetSettings(assets=400, days=60, failures=1.0, only=(new,), stuck=0)
    truth = simulate(source, 1000 + seed)["truth"]
    failed = truth["asset"].value_counts()
    single = sorted(failed[failed == 1].index)
    tested = load(FleetSettings(days=75), 2000 + seed)
    found: dict[str, dict[str, float]] = {"before": judged(champion, tested, new)}
    updates = []
    for count in EXAMPLES:
        examples = load(source, 1000 + seed, prefix="Q-", only=set(single[:count]))
        update = carry_out(
            champion,
            joined(old, examples),
            Change(finding=new),
            UpdatePlan("head", f"{count} failures were found to be `{new}`"),
            UpdateSettings(least_machines=5),
            seed=seed,
        )
        updates.append({"examples": count, **update.record()})
        clock(f"seed {seed}: {updates[-1]}")
        found[f"after_{count}"] = judged(update.monitor, tested, new) | {"kept": float(update.kept)}
    everything = joined(old, load(source, 1000 + seed, prefix="Q-", only=set(single[:FULL])))
    scratch, _, _ = fit_monitor(everything, recurring_task(), seed=seed)
    found["from_scratch"] = judged(scratch, tested, new)
    clock(f"seed {seed}: {found}")
    return {"rows": found, "updates": updates, "new_mode": new, "full_examples": len(single[:FULL])}


def joined(old: History, new: History) -> History:
    """One folder would hold both."""
    return replace(
        old,
        readings=pd.concat([old.readings, new.readings], ignore_index=True),
        events=pd.concat([old.events, new.events], ignore_index=True),
        assets=pd.concat([old.assets, new.assets]),
        rows=old.rows + new.rows,
    )


def judged(monitor: Monitor, history: History, new: str) -> dict[str, float]:
    """Average precision for the new mode and for the old ones; rows before a failure of the other kind are left out."""
    prepared, _ = monitor.prepare(history)
    panel = prepared.panel
    p = monitor.model.curves(prepared, np.arange(len(panel))).fails_within(monitor.horizon)
    positive, known = make_labels(history, panel).within(monitor.horizon)
    failures = history.failures()
    only = replace(history, events=failures[failures["code"] == new])
    is_new = make_labels(only, panel).within(monitor.horizon)[0]
    usable = known & (panel.age_R() >= 24)
    mine, rest = usable & (is_new | ~positive), usable & ~is_new
    return {
        "ap_new_mode": weighted_average_precision(is_new[mine], p[mine]),
        "ap_old_modes": weighted_average_precision(positive[rest], p[rest]),
    }


def main(protocol: str, seeds: int) -> None:
    torch.set_num_threads(1)
    clock, found = Clock(), []
    with measured() as cost:
        for seed in range(seeds):
            found.append((regime if protocol == "regime" else mode)(seed, clock))
    names = list(found[0]["rows"])
    rows = [
        {
            "model": name,
            "source": "measured",
            "metrics": {key: summarise([f["rows"][name][key] for f in found]) for key in found[0]["rows"][name]},
        }
        for name in names
    ]
    results = Results(
        task="maintenance",
        protocol=f"simulated_{protocol}",
        data={"name": "simulated fleet", "sha256": "", "rows": 0},
        seeds=list(range(seeds)),
        champion="vigil_updater" if protocol == "regime" else f"after_{EXAMPLES[-1]}",
        cost=cost,
        rows=rows,
        extra={key: [f[key] for f in found] for key in found[0] if key != "rows"},
    )
    results.print()
    results.write(RESULTS / f"maintenance_new_{protocol}.json")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "regime", int(sys.argv[2]) if len(sys.argv) > 2 else 3)

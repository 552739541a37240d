"""Is the champion still right? Inputs and errors since it was trained, findings that it does not know, and what follows.

Errors are counted once per asset and horizon: the hours before one failure are one event, and a detector that took them for
many would see a rise in every cluster of failures. Inputs need no labels.

R rows of a panel.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.continual.drift import DriftReport, detect
from core.continual.updater import UpdatePlan, Updater
from core.files import replacing
from solutions.maintenance.change import Change
from solutions.maintenance.data import History
from solutions.maintenance.labels import make_labels
from solutions.maintenance.model import Prepared, Progress
from solutions.maintenance.monitor import Monitor
from solutions.maintenance.operate import Workspace, champion_run, save_challenger
from solutions.maintenance.panel import hours_of
from solutions.maintenance.update import Update, UpdateSettings, carry_out

F64 = NDArray[np.float64]
DAY = 24
LEAST_EXAMPLES = 10  # failures with a finding that the champion never saw, before it is taught


@dataclass(frozen=True)
class Outlook:
    """What to do, and about which change. known_hours: how long the change has been watched."""

    plan: UpdatePlan
    change: Change | None = None
    known_hours: int = 0

    @property
    def attempt(self) -> str:
        """With the champion's run, a key of what is worth trying once: a refused update is tried again when there is twice
        as much to learn from, not every time somebody looks."""
        what = "" if self.change is None else self.change.finding or f"hour-{self.change.since_hour}"
        return f"{what}-{int(math.log2(max(self.known_hours / DAY, 1.0)))}"


def risks(champion: Monitor, prepared: Prepared) -> F64:
    """(R,) the champion's probabilities of all rows that it did not train on; NaN for the others."""
    rows = np.flatnonzero(prepared.panel.hour_R >= champion.trained_until)
    p_R = np.full(len(prepared.panel), np.nan)
    p_R[rows] = champion.model.curves(prepared, rows).fails_within(champion.horizon)
    return p_R


def compare(
    champion: Monitor, prepared: Prepared, p_R: F64, reference: tuple[int, int], known_by: int, *, newest_days: int = 7
) -> tuple[DriftReport, int | None]:
    """Readings of the newest days against those of the reference hours, and the errors since the champion was trained.

    Returns the report, and the hour from which on the errors are higher.
    """
    panel, history, horizon = prepared.panel, prepared.history, int(champion.horizon)
    positive, known = make_labels(history, panel, until_hour=known_by).within(champion.horizon)
    rows = np.flatnonzero(known & np.isfinite(p_R) & (panel.hour_R < known_by))
    table = pd.DataFrame(
        {
            "block": panel.hour_R[rows] // horizon,
            "asset": panel.asset_R[rows],
            "error": (p_R[rows] - positive[rows]) ** 2,
            "hour": panel.hour_R[rows],
        }
    )
    blocks = table.groupby(["block", "asset"], sort=True).agg(error=("error", "mean"), hour=("hour", "min"))
    first, last = reference
    inputs_RF = np.concatenate([panel.x_RS, panel.condition_RC], axis=1)
    report = detect(
        inputs_RF[(panel.hour_R >= first) & (panel.hour_R <= last)],
        inputs_RF[(panel.hour_R > known_by - newest_days * DAY) & (panel.hour_R <= known_by)],
        [*panel.sensors, *history.conditions],
        blocks["error"].to_numpy(float).clip(0.0, 1.0),
    )
    return report, None if report.error_at is None else int(blocks["hour"].iloc[report.error_at])


def look(
    champion: Monitor,
    prepared: Prepared,
    p_R: F64,
    reference: tuple[int, int],
    known_by: int,
    *,
    least_machines: int = UpdateSettings().least_machines,
) -> Outlook:
    """Plan for what is known by an hour: errors that rose, else findings that the champion never saw."""
    history = prepared.history
    failures = history.failures()
    hour = hours_of(failures["time"])
    failures, hour = failures[hour <= known_by], hour[hour <= known_by]
    report, since = compare(champion, prepared, p_R, reference, known_by)
    plan = Updater().plan(report)
    if plan.scope != "none" and since is not None:
        failed = failures.loc[hour > since, "asset"].nunique()
        if failed < least_machines:
            why = f"{plan.why}; waiting: {failed} of {least_machines} machines have failed since, which the gate needs"
            return Outlook(UpdatePlan("none", why))
        return Outlook(plan, Change(since_hour=since), known_by - since)
    codes = failures["code"].to_numpy(object)
    for code in sorted({str(c) for c in codes if c} - set(champion.signatures.codes_G)):
        seen = hour[codes == code]
        if len(seen) >= LEAST_EXAMPLES:
            why = f"{len(seen)} failures were found to be `{code}`, which the champion never saw"
            return Outlook(UpdatePlan("head", why), Change(finding=code), known_by - int(seen.min()))
    return Outlook(plan)


def plan_update(workspace: Workspace, history: History) -> Outlook | None:
    """Plan with the whole history; None without a champion or without readings after its held-out days."""
    run = champion_run(workspace)
    if run is None:
        return None
    reference = hours_of(pd.read_parquet(workspace.evaluation(run))["time"])
    newest = int(hours_of(history.readings["time"]).max())
    if newest <= int(reference.max()) + 1:
        return None
    champion = Monitor.load(workspace.model(run))
    prepared, _ = champion.prepare(history)
    return look(champion, prepared, risks(champion, prepared), (int(reference.min()), int(reference.max())), newest)


def update_when_due(
    workspace: Workspace,
    history: History,
    run: str,
    settings: UpdateSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Update | str:
    """Look, and make a challenger from the champion when that is due, stored under `run`; else the reason why not."""
    outlook = plan_update(workspace, history)
    if outlook is None:
        return "there is no champion, or no reading after its held-out days"
    if outlook.plan.scope == "none" or outlook.change is None:
        return outlook.plan.why
    serving = champion_run(workspace)
    assert serving is not None
    champion = Monitor.load(workspace.model(serving))
    update = carry_out(champion, history, outlook.change, outlook.plan, settings, seed=seed, progress=progress)
    save_challenger(update.monitor, update.window, workspace, run)
    with replacing(workspace.update(run)) as temporary:
        temporary.write_text(json.dumps(update.record() | {"from": serving}, indent=1))
    return update

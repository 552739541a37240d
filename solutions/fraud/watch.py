"""Is the champion still right? Inputs and errors since its held-out window, and what follows from them.

Errors are counted on matured payments only, frauds and genuine payments apart: a missed fraud among hundreds of genuine
payments would not move the mean, and more fraud is not a worse model. Inputs need no labels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.continual.drift import DriftReport, DriftSettings, detect
from core.continual.updater import Scope, UpdatePlan, Updater
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_UNKNOWN
from solutions.fraud.history import RowSettings, choose_rows
from solutions.fraud.model import FraudModel
from solutions.fraud.operate import Workspace, score_with, training_stream
from solutions.fraud.train import Stream

WATCHED = ["amount", "hour", "probability"]
SETTLE_DAYS = 7.0  # labels of so many days after a change are learnt from, day by day; then the errors decide again


@dataclass(frozen=True)
class Outlook:
    """What to do, about which change, and with labels known by when (Unix seconds).

    Attributes:
        labelled_days: how many days after the change have matured labels.
    """

    plan: UpdatePlan
    since: float | None = None
    known_by: float = 0.0
    labelled_days: float = 0.0

    @property
    def attempt(self) -> str:
        """With the champion's run, a key of what is worth trying once: a refused update is tried again when the labels
        after the change have doubled, not every time somebody looks."""
        doublings = int(math.log2(max(self.labelled_days, 1.0)))
        return f"{pd.Timestamp(self.since or 0.0, unit='s'):%Y-%m-%d}-{doublings}"


@dataclass(frozen=True)
class LastUpdate:
    """The update that made the champion: the change it answered to."""

    scope: Scope
    since: float


def compare(
    stream: Stream, probability_T: NDArray[np.float64], start: float, end: float, known_by: float, maturity: float
) -> tuple[DriftReport, float | None]:
    """Drift of all since `end` against the champion's held-out window [start, end), and when the errors rose.

    Args:
        probability_T: the champion's, for every payment from `start` on (others are not read).
        known_by: labels after this moment do not exist, nor do payments.
    """
    time_T = stream.events.time_T
    seen_T = (time_T >= start) & (time_T < known_by)
    verdict_T = stream.verdicts(known_by, maturity)
    judged = np.flatnonzero(seen_T & (verdict_T != LABEL_UNKNOWN))
    fraud = verdict_T[judged] == LABEL_FRAUD
    hour_T = time_T % DAY / 3600.0
    inputs_TF = np.stack([stream.events.amount_T, hour_T, probability_T], axis=1)
    report = detect(
        inputs_TF[seen_T & (time_T < end)],
        inputs_TF[seen_T & (time_T >= end)],
        WATCHED,
        (probability_T[judged] - fraud) ** 2,
        DriftSettings(),
        group_N=np.where(fraud, "fraud", "genuine"),
    )
    return report, None if report.error_at is None else float(time_T[judged[report.error_at]])


def look(
    stream: Stream,
    probability_T: NDArray[np.float64],
    start: float,
    end: float,
    known_by: float,
    maturity: float,
    *,
    warm_up_days: float,
    last: LastUpdate | None = None,
    rows: RowSettings | None = None,
) -> Outlook:
    """Plan for the payments since the champion's window [start, end): settle the last change, else watch for a new one."""
    known_until = known_by - maturity
    since: float | None
    if last is not None and known_until <= last.since + SETTLE_DAYS * DAY:
        days = (known_until - last.since) / DAY
        why = f"labels of {days:.1f} of {SETTLE_DAYS:.0f} days after the change are known"
        plan, since = UpdatePlan(last.scope, why), last.since
    else:
        report, since = compare(stream, probability_T, start, end, known_by, maturity)
        plan = Updater().plan(report)
    if plan.scope == "none" or since is None:
        return Outlook(plan, None, known_by)
    chosen = choose_rows(stream, since, known_by, maturity, warm_up_days=warm_up_days, settings=rows or RowSettings())
    if lacking := chosen.lacking():
        plan = UpdatePlan("none", f"{plan.why}; waiting for labels: {lacking}")
    return Outlook(plan, since, known_by, (known_until - since) / DAY)


def last_update(workspace: Workspace, run: str) -> LastUpdate | None:
    """The update that a run carried out; None when it trained from scratch."""
    path = workspace.update(run)
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    return LastUpdate(stored["scope"], stored["since"])


def champion_run(workspace: Workspace) -> str | None:
    described = workspace.root / "champion.json"
    return json.loads(described.read_text())["run"] if described.exists() else None


def plan_update(workspace: Workspace, *, warm_up_days: float) -> Outlook | None:
    """Plan with all that is ingested; None without a champion or without payments after its held-out window."""
    run = champion_run(workspace)
    if run is None:
        return None
    window = pd.read_parquet(workspace.evaluation(run))
    frame = training_stream(workspace)
    start, end = (window["event_time"].iat[i].timestamp() for i in (0, -1))
    model = FraudModel.load(workspace.model(run))
    stream = Stream.encode(frame, model.engine)
    if stream.events.time_T[-1] <= end:
        return None
    probability_T = np.zeros(len(stream))
    scored = score_with(model, frame, window)
    probability_T[len(stream) - len(scored) :] = scored
    return look(
        stream,
        probability_T,
        start,
        np.nextafter(end, np.inf),
        float(stream.events.time_T[-1]),
        model.engine.maturity_days * DAY,
        warm_up_days=warm_up_days,
        last=last_update(workspace, run),
    )

"""Carry an update of the champion out: operation it never saw, or a failure mode of few examples; the gate may refuse.

Conditions far from all known ones are added with levels of their own; known ones keep theirs, so that the past looks as it
did. Each network learns the new rows with the past replayed (`core.continual.updater`), boosting is trained anew on both,
each member without one group of machines. What members say about the machines they were not given, calibrated by other
machines, is what the gate compares with the champion: no machine judges a member that it trained. A challenger that is kept
has the champion's calibration and alarm threshold; the weekly training makes them anew.

R rows of the panel, N rows, A machines, K intervals.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from core.continual.updater import UpdatePlan, Updater, UpdateReport, UpdaterSettings
from core.promotion import decide
from core.results import weighted_average_precision
from solutions.maintenance.boosting import Boosting
from solutions.maintenance.causes import fit_reconstruction, windowed
from solutions.maintenance.change import Change, deal_out, with_new_conditions
from solutions.maintenance.data import History, InputError
from solutions.maintenance.hazard import Curves, negative_log_likelihood, person_periods
from solutions.maintenance.labels import Labels, make_labels
from solutions.maintenance.model import LEAST_AGE, FailureModel, Prepared, Progress, calibrate, fuse, predict
from solutions.maintenance.monitor import Monitor, normal_rows, past_signatures
from solutions.maintenance.network import HazardNetwork, Inputs
from solutions.maintenance.panel import Panel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
SCORED = 4_000  # rows on which a network's own gain is measured


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How updates are trained.

    Args:
        steps: least number of optimizer steps of each network.
        most_rows: of past and of new rows each that are scored for calibration and gate; more would only take longer.
        least_machines: that fail, and that do not, without which the gate refuses.
    """

    updater: UpdaterSettings = field(default_factory=lambda: UpdaterSettings(learning_rate=1e-3))
    steps: int = 200
    batch_size: int = 128
    most_rows: int = 40_000
    least_machines: int = 10
    threads: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.threads) < 1 or min(self.batch_size, self.least_machines) < 2 or self.most_rows < 100:
            raise ValueError(
                "`steps` and `threads` must be >= 1, `batch_size` and `least_machines` >= 2, `most_rows` >= 100. "
                f"Received: {self}."
            )


@dataclass(frozen=True)
class Update:
    """A challenger, whether it was kept, and why.

    Attributes:
        networks: reports of the members; one that was refused has the champion's weights.
        before, after: average precision of champion and challenger on the new rows whose outcome is known.
        forgetting: average precision lost on rows from before the change that the champion had not trained on.
        window: the gate's rows: asset, time, failed, champion, fused and the challenger's parts.
    """

    monitor: Monitor
    plan: UpdatePlan
    networks: tuple[UpdateReport, ...]
    new_conditions: int
    kept: bool
    reasons: tuple[str, ...]
    before: float
    after: float
    forgetting: float
    window: pd.DataFrame

    def metrics(self) -> dict[str, float]:
        found = {"ap_before": self.before, "ap_after": self.after, "forgetting": self.forgetting}
        return {name: value for name, value in found.items() if math.isfinite(value)} | {"kept": float(self.kept)}

    def record(self) -> dict[str, Any]:
        """Plain JSON: what was done, whether it was kept, and why."""
        return {
            **{"scope": self.plan.scope, "why": self.plan.why, "kept": self.kept, "reasons": list(self.reasons)},
            **{"new_conditions": self.new_conditions, "networks_kept": [report.kept for report in self.networks]},
            **{n: v if math.isfinite(v) else None for n, v in (("before", self.before), ("after", self.after))},
            "forgetting": self.forgetting if math.isfinite(self.forgetting) else None,
        }


@dataclass(frozen=True)
class Material:
    """What an update is made from: the history as the champion and as the challenger see it, labels, and the sides.

    Attributes:
        new_R, past_R: usable rows after and before the change. old_R: rows before it that the champion did not train on.
        natural: rows with the usual share of failures, that calibrate. scored: all rows that members predict.
        group_A: the machines that each member does without.
    """

    seen: Prepared
    prepared: Prepared
    labels: Labels
    new_R: Bool
    past_R: Bool
    old_R: Bool
    natural: I64
    scored: I64
    group_A: I64

    @property
    def panel(self) -> Panel:
        return self.prepared.panel

    def group_R(self) -> I64:
        return np.asarray(self.group_A[self.panel.asset_R])


def carry_out(
    champion: Monitor,
    history: History,
    change: Change,
    plan: UpdatePlan,
    settings: UpdateSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Update:
    """Train a challenger from the champion and judge it; the champion itself is not changed.

    Raises:
        InputError: the plan asks for nothing, the model is of kind life, or a side of the change has no rows.
    """
    options = settings or UpdateSettings()
    if plan.scope == "none":
        raise InputError(f"there is nothing to update: {plan.why}.")
    if champion.model.task.kind != "event":
        raise InputError("only models of kind event are updated: histories that end with the asset are trained anew.")
    material, conditions = gather(champion, history, change, options, seed)
    added = conditions.count - champion.model.featurizer.conditions.count
    progress(f"{int(material.new_R.sum()):,} new rows, {added} new conditions")
    model, reports, raw = _train(champion.model, material, plan, options, seed, progress)
    model.featurizer = replace(champion.model.featurizer, conditions=conditions)
    window = _window(champion, model, material, raw, seed)
    monitor = replace(champion, model=model, trained_until=int(material.panel.hour_R.max()) + 1)
    _renew(monitor, material, history, added, seed)
    forgetting = _forgetting(champion, model, material, raw)
    return _judge(monitor, plan, tuple(reports), added, window, forgetting, options)


def gather(
    champion: Monitor, history: History, change: Change, options: UpdateSettings, seed: int
) -> tuple[Material, Any]:
    """Rows and features of an update, and the conditions of the challenger."""
    seen, _ = champion.prepare(history)
    panel, featurizer = seen.panel, champion.model.featurizer
    labels = make_labels(history, panel)
    usable_R = (panel.age_R() >= LEAST_AGE) & ((labels.life_R > 0.0) | labels.failed_R)
    marked_R = change.rows(panel, history)
    new_R, past_R = usable_R & marked_R, usable_R & ~marked_R
    for rows, what in ((new_R, "after"), (past_R, "before")):
        if not rows.any():
            raise InputError(f"{history.name}: no usable row {what} the change.")
    trained_R = past_R & (panel.hour_R < champion.trained_until)
    known_R = trained_R if trained_R.any() else past_R
    conditions = with_new_conditions(featurizer.conditions, panel, known_R, new_R)
    prepared = seen
    if conditions is not featurizer.conditions:
        changed = replace(featurizer, conditions=conditions)
        prepared = Prepared(history, panel, changed.transform(history, panel))
    old_R = past_R & (panel.hour_R >= champion.trained_until)
    if change.since_hour is not None:
        natural = _whole_machines(panel, new_R, options.most_rows, seed)
    else:
        natural = _thinned(np.flatnonzero(usable_R), options.most_rows)
    new = natural if change.since_hour is not None else _thinned(np.flatnonzero(new_R), options.most_rows)
    scored = np.unique(np.concatenate([natural, new, _thinned(np.flatnonzero(old_R), options.most_rows)]))
    group_A = deal_out(panel, labels.failed_R & new_R, champion.model.task.folds, seed)
    return Material(seen, prepared, labels, new_R, past_R, old_R, natural, scored, group_A), conditions


def _thinned(rows: I64, most: int) -> I64:
    """Every so many-th row: neighbours say nearly the same."""
    return rows[:: max(-(-len(rows) // most), 1)]


def _whole_machines(panel: Panel, rows_R: Bool, most: int, seed: int) -> I64:
    """Marked rows of as many machines as `most` rows allow, whole stretches, so that alarms can be replayed on them."""
    count_A = np.bincount(panel.asset_R[rows_R], minlength=len(panel.assets))
    order = np.random.default_rng(seed).permutation(len(panel.assets))
    chosen = order[: max(int(np.searchsorted(np.cumsum(count_A[order]), most, side="right")), 1)]
    return np.flatnonzero(rows_R & np.isin(panel.asset_R, chosen))


def _train(
    model: FailureModel, material: Material, plan: UpdatePlan, options: UpdateSettings, seed: int, progress: Progress
) -> tuple[FailureModel, list[UpdateReport], dict[str, F64]]:
    """Members that each do without one group, the reports of the networks, and (scored, K) logits for their own group."""
    task, group_R = model.task, material.group_R()
    if task.rounds != 1:
        raise ValueError(f"updates need members of one round. Received: rounds={task.rounds}.")
    members: dict[str, list[Any]] = {part: [] for part in model.members}
    reports: list[UpdateReport] = []
    raw = {part: np.zeros((len(material.scored), len(task.edges) - 1)) for part in members}
    columns = material.prepared.features.columns_of((*model.arms, "asset"))
    for f in range(task.folds):
        past, new = (np.flatnonzero(rows & (group_R != f)) for rows in (material.past_R, material.new_R))
        mine = np.flatnonzero(group_R[material.scored] == f)
        for part, trained in model.members.items():
            member: Any = copy.deepcopy(trained[f]) if part == "network" else None
            if part == "network":
                reports.append(_teach(member, material, past, new, f, plan, options, seed * 100 + f))
            else:
                chosen = np.concatenate(
                    [_thinned(past, task.boosting.most_rows), _thinned(new, task.boosting.most_rows)]
                )
                member = Boosting.train(
                    material.prepared.features.x_RF[chosen],
                    material.labels.at(chosen),
                    task,
                    columns,
                    seed=seed * 100 + f,
                    threads=options.threads,
                )
            members[part].append(member)
            raw[part][mine] = predict(member, part, task, material.prepared, material.scored[mine])
        progress(f"member {f + 1}/{task.folds}: {'; '.join(reports[-1].reasons) if reports else 'boosting trained'}")
    return replace(model, members=members), reports, raw


def _teach(
    network: HazardNetwork,
    material: Material,
    past: I64,
    new: I64,
    group: int,
    plan: UpdatePlan,
    options: UpdateSettings,
    seed: int,
) -> UpdateReport:
    """In place: the new rows with the past replayed; back to the old weights when that is no gain on the group left out."""
    torch.manual_seed(seed)
    rng, labels = np.random.default_rng(seed), material.labels
    inputs, settings = material.prepared.inputs, network.settings
    at_risk, fails = (torch.from_numpy(a) for a in person_periods(labels.life_R, labels.failed_R, network.edges))
    size = min(options.batch_size, len(new))
    passes = max(options.updater.passes, 1)
    shuffled = rng.permutation(new)[: options.steps * size // passes]
    batches = [shuffled[i : i + size] for i in range(0, len(shuffled) - size + 1, size)]
    passes = max(passes, math.ceil(options.steps / len(batches)))
    replayed = past[np.sort(rng.choice(len(past), min(20_000, len(past)), replace=False))]
    then_NK = torch.from_numpy(network.logit(material.seen.inputs, replayed).astype(np.float32))

    def logit_of(model: nn.Module, rows: I64) -> Tensor:
        found: Tensor = model(inputs.batch(rows, settings))
        return found

    def loss_of(model: nn.Module, rows: I64) -> Tensor:
        logit, index = logit_of(model, rows), torch.from_numpy(rows)
        terms = torch.where(fails[index], F.softplus(-logit), torch.where(at_risk[index], F.softplus(logit), 0.0))
        return terms.sum(1).mean()

    def replay() -> tuple[I64, Tensor]:
        drawn = rng.integers(len(replayed), size=size)
        return replayed[drawn], then_NK[drawn]

    return Updater(replace(options.updater, passes=passes)).apply(
        network,
        batches,
        plan,
        loss_of=loss_of,
        replay=replay,
        logit_of=logit_of,
        new_score=_likelihood(network, material, material.new_R, inputs, group),
        old_score=_likelihood(
            network, material, material.old_R if material.old_R.any() else material.past_R, inputs, group
        ),
    )


def _likelihood(
    network: HazardNetwork, material: Material, rows_R: Bool, inputs: Inputs, group: int
) -> Callable[[nn.Module], float]:
    """Log-likelihood of the group that the member does without; of all machines when the group has no such rows."""
    own = rows_R & (material.group_R() == group)
    rows = _thinned(np.flatnonzero(own if own.any() else rows_R), SCORED)
    labels = material.labels.at(rows)

    def score(_: nn.Module) -> float:
        curves = Curves.from_hazard(network.edges, expit(network.logit(inputs, rows)))
        return -negative_log_likelihood(curves, labels.life_R, labels.failed_R)

    return score


def _calibrate(model: FailureModel, material: Material, raw: dict[str, F64], chosen_N: Bool, seed: int) -> None:
    rows = material.scored[chosen_N]
    calibrate(
        model, {p: v[chosen_N] for p, v in raw.items()}, material.labels.at(rows), material.panel.asset_R[rows], seed
    )


def _window(champion: Monitor, model: FailureModel, material: Material, raw: dict[str, F64], seed: int) -> pd.DataFrame:
    """The gate's rows; every group is calibrated by the others."""
    panel, scored, horizon = material.panel, material.scored, champion.horizon
    positive, known = material.labels.at(scored).within(horizon)
    judged = np.flatnonzero(known & material.new_R[scored])
    group_N, natural_N = material.group_R()[scored], np.isin(scored, material.natural)
    found = {name: np.zeros(len(scored)) for name in model.names}
    for f in range(model.task.folds):
        others = replace(model, scale={}, interval={})
        _calibrate(others, material, raw, natural_N & (group_N != f), seed)
        mine = judged[group_N[judged] == f]
        mixed = fuse({part: values[mine] for part, values in raw.items()}, others.weight)
        for name in model.names:
            found[name][mine] = others.curves_of(mixed, name).fails_within(horizon)
    rows = scored[judged]
    return pd.DataFrame(
        {
            "asset": np.asarray(panel.assets, object)[panel.asset_R[rows]],
            "time": panel.time_R()[rows],
            "failed": positive[judged].astype(np.int8),
            "champion": champion.model.curves(material.seen, rows).fails_within(horizon),
            **{name: values[judged] for name, values in found.items()},
        }
    )


def _renew(
    monitor: Monitor,
    material: Material,
    history: History,
    added: int,
    seed: int,
) -> None:
    """What normal operation looks like, where it is new, and past findings."""
    panel = material.panel
    average = windowed(material.prepared.features.z_RS, panel.start_R)
    if added:
        normal = normal_rows(panel, history, material.labels) & (material.past_R | material.new_R)
        monitor.reconstruction = fit_reconstruction(average[normal], seed=seed)
    monitor.signatures = past_signatures(monitor.reconstruction, average, panel, history, monitor.trained_until)


def _forgetting(champion: Monitor, model: FailureModel, material: Material, raw: dict[str, F64]) -> float:
    """Average precision lost on old rows, member by member; NaN when none of them is before a failure."""
    positive, known = material.labels.at(material.scored).within(champion.horizon)
    chosen = np.flatnonzero(known & material.old_R[material.scored])
    if not positive[chosen].any():
        return math.nan
    rows, group_N = material.scored[chosen], material.group_R()[material.scored[chosen]]
    before = {part: np.zeros((len(rows), values.shape[1])) for part, values in raw.items()}
    for part, members in champion.model.members.items():
        for f, member in enumerate(members):
            mine = group_N == f
            before[part][mine] = predict(member, part, model.task, material.seen, rows[mine])

    def risk(judged: FailureModel, found: dict[str, F64]) -> F64:
        return judged.curves_of(fuse(found, judged.weight), judged.best).fails_within(champion.horizon)

    now, then = risk(model, {part: values[chosen] for part, values in raw.items()}), risk(champion.model, before)
    return weighted_average_precision(positive[chosen], then) - weighted_average_precision(positive[chosen], now)


def _judge(
    monitor: Monitor,
    plan: UpdatePlan,
    reports: tuple[UpdateReport, ...],
    added: int,
    window: pd.DataFrame,
    forgetting: float,
    options: UpdateSettings,
) -> Update:
    failed_N, most = window["failed"].to_numpy(), options.updater.most_forgetting
    old_N, new_N = (window[name].to_numpy(float) for name in ("champion", monitor.model.best))
    if len(window):
        verdict = decide(
            old_N, new_N, failed_N, window["asset"].to_numpy(), metric="brier", least_units=options.least_machines
        )
        reasons, kept = verdict.reasons, verdict.promote
    else:
        reasons, kept = ("no new row has a known outcome",), False
    if forgetting > most:
        reasons, kept = (*reasons, f"forgetting {forgetting:.4f} exceeds {most:.4f}"), False
    before, after = (weighted_average_precision(failed_N, p) if failed_N.any() else math.nan for p in (old_N, new_N))
    return Update(monitor, plan, reports, added, kept, reasons, before, after, forgetting, window)

"""Carry an update of the champion out: new labels, replayed past, and a gate that may refuse.

"head": the network's head learns, boosting stays, the blend is fitted again. "full": the whole network learns and
boosting is trained anew. State parameters stay, so that aggregates keep their meaning and old logits can be matched.
The challenger is judged on the newest labelled payments, over payers, and on payments from before the change.

T payments, N rows.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.continual.updater import UpdatePlan, Updater, UpdateReport, UpdaterSettings
from core.promotion import decide
from core.results import weighted_average_precision
from solutions.fraud.boosting import Boosting
from solutions.fraud.data import InputError
from solutions.fraud.graph_state import DAY
from solutions.fraud.history import History, Rows, RowSettings, choose_rows
from solutions.fraud.model import Blend, FraudModel
from solutions.fraud.network import TemporalGraphNetwork, to_tensors
from solutions.fraud.operate import Workspace, save_challenger
from solutions.fraud.prior import Prior
from solutions.fraud.train import Stream
from solutions.fraud.watch import Outlook, champion_run, plan_update

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Batch = tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]  # aggregates, tokens, masks, targets


@dataclass(frozen=True, kw_only=True)
class FraudUpdateSettings:
    """steps: least number of optimizer steps of the network; trees: of boosting, at most."""

    updater: UpdaterSettings = field(default_factory=UpdaterSettings)
    steps: int = 200
    batch_size: int = 256
    trees: int = 400
    threads: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.trees, self.threads) < 1 or self.batch_size < 2:
            raise ValueError(f"`steps`, `trees` and `threads` must be >= 1 and `batch_size` >= 2. Received: {self}.")


@dataclass(frozen=True)
class FraudUpdate:
    """A challenger, whether it was kept, and why.

    Attributes:
        network: report of the network alone; when it was no gain the challenger has the champion's network.
        before, after: average precision of champion and challenger on the gate's payments.
        forgetting: average precision lost on payments from before the change.
        champion_N, challenger: probabilities of the gate's payments `gate`; of the challenger also each part alone.
    """

    model: FraudModel
    plan: UpdatePlan
    network: UpdateReport
    kept: bool
    reasons: tuple[str, ...]
    before: float
    after: float
    forgetting: float
    gate: I64
    champion_N: F64
    challenger: dict[str, F64]

    def metrics(self) -> dict[str, float]:
        return {
            "ap_before": self.before,
            "ap_after": self.after,
            "forgetting": self.forgetting,
            "kept": float(self.kept),
        }

    def record(self) -> dict[str, Any]:
        """Plain JSON: what was done, whether it was kept, and why."""
        return {
            **{"scope": self.plan.scope, "why": self.plan.why, "kept": self.kept, "reasons": list(self.reasons)},
            **{"network_kept": self.network.kept, "before": self.before, "after": self.after},
            "forgetting": self.forgetting,
        }


def carry_out(
    champion: FraudModel,
    history: History,
    rows: Rows,
    plan: UpdatePlan,
    settings: FraudUpdateSettings | None = None,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> FraudUpdate:
    """Train a challenger from the champion and judge it; the champion itself is not changed.

    Raises:
        InputError: the plan asks for nothing, or there are too few labels.
    """
    options = settings or FraudUpdateSettings()
    if plan.scope == "none":
        raise InputError(f"there is nothing to update: {plan.why}.")
    if lacking := rows.lacking():
        raise InputError(f"too few labels for an update: {lacking}.")
    network = copy.deepcopy(champion.network)
    report = _train_network(network, history, rows, plan, options, seed)
    progress(f"network, scope {plan.scope}: {'; '.join(report.reasons)}, {'kept' if report.kept else 'refused'}")
    boosting = _train_boosting(history, rows, options, seed) if plan.scope == "full" else champion.boosting
    challenger = replace(champion, network=network, boosting=boosting)
    challenger.blend = Blend.fit(history.logits(challenger, rows.blend), rows.fraud_T[rows.blend])
    return _judge(champion, challenger, history, rows, plan, report, options.updater.most_forgetting)


def _judge(
    champion: FraudModel,
    challenger: FraudModel,
    history: History,
    rows: Rows,
    plan: UpdatePlan,
    report: UpdateReport,
    most_forgetting: float,
) -> FraudUpdate:
    logits = history.logits(challenger, rows.gate)
    champion_N = history.probability(champion, rows.gate)
    parts = {name: challenger.blend.probability(logits, name) for name in ("fused", "lightgbm", "network")}
    target_N = rows.fraud_T[rows.gate]
    verdict = decide(champion_N, parts["fused"], target_N, history.stream.payer_T[rows.gate])
    old_N = rows.fraud_T[rows.old]
    forgetting = weighted_average_precision(
        old_N, history.probability(champion, rows.old)
    ) - weighted_average_precision(old_N, history.probability(challenger, rows.old))
    reasons = verdict.reasons
    if forgetting > most_forgetting:
        reasons = (*reasons, f"forgetting {forgetting:.4f} exceeds {most_forgetting:.4f}")
    return FraudUpdate(
        model=challenger,
        plan=plan,
        network=report,
        kept=verdict.promote and forgetting <= most_forgetting,
        reasons=reasons,
        before=weighted_average_precision(target_N, champion_N),
        after=weighted_average_precision(target_N, parts["fused"]),
        forgetting=forgetting,
        gate=rows.gate,
        champion_N=champion_N,
        challenger=parts,
    )


def _thinned(rows: I64, fraud_T: NDArray[np.bool_], keep: float, seed: int) -> I64:
    """All frauds and a share `keep` of the genuine payments."""
    lottery = np.random.default_rng((seed, 1)).random(len(rows))
    return rows[fraud_T[rows] | (lottery < keep)]


def _train_boosting(history: History, rows: Rows, options: FraudUpdateSettings, seed: int) -> Boosting:
    # recent genuine payments are thinned like the past ones: the share of fraud must not tell the two apart
    recent, held = (_thinned(chosen, rows.fraud_T, rows.kept, seed) for chosen in (rows.recent, rows.blend))
    chosen = np.concatenate([rows.past, recent])
    x_TF, fraud_T = history.observed.x_TF, rows.fraud_T
    return Boosting.train(
        x_TF[chosen],
        fraud_T[chosen],
        Prior.fit(x_TF[chosen], fraud_T[chosen]),
        seed=seed,
        trees=options.trees,
        held=(x_TF[held], fraud_T[held]),
        threads=options.threads,
    )


def _train_network(
    network: TemporalGraphNetwork,
    history: History,
    rows: Rows,
    plan: UpdatePlan,
    options: FraudUpdateSettings,
    seed: int,
) -> UpdateReport:
    """In place, by replay with logit matching; with its old weights when that is no gain on the blend's payments."""
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 2))
    keep = math.exp(float(network.prior_shift))  # logits keep their meaning when genuine payments are as rare as then
    recent = rng.permutation(_thinned(rows.recent, rows.fraud_T, keep, seed))
    size = min(options.batch_size, len(recent))
    batches = [_batch(history, rows, recent[i : i + size]) for i in range(0, len(recent) - size + 1, size)]
    past = _thinned(rows.past, rows.fraud_T, min(keep / rows.kept, 1.0), seed)
    then_N = torch.from_numpy((network.logit(*history.inputs(past)) - float(network.prior_shift)).astype(np.float32))

    def replay() -> tuple[Batch, Tensor]:
        drawn = rng.integers(len(past), size=size)
        return _batch(history, rows, past[drawn]), then_N[drawn]

    def score_on(chosen: I64) -> Callable[[nn.Module], float]:
        inputs, target_N = history.inputs(chosen), rows.fraud_T[chosen]
        return lambda _: weighted_average_precision(target_N, network.logit(*inputs))

    passes = max(options.updater.passes, math.ceil(options.steps / len(batches)))
    return Updater(replace(options.updater, passes=passes)).apply(
        network,
        batches,
        plan,
        loss_of=_loss,
        replay=replay if len(past) else None,
        logit_of=lambda model, batch: model(*batch[:3]),
        new_score=score_on(rows.blend),
        old_score=score_on(rows.old),
    )


def _batch(history: History, rows: Rows, chosen: I64) -> Batch:
    x_TF, mailboxes = history.inputs(chosen)
    return (*to_tensors(x_TF, mailboxes), torch.from_numpy(rows.fraud_T[chosen].astype(np.float32)))


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(*batch[:3]), batch[3])


def update_champion(
    workspace: Workspace,
    frame: pd.DataFrame,
    outlook: Outlook,
    run: str,
    settings: FraudUpdateSettings | None = None,
    *,
    warm_up_days: float,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> FraudUpdate:
    """Train a challenger from the champion of a workspace and store it under `run`, with what the gate said.

    Raises:
        InputError: there is no champion, or nothing to update.
    """
    serving = champion_run(workspace)
    if serving is None or outlook.since is None:
        raise InputError(f"there is nothing to update: {outlook.plan.why if serving else 'there is no champion'}.")
    champion = FraudModel.load(workspace.model(serving))
    stream = Stream.encode(frame, champion.engine)
    rows = choose_rows(
        stream,
        outlook.since,
        outlook.known_by,
        champion.engine.maturity_days * DAY,
        warm_up_days=warm_up_days,
        settings=RowSettings(),
    )
    token_T = np.zeros(len(stream), bool)
    token_T[rows.all] = True
    progress(f"replaying {len(stream):,} payments through the champion's state")
    history = History.replay(champion, stream, token_T)
    update = carry_out(champion, history, rows, outlook.plan, settings, seed=seed, progress=progress)
    window = frame.iloc[update.gate][["transaction_id", "event_time", "payer", "amount"]].assign(
        is_fraud=rows.fraud_T[update.gate].astype(np.int8), champion=update.champion_N, **update.challenger
    )
    save_challenger(update.model, window.reset_index(drop=True), workspace, run)
    workspace.update(run).parent.mkdir(parents=True, exist_ok=True)
    workspace.update(run).write_text(json.dumps(update.record() | {"since": outlook.since, "from": serving}, indent=1))
    return update


def update_when_due(
    workspace: Workspace,
    frame: pd.DataFrame,
    run: str,
    settings: FraudUpdateSettings | None = None,
    *,
    warm_up_days: float,
    seed: int = 0,
) -> FraudUpdate | str:
    """Look, and update the champion when the matured labels ask for it; else the reason why not."""
    outlook = plan_update(workspace, warm_up_days=warm_up_days)
    if outlook is None:
        return "there is no champion, or no payment after its held-out window"
    if outlook.plan.scope == "none":
        return outlook.plan.why
    return update_champion(workspace, frame, outlook, run, settings, warm_up_days=warm_up_days, seed=seed)

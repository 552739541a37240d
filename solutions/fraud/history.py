"""The stream so far, replayed once through a model's state, and which of its payments an update may use for what.

T payments, F aggregates. Only matured payments have a verdict (`Stream.verdicts`): a label that arrives later than
`known_by` does not exist here.

    past (reservoir)        | old: forgetting is measured | recent: trained on | blend | gate |  not matured yet
    ------------------------+-----------------------------+ since              +-------+------+ known_by - maturity
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.continual.replay import Reservoir
from core.promotion import LEAST_UNITS
from solutions.fraud.engine import Observed
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_UNKNOWN
from solutions.fraud.model import FraudModel
from solutions.fraud.network import Mailboxes
from solutions.fraud.train import Stream

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
B = NDArray[np.bool_]
LEAST_FRAUDS = 20


@dataclass(frozen=True)
class History:
    """A stream and what the model's state said of each payment when it came; tokens of the payments `token_T`."""

    stream: Stream
    observed: Observed
    token_T: B

    @classmethod
    def replay(cls, model: FraudModel, stream: Stream, token_T: B) -> History:
        """From an empty state on, as the scorer saw it: labels change the state when they arrive."""
        return cls(stream, model.new_engine().observe(stream.events, stream.labels, tokens_for=token_T), token_T)

    def inputs(self, chosen: I64) -> tuple[NDArray[np.float32], Mailboxes]:
        """Aggregates and mailboxes of some payments.

        Raises:
            ValueError: the tokens of a payment were not kept.
        """
        if not self.token_T[chosen].all():
            missing = int((~self.token_T[chosen]).sum())
            raise ValueError(f"tokens must have been kept for every chosen payment. Received: {missing} without.")
        slot_T = np.cumsum(self.token_T) - 1
        return self.observed.x_TF[chosen], self.observed.modalities(slot_T[chosen])

    def logits(self, model: FraudModel, chosen: I64) -> dict[str, F64]:
        """Of both parts; the model must share the state parameters that the history was replayed with."""
        x_TF, mailboxes = self.inputs(chosen)
        return {"lightgbm": model.boosting.logit(x_TF), "network": model.network.logit(x_TF, mailboxes)}

    def probability(self, model: FraudModel, chosen: I64) -> F64:
        return model.blend.probability(self.logits(model, chosen))


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """capacity: of the reservoir, which rare frauds share with the genuine in equal parts. old_days: before the change,
    kept out of training. slice_share, gate_share: of the time from the change to the last matured payment."""

    capacity: int = 30_000
    old_days: float = 7.0
    slice_share: float = 0.2
    gate_share: float = 0.3

    def __post_init__(self) -> None:
        if self.capacity < 2 or self.old_days <= 0.0:
            raise ValueError(f"`capacity` must be >= 2 and `old_days` > 0. Received: {self}.")
        if min(self.slice_share, self.gate_share) <= 0.0 or self.slice_share + self.gate_share >= 1.0:
            raise ValueError(f"`slice_share` and `gate_share` must be > 0 with a sum below 1. Received: {self}.")


@dataclass(frozen=True)
class Rows:
    """Payments of an update, by purpose; no payment serves two. fraud_T: verdicts of the whole stream as known then.

    Attributes:
        kept: share of the past's genuine payments that are in the reservoir.
        gate_payers: payers with a known fraud among the gate's payments, its units of evidence.
    """

    past: I64
    old: I64
    recent: I64
    blend: I64
    gate: I64
    fraud_T: B
    kept: float
    gate_payers: int

    @property
    def all(self) -> I64:
        return np.sort(np.concatenate([self.past, self.old, self.recent, self.blend, self.gate]))

    def lacking(self) -> str | None:
        """What there is too little of for an update; None: nothing."""
        needs = {"train on": self.recent, "blend with": self.blend, "judge with": self.gate, "remember": self.old}
        for purpose, rows in needs.items():
            frauds = int(self.fraud_T[rows].sum())
            if frauds < LEAST_FRAUDS or frauds == len(rows):
                return f"{frauds} known frauds to {purpose} among {len(rows)} payments, at least {LEAST_FRAUDS} needed"
        if self.gate_payers < LEAST_UNITS:
            return f"{self.gate_payers} payers with a known fraud to judge with, at least {LEAST_UNITS} needed"
        return None


def choose_rows(
    stream: Stream, since: float, known_by: float, maturity: float, *, warm_up_days: float, settings: RowSettings
) -> Rows:
    """Split what is known at `known_by` around a change at `since` (both Unix seconds; maturity in seconds)."""
    time_T = stream.events.time_T
    verdict_T = stream.verdicts(known_by, maturity)
    # a verdict of a payment that has not happened yet can not be: maturity >= 0
    usable_T = (verdict_T != LABEL_UNKNOWN) & (time_T >= time_T[0] + warm_up_days * DAY)
    fraud_T = verdict_T == LABEL_FRAUD
    until = min(known_by - maturity, float(time_T[-1]))
    gate_from = until - settings.gate_share * (until - since)
    blend_from = gate_from - settings.slice_share * (until - since)

    def between(start: float, end: float) -> I64:
        return np.flatnonzero(usable_T & (time_T >= start) & (time_T < end))

    before = between(-np.inf, since - settings.old_days * DAY)
    reservoir = Reservoir(settings.capacity, balance="fraud")
    reservoir.add({"row": before, "fraud": fraud_T[before]})
    past = np.sort(reservoir.rows["row"][: len(reservoir)])
    genuine = int((~fraud_T[before]).sum())
    gate = between(gate_from, np.inf)
    return Rows(
        past=past,
        old=between(since - settings.old_days * DAY, since),
        recent=between(since, blend_from),
        blend=between(blend_from, gate_from),
        gate=gate,
        fraud_T=fraud_T,
        kept=float((~fraud_T[past]).sum() / genuine) if genuine else 1.0,
        gate_payers=len(np.unique(stream.payer_T[gate[fraud_T[gate]]])),
    )

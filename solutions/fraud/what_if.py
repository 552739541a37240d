"""What another policy would have decided on recorded traffic, and what that would have cost or saved.

N payments with known scores; where the truth is known too, money counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from solutions.fraud.data import InputError
from solutions.fraud.decisions import ACTIONS, DecisionPolicy, decide, money_saved
from solutions.fraud.engine import seconds

NEEDED = ("transaction_id", "event_time", "probability")


@dataclass(frozen=True)
class WhatIf:
    """Shares of the decisions; money_saved against allowing everything, None where no truth is known."""

    policy: str
    payments: int
    shares: dict[str, float]
    changed: float  # share of payments that the recorded decision would differ for
    money_saved: float | None


def read_scores(path: Path) -> pd.DataFrame:
    """Scores as `vigil fraud replay` writes them.

    Raises:
        InputError: the file is not one of scores.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}.")
    frame = pd.read_csv(path, dtype={"transaction_id": str}) if path.suffix == ".csv" else pd.read_parquet(path)
    if missing := [name for name in (*NEEDED, "decision") if name not in frame]:
        raise InputError(f"{path.name} must be scores of `vigil fraud replay`. Missing columns: {', '.join(missing)}.")
    return frame.assign(transaction_id=frame["transaction_id"].astype(str))


def what_if(scores: pd.DataFrame, payments: pd.DataFrame, policies: dict[str, DecisionPolicy]) -> list[WhatIf]:
    """Decide again under each policy, in the order of time, over payments that have a score.

    Raises:
        InputError: scores and payments do not belong together.
    """
    wanted = payments.assign(transaction_id=payments["transaction_id"].astype(str))
    columns = [name for name in ("transaction_id", "amount", "is_fraud") if name in wanted]
    both = scores.merge(wanted[columns], on="transaction_id").sort_values("event_time", kind="stable")
    if both.empty:
        raise InputError("no payment of the file has a score: scores and payments do not belong together.")
    probability_N, amount_N = both["probability"].to_numpy(float), both["amount"].to_numpy(float)
    truth_N = both["is_fraud"].to_numpy(np.int8) if "is_fraud" in both else np.full(len(both), -1, np.int8)
    recorded_N = both["decision"].to_numpy(str)
    told = []
    for name, policy in policies.items():
        decided_N = decide(
            probability_N,
            amount_N,
            policy=policy,
            event_time_N=seconds(both["event_time"]),
            transaction_id_N=both["transaction_id"].tolist(),
        )
        saved = money_saved(decided_N, amount_N, truth_N, policy=policy) if (truth_N >= 0).any() else None
        shares: dict[str, float] = {action: float((decided_N == action).mean()) for action in ACTIONS}
        told.append(WhatIf(name, len(both), shares, float((decided_N != recorded_N).mean()), saved))
    return told

"""A second, real stream by the bring-your-own path: is a Bitcoin-Alpha trust rating negative, on arrival?

    python -m benchmarks.fraud_bitcoin [SEEDS]

Kumar et al., ICDM 2016. Account to account; the rating makes the label and is never an input; there is no amount; a
rating is known at once. 70/15/15 by time. Running means of what each account gave and got are the baseline.
"""

from __future__ import annotations

import sys
from datetime import timedelta

import numpy as np
import torch

from benchmarks.common import ALPHA, ALPHA_COLUMNS, RESULTS, Clock, data
from core.results import summarise
from solutions.fraud.data import ColumnMapping, load_payments
from solutions.fraud.engine import EngineSettings, encode_payments
from solutions.fraud.evaluate import evaluate
from solutions.fraud.metrics import figures
from solutions.fraud.train import TrainSettings


def running_means(payer: np.ndarray, payee: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Columns: share of negatives that the source gave, that the target got, and how many of each; all from before."""
    given: dict[str, list[float]] = {}
    got: dict[str, list[float]] = {}
    rows = np.zeros((len(target), 4))
    for i, (a, b, y) in enumerate(zip(payer, payee, target, strict=True)):
        gave, received = given.setdefault(a, [0.0, 0.0]), got.setdefault(b, [0.0, 0.0])
        rows[i] = (gave[1] / max(gave[0], 1), received[1] / max(received[0], 1), gave[0], received[0])
        gave[0], gave[1] = gave[0] + 1, gave[1] + y
        received[0], received[1] = received[0] + 1, received[1] + y
    return rows


def main(seeds: int) -> None:
    from sklearn.linear_model import LogisticRegression

    torch.set_num_threads(1)
    columns = ColumnMapping.parse(ALPHA_COLUMNS)
    loaded = load_payments(data(ALPHA), columns, label_delay=timedelta(0), account_to_account=True)
    settings = TrainSettings(engine=EngineSettings(maturity_days=0.0, account_to_account=True), threads=1)
    results = evaluate(loaded, "chronological", seeds=seeds, settings=settings, label_delay_days=0.0, progress=Clock())
    frame = loaded.frame
    fraud_T = frame["is_fraud"].to_numpy() == 1
    x = np.log1p(running_means(frame["payer"].to_numpy(), frame["payee"].to_numpy(), fraud_T.astype(float)))
    cut = int(0.85 * len(frame))
    model = LogisticRegression(max_iter=1000).fit(x[:cut], fraud_T[:cut])
    events = encode_payments(frame, settings.engine)
    values = figures(fraud_T[cut:], model.predict_proba(x[cut:])[:, 1], events.key_TE[cut:, 1], events.time_T[cut:])
    metrics = {key: summarise([value]) for key, value in values.items()}
    results.rows.insert(0, {"model": "running_means_logistic", "source": "measured", "metrics": metrics})
    published = {"auc": {"mean": 0.842}, "ap": {"mean": 0.549}}
    results.rows.insert(0, {"model": "running_means_anchor", "source": "published", "metrics": published})
    results.print(("ap", "auc", "recall_fpr_0.01", "ece", "brier"))
    results.write(RESULTS / "fraud_bitcoin.json")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

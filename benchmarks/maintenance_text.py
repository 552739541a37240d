"""Real free-text work orders of five excavators: time to the next corrective order of the same system, with and without text.

python -m benchmarks.maintenance_text [SEEDS]

Rows: corrective orders with a system; trained on those before 2009, tested on the later ones. No sensors exist for these
machines, and none are made up. Without text: asset, system, and the history of the system's orders. With text: item, state
and action of the order and of the three before it (see solutions.maintenance.text). The system is the annotators' own.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import torch

from benchmarks.common import RESULTS, Clock, data
from core.results import Results, measured, sha256_file
from solutions.maintenance.boosting import Boosting
from solutions.maintenance.evaluate import Collected
from solutions.maintenance.hazard import Curves, negative_log_likelihood
from solutions.maintenance.labels import Labels
from solutions.maintenance.task import BoostingSettings, Task
from solutions.maintenance.text import coded

CUT = pd.Timestamp("2009-01-01")
EDGES = (0.0, 7.0, 14.0, 30.0, 60.0, 120.0, 240.0)
LAST = 3
TASK = Task(
    kind="event",
    edges=EDGES,
    horizons=(30.0,),
    boosting=BoostingSettings(trees=120, leaves=8, learning_rate=0.05, least_rows=30, features=0.5),
)


def table(orders: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, Labels]:
    """Features without text, text features, labels; a row knows only orders up to its own."""
    orders = orders.sort_values(["BscStartDate", "id"], kind="stable").reset_index(drop=True)
    group = orders.groupby(["Asset", "MajorSystem"], sort=False)
    day = (orders["BscStartDate"] - orders["BscStartDate"].min()).dt.days.astype(float)
    by_system = day.groupby([orders["Asset"], orders["MajorSystem"]], sort=False)
    gap = by_system.diff()
    plain = pd.DataFrame({"gap": gap, "orders": group.cumcount().astype(float)})
    keys = [orders["Asset"], orders["MajorSystem"]]
    plain["mean gap"] = gap.groupby(keys, sort=False).transform(lambda g: g.expanding().mean())
    plain["gap before"] = gap.groupby(keys, sort=False).shift(1)
    plain["fifth before"] = day - by_system.shift(5)
    for name in ("Asset", "MajorSystem"):
        plain[name] = orders[name].astype("category").cat.codes.astype(float)
    codes = [coded(text) for text in orders["OriginalShorttext"].fillna("")]
    known = sorted({code for row in codes for code in row})
    now = pd.DataFrame(0.0, orders.index, known)
    for i, row in enumerate(codes):
        now.loc[i, row] = 1.0
    before = sum(now.groupby(keys, sort=False).shift(k).fillna(0.0) for k in range(1, LAST + 1))
    text = pd.concat([now, before.add_prefix("before ")], axis=1)
    following = by_system.shift(-1) - day
    end = day.max() - day
    labels = Labels(following.fillna(end).clip(lower=0.5).to_numpy(), following.notna().to_numpy())
    plain["time"] = orders["BscStartDate"]
    plain["unit"] = orders["Asset"] + orders["MajorSystem"]
    return plain, text, labels


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    path, clock = data("maintenance/excavator_mwo/mwo.parquet"), Clock()
    orders = pd.read_parquet(path)
    usable = orders[orders["MajorSystem"].notna() & (orders["PMType"] == "PM01")]
    rows: dict[str, Collected] = {}
    with measured() as cost:
        plain, text, labels = table(usable)
        train = np.flatnonzero(plain["time"] < CUT)
        test = np.flatnonzero(plain["time"] >= CUT)
        # what happened after the cut is not known to training
        left = (CUT - plain["time"]).dt.days.to_numpy(float)
        known = Labels(np.minimum(labels.life_R, np.maximum(left, 0.5)), labels.failed_R & (labels.life_R < left))
        units = np.unique(plain["unit"], return_inverse=True)[1]
        base = plain.drop(columns=["time", "unit"]).to_numpy(np.float32)
        arms = {"without_text": base, "with_text": np.concatenate([base, text.to_numpy(np.float32)], axis=1)}
        for name, x in arms.items():
            found = rows.setdefault(name, Collected())
            for seed in range(seeds):
                model = Boosting.train(x[train], known.at(train), TASK, np.arange(x.shape[1]), seed=seed)
                curves = Curves.from_hazard(EDGES, 1.0 / (1.0 + np.exp(-model.logit(x[test]))))
                truth = labels.at(test)
                positive, sure = truth.within(30.0)
                p = curves.fails_within(30.0)
                found.add("ap_30_days", "ap", positive[sure], p[sure], units[test][sure])
                found.add("auc_30_days", "auc", positive[sure], p[sure], units[test][sure])
                found.put(log_loss=negative_log_likelihood(curves, truth.life_R, truth.failed_R))
            clock(name)
    results = Results(
        task="maintenance",
        protocol="excavator_next_order",
        data={"name": path.stem, "sha256": sha256_file(path), "rows": len(usable)},
        seeds=list(range(seeds)),
        champion="with_text",
        cost=cost,
        rows=[collected.row(name) for name, collected in rows.items()],
        extra={"train_orders": len(train), "test_orders": len(test), "units": len(np.unique(units[test]))},
    )
    results.print()
    results.write(RESULTS / "maintenance_text.json")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

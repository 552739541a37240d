"""Drift injected into our simulator: frozen champion, champion that updates itself, and a model retrained from nothing.

    python -m benchmarks.fraud_drift [SEEDS]

From day 40 on a new kind of fraud (card testing) appears; "none" is the same town without it. The champion is trained with
the labels known on day 33. Every second day from day 42 on the updater sees the labels that have matured (7 days), and whatever
it promotes scores the days after. Payments of seven days after the change have matured labels on day 54: the recovered
average precision is measured on days 54-69, and the model from scratch is trained with the labels of day 54.

ap_of_before: AP on days 54-69 / AP before the drift (days 33-39).
lost_ap_recovered: (AP - AP frozen) / (AP before - AP frozen), both on days 54-69.
forgetting: AP of the first champion - AP, on days 33-39 (less what an update was trained on).
forgetting_twin: the same on days 54-69 of the town without drift, where the old world goes on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import RESULTS, Clock
from core.results import Cost, Results, measured, summarise, weighted_average_precision
from solutions.fraud.engine import EngineSettings
from solutions.fraud.graph_state import DAY
from solutions.fraud.history import History, RowSettings, choose_rows
from solutions.fraud.model import FraudModel
from solutions.fraud.network import NetworkSettings
from solutions.fraud.simulator import DriftKind, SimulatorSettings, simulate
from solutions.fraud.train import Stream, TrainSettings, fit_parts, prepare
from solutions.fraud.update import FraudUpdate, FraudUpdateSettings, carry_out
from solutions.fraud.watch import LastUpdate, look

F64 = NDArray[np.float64]
B = NDArray[np.bool_]
WARM_UP, TRAINED, DRIFT, RECOVERED, END, LOOK_EVERY = 10, 33, 40, 54, 70, 2  # days
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "fraud_drift.png"
SETTINGS = TrainSettings(
    engine=EngineSettings(account_to_account=True),
    network=NetworkSettings(epochs=2, batch_size=256, least_steps=400),
    warm_up_days=float(WARM_UP),
    slice_days=4.0,
    keep_genuine=0.3,
    trees=200,
    threads=1,
)
MATURITY = SETTINGS.engine.maturity_days * DAY


@dataclass
class Town:
    """A stream, its days, and what the first champion's state saw of it."""

    stream: Stream
    day_T: F64
    origin: float
    history: History | None = None

    def between(self, start: float, end: float) -> B:
        return (self.day_T >= start) & (self.day_T < end)

    def ap(self, probability_T: F64, chosen_T: B) -> float:
        return weighted_average_precision(self.stream.fraud_T[chosen_T], probability_T[chosen_T])


@dataclass
class Served:
    """What the updating champion answered, and how it changed."""

    probability_T: F64
    model: FraudModel
    updates: list[dict[str, Any]] = field(default_factory=list)
    trained_T: B = field(default_factory=lambda: np.zeros(0, bool))


def build(kind: DriftKind, seed: int) -> Town:
    settings = replace(SimulatorSettings.drift(kind), payers=1_200, merchants=500, testing_waves_per_day=3.0)
    stream = Stream.encode(simulate(settings, seed), SETTINGS.engine)
    origin = float(np.floor(stream.events.time_T[0] / DAY) * DAY)
    return Town(stream, (stream.events.time_T - origin) / DAY, origin)


def train(town: Town, known_day: int, seed: int) -> tuple[FraudModel, Cost]:
    """From nothing, with the labels known on a day."""
    with measured() as cost:
        end = int(np.searchsorted(town.day_T, known_day))
        part = town.stream.head(end)
        train_T = town.day_T[:end] >= WARM_UP
        model = fit_parts(prepare(part, train_T, town.origin + known_day * DAY, SETTINGS), SETTINGS, seed=seed)
    return model, cost


def score(model: FraudModel, history: History, chosen_T: B) -> F64:
    probability_T = np.zeros(len(history.stream))
    probability_T[chosen_T] = history.probability(model, np.flatnonzero(chosen_T))
    return probability_T


def serve(town: Town, champion: FraudModel, frozen_T: F64, seed: int, progress: Clock) -> Served:
    """Day after day: look at the matured labels, update when told to, score the next day with what serves then."""
    assert town.history is not None
    stream, time_T = town.stream, town.stream.events.time_T
    served = Served(frozen_T.copy(), champion, trained_T=np.zeros(len(stream), bool))
    current_T, last = frozen_T, None
    start, end = town.origin + TRAINED * DAY, town.origin + DRIFT * DAY
    tried: set[str] = set()
    for day in range(DRIFT + LOOK_EVERY, END, LOOK_EVERY):
        known_by = town.origin + day * DAY
        outlook = look(stream, current_T, start, end, known_by, MATURITY, warm_up_days=WARM_UP, last=last)
        attempt = f"{sum(u['kept'] for u in served.updates)}-{outlook.attempt}"  # the champion, and what it would learn
        if outlook.plan.scope == "none" or outlook.since is None or attempt in tried:
            continue
        tried.add(attempt)
        rows = choose_rows(stream, outlook.since, known_by, MATURITY, warm_up_days=WARM_UP, settings=RowSettings())
        with measured() as cost:
            update = carry_out(
                served.model,
                town.history,
                rows,
                outlook.plan,
                FraudUpdateSettings(trees=SETTINGS.trees, steps=100),
                seed=seed,
            )
        served.updates.append(record(day, outlook.since, town.origin, update, cost))
        progress(f"day {day}: {served.updates[-1]}")
        if update.kept:
            served.model = update.model
            served.trained_T[np.concatenate([rows.past, rows.recent, rows.blend])] = True
            last = LastUpdate(update.plan.scope, outlook.since)
            start, end = time_T[rows.gate[0]], np.nextafter(time_T[rows.gate[-1]], np.inf)
            current_T = score(update.model, town.history, time_T >= start)
            served.probability_T = np.where(town.day_T >= day, current_T, served.probability_T)
    return served


def record(day: int, since: float, origin: float, update: FraudUpdate, cost: Cost) -> dict[str, Any]:
    return {
        "day": day,
        "since_day": round((since - origin) / DAY, 2),
        "scope": update.plan.scope,
        "why": update.plan.why,
        "kept": update.kept,
        "network_kept": update.network.kept,
        "before": round(update.before, 4),
        "after": round(update.after, 4),
        "forgetting": round(update.forgetting, 4),
        "reasons": list(update.reasons),
        "cpu_seconds": cost.cpu_seconds,
    }


def one_seed(seed: int, progress: Clock) -> dict[str, Any]:
    drifting, still = build("new_fraud", seed), build("none", seed)
    champion, champion_cost = train(still, TRAINED, seed)  # up to day 40 both towns are one
    progress(f"seed {seed}: champion trained, {len(drifting.stream):,} payments")
    for town in (drifting, still):
        town.history = History.replay(champion, town.stream, town.day_T >= WARM_UP)
    assert drifting.history is not None
    assert still.history is not None
    frozen_T = score(champion, drifting.history, drifting.day_T >= TRAINED)
    still_T = score(champion, still.history, still.day_T >= TRAINED)
    served = serve(drifting, champion, frozen_T, seed, progress)
    calm = serve(still, champion, still_T, seed, progress)
    scratch, scratch_cost = train(drifting, RECOVERED, seed)
    late, early, twin_T = (
        drifting.between(RECOVERED, END),
        drifting.between(TRAINED, DRIFT),
        still.between(RECOVERED, END),
    )
    scratch_history = History.replay(scratch, drifting.stream, late | early)
    scratch_T = score(scratch, scratch_history, late | early)
    twin_history = History.replay(scratch, still.stream, twin_T)
    models = {
        "frozen": (frozen_T, score(champion, drifting.history, early), still_T),
        "vigil_updater": (
            served.probability_T,
            score(served.model, drifting.history, early),
            score(served.model, still.history, twin_T),
        ),
        "retrained_from_scratch": (scratch_T, scratch_T, score(scratch, twin_history, twin_T)),
    }
    before, frozen = drifting.ap(frozen_T, early), drifting.ap(frozen_T, late)
    old_T, twin = early & ~served.trained_T, still.ap(still_T, twin_T)
    rows: dict[str, dict[str, float]] = {}
    for name, (new_T, past_T, twin_score_T) in models.items():
        ap = drifting.ap(new_T, late)
        rows[name] = {
            "ap": ap,
            "ap_before_drift": before,
            "ap_of_before": ap / before,
            "lost_ap_recovered": (ap - frozen) / (before - frozen),
            # a model retrained with later labels was trained on these days: nothing can be said of what it forgot
            **(
                {}
                if name == "retrained_from_scratch"
                else {"forgetting": drifting.ap(frozen_T, old_T) - drifting.ap(past_T, old_T)}
            ),
            "forgetting_twin": twin - still.ap(twin_score_T, twin_T),
        }
    updates = served.updates
    rows["frozen"] |= {"updates_tried": 0.0, "updates_kept": 0.0, "cpu_seconds": champion_cost.cpu_seconds}
    rows["vigil_updater"] |= {
        "updates_tried": float(len(updates)),
        "updates_kept": float(sum(u["kept"] for u in updates)),
        "updates_tried_without_drift": float(len(calm.updates)),
        "updates_kept_without_drift": float(sum(u["kept"] for u in calm.updates)),
        "cpu_seconds": sum(u["cpu_seconds"] for u in updates),
    }
    rows["retrained_from_scratch"] |= {"cpu_seconds": scratch_cost.cpu_seconds}
    days = list(range(TRAINED, END))
    curves = {name: daily(drifting, scores[0], days) for name, scores in models.items()}
    curves["retrained_from_scratch"] = [
        v if d >= RECOVERED else None for v, d in zip(curves["retrained_from_scratch"], days, strict=True)
    ]
    curves["without_drift"] = daily(still, still_T, days)
    return {"rows": rows, "updates": updates, "updates_without_drift": calm.updates, "curves": curves}


def daily(town: Town, probability_T: F64, days: list[int]) -> list[float | None]:
    return [round(town.ap(probability_T, town.between(day, day + 1)), 4) for day in days]


def draw(seeds: list[dict[str, Any]], path: Path) -> None:
    """Mean AP per day over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.0, 3.6), layout="constrained")
    styles = {
        "without_drift": "0.7",
        "frozen": "tab:red",
        "vigil_updater": "tab:blue",
        "retrained_from_scratch": "tab:green",
    }
    days = np.arange(TRAINED, END)
    for name, colour in styles.items():
        curve = np.array([[np.nan if v is None else v for v in seed["curves"][name]] for seed in seeds]).mean(0)
        axes.plot(days, curve, color=colour, label=name.replace("_", " "), linewidth=1.6)
    axes.axvline(DRIFT, color="0.4", linestyle=":", linewidth=1.0)
    axes.axvline(RECOVERED, color="0.4", linestyle="--", linewidth=1.0)
    axes.annotate("new fraud begins", (DRIFT, 0.02), xytext=(3, 0), textcoords="offset points", fontsize=8)
    axes.annotate("7 days of labels", (RECOVERED, 0.02), xytext=(3, 0), textcoords="offset points", fontsize=8)
    axes.set(xlabel="day", ylabel="average precision of the day", ylim=(0.0, 1.0), title="Drift: a new kind of fraud")
    axes.legend(loc="upper right", fontsize=8, ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    progress = Clock()
    found: list[dict[str, Any]] = []
    total = Cost()
    for seed in range(seeds):
        with measured() as cost:
            found.append(one_seed(seed, progress))
        total = Cost(total.seconds + cost.seconds, total.cpu_seconds + cost.cpu_seconds, cost.peak_rss_mb)
        report(found, total)


def report(found: list[dict[str, Any]], cost: Cost) -> None:
    """Write what is measured so far."""
    rows = []
    for model in found[0]["rows"]:
        metrics = {key: summarise([f["rows"][model][key] for f in found]) for key in found[0]["rows"][model]}
        rows.append({"model": model, "source": "measured", "metrics": metrics})
    results = Results(
        task="fraud",
        protocol="simulated drift: card testing from day 40, AP on days 54-69, labels matured by 7 days",
        data={"name": "vigil simulator, drift", "sha256": "", "rows": 0},
        seeds=list(range(len(found))),
        champion="vigil_updater",
        cost=cost,
        rows=rows,
        extra={name: [f[name] for f in found] for name in ("updates", "updates_without_drift", "curves")},
    )
    results.print(
        ("ap", "ap_before_drift", "ap_of_before", "lost_ap_recovered", "forgetting", "forgetting_twin", "updates_kept")
    )
    results.write(RESULTS / "fraud_drift.json")
    draw(found, FIGURE)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)

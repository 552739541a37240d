"""`vigil fraud evaluate`: one protocol, one table. Published rows, baselines, network and champion on the same payments.

The interval of every figure and the paired difference to the strong baseline are bootstrapped over cards (payers), the
unit of independence; spread over seeds and folds is printed beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.results import Results, bootstrap_interval, measured, summarise
from solutions.fraud.boosting import BOOK_COLUMNS, STRONG_COLUMNS, Boosting, published_xgboost, strong_lightgbm
from solutions.fraud.canaries import Canary, run_canaries
from solutions.fraud.data import ColumnMapping, InputError, LoadedPayments, load_payments
from solutions.fraud.decisions import DecisionPolicy, decide, money_saved
from solutions.fraud.engine import EngineSettings, Observed
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_UNKNOWN
from solutions.fraud.metrics import figures
from solutions.fraud.model import FraudModel
from solutions.fraud.prior import Prior
from solutions.fraud.protocols import PROTOCOLS, Fold, chronological_fold, handbook_folds, long_fold
from solutions.fraud.train import Prepared, Stream, TrainSettings, fit_parts, prepare

F64 = NDArray[np.float64]
Progress = Callable[[str], None]
MODELS = ("xgboost_published_features", "lightgbm_strong", "lightgbm", "network", "fused")
# Test mean of the handbook's own tables (Le Borgne et al. 2022, chapters 5-7), AUC / AP / CP@100
PUBLISHED = {
    "logistic_regression": (0.868, 0.623, 0.297),
    "random_forest": (0.870, 0.678, 0.299),
    "xgboost": (0.869, 0.687, 0.303),
    "feed_forward": (0.876, 0.675, 0.303),
    "lstm": (0.876, 0.665, 0.297),
    "lstm_attention": (0.874, 0.667, 0.295),
    "balanced_bagging": (0.879, 0.680, 0.305),
}


@dataclass(frozen=True)
class ScoredWindow:
    """A test window: probabilities of every model by name (T,), the truth, and the payer of each payment."""

    target_T: NDArray[np.bool_]
    unit_T: NDArray[np.uint64]
    time_T: F64
    amount_T: F64
    scenario_T: NDArray[np.int64] | None
    probability: dict[str, F64]


def score_parts(model: FraudModel, prepared: Prepared, chosen_T: NDArray[np.bool_]) -> dict[str, F64]:
    """Calibrated probabilities of the champion and of each part alone, for payments whose tokens were kept."""
    slot = (np.cumsum(prepared.token_T) - 1)[chosen_T]
    x = prepared.observed.x_TF[chosen_T]
    logits = {
        "lightgbm": model.boosting.logit(x, 2),
        "network": model.network.logit(x, prepared.observed.modalities(slot)),
    }
    return {name: model.blend.probability(logits, name) for name in ("lightgbm", "network", "fused")}


def score_baselines(fold: Fold, prepared: Prepared, threads: int) -> dict[str, F64]:
    """Baselines on the same labels. Neither draws anything at random, so one training serves every seed."""
    x, fraud_T, test_T = prepared.observed.x_TF, prepared.verdict_T == LABEL_FRAUD, fold.test_T
    known_T = fold.train_T & (prepared.verdict_T != LABEL_UNKNOWN)
    week_T = fold.week_T & (prepared.verdict_T != LABEL_UNKNOWN)
    strong = strong_lightgbm(x[known_T], fraud_T[known_T], seed=0, threads=threads)
    probability = {"lightgbm_strong": strong.predict_proba(x[test_T][:, STRONG_COLUMNS])[:, 1]}
    if fraud_T[week_T].any():
        book = published_xgboost(x[week_T], fraud_T[week_T], seed=0)
        probability["xgboost_published_features"] = book.predict_proba(x[test_T][:, BOOK_COLUMNS])[:, 1].astype(float)
    return probability


def score_fold(
    stream: Stream, fold: Fold, prepared: Prepared, settings: TrainSettings, *, seeds: int, progress: Progress
) -> list[ScoredWindow]:
    """Train every model of the table on the same labels and score the fold's test window, once per seed."""
    test_T = fold.test_T
    baselines = score_baselines(fold, prepared, settings.threads)
    windows = []
    for seed in range(seeds):
        progress(f"fold {fold.name}, seed {seed}")
        model = fit_parts(prepared, settings, seed=seed)
        windows.append(
            ScoredWindow(
                stream.fraud_T[test_T],
                stream.payer_T[test_T],
                stream.events.time_T[test_T],
                stream.events.amount_T[test_T],
                None if stream.scenario_T is None else stream.scenario_T[test_T],
                baselines | score_parts(model, prepared, test_T),
            )
        )
    return windows


def make_folds(protocol: str, stream: Stream, delay_days: float) -> list[Fold]:
    if protocol == "handbook":
        return handbook_folds(stream.events.time_T, stream.fraud_T, stream.payer_T)
    if protocol == "long":
        return long_fold(stream.events.time_T, delay_days=delay_days)
    if protocol == "chronological":
        return chronological_fold(stream.events.time_T)
    raise InputError(f"`--protocol` must be one of {', '.join(PROTOCOLS)}. Received: {protocol}.")


def window_figures(window: ScoredWindow, name: str, policy: DecisionPolicy) -> dict[str, float]:
    p = window.probability[name]
    values = figures(window.target_T, p, window.unit_T, window.time_T, window.scenario_T)
    if window.amount_T.any():
        decisions = decide(p, window.amount_T, policy=policy)
        values["money_saved"] = money_saved(decisions, window.amount_T, window.target_T.astype(np.int8), policy=policy)
    return values


def pooled(windows: list[ScoredWindow], name: str) -> F64:
    """Mean probability over the seeds of one fold."""
    return np.asarray(np.mean([w.probability[name] for w in windows], axis=0))


def rows_of(by_fold: list[list[ScoredWindow]], policy: DecisionPolicy) -> list[dict[str, Any]]:
    """Result rows: mean over folds, spread over folds and seeds, interval over cards of the seed mean."""
    first = [windows[0] for windows in by_fold]
    target = np.concatenate([w.target_T for w in first])
    # a card of one fold and the same card in another fold are one unit
    unit = np.concatenate([w.unit_T for w in first])
    fold_T = np.concatenate([np.full(len(w.target_T), i) for i, w in enumerate(first)])
    rows = []
    scores = {}
    for name in MODELS:
        if not all(name in w.probability for w in first):
            continue
        values = [window_figures(w, name, policy) for windows in by_fold for w in windows]
        keys = sorted(set.intersection(*(set(v) for v in values)))
        metrics = {key: summarise([v[key] for v in values]) for key in keys}
        scores[name] = np.concatenate([pooled(windows, name) for windows in by_fold])
        for metric in ("ap", "auc"):
            interval = bootstrap_interval(metric, target, scores[name], unit, strata_N=fold_T)
            metrics[metric] |= {"low": interval.low, "high": interval.high}
        rows.append({"model": name, "source": "measured", "metrics": metrics})
    gain = bootstrap_interval("ap", target, scores["fused"], unit, strata_N=fold_T, against_N=scores["lightgbm_strong"])
    rows.append(
        {
            "model": "fused_minus_lightgbm_strong",
            "source": "measured",
            "metrics": {"ap": {"mean": gain.mean, "low": gain.low, "high": gain.high}},
        }
    )
    return rows


def published_rows() -> list[dict[str, Any]]:
    return [
        {
            "model": f"{name}_published",
            "source": "published",
            "metrics": {m: {"mean": v} for m, v in zip(("auc", "ap", "cp100"), row, strict=True)},
        }
        for name, row in PUBLISHED.items()
    ]


def chronological_settings(stream: Stream, settings: TrainSettings) -> TrainSettings:
    """70/15/15: the middle part blends and calibrates; a small stream is trained on whole."""
    n = len(stream)
    middle = stream.events.time_T[int(0.85 * n)] - stream.events.time_T[int(0.70 * n)]
    keep = min(1.0, max(settings.keep_genuine, 60_000 / n))
    return replace(settings, warm_up_days=0.0, slice_days=max(float(middle) / DAY, 1.0), keep_genuine=keep)


def run_fold(stream: Stream, fold: Fold, settings: TrainSettings, seeds: int, progress: Progress) -> list[ScoredWindow]:
    """One fold from an empty state to its scored windows, one per seed; knows nothing of what comes after the fold."""
    end = int(np.flatnonzero(fold.test_T)[-1]) + 1
    part = stream.head(end)
    cut = Fold(fold.name, fold.train_T[:end], fold.week_T[:end], fold.test_T[:end], fold.known_by)
    progress(f"fold {fold.name}: replaying {end:,} payments")
    prepared = prepare(part, cut.train_T, cut.known_by, settings, also_tokens_T=cut.test_T)
    return score_fold(part, cut, prepared, settings, seeds=seeds, progress=progress)


def _worker_fold(stream: Stream, fold: Fold, settings: TrainSettings, seeds: int) -> list[ScoredWindow]:
    import torch

    torch.set_num_threads(1)
    return run_fold(stream, fold, replace(settings, threads=1), seeds, lambda _: None)


def evaluate(
    loaded: LoadedPayments,
    protocol: str,
    *,
    seeds: int,
    settings: TrainSettings,
    label_delay_days: float,
    progress: Progress,
    workers: int = 1,
) -> Results:
    """Run a protocol on a loaded stream; see `run_evaluation` for the command.

    Args:
        workers: processes that share the folds, one thread each. More than one changes the cost, not the figures' meaning.
    """
    if seeds < 1:
        raise InputError(f"`--seeds` must be >= 1. Received: seeds={seeds}.")
    with measured() as cost:
        stream = Stream.encode(loaded.frame, settings.engine)
        folds = make_folds(protocol, stream, label_delay_days)
        if protocol == "chronological":
            settings = chronological_settings(stream, settings)
        by_fold: list[list[ScoredWindow]] = []
        if workers == 1 or len(folds) == 1:
            by_fold = [run_fold(stream, fold, settings, seeds, progress) for fold in folds]
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                waiting = [pool.submit(_worker_fold, stream, fold, settings, seeds) for fold in folds]
                for fold, future in zip(folds, waiting, strict=True):
                    by_fold.append(future.result())
                    progress(f"fold {fold.name} done")
        rows = rows_of(by_fold, DecisionPolicy())
    return Results(
        task="fraud",
        protocol=protocol,
        data={"name": loaded.name, "sha256": loaded.sha256, "rows": loaded.rows},
        seeds=list(range(seeds)),
        champion="fused",
        cost=cost,
        rows=(published_rows() if protocol == "handbook" else []) + rows,
    )


def run_evaluation(
    transactions: Path,
    columns: str,
    protocol: str,
    seeds: int,
    json_path: Path | None,
    label_delay_days: float = 7.0,
    account_to_account: bool = False,
    canaries: bool = False,
    progress: Progress = lambda _: None,
) -> Results:
    """Load a file, run a protocol, print the table and write the JSON; with `canaries`, look for leaks as well."""
    if protocol not in PROTOCOLS:
        raise InputError(f"`--protocol` must be one of {', '.join(PROTOCOLS)}. Received: {protocol}.")
    loaded = load_payments(
        transactions,
        ColumnMapping.parse(columns),
        label_delay=timedelta(days=label_delay_days),
        account_to_account=account_to_account,
    )
    for remark in loaded.remarks():
        progress(remark)
    engine = EngineSettings(maturity_days=label_delay_days, account_to_account=account_to_account)
    settings = TrainSettings(engine=engine)
    results = evaluate(
        loaded,
        protocol,
        seeds=seeds,
        settings=settings,
        label_delay_days=label_delay_days,
        progress=progress,
    )
    results.print(("ap", "auc", "cp100", "recall_fpr_0.003", "ece", "brier", "money_saved"))
    if canaries:
        progress("leakage canaries")
        found = check_for_leaks(loaded, settings)
        for canary in found:
            print(f"canary {'ok  ' if canary.ok else 'DEAD'} {canary.name}: {canary.figure:.4g} ({canary.meaning})")
        results = replace(results, extra=results.extra | {"canaries": [asdict(canary) for canary in found]})
    if json_path is not None:
        results.write(json_path)
    return results


def check_for_leaks(loaded: LoadedPayments, settings: TrainSettings, *, most: int = 300_000) -> list[Canary]:
    """Run the canaries on the first `most` payments, with a champion trained on their first 85 %."""
    frame = loaded.frame.head(most)
    stream = Stream.encode(frame, settings.engine)
    fold = chronological_fold(stream.events.time_T)[0]
    prepared = prepare(stream, fold.train_T, fold.known_by, chronological_settings(stream, settings))
    fraud_T = prepared.verdict_T == LABEL_FRAUD
    x = prepared.observed.x_TF[prepared.fit_T]
    prior = Prior.fit(x, fraud_T[prepared.fit_T])
    boosting = Boosting.train(x, fraud_T[prepared.fit_T], prior, seed=0, trees=150, threads=settings.threads)

    def score(observed: Observed, rows_T: NDArray[np.bool_]) -> float:
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(stream.fraud_T[rows_T], boosting.logit(observed.x_TF[rows_T])))

    return run_canaries(frame, settings, prepared, score)

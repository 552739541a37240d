"""The steps of the fraud solution as plain functions over one directory: ingest, train a challenger, judge it, promote it.

payments/DATE.parquet   accepted payments of a day        rejected/DATE.parquet   refused rows with their causes
models/RUN/             a trained challenger              evaluations/RUN.parquet scores of its held-out window
updates/RUN.json        of an updated champion: to which change it answers, and what the gate said
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from core.files import replacing
from core.promotion import Verdict, decide
from core.results import sha256_file
from core.tracking import Tracker
from solutions.fraud.boosting import STRONG_COLUMNS, strong_lightgbm
from solutions.fraud.data import ColumnMapping, InputError, load_payments
from solutions.fraud.evaluate import score_parts
from solutions.fraud.features import AGGREGATES
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_UNKNOWN
from solutions.fraud.metrics import figures
from solutions.fraud.model import FraudModel
from solutions.fraud.train import Stream, TrainSettings, fit_parts, prepare

MODEL_NAME = "fraud"
BASELINE = "lightgbm_strong"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Workspace:
    """Where the fraud solution keeps its files."""

    root: Path

    @property
    def payments(self) -> Path:
        return self.root / "payments"

    @property
    def rejected(self) -> Path:
        return self.root / "rejected"

    def model(self, run: str) -> Path:
        return self.root / "models" / run

    def evaluation(self, run: str) -> Path:
        return self.root / "evaluations" / f"{run}.parquet"

    def update(self, run: str) -> Path:
        return self.root / "updates" / f"{run}.json"


@dataclass(frozen=True)
class Source:
    """A file of payments and how to read it."""

    transactions: Path
    columns: str = ""
    label_delay_days: float = 7.0
    account_to_account: bool = False


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Replace a parquet file in one step."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def ingest(source: Source, days: list[str], workspace: Workspace) -> dict[str, int]:
    """Validate a file and write the payments of the given days (YYYY-MM-DD), and its refused rows; returns counts."""
    loaded = load_payments(
        source.transactions,
        ColumnMapping.parse(source.columns),
        label_delay=timedelta(days=source.label_delay_days),
        account_to_account=source.account_to_account,
    )
    day_T = loaded.frame["event_time"].dt.strftime("%Y-%m-%d")
    written = 0
    for day, payments in loaded.frame.groupby(day_T):
        if day in days:
            write_frame(payments, workspace.payments / f"{day}.parquet")
            written += len(payments)
    if len(loaded.rejected):
        write_frame(loaded.rejected.astype(str), workspace.rejected / f"{days[0]}.parquet")
    return {"payments": written, "rejected": len(loaded.rejected)}


def days_of(source: Source) -> list[str]:
    """The days that a file has payments for."""
    loaded = load_payments(
        source.transactions, ColumnMapping.parse(source.columns), label_delay=timedelta(days=source.label_delay_days)
    )
    return sorted(loaded.frame["event_time"].dt.strftime("%Y-%m-%d").unique())


def training_stream(workspace: Workspace) -> pd.DataFrame:
    """All ingested days as one canonical frame."""
    files = sorted(workspace.payments.glob("*.parquet"))
    if not files:
        raise InputError(f"no payments are ingested under {workspace.payments}. Materialise `fraud_payments` first.")
    frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    return frame.sort_values("event_time", kind="stable").reset_index(drop=True)


def train_challenger(
    frame: pd.DataFrame, settings: TrainSettings, *, holdout_days: float, seed: int, progress: Progress | None = None
) -> tuple[FraudModel, pd.DataFrame]:
    """Train on what was known before the held-out last days; returns the model and the window's scores.

    The window has one row per payment: transaction_id, event_time, payer, amount, is_fraud, and one probability for
    each of fused, lightgbm, network and the strong baseline.
    """
    say = progress or (lambda _: None)
    stream = Stream.encode(frame, settings.engine)
    time_T = stream.events.time_T
    split = float(np.floor(time_T[-1] / DAY) * DAY - (holdout_days - 1.0) * DAY)
    test_T = time_T >= split
    train_T = (time_T >= time_T[0] + settings.warm_up_days * DAY) & ~test_T
    say(f"replaying {len(stream):,} payments through the graph state")
    prepared = prepare(stream, train_T, split, settings, also_tokens_T=test_T)
    model = fit_parts(prepared, settings, seed=seed, progress=progress)
    probability = score_parts(model, prepared, test_T)
    say("baseline on the same labels")
    x, known_T = prepared.observed.x_TF, train_T & (prepared.verdict_T != LABEL_UNKNOWN)
    strong = strong_lightgbm(x[known_T], prepared.verdict_T[known_T] == LABEL_FRAUD, seed=seed)
    probability[BASELINE] = strong.predict_proba(x[test_T][:, STRONG_COLUMNS])[:, 1]
    window = frame.loc[test_T, ["transaction_id", "event_time", "payer", "amount", "is_fraud"]].assign(**probability)
    return model, window.reset_index(drop=True)


def score_with(model: FraudModel, frame: pd.DataFrame, window: pd.DataFrame) -> np.ndarray:
    """Probabilities that another model gives to the payments of a held-out window, from an empty state on."""
    stream = Stream.encode(frame, model.engine)
    wanted_T = frame["event_time"].to_numpy() >= window["event_time"].iat[0]
    observed = model.new_engine().observe(stream.events, stream.labels, tokens_for=wanted_T)
    logits = {
        "lightgbm": model.boosting.logit(observed.x_TF[wanted_T]),
        "network": model.network.logit(observed.x_TF[wanted_T], observed.modalities()),
    }
    return model.blend.probability(logits)


def window_metrics(window: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Figures of every model of the window."""
    stream_time = window["event_time"].to_numpy("datetime64[us]").astype(np.int64) / 1e6
    fraud_T, payer_T = window["is_fraud"].to_numpy() == 1, pd.factorize(window["payer"])[0].astype(np.uint64)
    names = [name for name in ("fused", "network", "lightgbm", BASELINE) if name in window]
    return {name: figures(fraud_T, window[name].to_numpy(float), payer_T, stream_time) for name in names}


def judge(window: pd.DataFrame, champion_T: np.ndarray | None) -> Verdict:
    """The gate: the challenger against the champion, or against the strong baseline while there is none."""
    rival_T = window[BASELINE].to_numpy(float) if champion_T is None else champion_T
    rival = "the strong baseline (no champion yet)" if champion_T is None else "the champion"
    verdict = decide(
        rival_T, window["fused"].to_numpy(float), window["is_fraud"].to_numpy() == 1, window["payer"].to_numpy()
    )
    return Verdict(verdict.promote, (f"against {rival}", *verdict.reasons), verdict.difference, verdict.low)


def champion_scores(tracker: Tracker, frame: pd.DataFrame, window: pd.DataFrame) -> np.ndarray | None:
    """The champion's probabilities for the window, or None when there is no champion."""
    if tracker.version_of(MODEL_NAME, "champion") is None:
        return None
    directory, _ = tracker.resolve(f"{MODEL_NAME}@champion")
    return score_with(FraudModel.load(directory), frame, window)


def save_challenger(model: FraudModel, window: pd.DataFrame, workspace: Workspace, run: str) -> dict[str, float]:
    """Write model and window; returns the metrics to track."""
    model.save(workspace.model(run))
    write_frame(window, workspace.evaluation(run))
    return {f"{name}_{key}": value for name, values in window_metrics(window).items() for key, value in values.items()}


def register_challenger(tracker: Tracker, run_id: str, workspace: Workspace, run: str) -> int:
    """Register the run's model with its signature and data fingerprint; it serves only when it is promoted."""
    signature = {
        "inputs": ["transaction_id", "event_time", "payer", "payee", "amount", "device"],
        "outputs": ["probability", "decision", "reasons"],
        "aggregates": list(AGGREGATES),
    }
    fingerprint = sha256_file(workspace.evaluation(run))
    return tracker.register(run_id, workspace.model(run), MODEL_NAME, signature=signature, fingerprint=fingerprint)


def register_champion(tracker: Tracker, run_id: str, workspace: Workspace, run: str) -> int:
    """Register the run's model and make it the champion."""
    return promote_challenger(tracker, register_challenger(tracker, run_id, workspace, run), workspace, run)


def promote_challenger(tracker: Tracker, version: int, workspace: Workspace, run: str) -> int:
    """Make a registered version the champion."""
    tracker.promote(MODEL_NAME, version)
    (workspace.root / "champion.json").write_text(json.dumps({"version": version, "run": run}))
    return version

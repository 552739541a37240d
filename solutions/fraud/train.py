"""From a stream of payments and what was known about it at a moment, to a trained champion.

One pass learns the amount that is fraud by itself and the episodes of each role; one replay computes what the engine
would have served for every payment; then boosting and network are trained on it, and a last slice of the training
window, which neither has seen, sets how they are blended and calibrated.

T payments, F aggregates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.fraud.boosting import Boosting
from solutions.fraud.data import InputError
from solutions.fraud.engine import (
    Engine,
    EngineSettings,
    Events,
    Labels,
    Observed,
    encode_labels,
    encode_payments,
    seconds,
)
from solutions.fraud.episodes import Episodes, EpisodeSettings, amount_bins, fit_episodes, no_episodes
from solutions.fraud.features import AGGREGATES
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_GENUINE, LABEL_UNKNOWN
from solutions.fraud.model import Blend, FraudModel
from solutions.fraud.network import Held, NetworkSettings, train_network
from solutions.fraud.prior import Prior

Progress = Callable[[str], None]
B = NDArray[np.bool_]
START_FRAUD_RATES = (0.3, 0.8, 0.5)  # a stolen card mixes fraud into habit; a skimmed terminal's payments are all fraud


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """slice_days: last days of the training window, kept for blending and calibration. keep_genuine: share of genuine
    payments that the network sees (its logits are corrected for it). warm_up_days: aggregates are not themselves before.
    trees: at most; as many are kept as are best on the slice."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    episodes: EpisodeSettings = field(default_factory=EpisodeSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    warm_up_days: float = 37.0
    slice_days: float = 7.0
    keep_genuine: float = 0.10
    trees: int = 400
    threads: int = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.keep_genuine <= 1.0:
            raise ValueError(f"`keep_genuine` must be in (0, 1]. Received: keep_genuine={self.keep_genuine}.")
        if self.slice_days <= 0.0:
            raise ValueError(f"`slice_days` must be > 0. Received: slice_days={self.slice_days}.")


@dataclass(frozen=True)
class Stream:
    """A canonical frame, encoded. fraud_T: the truth, for evaluation; labels: what arrives, and when."""

    events: Events
    labels: Labels
    fraud_T: B
    known_at_T: NDArray[np.float64]  # Unix seconds; infinite: the label never arrives
    scenario_T: NDArray[np.int64] | None

    @classmethod
    def encode(cls, frame: pd.DataFrame, settings: EngineSettings) -> Stream:
        if not len(frame):
            raise InputError("there are no payments to work on: the frame is empty.")
        events = encode_payments(frame, settings)
        known_at = seconds(frame["label_time"])
        return cls(
            events=events,
            labels=encode_labels(frame, events.key_TE[:, 0]),
            fraud_T=frame["is_fraud"].to_numpy() == 1,
            known_at_T=np.where(np.isnan(known_at), np.inf, known_at),
            scenario_T=frame["scenario"].to_numpy(np.int64) if "scenario" in frame else None,
        )

    def __len__(self) -> int:
        return len(self.events)

    @property
    def payer_T(self) -> NDArray[np.uint64]:
        return self.events.key_TE[:, 1]

    def head(self, n: int) -> Stream:
        """The first n payments."""
        e = self.events
        events = Events(e.key_TE[:n], e.time_T[:n], e.amount_T[:n])
        scenario = None if self.scenario_T is None else self.scenario_T[:n]
        return Stream(events, self.labels, self.fraud_T[:n], self.known_at_T[:n], scenario)

    def verdicts(self, known_by: float, maturity: float) -> NDArray[np.int8]:
        """LABEL_* of every payment as known at a moment.

        Only matured payments have a verdict: among younger ones just the frauds are known, and a model calibrated on
        those would believe that everything is fraud.
        """
        fraud_T = self.fraud_T & (self.known_at_T <= known_by)
        matured_T = self.events.time_T + maturity <= known_by
        verdict_T = np.where(fraud_T, LABEL_FRAUD, LABEL_GENUINE)
        return np.where(matured_T, verdict_T, LABEL_UNKNOWN).astype(np.int8)


@dataclass(frozen=True)
class Prepared:
    """What the parts are trained on; the same for every seed."""

    high_amount: float
    episodes: tuple[Episodes, Episodes, Episodes]
    observed: Observed  # aggregates of all payments of the stream, tokens of `token_T`
    token_T: B
    fit_T: B
    slice_T: B
    verdict_T: NDArray[np.int8]


def fit_high_amount(amount_T: NDArray[np.float64], fraud_T: B, *, precision: float = 0.9, support: int = 30) -> float:
    """Amount from which on payments are fraud by themselves; infinite when there is none.

    It is where counting down from the largest amount stops paying: a genuine payment costs what nine frauds gain.
    """
    order = np.argsort(amount_T)[::-1]
    gain = np.cumsum(np.where(fraud_T[order], 1.0, -precision / (1.0 - precision)))
    best = int(np.argmax(gain)) if len(gain) else 0
    if best + 2 > len(order) or gain[best] <= 0.0 or best + 1 < support:
        return float("inf")
    return float(amount_T[order[best : best + 2]].mean())  # midway to the first that is not


def fit_state(
    stream: Stream, known_T: B, verdict_T: NDArray[np.int8], settings: TrainSettings
) -> tuple[float, tuple[Episodes, Episodes, Episodes]]:
    """Amount and episodes, learnt from the payments `known_T`."""
    amount_T, time_T = stream.events.amount_T, stream.events.time_T
    high_amount = fit_high_amount(amount_T[known_T], verdict_T[known_T] == LABEL_FRAUD)
    n = int(np.flatnonzero(known_T)[-1]) + 1
    habit = Engine(settings.engine, high_amount=high_amount)
    observed = habit.observe(stream.head(n).events, tokens_for=np.zeros(n, bool))
    ratio_T = observed.x_TF[:, AGGREGATES.index("amount_ratio")].astype(float)
    bin_T = amount_bins(ratio_T, amount_T[:n], high_amount)
    fitted = []
    for role, start in enumerate(START_FRAUD_RATES):
        key_T = stream.events.key_TE[:n, 1 + role]
        chosen = known_T[:n] & (key_T != 0)
        if not (verdict_T[:n][chosen] == LABEL_FRAUD).any():
            fitted.append(no_episodes())
            continue
        node_T = pd.factorize(key_T[chosen])[0].astype(np.int64)
        options = EpisodeSettings(
            longest=settings.episodes.longest, iterations=settings.episodes.iterations, start_fraud_rate=start
        )
        fitted.append(fit_episodes(node_T, time_T[:n][chosen], bin_T[chosen], verdict_T[:n][chosen], options))
    return high_amount, (fitted[0], fitted[1], fitted[2])


def prepare(
    stream: Stream, train_T: B, known_by: float, settings: TrainSettings, *, also_tokens_T: B | None = None
) -> Prepared:
    """Learn the state's parameters and replay the stream once.

    Args:
        train_T: payments that may be trained on. known_by: moment (Unix seconds) at which labels must be known.
        also_tokens_T: further payments whose mailbox tokens are wanted (a test window).
    """
    verdict_T = stream.verdicts(known_by, settings.engine.maturity_days * DAY)
    usable_T = train_T & (verdict_T != LABEL_UNKNOWN)
    if (verdict_T[usable_T] == LABEL_FRAUD).sum() < 20:
        raise InputError(
            "too few known frauds to train on: at least 20 are needed in the training window. "
            f"Received: {int((verdict_T[usable_T] == LABEL_FRAUD).sum())} among {int(usable_T.sum())} labelled payments."
        )
    last = stream.events.time_T[usable_T].max()
    slice_T = usable_T & (stream.events.time_T > last - settings.slice_days * DAY)
    fit_T = usable_T & ~slice_T
    warm_T = (verdict_T != LABEL_UNKNOWN) & (stream.events.time_T <= stream.events.time_T[fit_T].max())
    high_amount, episodes = fit_state(stream, warm_T, verdict_T, settings)
    lottery = np.random.default_rng(0).random(len(stream))
    sample_T = fit_T & ((verdict_T == LABEL_FRAUD) | (lottery < settings.keep_genuine))
    token_T = sample_T | slice_T | (also_tokens_T if also_tokens_T is not None else False)
    engine = Engine(settings.engine, high_amount=high_amount, episodes=episodes)
    observed = engine.observe(stream.events, stream.labels, tokens_for=token_T)
    return Prepared(high_amount, episodes, observed, token_T, fit_T, slice_T, verdict_T)


def fit_parts(
    prepared: Prepared, settings: TrainSettings, *, seed: int, progress: Progress | None = None
) -> FraudModel:
    """Train boosting and network, then blend and calibrate them on the slice."""
    say = progress or (lambda _: None)
    fraud_T = prepared.verdict_T == LABEL_FRAUD
    x_TF = prepared.observed.x_TF
    fit, held = np.flatnonzero(prepared.fit_T), np.flatnonzero(prepared.slice_T)
    sample = np.flatnonzero(prepared.token_T & prepared.fit_T)
    slot_T = np.cumsum(prepared.token_T) - 1
    later = Held(x_TF[held], prepared.observed.modalities(slot_T[held]), fraud_T[held])
    prior = Prior.fit(x_TF[fit], fraud_T[fit])
    say(f"boosting on {len(fit):,} payments")
    boosting = Boosting.train(
        x_TF[fit],
        fraud_T[fit],
        prior,
        seed=seed,
        trees=settings.trees,
        held=(later.x_TF, later.fraud_T),
        threads=settings.threads,
    )
    say(f"network on {len(sample):,} payments")
    network = train_network(
        x_TF[sample],
        prepared.observed.modalities(slot_T[sample]),
        fraud_T[sample],
        prior,
        keep_genuine=settings.keep_genuine,
        settings=settings.network,
        seed=seed,
        progress=say,
        held=later,
    )
    logits = {
        "lightgbm": boosting.logit(later.x_TF, settings.threads),
        "network": network.logit(later.x_TF, later.mailboxes),
    }
    return FraudModel(
        engine=settings.engine,
        high_amount=prepared.high_amount,
        episodes=prepared.episodes,
        boosting=boosting,
        network=network,
        blend=Blend.fit(logits, later.fraud_T),
    )


def train_model(
    frame: pd.DataFrame, settings: TrainSettings, *, seed: int, progress: Progress | None = None
) -> FraudModel:
    """Train on everything that a canonical frame knows: the labels that have arrived by its last payment."""
    say = progress or (lambda _: None)
    stream = Stream.encode(frame, settings.engine)
    time_T = stream.events.time_T
    train_T = time_T >= time_T[0] + settings.warm_up_days * DAY
    say(f"replaying {len(stream):,} payments through the graph state")
    prepared = prepare(stream, train_T, float(time_T[-1]), settings)
    return fit_parts(prepared, settings, seed=seed, progress=progress)


def train_file(
    transactions: Path,
    columns: str,
    out_dir: Path,
    seed: int,
    label_delay_days: float,
    account_to_account: bool,
    settings: TrainSettings | None = None,
    progress: Progress | None = None,
) -> FraudModel:
    """Train from a file and save the model as a directory."""
    from datetime import timedelta

    from solutions.fraud.data import ColumnMapping, load_payments

    loaded = load_payments(
        transactions,
        ColumnMapping.parse(columns),
        label_delay=timedelta(days=label_delay_days),
        account_to_account=account_to_account,
    )
    for remark in loaded.remarks():
        if progress:
            progress(remark)
    engine = EngineSettings(maturity_days=label_delay_days, account_to_account=account_to_account)
    model = train_model(loaded.frame, settings or TrainSettings(engine=engine), seed=seed, progress=progress)
    model.save(out_dir)
    return model

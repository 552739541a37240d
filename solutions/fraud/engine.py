"""One engine for training, replay and serving: labels and payments in order in, aggregates and mailbox tokens out.

The scores never feed back into the state, so events can be observed strictly one after another in compiled code and
scored in batches of any size with identical results: no waves, no staleness, nothing to flush.

T events, F aggregates, K tokens per mailbox, R = 3 roles (payer, payee, device).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.fraud.compiled import kernel
from solutions.fraud.episodes import SCRATCH, Episodes, no_episodes
from solutions.fraud.features import AGGREGATES, observe
from solutions.fraud.graph_state import (
    DAY,
    ROLES,
    State,
    StateSettings,
    apply_label,
    hash_id,
    hash_ids,
    new_state,
    record,
    row_of,
)
from solutions.fraud.tokens import TOKEN, gather

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """maturity_days: an unlabelled payment of that age counts as genuine. *_tokens: mails per mailbox shown to the network."""

    state: StateSettings = field(default_factory=StateSettings)
    maturity_days: float = 7.0
    account_to_account: bool = False  # payer and payee share one name space
    payer_tokens: int = 16
    payee_tokens: int = 32
    device_tokens: int = 8

    def __post_init__(self) -> None:
        if self.maturity_days < 0:
            raise ValueError(f"`maturity_days` must be >= 0. Received: maturity_days={self.maturity_days}.")
        if min(self.tokens) < 1 or max(self.tokens) > self.state.mailbox:
            raise ValueError(
                f"tokens per mailbox must be in [1, {self.state.mailbox}] (the mailbox). Received: {self.tokens}."
            )

    @property
    def tokens(self) -> tuple[int, int, int]:
        return self.payer_tokens, self.payee_tokens, self.device_tokens

    def namespaces(self) -> tuple[str, str, str]:
        return ("account", "account", "device") if self.account_to_account else ("payer", "payee", "device")


@dataclass(frozen=True)
class Events:
    """Payments in arrival order: key_TE keys of payment, payer, payee, device (0: none); Unix seconds; amounts."""

    key_TE: U64
    time_T: F64
    amount_T: F64

    def __len__(self) -> int:
        return len(self.time_T)


@dataclass(frozen=True)
class Labels:
    """Labels in the order of their arrival."""

    key_T: U64
    time_T: F64
    fraud_T: NDArray[np.bool_]


@dataclass(frozen=True)
class Observed:
    """x_TF aggregates of every event; tokens and masks (S, K, ...) by role for the S events that were asked for."""

    x_TF: F32
    token_SKF: tuple[F32, ...]
    mask_SK: tuple[NDArray[np.bool_], ...]

    def modalities(self, chosen: Any = slice(None)) -> dict[str, tuple[F32, NDArray[np.bool_]]]:
        return {
            role: (token[chosen], mask[chosen])
            for role, token, mask in zip(ROLES, self.token_SKF, self.mask_SK, strict=True)
        }


def seconds(times: Any) -> F64:
    """Unix seconds of a datetime column (NaT gives NaN)."""
    stamps = pd.to_datetime(pd.Series(times)).to_numpy("datetime64[us]")
    values = stamps.astype(np.int64) / 1e6
    return np.where(np.isnat(stamps), np.nan, values)


def encode_payments(frame: pd.DataFrame, settings: EngineSettings) -> Events:
    """Events of a canonical frame (sorted by event time)."""
    payer, payee, device = settings.namespaces()
    devices = hash_ids(frame["device"], device) if "device" in frame else np.zeros(len(frame), np.uint64)
    keys = [
        hash_ids(frame["transaction_id"], "payment"),
        hash_ids(frame["payer"], payer),
        hash_ids(frame["payee"], payee),
    ]
    return Events(np.stack([*keys, devices], axis=1), seconds(frame["event_time"]), frame["amount"].to_numpy(float))


def encode_payment(payment: Any, settings: EngineSettings) -> tuple[int, int, int, int]:
    """Keys of one `messages.Payment`."""
    payer, payee, device = settings.namespaces()
    device_key = hash_id(payment.device, device) if payment.device else 0
    key = hash_id(payment.transaction_id, "payment")
    return key, hash_id(payment.payer, payer), hash_id(payment.payee, payee), device_key


def encode_labels(frame: pd.DataFrame, key_T: U64) -> Labels:
    """Fraud labels of a canonical frame, by arrival. Genuine ones are left to maturity: they would say the same, later."""
    time_T = seconds(frame["label_time"])
    index = np.flatnonzero((frame["is_fraud"].to_numpy() == 1) & ~np.isnan(time_T))
    index = index[np.argsort(time_T[index], kind="stable")]
    return Labels(key_T[index], time_T[index], np.ones(len(index), bool))


@kernel
def _run(
    state: State,
    key_TE: U64,
    time_T: F64,
    amount_T: F64,
    label_key: U64,
    label_time: F64,
    label_fraud: NDArray[np.bool_],
    slot_T: NDArray[np.int64],
    maturity: float,
    high_amount: float,
    episodes: tuple[Episodes, Episodes, Episodes],
    x_TF: F32,
    payer_tokens: F32,
    payee_tokens: F32,
    device_tokens: F32,
    payer_mask: NDArray[np.bool_],
    payee_mask: NDArray[np.bool_],
    device_mask: NDArray[np.bool_],
) -> None:
    x = np.zeros(x_TF.shape[1])
    scratch = np.empty(SCRATCH)
    label = 0
    for i in range(len(time_T)):
        time, amount = time_T[i], amount_T[i]
        while label < len(label_time) and label_time[label] < time:
            apply_label(state, label_key[label], label_fraud[label])
            label += 1
        payer, payee = row_of(state, key_TE[i, 1]), row_of(state, key_TE[i, 2])
        device = row_of(state, key_TE[i, 3]) if key_TE[i, 3] != 0 else -1
        ratio = observe(state, payer, payee, device, time, amount, maturity, high_amount, episodes, scratch, x)
        x_TF[i] = x
        s = slot_T[i]
        if s >= 0:
            payer_ref = (state.generation_N[payer] << 32) | payer
            payee_ref = (state.generation_N[payee] << 32) | payee
            gather(state, payer, payee_ref, time, amount, maturity, high_amount, payer_tokens[s], payer_mask[s])
            gather(state, payee, payer_ref, time, amount, maturity, high_amount, payee_tokens[s], payee_mask[s])
            if device >= 0:
                gather(state, device, payer_ref, time, amount, maturity, high_amount, device_tokens[s], device_mask[s])
        record(state, key_TE[i, 0], time, amount, ratio, payer, payee, device)


@kernel
def _label_all(state: State, key_T: U64, fraud_T: NDArray[np.bool_], outcome_T: NDArray[np.int64]) -> None:
    for i in range(len(key_T)):
        outcome_T[i] = apply_label(state, key_T[i], fraud_T[i])


class Engine:
    """Owner of one graph state. Not thread-safe: one owner per state is what makes the order of events well defined."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        high_amount: float = np.inf,
        episodes: tuple[Episodes, Episodes, Episodes] | None = None,
    ) -> None:
        self.settings = settings
        self.high_amount = high_amount
        self.episodes = episodes or (no_episodes(), no_episodes(), no_episodes())
        self.state = new_state(settings.state)

    def observe(
        self, events: Events, labels: Labels | None = None, *, tokens_for: NDArray[np.bool_] | None = None
    ) -> Observed:
        """Observe events in order, then let them change the state.

        Labels are applied before the first event that is strictly later than they are; those after the last event are
        not consumed. `tokens_for`: (T,) which events get mailbox tokens (default: all).
        """
        wanted = np.ones(len(events), bool) if tokens_for is None else tokens_for
        slot_T = np.where(wanted, np.cumsum(wanted) - 1, -1)
        chosen = int(wanted.sum())
        tokens = tuple(np.zeros((chosen, k, len(TOKEN)), np.float32) for k in self.settings.tokens)
        masks = tuple(np.zeros((chosen, k), bool) for k in self.settings.tokens)
        x_TF = np.empty((len(events), len(AGGREGATES)), np.float32)
        none = Labels(np.zeros(0, np.uint64), np.zeros(0), np.zeros(0, bool))
        late = labels or none
        maturity = self.settings.maturity_days * DAY
        arguments: tuple[Any, ...] = (
            *(self.state, events.key_TE, events.time_T, events.amount_T, late.key_T, late.time_T, late.fraud_T),
            *(slot_T, maturity, self.high_amount, self.episodes, x_TF, *tokens, *masks),
        )
        _run(*arguments)
        return Observed(x_TF, tokens, masks)

    def apply_labels(self, key_T: U64, fraud_T: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Apply labels now; returns indices into LABEL_OUTCOMES."""
        outcome_T = np.empty(len(key_T), np.int64)
        _label_all(self.state, key_T, fraud_T, outcome_T)
        return outcome_T

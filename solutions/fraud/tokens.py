"""Tokens of a mailbox: each recent event of an endpoint, and what is known *now* about its other endpoint.

The sender's present state is read at scoring time, so that a label which reaches a neighbour changes the score at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.compiled import kernel
from solutions.fraud.features import EXPLAINED_RATIO, MOST_EVENTS, OLDEST, RECENT_FRAUD
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_GENUINE, LABEL_UNKNOWN, State, resolve

TOKEN = (
    *("age_days", "calendar_days", "amount", "ratio", "amount_to_current", "fraud", "genuine", "unknown"),
    *("paid", "same_peer", "peer_recent_fraud", "peer_frauds", "peer_events", "peer_age", "peer_device_frauds"),
    "explained",
)


@kernel
def gather(
    state: State,
    row: int,
    other_ref: int,
    time: float,
    amount: float,
    maturity: float,
    high_amount: float,
    token_KF: NDArray[np.float32],
    mask_K: NDArray[np.bool_],
) -> None:
    """Write the newest K mails of a row, newest first. `other_ref`: the endpoint on the other side of the payment."""
    mailbox = state.mail_time_NM.shape[1]
    newest = state.count_N[row] - 1
    tokens = min(len(mask_K), mailbox, newest + 1)
    mask_K[:] = False
    token_KF[:] = 0.0
    for k in range(tokens):
        m = (newest - k) % mailbox
        mask_K[k] = True
        then, value = state.mail_time_NM[row, m], state.mail_amount_NM[row, m]
        age, label, peer = time - then, state.mail_label_NM[row, m], state.mail_peer_NM[row, m]
        if label == LABEL_UNKNOWN and age > maturity:
            label = LABEL_GENUINE
        token = token_KF[k]
        token[0] = age / DAY
        token[1] = np.floor(time / DAY) - np.floor(then / DAY)
        token[2] = np.log1p(value)
        token[3] = np.log(min(max(state.mail_ratio_NM[row, m], 0.02), 50.0))
        token[4] = min(max(np.log((value + 1.0) / (amount + 1.0)), -4.0), 4.0)
        token[5] = 1.0 if label == LABEL_FRAUD else 0.0
        token[6] = 1.0 if label == LABEL_GENUINE else 0.0
        token[7] = 1.0 if label == LABEL_UNKNOWN else 0.0
        token[8] = 1.0 if state.mail_role_NM[row, m] == 0 else 0.0
        token[9] = 1.0 if peer == other_ref else 0.0
        sender = resolve(state, peer)
        if sender >= 0:
            token[10] = 1.0 if time - state.last_fraud_N[sender] < RECENT_FRAUD else 0.0
            token[11] = np.log1p(state.frauds_NR[sender].sum())
            token[12] = np.log1p(min(state.count_N[sender], MOST_EVENTS))
            token[13] = np.log1p(min(max(time - state.first_N[sender], 0.0), OLDEST) / DAY)
            device = resolve(state, state.device_N[sender])
            if device >= 0:
                token[14] = np.log1p(state.frauds_NR[device, 2] + state.linked_frauds_N[device])
        token[15] = 1.0 if value > high_amount or state.mail_ratio_NM[row, m] >= EXPLAINED_RATIO else 0.0

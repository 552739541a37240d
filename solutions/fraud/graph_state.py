"""Flat-array state of the temporal graph: a mailbox of recent events per endpoint, and the payments that wait for labels.

Endpoints (payers, payees, devices) live in rows of a set-associative table: a key may sit in one of `WAYS` rows of its set,
and a new key takes the row that was idle longest. So memory is bounded, eviction is part of the event order (not of the
batch size), and a snapshot is the arrays themselves. Rows are named by (generation, row), so that a mail never points at
the next tenant of its sender's row.

N rows, M mails per row, P pending payments, R = 3 roles (payer, payee, device).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.compiled import kernel

DAY = 86_400.0
WAYS = 16  # Poisson load 8 of 16: 0.4 % of the sets overflow
PENDING_WAYS = 8
NEVER = -1e18
ROLES = ("payer", "payee", "device")
LABEL_UNKNOWN, LABEL_GENUINE, LABEL_FRAUD = 0, 1, 2  # zero is "unknown": fresh pages are right without being touched
LABEL_OUTCOMES = ("applied", "duplicate", "unknown_payment")

F64 = NDArray[np.float64]


class State(NamedTuple):
    """The arrays (see module docstring for N, M, P, R). Times are Unix seconds."""

    key_N: NDArray[np.uint64]  # 0: empty
    generation_N: NDArray[np.int64]
    count_N: NDArray[np.int64]  # mails ever written; the mailbox holds the last M
    first_N: F64
    last_N: F64  # monotone: a late event never moves it back
    frauds_NR: NDArray[np.int32]  # known frauds by the role the endpoint had in them
    last_fraud_N: F64
    device_N: NDArray[np.int64]  # reference of the device last used to pay, -1: none
    linked_frauds_N: NDArray[np.int32]  # of a device: known frauds received by accounts that pay with it
    mail_time_NM: F64
    mail_amount_NM: NDArray[np.float32]
    mail_ratio_NM: NDArray[np.float32]  # amount / the payer's usual amount, when it happened
    mail_peer_NM: NDArray[np.int64]  # reference of the other endpoint
    mail_label_NM: NDArray[np.int8]
    mail_role_NM: NDArray[np.int8]
    pending_key_P: NDArray[np.uint64]
    pending_time_P: F64
    pending_label_P: NDArray[np.int8]
    pending_ref_PR: NDArray[np.int64]
    pending_position_PR: NDArray[np.int64]
    clock: F64  # (1,) newest event time seen


@dataclass(frozen=True, kw_only=True)
class StateSettings:
    """Sizes of the state.

    nodes: rows for endpoints; about twice the endpoints expected to be active.
    mailbox: recent events kept per endpoint.
    pending: payments that can still be labelled; the oldest of a set leaves first.
    """

    nodes: int = 1 << 16
    mailbox: int = 128
    pending: int = 1 << 21

    def __post_init__(self) -> None:
        for name, step in (("nodes", WAYS), ("mailbox", 1), ("pending", PENDING_WAYS)):
            value = getattr(self, name)
            if value < step or value % step:
                raise ValueError(f"`{name}` must be a positive multiple of {step}. Received: {name}={value}.")


def new_state(settings: StateSettings) -> State:
    """Empty arrays; pages that no endpoint has touched cost no memory."""
    n, m, p = settings.nodes, settings.mailbox, settings.pending
    return State(
        key_N=np.zeros(n, np.uint64),
        generation_N=np.zeros(n, np.int64),
        count_N=np.zeros(n, np.int64),
        first_N=np.zeros(n),
        last_N=np.zeros(n),
        frauds_NR=np.zeros((n, 3), np.int32),
        last_fraud_N=np.full(n, NEVER),
        device_N=np.full(n, -1, np.int64),
        linked_frauds_N=np.zeros(n, np.int32),
        mail_time_NM=np.zeros((n, m)),
        mail_amount_NM=np.zeros((n, m), np.float32),
        mail_ratio_NM=np.zeros((n, m), np.float32),
        mail_peer_NM=np.zeros((n, m), np.int64),
        mail_label_NM=np.zeros((n, m), np.int8),
        mail_role_NM=np.zeros((n, m), np.int8),
        pending_key_P=np.zeros(p, np.uint64),
        pending_time_P=np.full(p, NEVER),
        pending_label_P=np.zeros(p, np.int8),
        pending_ref_PR=np.full((p, 3), -1, np.int64),
        pending_position_PR=np.zeros((p, 3), np.int64),
        clock=np.full(1, NEVER),
    )


def hash_id(text: str, namespace: str) -> int:
    """64-bit key of an identifier; the state never holds the identifier itself."""
    digest = hashlib.blake2b(f"{namespace}\x1f{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1  # 0 means "empty"


def hash_ids(texts: Any, namespace: str) -> NDArray[np.uint64]:
    """Keys of a column of identifiers (each distinct one is hashed once). Missing values give 0."""
    import pandas as pd

    codes, unique = pd.factorize(np.asarray(texts, dtype=object), use_na_sentinel=True)
    keys = np.array([hash_id(str(text), namespace) for text in unique] + [0], dtype=np.uint64)
    return keys[codes]  # code -1 picks the trailing 0


def state_bytes_per_node(settings: StateSettings) -> float:
    """Bytes that one touched endpoint costs."""
    state = new_state(StateSettings(nodes=WAYS, mailbox=settings.mailbox, pending=PENDING_WAYS))
    arrays = [getattr(state, name) for name in State._fields if not name.startswith(("pending", "clock"))]
    return sum(array.nbytes for array in arrays) / WAYS


@kernel
def resolve(state: State, reference: int) -> int:
    """Row of a reference, or -1 when its tenant has been evicted."""
    if reference < 0:
        return -1
    row = reference & 0xFFFFFFFF
    return row if state.generation_N[row] == reference >> 32 else -1


@kernel
def reference(state: State, row: int) -> int:
    return (state.generation_N[row] << 32) | row


@kernel
def row_of(state: State, key: np.uint64) -> int:
    """Row of an endpoint; a new one takes an empty row of its set, else the one that was idle longest."""
    sets = state.key_N.shape[0] // WAYS
    start = int(key % np.uint64(sets)) * WAYS
    victim = start
    for row in range(start, start + WAYS):
        if state.key_N[row] == key:
            return row
        if state.key_N[row] == 0:
            victim = row
            break
        if state.last_N[row] < state.last_N[victim]:
            victim = row
    if state.key_N[victim] != 0:
        state.generation_N[victim] += 1
        state.frauds_NR[victim, :] = 0
        state.last_fraud_N[victim] = NEVER
        state.device_N[victim] = -1
        state.linked_frauds_N[victim] = 0
        state.count_N[victim] = 0
        state.last_N[victim] = 0.0
    state.key_N[victim] = key
    return victim


@kernel
def deliver(state: State, row: int, role: int, time: float, amount: float, ratio: float, peer: int) -> int:
    """Write one mail; returns its position (a running number, not an index)."""
    position = state.count_N[row]
    slot = position % state.mail_time_NM.shape[1]
    state.mail_time_NM[row, slot] = time
    state.mail_amount_NM[row, slot] = amount
    state.mail_ratio_NM[row, slot] = ratio
    state.mail_peer_NM[row, slot] = peer
    state.mail_label_NM[row, slot] = LABEL_UNKNOWN
    state.mail_role_NM[row, slot] = role
    if position == 0:
        state.first_N[row] = time
    state.count_N[row] = position + 1
    state.last_N[row] = max(state.last_N[row], time)
    return position


@kernel
def record(
    state: State, key: np.uint64, time: float, amount: float, ratio: float, payer: int, payee: int, device: int
) -> None:
    """Let a payment that has been scored change the state. Rows, not keys; device -1: none."""
    payer_ref, payee_ref = reference(state, payer), reference(state, payee)
    sets = state.pending_key_P.shape[0] // PENDING_WAYS
    start = int(key % np.uint64(sets)) * PENDING_WAYS
    place = start
    for i in range(start, start + PENDING_WAYS):
        if state.pending_key_P[i] == 0 or state.pending_key_P[i] == key:
            place = i
            break
        if state.pending_time_P[i] < state.pending_time_P[place]:
            place = i
    state.pending_key_P[place] = key
    state.pending_time_P[place] = time
    state.pending_label_P[place] = LABEL_UNKNOWN
    state.pending_ref_PR[place, 0] = payer_ref
    state.pending_ref_PR[place, 1] = payee_ref
    state.pending_position_PR[place, 0] = deliver(state, payer, 0, time, amount, ratio, payee_ref)
    state.pending_position_PR[place, 1] = deliver(state, payee, 1, time, amount, ratio, payer_ref)
    state.pending_ref_PR[place, 2] = -1
    if device >= 0:
        device_ref = reference(state, device)
        state.device_N[payer] = device_ref
        state.pending_ref_PR[place, 2] = device_ref
        state.pending_position_PR[place, 2] = deliver(state, device, 2, time, amount, ratio, payer_ref)
    state.clock[0] = max(state.clock[0], time)


@kernel
def apply_label(state: State, key: np.uint64, is_fraud: bool) -> int:
    """Let a label change the state. Returns an index into LABEL_OUTCOMES.

    A repeated label changes nothing, so an at-least-once feed is safe. Fraud overrides an earlier "genuine"
    (a chargeback after an analyst's all-clear); nothing overrides fraud.
    """
    sets = state.pending_key_P.shape[0] // PENDING_WAYS
    start = int(key % np.uint64(sets)) * PENDING_WAYS
    place = -1
    for i in range(start, start + PENDING_WAYS):
        if state.pending_key_P[i] == key:
            place = i
            break
    if place < 0:
        return 2
    verdict = LABEL_FRAUD if is_fraud else LABEL_GENUINE
    if state.pending_label_P[place] >= verdict:
        return 1
    state.pending_label_P[place] = verdict
    time = state.pending_time_P[place]
    mailbox = state.mail_time_NM.shape[1]
    for role in range(3):
        row = resolve(state, state.pending_ref_PR[place, role])
        if row < 0:
            continue
        position = state.pending_position_PR[place, role]
        if state.count_N[row] - position <= mailbox:
            state.mail_label_NM[row, position % mailbox] = verdict
        if is_fraud:
            state.frauds_NR[row, role] += 1
            state.last_fraud_N[row] = max(state.last_fraud_N[row], time)
            if role == 1:  # proven receiver: taint the device it pays with
                own_device = resolve(state, state.device_N[row])
                if own_device >= 0:
                    state.linked_frauds_N[own_device] += 1
    return 0

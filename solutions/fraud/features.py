"""Streaming aggregates of a payment, read from the state as it is just before the payment changes it.

Three groups, in this order. BOOK: the Fraud Detection Handbook's own 14 and the amount. STRONG: BOOK and 23 more, together
the 38 of the gradient-boosting baseline. AGGREGATES: all of these, and what only a graph state can tell: episode
posteriors of payer, payee and device, and the two-hop neighbourhood.

Windows are cut to the mailbox: an endpoint with more than M events in 30 days has its newest M counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.compiled import kernel
from solutions.fraud.episodes import Episodes, amount_bin, fraud_probability, in_episode
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_GENUINE, LABEL_UNKNOWN, State, resolve

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BOOK = (
    *("amount", "weekend", "night"),
    *("payer_count_1d", "payer_count_7d", "payer_count_30d", "payer_mean_1d", "payer_mean_7d", "payer_mean_30d"),
    *("payee_count_1d", "payee_count_7d", "payee_count_30d", "payee_rate_1d", "payee_rate_7d", "payee_rate_30d"),
)
STRONG = (
    *BOOK,
    *("amount_over_mean", "amount_over_max", "seconds_since_last", "pair_count"),
    *("payer_frauds_21d", "payer_frauds_35d", "payee_frauds_35d", "payee_frauds_ever", "payee_fraud_age"),
    *("payee_rate_last_10", "payee_recent_ratio", "payer_recent_ratio", "visitor_risk", "payees_risk"),
    *("usual_amount", "usual_deviation", "high_3d", "high_7d", "high_14d"),
    *("run_age", "run_length", "run_genuine_since", "genuine_age"),
)
AGGREGATES = (
    *STRONG,
    *("payer_episode", "payee_episode", "device_episode", "payer_fraud", "payee_fraud", "device_fraud", "any_fraud"),
    *("amount_deviation", "amount_ratio", "largest_ratio_14d", "second_ratio_14d", "payer_fraud_age"),
    *("payer_age", "payee_age", "payer_events", "payee_events", "payee_payers_7d", "payee_silence"),
    *("payer_received_age", "payer_received_share", "payer_as_payee_frauds", "payee_as_payer_frauds"),
    *("reciprocal", "cycle_of_3", "senders_risk", "co_payers_risk", "co_payers_device_risk"),
    *("device_missing", "device_age", "device_payers", "device_frauds", "device_linked_frauds", "device_fraud_age"),
    *("payee_device_frauds", "payee_device_linked_frauds", "payee_device_fraud_age", "same_device"),
    "high_amount",
)
ABSENT = 1e9  # an age that never was
EXPLAINED_RATIO = 2.5  # a fraud this far above the payer's habit says nothing about the payee
HIGH_RATIO = 2.2  # above it a payment does not count for the habit: mean and deviation of what is left
LEAST_HABIT = 5  # usual payments that make a habit: before, how far an amount is from it is no evidence
RECENT_FRAUD = 35 * DAY
OLDEST = 10 * DAY  # seniority is cut here: beyond, it tells how long the stream has run and not how new an endpoint is
MOST_EVENTS = 30  # the same for the number of events
HOPS = 16  # newest mails whose senders are looked at


@kernel
def _logit(p: float) -> float:
    p = min(max(p, 1e-7), 1.0 - 1e-7)
    return np.log(p / (1.0 - p))


@kernel
def _age(time: float, then: float) -> float:
    return time - then if then > 0.0 else ABSENT


@kernel
def _seniority(time: float, first: float) -> float:
    return min(max(time - first, 0.0), OLDEST)


@kernel
def _risk(state: State, reference: int, time: float) -> float:
    """1 if a fraud of this endpoint within 35 days is known, else 0."""
    row = resolve(state, reference)
    return 1.0 if row >= 0 and time - state.last_fraud_N[row] < RECENT_FRAUD else 0.0


@kernel
def _payer(state: State, row: int, payee_ref: int, time: float, amount: float, x: F64) -> float:
    """Fill the payer's part; returns amount / usual amount (1 for a first payment)."""
    mailbox = state.mail_time_NM.shape[1]
    newest = state.count_N[row] - 1
    seen = 0
    count1, count7, count30, sum1, sum7, sum30 = 1, 1, 1, amount, amount, amount
    total, largest, pair, frauds21, frauds35, last_fraud = 0.0, 0.0, 0, 0, 0, 0.0
    recent_ratio, risk = 0.0, 0.0
    received, received_time, received_sum, senders, sender_risk = 0, 0.0, 0.0, 0, 0.0
    reciprocal, last_paid = 0, 0.0
    after = newest % mailbox + 1
    for _ in range(min(newest + 1, mailbox)):
        m = after - 1
        after = m if m > 0 else mailbox
        age, value = time - state.mail_time_NM[row, m], state.mail_amount_NM[row, m]
        if state.mail_role_NM[row, m] == 1:
            received += 1
            if received == 1:
                received_time = state.mail_time_NM[row, m]
            if age < DAY:
                received_sum += value
            if received <= HOPS:
                senders += 1
                sender_risk += _risk(state, state.mail_peer_NM[row, m], time)
            if state.mail_peer_NM[row, m] == payee_ref:
                reciprocal += 1
            continue
        if seen == 0:
            last_paid = state.mail_time_NM[row, m]
        total += value
        largest = max(largest, value)
        if age < 30 * DAY:
            count30 += 1
            sum30 += value
        if age < 7 * DAY:
            count7 += 1
            sum7 += value
        if age < DAY:
            count1 += 1
            sum1 += value
        if state.mail_peer_NM[row, m] == payee_ref:
            pair += 1
        if state.mail_label_NM[row, m] == LABEL_FRAUD:
            frauds21 += 1 if age < 21 * DAY else 0
            frauds35 += 1 if age < 35 * DAY else 0
            last_fraud = max(last_fraud, state.mail_time_NM[row, m])
        if seen < 5:
            recent_ratio += state.mail_ratio_NM[row, m]
        if seen < 10:
            risk += _risk(state, state.mail_peer_NM[row, m], time)
        seen += 1
    mean = total / seen if seen else amount
    usual_n, usual_sum, usual_squares = 0, 0.0, 0.0
    after = newest % mailbox + 1
    for _ in range(min(newest + 1, mailbox)):
        m = after - 1
        after = m if m > 0 else mailbox
        value = state.mail_amount_NM[row, m]
        if state.mail_role_NM[row, m] == 0 and value <= HIGH_RATIO * mean:
            usual_n += 1
            usual_sum += value
            usual_squares += value * value
    usual = usual_sum / usual_n if usual_n else amount
    deviation = np.sqrt(max(usual_squares / usual_n - usual * usual, 0.0)) if usual_n > 1 else 0.5 * usual
    high3, high7, high14, top, second = 0, 0, 0, 0.0, 0.0
    after = newest % mailbox + 1
    for _ in range(min(newest + 1, mailbox)):
        m = after - 1
        after = m if m > 0 else mailbox
        age, value = time - state.mail_time_NM[row, m], state.mail_amount_NM[row, m]
        if age >= 14 * DAY:
            break
        if state.mail_role_NM[row, m] != 0:
            continue
        if value > HIGH_RATIO * usual:
            high14 += 1
            high7 += 1 if age < 7 * DAY else 0
            high3 += 1 if age < 3 * DAY else 0
        if value > top:
            top, second = value, top
        elif value > second:
            second = value
    scale = max(usual, 1e-6)
    ratio = amount / scale if usual_n >= LEAST_HABIT else 1.0
    x[3], x[4], x[5] = count1, count7, count30
    x[6], x[7], x[8] = sum1 / count1, sum7 / count7, sum30 / count30
    x[15], x[16] = amount / max(mean, 1e-6), amount / max(largest, 1e-6) if seen else 1.0
    x[17], x[18] = _age(time, last_paid), pair
    x[19], x[20] = frauds21, frauds35
    x[26] = recent_ratio / min(seen, 5) if seen else 1.0
    x[28] = risk / min(seen, 10) if seen else 0.0
    x[29], x[30], x[31], x[32], x[33] = usual, deviation, high3, high7, high14
    x[45], x[46] = (amount - usual) / max(deviation, 0.3 * scale), ratio
    x[47], x[48], x[49] = top / scale, second / scale, _age(time, last_fraud)
    x[50], x[52] = _seniority(time, state.first_N[row]) if newest >= 0 else 0.0, min(seen, MOST_EVENTS)
    x[56] = _age(time, received_time)
    x[57] = min(received_sum / max(amount, 1e-6), 100.0)
    x[58] = state.frauds_NR[row, 1]
    x[60] = reciprocal
    x[62] = sender_risk / senders if senders else 0.0
    return ratio


@kernel
def _payee(state: State, row: int, payer_ref: int, time: float, maturity: float, high_amount: float, x: F64) -> None:
    mailbox = state.mail_time_NM.shape[1]
    newest = state.count_N[row] - 1
    seen = 0
    count1, count7, count30, fraud1, fraud7, fraud30 = 0, 0, 0, 0, 0, 0
    frauds35, last_fraud, matured, matured_frauds = 0, 0.0, 0, 0
    recent_ratio, risk, payers7, co_risk, co_device_risk = 0.0, 0.0, 0, 0.0, 0.0
    run_first, run_length, run_genuine, last_genuine, run_over, last_time = 0.0, 0, 0, 0.0, False, 0.0
    after = newest % mailbox + 1
    for n in range(min(newest + 1, mailbox)):
        m = after - 1
        after = m if m > 0 else mailbox
        if state.mail_role_NM[row, m] != 1:
            continue
        then = state.mail_time_NM[row, m]
        age, label, peer = time - then, state.mail_label_NM[row, m], state.mail_peer_NM[row, m]
        if seen == 0:
            last_time = then
        if label == LABEL_UNKNOWN and age > maturity:
            label = LABEL_GENUINE
        fraud = 1 if label == LABEL_FRAUD else 0
        if label != LABEL_UNKNOWN:
            known = age - maturity
            if known >= 0.0:
                if known < 30 * DAY:
                    count30 += 1
                    fraud30 += fraud
                if known < 7 * DAY:
                    count7 += 1
                    fraud7 += fraud
                if known < DAY:
                    count1 += 1
                    fraud1 += fraud
            if matured < 10:
                matured += 1
                matured_frauds += fraud
            if fraud:
                frauds35 += 1 if age < RECENT_FRAUD else 0
                last_fraud = max(last_fraud, then)
                explained = state.mail_amount_NM[row, m] > high_amount or state.mail_ratio_NM[row, m] >= EXPLAINED_RATIO
                if not explained and not run_over:
                    run_length += 1
                    run_first = then
            else:
                if last_genuine == 0.0:
                    last_genuine = then
                if run_length == 0:
                    run_genuine += 1
                else:
                    run_over = True
        if seen < 5:
            recent_ratio += state.mail_ratio_NM[row, m]
        if seen < 10:
            risk += _risk(state, peer, time)
        if seen < HOPS:
            if age < 7 * DAY:
                repeated = False
                for later in range(n):
                    if state.mail_peer_NM[row, (newest - later) % mailbox] == peer:
                        repeated = True
                        break
                payers7 += 0 if repeated else 1
            other = resolve(state, peer) if peer != payer_ref else -1
            if other >= 0:
                co_risk = max(co_risk, 1.0 if time - state.last_fraud_N[other] < RECENT_FRAUD else 0.0)
                device = resolve(state, state.device_N[other])
                if device >= 0:
                    co_device_risk += min(state.frauds_NR[device, 2] + state.linked_frauds_N[device], 3)
        seen += 1
    x[9], x[10], x[11] = count1, count7, count30
    x[12] = fraud1 / count1 if count1 else 0.0
    x[13] = fraud7 / count7 if count7 else 0.0
    x[14] = fraud30 / count30 if count30 else 0.0
    x[21], x[22], x[23] = frauds35, state.frauds_NR[row, 1], _age(time, last_fraud)
    x[24] = matured_frauds / matured if matured else 0.0
    x[25] = recent_ratio / min(seen, 5) if seen else 1.0
    x[27] = risk / min(seen, 10) if seen else 0.0
    x[34], x[35], x[36], x[37] = _age(time, run_first), run_length, run_genuine, _age(time, last_genuine)
    x[51], x[53] = _seniority(time, state.first_N[row]) if newest >= 0 else 0.0, min(seen, MOST_EVENTS)
    x[54], x[55] = payers7, _age(time, last_time)
    x[59] = state.frauds_NR[row, 0]
    x[63], x[64] = co_risk, co_device_risk


@kernel
def _cycles(state: State, payer: int, payee: int) -> int:
    """Endpoints that the payee has paid and that have paid the payer, within the newest mails of both."""
    mailbox = state.mail_time_NM.shape[1]
    found = 0
    newest_in, newest_out = state.count_N[payer] - 1, state.count_N[payee] - 1
    for i in range(newest_in, max(newest_in - min(mailbox, HOPS), -1), -1):
        if state.mail_role_NM[payer, i % mailbox] != 1:
            continue
        for j in range(newest_out, max(newest_out - min(mailbox, HOPS), -1), -1):
            same = state.mail_peer_NM[payee, j % mailbox] == state.mail_peer_NM[payer, i % mailbox]
            if state.mail_role_NM[payee, j % mailbox] == 0 and same:
                found += 1
                break
    return found


@kernel
def _device(state: State, row: int, payer_ref: int, time: float, x: F64) -> None:
    """Counts accounts other than the payer among the newest mails of the device."""
    mailbox = state.mail_time_NM.shape[1]
    newest = state.count_N[row] - 1
    payers = 0
    for position in range(newest, max(newest - min(mailbox, HOPS), -1), -1):
        peer = state.mail_peer_NM[row, position % mailbox]
        repeated = peer == payer_ref
        for later in range(newest, position, -1):
            if state.mail_peer_NM[row, later % mailbox] == peer:
                repeated = True
                break
        payers += 0 if repeated else 1
    x[66] = _seniority(time, state.first_N[row]) if newest >= 0 else 0.0
    x[67], x[68], x[69] = payers, state.frauds_NR[row, 2], state.linked_frauds_N[row]
    x[70] = _age(time, state.last_fraud_N[row])


@kernel
def observe(
    state: State,
    payer: int,
    payee: int,
    device: int,
    time: float,
    amount: float,
    maturity: float,
    high_amount: float,
    episodes: tuple[Episodes, Episodes, Episodes],
    scratch: F64,
    x: F64,
) -> float:
    """Fill `x` (len(AGGREGATES),) for one payment; returns amount / usual amount of the payer.

    Args: rows of the endpoints (device -1: none); time in Unix seconds; maturity in seconds, after which an unlabelled
    payment counts as genuine; high_amount above which an amount is fraud by itself; scratch of length SCRATCH.
    """
    x[:] = 0.0
    day = np.floor(time / DAY)
    x[0] = amount
    x[1] = 1.0 if (int(day) + 3) % 7 >= 5 else 0.0  # 1970-01-01 was a Thursday
    x[2] = 1.0 if time - day * DAY < 7 * 3600 else 0.0
    payer_ref = (state.generation_N[payer] << 32) | payer
    payee_ref = (state.generation_N[payee] << 32) | payee
    ratio = _payer(state, payer, payee_ref, time, amount, x)
    _payee(state, payee, payer_ref, time, maturity, high_amount, x)
    a = amount_bin(ratio, amount, high_amount)
    survives = 1.0
    for role in range(3):
        row = payer if role == 0 else (payee if role == 1 else device)
        p = episodes[role]
        if row < 0:
            x[38 + role] = x[41 + role] = _logit(0.0)
            continue
        episode = in_episode(state, row, role, time, maturity, high_amount, p, scratch)
        fraud = fraud_probability(p, episode, a)
        survives *= 1.0 - fraud
        x[38 + role], x[41 + role] = _logit(episode), _logit(fraud)
    x[44] = _logit(1.0 - survives)
    x[75] = 1.0 if amount > high_amount else 0.0
    x[61] = _cycles(state, payer, payee)
    x[65] = 1.0
    x[66] = x[70] = ABSENT
    if device >= 0:
        x[65] = 0.0
        _device(state, device, payer_ref, time, x)
    payee_device = resolve(state, state.device_N[payee])
    x[73] = ABSENT
    if payee_device >= 0:
        x[71], x[72] = state.frauds_NR[payee_device, 2], state.linked_frauds_N[payee_device]
        x[73] = _age(time, state.last_fraud_N[payee_device])
        x[74] = 1.0 if payee_device == device else 0.0
    return ratio

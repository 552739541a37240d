"""Hidden compromise episodes of an endpoint, as an explicit-duration hidden Markov model with one step per day.

An endpoint is clean, or in day k of an episode (a skimmed terminal, a stolen card, a mule's device). In an episode a
payment is fraud with probability q, and frauds have their own distribution over amount bins; outside, fraud has its own
rate per bin, so a fraud that its amount explains is no evidence against the terminal. Hazard, durations, q and the bins
are learnt by expectation maximisation from matured labels (Baum-Welch; explicit durations: Rabiner 1989, section IV.D).
The filter runs over an endpoint's mailbox: labels count from when they arrive, unlabelled payments count by their amount.

L longest duration in days, A amount bins, D days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.compiled import kernel
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_GENUINE, LABEL_UNKNOWN, State

F64 = NDArray[np.float64]
RATIO_EDGES = (
    0.3,
    0.6,
    0.9,
    1.2,
    1.5,
    1.8,
    2.0,
    2.2,
    2.5,
    2.8,
    3.2,
    3.8,
    4.5,
    6.0,
)  # amount / usual amount of the payer
AMOUNT_BINS = 2 * (len(RATIO_EDGES) + 1)  # doubled: above the amount that is fraud by itself
WINDOW_DAYS = 75  # older mails can not tell anything about today
AGES = 80  # days in an episode that the filter tells apart; older ones are forgotten
SCRATCH = WINDOW_DAYS + AGES + 2


class Episodes(NamedTuple):
    """Parameters of one role. A namedtuple of arrays, so that compiled code takes it as it is."""

    hazard: float  # P(an episode starts on a day)
    end_L: F64  # P(it ends after day k | it lasted until day k)
    fraud_rate: float  # q
    fraud_A: F64  # P(bin | fraud of an episode)
    genuine_A: F64  # P(bin | genuine)
    background_A: F64  # P(fraud | bin) outside episodes
    clean_A: F64  # P(bin) outside episodes
    alive_K: F64  # derived: P(still in it on day k), oldest day first, so that it lines up with the calendar
    ended_K: F64  # derived: P(day k was the last), oldest day first

    def to_json(self) -> dict[str, Any]:
        values = {k: v.tolist() if isinstance(v, np.ndarray) else float(v) for k, v in self._asdict().items()}
        return {k: v for k, v in values.items() if k not in ("alive_K", "ended_K")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Episodes:
        fields: dict[str, Any] = {
            k: np.asarray(v, float) if isinstance(v, list) else float(v) for k, v in values.items()
        }
        return episodes(**fields)


def episodes(*, hazard: float, end_L: F64, fraud_rate: float, **bins_A: Any) -> Episodes:
    """Parameters with their derived parts; after day L an episode ends at the rate of day L."""
    end_K = np.append(end_L, np.full(max(AGES - len(end_L), 0), end_L[-1]))[:AGES]
    alive_K = np.append(1.0, np.cumprod(1.0 - end_K)[:-1])
    derived = {"alive_K": alive_K[::-1].copy(), "ended_K": (alive_K * end_K)[::-1].copy()}
    return Episodes(hazard=float(hazard), end_L=end_L, fraud_rate=float(fraud_rate), **bins_A, **derived)


def no_episodes() -> Episodes:
    """A role whose episodes are not learnt: every posterior is 0."""
    flat_A = np.full(AMOUNT_BINS, 1.0 / AMOUNT_BINS)
    bins_A = {"fraud_A": flat_A, "genuine_A": flat_A, "background_A": flat_A, "clean_A": flat_A}
    return episodes(hazard=0.0, end_L=np.full(2, 0.5), fraud_rate=0.5, **bins_A)


@dataclass(frozen=True, kw_only=True)
class EpisodeSettings:
    """longest: days after which an episode only ends at a constant rate. start_fraud_rate: q at the first iteration."""

    longest: int = 40
    iterations: int = 12
    start_fraud_rate: float = 0.5
    start_hazard: float = 2e-4

    def __post_init__(self) -> None:
        if self.longest < 2 or self.iterations < 1:
            raise ValueError(
                "`longest` must be >= 2 and `iterations` >= 1. "
                f"Received: longest={self.longest}, iterations={self.iterations}."
            )


@kernel
def amount_bin(ratio: float, amount: float, high_amount: float) -> int:
    k = 0
    for edge in RATIO_EDGES:
        if ratio > edge:
            k += 1
    return k + AMOUNT_BINS // 2 if amount > high_amount else k


@kernel
def amount_bins(ratio_T: F64, amount_T: F64, high_amount: float) -> NDArray[np.int64]:
    bins_T = np.empty(len(ratio_T), np.int64)
    for i in range(len(ratio_T)):
        bins_T[i] = amount_bin(ratio_T[i], amount_T[i], high_amount)
    return bins_T


@kernel
def _start(belief: F64, p: Episodes) -> None:
    """Stationary: episodes have started at the hazard on every day before."""
    for k in range(1, len(belief)):
        belief[k] = p.hazard * p.alive_K[AGES - k]
    belief[0] = 1.0
    belief /= belief.sum()


@kernel
def _next_day(belief: F64, hazard: float, end_L: F64) -> None:
    """In place: belief[0] clean, belief[k] in day k of an episode; the last day repeats."""
    longest = len(end_L)
    ended = belief[longest] * end_L[longest - 1]
    stay = belief[longest] - ended
    for k in range(longest - 1, 0, -1):
        end = belief[k] * end_L[k - 1]
        ended += end
        belief[k + 1] = belief[k] - end
    belief[longest] += stay
    belief[1] = belief[0] * hazard
    belief[0] += ended - belief[1]


@kernel
def _likelihood(p: Episodes, a: int, label: int) -> tuple[float, float]:
    """(outside, inside) an episode."""
    if label == LABEL_FRAUD:
        return p.background_A[a] * p.clean_A[a], p.fraud_rate * p.fraud_A[a]
    if label == LABEL_GENUINE:
        return (1.0 - p.background_A[a]) * p.clean_A[a], (1.0 - p.fraud_rate) * p.genuine_A[a]
    return p.clean_A[a], (1.0 - p.fraud_rate) * p.genuine_A[a] + p.fraud_rate * p.fraud_A[a]


@kernel
def _weigh(started_D: F64, first: int, weight_K: F64) -> float:
    a, b, c, d = 0.0, 0.0, 0.0, 0.0  # four sums: the same order of additions always, and no waiting for one adder
    for k in range(0, AGES, 4):
        a += started_D[first + k] * weight_K[k]
        b += started_D[first + k + 1] * weight_K[k + 1]
        c += started_D[first + k + 2] * weight_K[k + 2]
        d += started_D[first + k + 3] * weight_K[k + 3]
    return (a + b) + (c + d)


@kernel
def in_episode(
    state: State, row: int, role: int, time: float, maturity: float, high_amount: float, p: Episodes, started_D: F64
) -> float:
    """P(the endpoint is in an episode at `time` | its mailbox). An unlabelled mail older than `maturity` counts genuine.

    What distinguishes the days of an episode is when it started, and evidence weighs all of them alike. So the filter
    keeps the mass by day of start and moves only the clean mass; `started_D` is its scratch, SCRATCH long.
    """
    if p.hazard == 0.0:  # not learnt (yet)
        return 0.0
    mailbox = state.mail_time_NM.shape[1]
    newest = state.count_N[row] - 1
    today = int(np.floor(time / DAY))
    clean, day, started = 1.0, 0, False  # day: since the first mail in the window
    first_day = today
    started_D[:AGES] = p.hazard
    m = max(newest - mailbox + 1, 0) % mailbox
    for _ in range(min(newest + 1, mailbox)):
        slot = m
        m = m + 1 if m + 1 < mailbox else 0
        if state.mail_role_NM[row, slot] != role:
            continue
        then = state.mail_time_NM[row, slot]
        mail_day = int(np.floor(then / DAY))
        if today - mail_day > WINDOW_DAYS:
            continue
        if not started:
            started, first_day = True, mail_day
        while first_day + day < min(mail_day, today):
            started_D[AGES + day] = clean * p.hazard
            clean += _weigh(started_D, day, p.ended_K) - clean * p.hazard
            day += 1
        label = state.mail_label_NM[row, slot]
        if label == LABEL_UNKNOWN and time - then > maturity:
            label = LABEL_GENUINE
        a = amount_bin(state.mail_ratio_NM[row, slot], state.mail_amount_NM[row, slot], high_amount)
        outside, inside = _likelihood(p, a, label)
        clean = max(clean * outside / inside, 1e-100)
        if clean > 1e100:  # keep the proportions, which are all that counts
            started_D[: AGES + day] /= clean
            clean = 1.0
    while first_day + day < today:
        started_D[AGES + day] = clean * p.hazard
        clean += _weigh(started_D, day, p.ended_K) - clean * p.hazard
        day += 1
    alive = _weigh(started_D, day, p.alive_K)
    return alive / (alive + clean)


@kernel
def fraud_probability(p: Episodes, episode: float, a: int) -> float:
    """P(this payment is fraud of the episode | its amount bin), given P(episode)."""
    fraud = episode * p.fraud_rate * p.fraud_A[a]
    genuine = episode * (1.0 - p.fraud_rate) * p.genuine_A[a] + (1.0 - episode) * p.clean_A[a]
    return fraud / max(fraud + genuine, 1e-30)


@kernel
def _expectation(
    offsets: NDArray[np.int64],
    day_T: NDArray[np.int64],
    bin_T: NDArray[np.int64],
    label_T: NDArray[np.int8],
    days: int,
    p: Episodes,
    start_2: F64,
    end_2L: F64,
    fraud_2: F64,
    fraud_A: F64,
    background_2A: F64,
) -> float:
    """Add the expected counts of all endpoints to the accumulators; returns the log likelihood."""
    longest = len(p.end_L)
    forward = np.zeros((days, longest + 1))
    outside_D, inside_D, clean_D = np.ones(days), np.ones(days), np.ones(days)
    belief, total = np.zeros(longest + 1), 0.0
    for node in range(len(offsets) - 1):
        first, last = offsets[node], offsets[node + 1]
        if last - first < 2:
            continue
        outside_D[:] = 1.0
        inside_D[:] = 1.0
        for i in range(first, last):
            outside, inside = _likelihood(p, bin_T[i], label_T[i])
            outside_D[day_T[i]] *= outside
            inside_D[day_T[i]] *= inside
            scale = max(outside_D[day_T[i]], inside_D[day_T[i]])
            outside_D[day_T[i]] /= scale
            inside_D[day_T[i]] /= scale
        begin = day_T[first]
        _start(belief, p)
        for day in range(begin, days):
            if day > begin:
                _next_day(belief, p.hazard, p.end_L)
            belief[0] *= outside_D[day]
            belief[1:] *= inside_D[day]
            norm = belief.sum()
            belief /= norm
            total += np.log(norm)
            forward[day] = belief
        backward = np.ones(longest + 1)
        for day in range(days - 1, begin - 1, -1):
            posterior = forward[day] * backward
            clean_D[day] = posterior[0] / posterior.sum()
            if day == begin:
                break
            back_out, back_in = outside_D[day] * backward[0], inside_D[day] * backward
            before = np.empty(longest + 1)
            before[0] = (1.0 - p.hazard) * back_out + p.hazard * back_in[1]
            for k in range(1, longest + 1):
                before[k] = p.end_L[k - 1] * back_out + (1.0 - p.end_L[k - 1]) * back_in[min(k + 1, longest)]
            joint = forward[day - 1] * before
            norm = joint.sum()
            start_2[0] += forward[day - 1, 0] * p.hazard * back_in[1] / norm
            start_2[1] += joint[0] / norm
            end_2L[0] += forward[day - 1, 1:] * p.end_L * back_out / norm
            end_2L[1] += joint[1:] / norm
            backward = before / before.max()
        for i in range(first, last):
            if label_T[i] == LABEL_UNKNOWN:
                continue
            clean = clean_D[day_T[i]]
            fraud_2[1] += 1.0 - clean
            background_2A[1, bin_T[i]] += clean
            if label_T[i] == LABEL_FRAUD:
                fraud_2[0] += 1.0 - clean
                fraud_A[bin_T[i]] += 1.0 - clean
                background_2A[0, bin_T[i]] += clean
    return total


def fit_episodes(
    node_T: NDArray[np.int64],
    time_T: F64,
    bin_T: NDArray[np.int64],
    label_T: NDArray[np.int8],
    settings: EpisodeSettings,
) -> Episodes:
    """Learn one role's episodes from labelled payments (T), all of them known at training time.

    Args: node_T endpoint of each payment; time_T Unix seconds; bin_T from `amount_bins`; label_T LABEL_*.
    """
    order = np.lexsort((time_T, node_T))
    node_T, bin_T, label_T = node_T[order], bin_T[order], label_T[order]
    day_T = np.floor(time_T[order] / DAY).astype(np.int64)
    day_T -= day_T.min(initial=0)
    offsets = np.append(np.flatnonzero(np.diff(node_T, prepend=-1)), len(node_T)).astype(np.int64)

    def bins_of(label: int | None) -> F64:
        chosen = bin_T if label is None else bin_T[label_T == label]
        return np.bincount(chosen, minlength=AMOUNT_BINS).astype(float)

    fraud, genuine, overall = bins_of(LABEL_FRAUD), bins_of(LABEL_GENUINE), bins_of(None)
    p = episodes(
        hazard=settings.start_hazard,
        end_L=np.full(settings.longest, 1.0 / 20.0),
        fraud_rate=settings.start_fraud_rate,
        fraud_A=(fraud + 1.0) / (fraud + 1.0).sum(),
        genuine_A=(genuine + 1.0) / (genuine + 1.0).sum(),
        background_A=np.clip(0.5 * (fraud + 0.01) / (fraud + genuine + 1.0), 1e-5, 0.999),
        clean_A=(overall + 1.0) / (overall + 1.0).sum(),
    )
    days = int(day_T.max(initial=0)) + 1
    for _ in range(settings.iterations):
        start_2, end_2L, fraud_2 = np.zeros(2), np.zeros((2, settings.longest)), np.zeros(2)
        fraud_A, background_2A = np.zeros(AMOUNT_BINS), np.zeros((2, AMOUNT_BINS))
        _expectation(offsets, day_T, bin_T, label_T, days, p, start_2, end_2L, fraud_2, fraud_A, background_2A)
        # pseudo-counts keep what was never seen possible
        p = episodes(
            hazard=float(min((start_2[0] + 0.01) / (start_2[1] + 1.0), 0.05)),
            end_L=np.clip((end_2L[0] + 0.025) / (end_2L[1] + 0.5), 1e-4, 0.9999),
            fraud_rate=float(np.clip((fraud_2[0] + 1.0) / (fraud_2[1] + 1.01), 0.02, 0.9995)),
            fraud_A=(fraud_A + 0.5) / (fraud_A + 0.5).sum(),
            genuine_A=p.genuine_A,
            background_A=np.clip((background_2A[0] + 0.02) / (background_2A[1] + 2.0), 1e-5, 0.999),
            clean_A=(background_2A[1] + 0.5) / (background_2A[1] + 0.5).sum(),
        )
    return p

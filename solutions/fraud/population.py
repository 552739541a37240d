"""Genuine habits of a simulated population: who pays whom, when, how much and from which device.

Geography: accounts and merchants live around towns of the unit square; favourite merchants are drawn by popularity and
nearness, friends from the neighbourhood. Rhythm: each account has its own hours and level of spending; weekends differ.

A accounts, M merchants, F favourites, T payments; times in days since the start, ids are row numbers. Merchants follow
the accounts in one name space: payee >= A is merchant payee - A.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rng = np.random.Generator

FAVOURITES = 10
FRIENDS = 4
CANDIDATES = 150  # merchants an account knows of; its favourites are among them
TOWNS = 8
NO_DEVICE = -1
LONG_AGO = -1e3  # day on which those joined or opened that were there before the start
WEEKDAY = np.array([0.95, 0.92, 0.95, 1.0, 1.15, 1.2, 0.85])  # Monday first
FRESH_DAYS, FRESH_BOOST = 14.0, 6.0  # a merchant that has just opened is popular for two weeks


@dataclass(frozen=True)
class Accounts:
    """level, spread: of log amounts; hour: mean hour of payments; joined: day of the first one."""

    level_A: F64
    spread_A: F64
    rate_A: F64
    hour_A: F64
    joined_A: F64
    home_A2: F64
    favourite_AF: I64
    friend_AF: I64
    device_A2: I64  # main and second device

    def __len__(self) -> int:
        return len(self.level_A)


@dataclass(frozen=True)
class Merchants:
    home_M2: F64
    popularity_M: F64
    price_M: F64  # added to the payer's level
    opened_M: F64

    def __len__(self) -> int:
        return len(self.popularity_M)


@dataclass(frozen=True)
class Payments:
    """Columns of simulated payments; device NO_DEVICE: none was seen."""

    time_T: F64
    payer_T: I64
    payee_T: I64
    amount_T: F64
    device_T: I64
    scenario_T: I64

    def __len__(self) -> int:
        return len(self.time_T)

    def take(self, chosen: Any) -> Payments:
        return Payments(*(getattr(self, field.name)[chosen] for field in fields(self)))


def concatenate(parts: list[Payments]) -> Payments:
    return Payments(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Payments)))


def draw_merchants(rng: Rng, count: int, days: float, fresh_fraction: float) -> Merchants:
    towns = rng.random((TOWNS, 2))
    opened = np.where(rng.random(count) < fresh_fraction, rng.uniform(0, days, count), LONG_AGO)
    opened[:FAVOURITES] = LONG_AGO  # on the first day there is somewhere to shop
    return Merchants(
        home_M2=towns[rng.integers(0, TOWNS, count)] + rng.normal(0, 0.05, (count, 2)),
        popularity_M=rng.lognormal(0.0, 1.0, count),
        price_M=rng.choice([-1.2, -0.5, 0.0, 0.4, 1.0], count, p=[0.15, 0.25, 0.3, 0.2, 0.1]),
        opened_M=opened,
    )


def draw_accounts(rng: Rng, count: int, merchants: Merchants, joined: F64, payments_per_day: float) -> Accounts:
    """Accounts without friends and devices, see `befriend` and `equip`."""
    home = merchants.home_M2[rng.choice(len(merchants), count)] + rng.normal(0, 0.03, (count, 2))
    popularity = np.where(merchants.opened_M < 0, merchants.popularity_M, 0.0)
    known = rng.choice(len(merchants), (count, CANDIDATES), p=popularity / popularity.sum())
    distance = np.linalg.norm(merchants.home_M2[known] - home[:, None], axis=2)
    attraction = rng.gumbel(size=known.shape) - distance / 0.08
    nearest = np.argsort(-attraction, axis=1)[:, :FAVOURITES]
    return Accounts(
        level_A=rng.normal(3.3, 0.55, count),
        spread_A=rng.uniform(0.3, 0.7, count),
        rate_A=rng.gamma(2.0, payments_per_day / 2.0, count),
        hour_A=rng.normal(14.0, 2.0, count),
        joined_A=joined,
        home_A2=home,
        favourite_AF=np.take_along_axis(known, nearest, axis=1),
        friend_AF=np.zeros((count, FRIENDS), np.int64),
        device_A2=np.zeros((count, 2), np.int64),
    )


def join_accounts(first: Accounts, second: Accounts) -> Accounts:
    pairs = ((getattr(first, field.name), getattr(second, field.name)) for field in fields(Accounts))
    return Accounts(*(np.concatenate(pair) for pair in pairs))


def befriend(rng: Rng, home_A2: F64) -> I64:
    """(A, FRIENDS) friends from the neighbourhood: near in the order along a coarse space-filling curve."""
    count = len(home_A2)
    cell = np.floor(np.clip(home_A2, 0, 0.999) * 32).astype(np.int64)
    snake = np.where(cell[:, 0] % 2 == 0, cell[:, 1], 31 - cell[:, 1])
    order = np.lexsort((rng.random(count), snake, cell[:, 0]))
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    step = rng.integers(1, 15, (count, FRIENDS)) * rng.choice([-1, 1], (count, FRIENDS))
    friends: I64 = order[(rank[:, None] + step) % count]
    return friends


def equip(rng: Rng, count: int, household_fraction: float, first_device: int) -> tuple[I64, int]:
    """(A, 2) devices: an own one and, for members of a household, the shared one. Returns the next free device too."""
    own = first_device + np.arange(count)
    members = rng.permutation(count)[: round(household_fraction * count)]
    household = np.cumsum(rng.random(len(members)) < 0.4)  # households of 2.5 members on average
    second = own.copy()
    second[members] = first_device + count + household
    return np.stack([own, second], axis=1), first_device + count + int(household.max(initial=0)) + 1


def hours(rng: Rng, mean_T: F64) -> F64:
    """Fraction of the day: around the account's own hour, a quarter in the evening."""
    evening = rng.random(len(mean_T)) < 0.25
    hour: F64 = np.where(evening, rng.normal(19.5, 1.6, len(mean_T)), rng.normal(mean_T, 3.0)) / 24.0
    return hour - np.floor(hour)


def amounts(rng: Rng, level_T: F64, spread_T: F64) -> F64:
    amount: F64 = np.exp(level_T + spread_T * rng.normal(size=len(level_T)))
    return np.maximum(amount, 0.5).round(2)


def devices(rng: Rng, device_T2: I64, none_seen: float) -> I64:
    """The second device in a third of the payments; NO_DEVICE where the channel shows none."""
    chosen = np.where(rng.random(len(device_T2)) < 1 / 3, device_T2[:, 1], device_T2[:, 0])
    return np.where(rng.random(len(chosen)) < none_seen, NO_DEVICE, chosen)


def browse(rng: Rng, day_T: I64, merchants: Merchants) -> I64:
    """Merchants by popularity among those open on the day."""
    chosen = np.zeros(len(day_T), np.int64)
    for day in np.unique(day_T):
        here = np.flatnonzero(day_T == day)
        age = day - merchants.opened_M
        weight = merchants.popularity_M * np.where(age < 0, 0.0, np.where(age < FRESH_DAYS, FRESH_BOOST, 1.0))
        chosen[here] = np.searchsorted(np.cumsum(weight) / weight.sum(), rng.random(len(here)))
    return np.minimum(chosen, len(merchants) - 1)


def shop(
    rng: Rng, accounts: Accounts, merchants: Merchants, payer_T: I64, time_T: F64, *, none_seen: float, unusual: float
) -> Payments:
    """Purchases at given times: favourites (the first ones most), and a share `unusual` anywhere."""
    rank = np.minimum(rng.geometric(0.25, len(payer_T)) - 1, FAVOURITES - 1)
    merchant = accounts.favourite_AF[payer_T, rank]
    anywhere = np.flatnonzero(rng.random(len(payer_T)) < unusual)
    merchant[anywhere] = browse(rng, np.floor(time_T[anywhere]).astype(np.int64), merchants)
    return Payments(
        time_T=time_T,
        payer_T=payer_T,
        payee_T=len(accounts) + merchant,
        amount_T=amounts(rng, accounts.level_A[payer_T] + merchants.price_M[merchant], accounts.spread_A[payer_T]),
        device_T=devices(rng, accounts.device_A2[payer_T], none_seen),
        scenario_T=np.zeros(len(payer_T), np.int64),
    )


def transfer(rng: Rng, accounts: Accounts, payer_T: I64, payee_T: I64, time_T: F64, *, none_seen: float) -> Payments:
    """Payments from account to account at given times."""
    return Payments(
        time_T=time_T,
        payer_T=payer_T,
        payee_T=payee_T,
        amount_T=amounts(rng, accounts.level_A[payer_T] + 0.3, accounts.spread_A[payer_T] + 0.2),
        device_T=devices(rng, accounts.device_A2[payer_T], none_seen),
        scenario_T=np.zeros(len(payer_T), np.int64),
    )


def everyday(
    rng: Rng,
    accounts: Accounts,
    merchants: Merchants,
    customers: int,
    days: int,
    weekday: int,
    *,
    none_seen: float,
    transfers: float,
) -> Payments:
    """Payments of the first `customers` accounts over all days; a share `transfers` goes to friends."""
    day_D = np.arange(days)
    rate_AD = accounts.rate_A[:customers, None] * WEEKDAY[(weekday + day_D) % 7]
    rate_AD = rate_AD * (accounts.joined_A[:customers, None] <= day_D)
    payer, day = np.divmod(np.repeat(np.arange(customers * days), rng.poisson(rate_AD).ravel()), days)
    time = day + hours(rng, accounts.hour_A[payer])
    to_friend = rng.random(len(payer)) < transfers
    friend = accounts.friend_AF[payer, rng.integers(0, FRIENDS, len(payer))]
    to_friend &= (friend != payer) & (accounts.joined_A[friend] <= day)
    bought = shop(rng, accounts, merchants, payer[~to_friend], time[~to_friend], none_seen=none_seen, unusual=0.15)
    sent = transfer(rng, accounts, payer[to_friend], friend[to_friend], time[to_friend], none_seen=none_seen)
    return concatenate([bought, sent])

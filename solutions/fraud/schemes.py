"""Fraud schemes of the simulation, each beside its honest twin.

Graph schemes (mule fan-in, collusion ring, new accounts on burnt devices) are drawn as *units*, and the same code draws
honest units of the same shape: crowdfunding, circles of friends, new customers of a shared office tablet. A unit is one
shot by fresh accounts, so its own labels come too late. What tells fraud from twin is only the crew behind it: all
units of a crew pay from a small, slowly renewed pool of devices and start with a payment from an account of the unit
before; with some delay the labels of earlier units lie on these devices and accounts. Some honest crews share devices
as well.

U units, K members, T payments; times in days; see population.py for accounts and payments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.population import (
    F64,
    I64,
    NO_DEVICE,
    Accounts,
    Merchants,
    Payments,
    Rng,
    amounts,
    browse,
    concatenate,
    shop,
    transfer,
)

CREW_DAYS = 45.0  # life of a crew
POOL, DEVICE_DAYS = 3, 15.0  # devices of a crew at any time, and how long each is used
RING_MEMBERS = 5  # four accounts and the colluding merchant's
PUBLIC_SHARE = 0.1  # of a crew's accounts have a public device as their second


class Scenario(IntEnum):
    """Codes of the `scenario` column."""

    GENUINE = 0
    STOLEN_CARD = 1
    COMPROMISED_TERMINAL = 2
    MULE = 3
    RING = 4
    SHARED_DEVICE = 5
    CARD_TESTING = 6


@dataclass(frozen=True)
class Units:
    """day: opening; crew: running number; before: the crew's unit before it, or -1; criminal: fraud or honest twin."""

    day_U: F64
    crew_U: I64
    before_U: I64
    criminal_U: NDArray[np.bool_]
    pool_U: I64  # first of the pool's device numbers, counted from 0 within these units
    phase_U: F64

    def __len__(self) -> int:
        return len(self.day_U)


def draw_units(rng: Rng, days: int, crews: int, units_per_day: float, twins: float, pooled_twins: float) -> Units:
    """`crews` criminal crews at a time, each opening `units_per_day` units.

    For every criminal unit there are `twins` honest ones; a share `pooled_twins` of these come from honest crews with a
    device pool of their own, the others are crews of one unit.
    """

    def crew_days(concurrent: float) -> tuple[I64, F64]:
        begin = np.arange(-CREW_DAYS, days, CREW_DAYS / concurrent) if concurrent > 0 else np.zeros(0)
        begin = begin + rng.uniform(0, CREW_DAYS / max(concurrent, 1.0), len(begin))
        units = rng.poisson(units_per_day * CREW_DAYS, len(begin))
        crew = np.repeat(np.arange(len(begin)), units)
        return crew, begin[crew] + rng.uniform(0, CREW_DAYS, len(crew))

    crew, day = crew_days(crews)
    honest_crew, honest_day = crew_days(crews * twins * pooled_twins)
    singles = rng.poisson(crews * units_per_day * days * twins * (1.0 - pooled_twins))
    first_honest = int(crew.max(initial=-1)) + 1
    first_single = first_honest + int(honest_crew.max(initial=-1)) + 1
    crew = np.concatenate([crew, first_honest + honest_crew, first_single + np.arange(singles)])
    day = np.concatenate([day, honest_day, rng.uniform(0, days, singles)])
    inside = (day >= 0) & (day < days)
    crew, day = crew[inside], day[inside]
    order = np.lexsort((day, crew))
    crew, day = crew[order], day[order]
    before = np.where(np.diff(crew, prepend=-1) == 0, np.arange(len(crew)) - 1, -1)
    phase = rng.uniform(0, DEVICE_DAYS, (int(crew.max(initial=0)) + 1))
    generations = int(days / DEVICE_DAYS) + 2
    return Units(day, crew, before, crew < first_honest, crew * POOL * generations, phase[crew])


def pool_devices(rng: Rng, units: Units, members: int, first_device: int, public_D: I64) -> I64:
    """(U, K, 2) two devices of the crew's pool for every member, as the pool is on the opening day."""
    shape = (len(units), members, 2)
    generation = np.floor((units.day_U + units.phase_U) / DEVICE_DAYS).astype(np.int64)
    chosen = (
        first_device + units.pool_U[:, None, None] + generation[:, None, None] * POOL + rng.integers(0, POOL, shape)
    )
    public = rng.random(shape[:2]) < PUBLIC_SHARE
    chosen[..., 1] = np.where(public, rng.choice(public_D, shape[:2]), chosen[..., 1])
    return chosen


def count_pool_devices(units: Units, days: int) -> int:
    return (int(units.crew_U.max(initial=0)) + 1) * POOL * (int(days / DEVICE_DAYS) + 2)


@dataclass(frozen=True)
class Town:
    """What the schemes act in. customers: accounts below this number are everyday ones."""

    accounts: Accounts
    merchants: Merchants
    customers: int
    none_seen: float

    def shop(self, rng: Rng, payer_T: I64, time_T: F64, unusual: float = 0.3) -> Payments:
        seen = {"none_seen": self.none_seen, "unusual": unusual}
        return shop(rng, self.accounts, self.merchants, payer_T, time_T, **seen)

    def transfer(self, rng: Rng, payer_T: I64, payee_T: I64, time_T: F64) -> Payments:
        return transfer(rng, self.accounts, payer_T, payee_T, time_T, none_seen=self.none_seen)

    def passers_by(self, rng: Rng, time_T: F64) -> I64:
        """Customers who have joined, the active ones more often."""
        weight = np.cumsum(self.accounts.rate_A[: self.customers])
        chosen = np.searchsorted(weight / weight[-1], rng.random(len(time_T)))
        early = self.accounts.joined_A[chosen] > time_T
        veterans = np.flatnonzero(self.accounts.joined_A[: self.customers] <= 0)
        return np.where(early, rng.choice(veterans, len(chosen)), chosen)


def _marked(payments: Payments, fraud_T: NDArray[np.bool_], scenario: Scenario) -> Payments:
    return replace(payments, scenario_T=np.where(fraud_T, int(scenario), int(Scenario.GENUINE)))


def _times(rng: Rng, day_U: F64, unit_T: I64, begin: float, end: float) -> F64:
    return day_U[unit_T] + rng.uniform(begin, end, len(unit_T))


def fan_in(rng: Rng, town: Town, units: Units, collector_U: I64) -> Payments:
    """Mule or crowdfunding: a fresh account shops, is paid by an acquaintance, by many strangers, and pays out."""
    day_U, every = units.day_U, np.arange(len(units))
    warm, fan, out = (
        np.repeat(every, base + rng.poisson(more, len(units))) for base, more in ((1, 0.5), (3, 5), (1, 1))
    )
    shopped = town.shop(rng, collector_U[warm], _times(rng, day_U, warm, -1.5, 0.0))
    early = _times(rng, day_U, every, 0.0, 0.3)
    stranger = town.passers_by(rng, early)
    acquaintance = np.where(units.before_U >= 0, collector_U[units.before_U], stranger)
    introduced = town.transfer(rng, acquaintance, collector_U, early)
    when = _times(rng, day_U, fan, 0.3, 1.6)
    paid = town.transfer(rng, town.passers_by(rng, when), collector_U[fan], when)
    when = _times(rng, day_U, out, 1.2, 2.2)
    spent = town.shop(rng, collector_U[out], when, unusual=1.0)
    return concatenate(
        [
            shopped,
            introduced,
            _marked(paid, units.criminal_U[fan], Scenario.MULE),
            _marked(spent, units.criminal_U[out], Scenario.MULE),
        ]
    )


def circle(rng: Rng, town: Town, units: Units, member_UK: I64) -> Payments:
    """Collusion ring or circle of friends: two rounds of payments in a cycle, and all members pay the last one."""
    everyone, every = member_UK.ravel(), np.repeat(np.arange(len(units)), RING_MEMBERS)
    warm = np.repeat(np.arange(len(everyone)), rng.poisson(0.4, len(everyone)))
    shopped = town.shop(rng, everyone[warm], _times(rng, units.day_U, every[warm], -1.5, 0.0))
    known = np.where(units.before_U >= 0, member_UK[units.before_U, -1], town.passers_by(rng, units.day_U))
    introduced = town.transfer(rng, known, member_UK[:, 0], _times(rng, units.day_U, np.arange(len(units)), 0.0, 0.2))
    parts = [shopped, introduced]
    around = rng.permuted(member_UK, axis=1)
    for begin in (0.2, 1.0):
        when = _times(rng, units.day_U, every, begin, begin + 0.8)
        moved = town.transfer(rng, around.ravel(), np.roll(around, 1, axis=1).ravel(), when)
        parts.append(_marked(moved, units.criminal_U[every], Scenario.RING))
    merchant = np.repeat(member_UK[:, -1], RING_MEMBERS - 1)
    unit = np.repeat(np.arange(len(units)), RING_MEMBERS - 1)
    bought = town.transfer(rng, member_UK[:, :-1].ravel(), merchant, _times(rng, units.day_U, unit, 0.2, 1.8))
    return concatenate([*parts, _marked(bought, units.criminal_U[unit], Scenario.RING)])


def newcomers(rng: Rng, town: Town, units: Units, account_U: I64) -> Payments:
    """New account: a few ordinary purchases within two days."""
    unit = np.repeat(np.arange(len(units)), 3 + rng.poisson(2, len(units)))
    bought = town.shop(rng, account_U[unit], _times(rng, units.day_U, unit, 0.0, 2.0))
    return _marked(bought, units.criminal_U[unit], Scenario.SHARED_DEVICE)


def stolen_cards(
    rng: Rng, town: Town, days: int, per_day: float, thief_device: int, *, quiet: bool, own_device: float
) -> tuple[Payments, F64]:
    """A burst of large payments at unusual merchants, at any hour, from a device of the thief (or the victim's own).

    quiet: ordinary amounts, but more of them and faster. Returns the day each payment's theft began, too.
    """
    begin = rng.uniform(0, days, rng.poisson(per_day * days))
    victim = town.passers_by(rng, begin)
    case = np.repeat(np.arange(len(begin)), (8 if quiet else 3) + rng.poisson(3, len(begin)))
    time = begin[case] + rng.uniform(0, 0.25 if quiet else 2.0, len(case))
    merchant = browse(rng, np.floor(np.minimum(time, days - 1)).astype(np.int64), town.merchants)
    level, spread = town.accounts.level_A[victim[case]], town.accounts.spread_A[victim[case]]
    factor = 1.0 if quiet else rng.uniform(3.0, 9.0, len(case))
    owner, thief = town.accounts.device_A2[victim, 0], thief_device + np.arange(len(begin))
    device = np.where(rng.random(len(begin)) < own_device, owner, thief)
    payments = Payments(
        time_T=time,
        payer_T=victim[case],
        payee_T=len(town.accounts) + merchant,
        amount_T=np.round(amounts(rng, level + town.merchants.price_M[merchant], spread) * factor, 2),
        device_T=np.where(rng.random(len(case)) < town.none_seen, NO_DEVICE, device[case]),
        scenario_T=np.full(len(case), int(Scenario.STOLEN_CARD)),
    )
    return payments, begin[case]


def compromise_terminals(
    rng: Rng, town: Town, payments: Payments, days: int, per_day: float, window: tuple[float, float], share: float
) -> Payments:
    """For a window of days a `share` of the payments at a merchant are made with cloned cards; nothing else tells."""
    starts = rng.poisson(per_day * (days + window[1]))
    popularity = town.merchants.popularity_M
    middling = (popularity < np.quantile(popularity, 0.8)) & (town.merchants.opened_M < 0)
    merchant = len(town.accounts) + rng.choice(np.flatnonzero(middling), starts)
    begin = rng.uniform(-window[1], days, starts)
    end = begin + rng.uniform(*window, starts)
    fraud = np.zeros(len(payments), bool)
    for k in range(starts):
        inside = (payments.payee_T == merchant[k]) & (payments.time_T >= begin[k]) & (payments.time_T < end[k])
        fraud |= inside & (payments.scenario_T == int(Scenario.GENUINE))
    fraud &= rng.random(len(payments)) < share
    return replace(payments, scenario_T=np.where(fraud, int(Scenario.COMPROMISED_TERMINAL), payments.scenario_T))


def card_testing(rng: Rng, town: Town, days: int, from_day: float, per_day: float) -> Payments:
    """Stolen numbers tried out at one merchant within an hour, for tiny amounts, from no device that is known."""
    waves = rng.poisson(per_day * max(days - from_day, 0.0))
    begin = rng.uniform(min(from_day, days), days, waves)
    merchant = rng.choice(np.flatnonzero(town.merchants.opened_M < 0), waves)
    wave = np.repeat(np.arange(waves), 10 + rng.poisson(15, waves))
    time = begin[wave] + rng.uniform(0, 1 / 24, len(wave))
    return Payments(
        time_T=time,
        payer_T=town.passers_by(rng, time),
        payee_T=len(town.accounts) + merchant[wave],
        amount_T=np.round(rng.uniform(0.5, 4.0, len(wave)), 2),
        device_T=np.full(len(wave), NO_DEVICE, np.int64),
        scenario_T=np.full(len(wave), int(Scenario.CARD_TESTING)),
    )

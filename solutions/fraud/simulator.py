"""A payments stream with known truth: genuine habits, six kinds of fraud, late labels, and drift from a given day on.

What gives which fraud away (codes in the `scenario` column):

1 stolen card            amounts of 3 to 9 times the card's habit, unusual merchants, many in a short time
2 compromised terminal   the merchant's own labelled frauds of the last days; amount and payer are ordinary
3 mule fan-in            not the payment: strangers pay a fresh account, as in crowdfunding. The account's device was
                         used by accounts that received proven fraud, or its first sender pays from such a device
4 collusion ring         not the payment: fresh accounts pay in a circle, as friends do. Their devices, as above
5 shared device          not the payment: a new account shops like any new customer, on a device whose earlier
                         accounts have been proven fraudulent
6 card testing           tiny amounts at one merchant within an hour; only with drift_kind="new_fraud", from drift_day

Fraud of kinds 3 to 5 is drawn by the same code as its honest twins (schemes.py), so that amounts, times and counts of
payer and payee agree in distribution and only the labels in the neighbourhood differ. Look-alikes: twins, honest crews
with shared devices, households, public devices, customers who join and merchants that open within the horizon.

Drift, from `drift_day` on: "spend": everybody spends `drift_size` times as much; "behaviour": thieves of stolen cards
keep to ordinary amounts and pay faster; "new_fraud": card testing begins.

Labels: fraud is reported after a fixed or lognormal delay, or never (`unreported_fraction`, then label_time is NaT and
is_fraud still tells the truth); a genuine payment counts as cleared after `clearing_days`. Accounts pay accounts, so
the frame is account-to-account: payer and payee share one name space.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from solutions.fraud.data import InputError
from solutions.fraud.population import (
    LONG_AGO,
    NO_DEVICE,
    Payments,
    Rng,
    befriend,
    concatenate,
    draw_accounts,
    draw_merchants,
    equip,
    everyday,
    join_accounts,
)
from solutions.fraud.schemes import (
    RING_MEMBERS,
    Scenario,
    Town,
    card_testing,
    circle,
    compromise_terminals,
    count_pool_devices,
    draw_units,
    fan_in,
    newcomers,
    pool_devices,
    stolen_cards,
)

DriftKind = Literal["none", "spend", "behaviour", "new_fraud"]
DelayKind = Literal["fixed", "lognormal"]
FRACTIONS = (
    *("transfers", "none_seen", "joining_fraction", "opening_fraction", "household_fraction", "public_fraction"),
    *("own_device", "terminal_share", "pooled_twins", "unreported_fraction"),
)
AT_LEAST = {"days": 1, "payers": 10, "merchants": 20}


@dataclass(frozen=True, kw_only=True)
class SimulatorSettings:
    """Sizes and rates; `*_per_day` are means, fractions are in [0, 1]. The numbers are examples, not measurements.

    Args:
        payments_per_day: mean of one payer. transfers: fraction that goes to friends. none_seen: ... without a device.
        joining_fraction: payers that join, opening_fraction: merchants that open within the horizon.
        household_fraction, public_fraction: payers who share a device with their household / use a public device.
        *_crews: criminal crews at work at a time; *s_per_crew_day: units each of them opens.
        twins: honest units per criminal unit; pooled_twins: fraction of them from honest crews that share devices.
        own_device: fraction of stolen cards used from their owner's device.
        label_delay_days: the delay if fixed, the median of what comes on top of label_minimum_days if lognormal.
    """

    start: str = "2024-01-01"
    days: int = 60
    payers: int = 5_000
    merchants: int = 2_000
    payments_per_day: float = 1.3
    transfers: float = 0.08
    none_seen: float = 0.12
    joining_fraction: float = 0.2
    opening_fraction: float = 0.08
    household_fraction: float = 0.25
    public_fraction: float = 0.05
    stolen_cards_per_day: float = 3.0
    own_device: float = 0.3
    terminals_per_day: float = 1.0
    terminal_days: tuple[float, float] = (14.0, 28.0)
    terminal_share: float = 0.85
    mule_crews: int = 3
    mules_per_crew_day: float = 1.0
    ring_crews: int = 3
    rings_per_crew_day: float = 0.4
    device_crews: int = 3
    accounts_per_crew_day: float = 1.3
    twins: float = 4.0
    pooled_twins: float = 0.3
    label_delay: DelayKind = "lognormal"
    label_delay_days: float = 2.5
    label_delay_sigma: float = 0.6
    label_minimum_days: float = 2.0
    clearing_days: float = 7.0
    unreported_fraction: float = 0.05
    drift_kind: DriftKind = "none"
    drift_day: int = 40
    drift_size: float = 1.5
    testing_waves_per_day: float = 2.0

    def __post_init__(self) -> None:
        for name, values in (("label_delay", get_args(DelayKind)), ("drift_kind", get_args(DriftKind))):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(values)}. Received: {name}={getattr(self, name)}."
                )
        try:
            date.fromisoformat(self.start)
        except ValueError:
            raise ValueError(f"`start` must be an ISO 8601 date. Received: start={self.start}.") from None
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(field.default, (str, tuple)):
                continue
            if isinstance(field.default, int) and not isinstance(value, int):
                raise ValueError(f"`{name}` must be a whole number. Received: {name}={value}.")
            low, high = AT_LEAST.get(name, 0), 1.0 if name in FRACTIONS else np.finfo(float).max
            if not low <= value <= high:
                expected = "in [0, 1]" if name in FRACTIONS else f"finite and >= {low}"
                raise ValueError(f"`{name}` must be {expected}. Received: {name}={value}.")
        if not 0 < self.terminal_days[0] <= self.terminal_days[1]:
            raise ValueError(
                f"`terminal_days` must be (shortest, longest) > 0. Received: terminal_days={self.terminal_days}."
            )

    @classmethod
    def demo(cls) -> SimulatorSettings:
        """30 days, about 125,000 payments, 2 % fraud of all kinds but card testing, quick labels."""
        town = cls(days=30, payers=3_400, merchants=1_400, terminals_per_day=0.7, label_delay_days=1.5)
        return replace(town, mule_crews=2, ring_crews=2, device_crews=2)

    @classmethod
    def graph_fraud(cls) -> SimulatorSettings:
        """Rings, mules and shared devices only, with a few stolen cards so that honest devices carry labels as well."""
        return cls(stolen_cards_per_day=1.0, own_device=0.8, terminals_per_day=0.0)

    @classmethod
    def drift(cls, kind: DriftKind = "new_fraud") -> SimulatorSettings:
        """First-order fraud that changes on day 40 of 70; kind="none": the same without any change."""
        return cls(days=70, drift_kind=kind, mule_crews=0, ring_crews=0, device_crews=0, stolen_cards_per_day=6.0)


def simulate(settings: SimulatorSettings, seed: int) -> pd.DataFrame:
    """The canonical frame with `device` and `scenario`. Up to the drift day it does not depend on the drift."""

    def rng(name: str) -> Rng:  # each part has its own stream, so that changing one leaves the others alone
        return np.random.default_rng([seed, zlib.crc32(name.encode())])

    town, units = _found(settings, rng)
    parts = [
        everyday(
            rng("everyday"),
            town.accounts,
            town.merchants,
            town.customers,
            settings.days,
            date.fromisoformat(settings.start).weekday(),
            none_seen=settings.none_seen,
            transfers=settings.transfers,
        ),
    ]
    first = town.customers
    for name, shape, members in (("mule", fan_in, 1), ("ring", circle, RING_MEMBERS), ("device", newcomers, 1)):
        account_UK = first + np.arange(len(units[name]) * members).reshape(-1, members)
        parts.append(shape(rng(name), town, units[name], account_UK if members > 1 else account_UK[:, 0]))
        first += account_UK.size
    drift_day, quiet_from = float(settings.drift_day), np.inf
    if settings.drift_kind == "behaviour":
        quiet_from = drift_day
    thief_device = int(town.accounts.device_A2.max()) + 1
    for name, quiet in (("loud thieves", False), ("quiet thieves", True)):
        bursts, begin = stolen_cards(
            rng(name),
            town,
            settings.days,
            settings.stolen_cards_per_day,
            thief_device,
            quiet=quiet,
            own_device=settings.own_device,
        )
        thief_device = max(thief_device, int(bursts.device_T.max(initial=0)) + 1)
        parts.append(bursts.take((begin >= quiet_from) == quiet))
    if settings.drift_kind == "new_fraud":
        parts.append(card_testing(rng("testing"), town, settings.days, drift_day, settings.testing_waves_per_day))
    payments = concatenate(parts)
    payments = payments.take((payments.time_T >= 0) & (payments.time_T < settings.days))
    payments = payments.take(np.argsort(payments.time_T, kind="stable"))
    if settings.drift_kind == "spend":
        size = np.where(payments.time_T >= drift_day, settings.drift_size, 1.0)
        payments = replace(payments, amount_T=np.round(payments.amount_T * size, 2))
    window, share = settings.terminal_days, settings.terminal_share
    payments = compromise_terminals(
        rng("terminal"), town, payments, settings.days, settings.terminals_per_day, window, share
    )
    return _frame(settings, rng, town, payments, thief_device)


def write_simulation(settings: SimulatorSettings, seed: int, out_path: Path | str) -> pd.DataFrame:
    """Simulate and write a .parquet or .csv file that `load_payments` reads without a mapping. Raises InputError."""
    path = Path(out_path)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise InputError(f"a simulation is written as .parquet or .csv. Received: `{path.name}`.")
    frame = simulate(settings, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
    return frame


def _found(settings: SimulatorSettings, rng: Any) -> tuple[Town, dict[str, Any]]:
    """Merchants, customers, the units of the schemes and their fresh accounts."""
    days, mean = settings.days, settings.payments_per_day
    merchants = draw_merchants(rng("merchants"), settings.merchants, days, settings.opening_fraction)
    draw = rng("joining")
    joins = draw.random(settings.payers) < settings.joining_fraction
    joined = np.where(joins, draw.uniform(0, days, settings.payers), LONG_AGO)
    joined[0] = LONG_AGO  # on the first day there is somebody to be robbed
    customers = draw_accounts(rng("customers"), settings.payers, merchants, joined, mean)
    device_A2, next_device = equip(rng("devices"), settings.payers, settings.household_fraction, 0)
    draw = rng("public")
    public_D = next_device + np.arange(max(int(settings.payers * settings.public_fraction / 25), 1))
    visitors = np.flatnonzero(draw.random(settings.payers) < settings.public_fraction)
    device_A2[visitors, 1] = draw.choice(public_D, len(visitors))
    next_device = int(public_D[-1]) + 1
    customers = replace(customers, device_A2=device_A2, friend_AF=befriend(rng("friends"), customers.home_A2))
    units, fresh_devices = {}, [device_A2]
    rates = {
        "mule": (settings.mule_crews, settings.mules_per_crew_day, 1),
        "ring": (settings.ring_crews, settings.rings_per_crew_day, RING_MEMBERS),
        "device": (settings.device_crews, settings.accounts_per_crew_day, 1),
    }
    for name, (crews, per_day, members) in rates.items():
        drawn = draw_units(rng(f"{name} units"), days, crews, per_day, settings.twins, settings.pooled_twins)
        pool = pool_devices(rng(f"{name} devices"), drawn, members, next_device, public_D)
        next_device += count_pool_devices(drawn, days)
        units[name] = drawn
        fresh_devices.append(pool.reshape(-1, 2))
    fresh = sum(len(pool) for pool in fresh_devices[1:])
    strangers = draw_accounts(rng("fresh"), fresh, merchants, np.zeros(fresh), mean)
    accounts = join_accounts(customers, strangers)
    return Town(
        replace(accounts, device_A2=np.concatenate(fresh_devices)), merchants, settings.payers, settings.none_seen
    ), units


def _frame(settings: SimulatorSettings, rng: Any, town: Town, payments: Payments, devices: int) -> pd.DataFrame:
    """Canonical columns; identifiers are shuffled so that a number tells neither age nor kind of an account."""
    accounts, merchants = len(town.accounts), len(town.merchants)
    names = rng("names")
    node_N = np.concatenate(
        [
            np.char.add("A", np.char.zfill(names.permutation(accounts).astype(str), 6)),
            np.char.add("M", np.char.zfill(names.permutation(merchants).astype(str), 5)),
        ]
    )
    device_D = np.append(np.char.add("D", np.char.zfill(names.permutation(devices).astype(str), 7)), "").astype(object)
    device_D[NO_DEVICE] = None
    fraud = payments.scenario_T != int(Scenario.GENUINE)
    micros = (payments.time_T * 86_400e6).astype(np.int64).astype("timedelta64[us]")
    event_time = np.datetime64(settings.start, "us") + micros
    delay = _label_delays(settings, rng, fraud)
    arrival = event_time + (np.nan_to_num(delay) * 86_400e6).astype(np.int64).astype("timedelta64[us]")
    number = pd.Series(np.arange(len(payments))).astype("str").str.zfill(9)
    frame = pd.DataFrame(
        {
            "transaction_id": "T" + number,
            "event_time": event_time,
            "payer": pd.Series(node_N[payments.payer_T], dtype="str"),
            "payee": pd.Series(node_N[payments.payee_T], dtype="str"),
            "amount": payments.amount_T,
            "device": pd.Series(device_D[payments.device_T], dtype="str"),
            "is_fraud": fraud.astype(np.int8),
            "label_time": np.where(np.isnan(delay), np.datetime64("NaT", "us"), arrival),
            "scenario": payments.scenario_T.astype(np.int16),
        }
    )
    frame.attrs["account_to_account"] = True
    return frame


def _label_delays(settings: SimulatorSettings, rng: Any, fraud_T: Any) -> Any:
    """Days until the label arrives; NaN: never."""
    draw = rng("delays").normal(size=len(fraud_T))
    if settings.label_delay == "fixed":
        delay = np.full(len(fraud_T), settings.label_delay_days)
    else:
        delay = settings.label_minimum_days + settings.label_delay_days * np.exp(settings.label_delay_sigma * draw)
    delay = np.where(rng("unreported").random(len(fraud_T)) < settings.unreported_fraction, np.nan, delay)
    return np.where(fraud_T, delay, settings.clearing_days)

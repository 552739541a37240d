"""A fleet of pumps of our own with known truth: causes, operating regimes, drift, text logs, services, ill sensors.

Each failure has a cause with a primary and a secondary sensor that begin to move days before, a warning code and notes
that operators write, with their jargon. So that alarms are not won by looking: noise is correlated over hours, faults differ
in strength, some failures give no sign at all, and upsets move the same sensors, raise the same codes and go away without
a failure. Text of no importance is written all the time. The truth (asset, time, cause, onset, primary, secondary; onset is
missing for a failure without a sign) is written beside the tables and is never read by the solution.

A assets, H hours, S sensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.maintenance.data import HOUR

F64 = NDArray[np.float64]
BEGIN = np.datetime64("2025-01-01", "us")
# level at rest, gain per unit of load, noise
SENSORS: dict[str, tuple[float, float, float]] = {
    "vibration": (2.0, 1.5, 0.25),
    "bearing_temperature": (45.0, 18.0, 1.5),
    "winding_temperature": (60.0, 30.0, 2.0),
    "current": (20.0, 35.0, 1.2),
    "discharge_pressure": (6.0, 3.0, 0.20),
    "suction_pressure": (1.5, -0.4, 0.06),
    "flow": (40.0, 60.0, 2.0),
    "oil_pressure": (3.0, 0.5, 0.10),
    "seal_temperature": (40.0, 12.0, 1.2),
    "casing_temperature": (35.0, 10.0, 1.2),
}


@dataclass(frozen=True)
class Cause:
    """A failure mode: what moves (in deviations of noise at the end), the code and the words that go with it."""

    name: str
    primary: str
    push: float
    secondary: str
    second_push: float
    code: str
    notes: tuple[str, ...]
    action: str


CAUSES = (
    Cause("bearing", "vibration", 7.0, "bearing_temperature", 3.5, "E11",
          ("brg noisy DE side", "vib high on pump, brg hot", "knocking from bearing hsg"), "replaced brg"),
    Cause("seal", "seal_temperature", 6.0, "discharge_pressure", -3.0, "E23",
          ("seal leaking at pump", "mech seal lking, drips", "seal hot"), "c/o seal"),
    Cause("filter", "suction_pressure", -6.0, "flow", -3.0, "E31",
          ("fltr blocked?", "low flow, strainer clogged", "suction press low chk filter"), "flushed and replaced filter"),
    Cause("winding", "winding_temperature", 6.5, "current", 3.0, "E42",
          ("motor hot", "eng overheating trips", "elec burnt smell motor"), "repaired motor winding"),
    Cause("lubrication", "oil_pressure", -6.5, "bearing_temperature", 3.0, "E55",
          ("oil press low", "lube low, topped up", "oil leaks under pump"), "replaced oil pump"),
)  # fmt: skip
TRUTH = {"asset": "str", "time": "M8[us]", "cause": "str", "onset": "M8[us]", "primary": "str", "secondary": "str"}
CHATTER = (
    "rounds ok",
    "cleaned area",
    "painted guard",
    "checked level ok",
    "light out in bay",
    "radio u/s",
    "swept floor",
)


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """Size and behaviour of the fleet.

    Args:
        causes: how many of CAUSES occur; `only`: names of those that occur instead. failures: mean number per asset over
            the period. sudden: share of failures without any sign. strength: weakest and strongest sign, as a factor.
        onset: shortest and longest time from the first sign to the failure, in hours.
        upsets: per asset-month, signs of up to `upset` times the usual that go away after hours to days.
        memory: correlation of a sensor's noise from hour to hour, for half of its variance.
        notes: probability per day that a sign is written down. codes: probability per day of its warning code.
        missing: share of readings that get lost. stuck: assets of which one sensor gets stuck for days.
        drift_day: from then on the ambient temperature is higher; new_regime_day: from then on loads are higher.
    """

    assets: int = 60
    days: int = 120
    causes: int = 5
    only: tuple[str, ...] = ()
    failures: float = 1.6
    sudden: float = 0.05
    strength: tuple[float, float] = (0.6, 1.2)
    onset: tuple[int, int] = (72, 240)
    upsets: float = 0.3
    upset: float = 0.6
    memory: float = 0.9
    notes: float = 0.35
    codes: float = 0.35
    missing: float = 0.01
    stuck: int = 2
    drift_day: int | None = None
    new_regime_day: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.causes <= len(CAUSES):
            raise ValueError(f"`causes` must be in [1, {len(CAUSES)}]. Received: causes={self.causes}.")
        if unknown := set(self.only) - {cause.name for cause in CAUSES}:
            raise ValueError(
                f"`only` must name causes ({', '.join(c.name for c in CAUSES)}). Received: {min(unknown)}."
            )
        if not 0.0 <= self.sudden <= 1.0 or not 0.0 <= self.memory < 1.0 or self.upsets < 0.0:
            raise ValueError(f"`sudden` must be in [0, 1], `memory` in [0, 1), `upsets` >= 0. Received: {self}.")
        if (
            self.assets < 1
            or self.days < 20
            or not 0.0 <= self.missing < 1.0
            or not 24 <= self.onset[0] <= self.onset[1]
        ):
            raise ValueError(
                f"`assets` must be >= 1, `days` >= 20, `missing` in [0, 1), `onset` rising from 24. Received: {self}."
            )

    @property
    def modes(self) -> tuple[Cause, ...]:
        """The causes that occur."""
        return tuple(c for c in CAUSES if c.name in self.only) if self.only else CAUSES[: self.causes]


_NO_TRUTH = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in TRUTH.items()})


def simulate(settings: FleetSettings, seed: int) -> dict[str, pd.DataFrame]:
    """Tables by name: sensors, errors, maintenance, failures, work_orders, assets, and truth."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in ("sensors", "events", "truth")}
    names = [f"P-{i + 1:03d}" for i in range(settings.assets)]
    stuck = set(rng.choice(settings.assets, min(settings.stuck, settings.assets), replace=False).tolist())
    ages = rng.integers(1, 20, settings.assets)
    for i, name in enumerate(names):
        _simulate_asset(name, int(ages[i]), i in stuck, settings, np.random.default_rng([seed, i]), found)
    events = pd.concat(found["events"], ignore_index=True)
    tables = {
        kind: events.loc[events["kind"] == kind, ["asset", "time", "code", "text"]].reset_index(drop=True)
        for kind in ("errors", "maintenance", "failures", "work_orders")
    }
    models = np.where(np.arange(settings.assets) % 3 == 0, "KX-200", "KX-80")
    assets = pd.DataFrame({"asset": names, "model": models, "age": ages})
    sensors = pd.concat(found["sensors"], ignore_index=True)
    truth = pd.concat([_NO_TRUTH, *found["truth"]], ignore_index=True)
    return {"sensors": sensors, **tables, "assets": assets, "truth": truth}


def _simulate_asset(
    name: str,
    age: int,
    gets_stuck: bool,
    settings: FleetSettings,
    rng: np.random.Generator,
    found: dict[str, list[pd.DataFrame]],
) -> None:
    hours, modes = settings.days * 24, settings.modes
    load_H = _loads(settings, rng)
    x_HS = _normal(load_H, settings, rng)
    sensors = list(SENSORS)
    events: list[tuple[int, str, str, str]] = [
        (int(h), "maintenance", "service", "svc done") for h in _services(hours, rng)
    ]
    for day in range(settings.days):
        if rng.random() < 0.10:
            events.append((day * 24 + int(rng.integers(24)), "work_orders", "", str(rng.choice(CHATTER))))
        if rng.random() < 0.03:
            events.append((day * 24 + int(rng.integers(24)), "errors", f"E{int(rng.integers(60, 64))}", ""))
        if rng.random() < 0.01:  # a warning that means nothing
            events.append((day * 24 + int(rng.integers(24)), "errors", modes[int(rng.integers(len(modes)))].code, ""))
    for start in np.flatnonzero(rng.random(hours) < settings.upsets / 730.0):
        length = int(rng.integers(12, 97))
        rise_H = settings.upset * rng.random() * np.sin(np.linspace(0.0, np.pi, length))
        _sign(modes[int(rng.integers(len(modes)))], int(start), rise_H, x_HS, events, settings, rng)
    rate = settings.failures / hours * (0.7 + 0.06 * age)
    hour = int(rng.exponential(1.0 / rate)) + settings.onset[1]
    while hour < hours:
        cause = modes[int(rng.integers(len(modes)))]
        onset = hour - int(rng.integers(settings.onset[0], settings.onset[1] + 1))
        is_sudden, strength = rng.random() < settings.sudden, float(rng.uniform(*settings.strength))
        if not is_sudden:
            _sign(cause, onset, strength * np.linspace(0.0, 1.0, hour - onset) ** 1.3, x_HS, events, settings, rng)
        events.append((hour, "failures", cause.name, ""))
        events.append((hour, "maintenance", cause.name, cause.action))
        began = np.datetime64("NaT", "us") if is_sudden else BEGIN + onset * HOUR
        truth = {"asset": name, "time": BEGIN + hour * HOUR, "cause": cause.name, "onset": began}
        found["truth"].append(pd.DataFrame([truth | {"primary": cause.primary, "secondary": cause.secondary}]))
        hour += settings.onset[1] + int(rng.exponential(1.0 / rate))
    if gets_stuck:
        begin, s = int(rng.integers(hours // 2, hours - 96)), int(rng.integers(len(sensors)))
        x_HS[begin : begin + 72, s] = x_HS[begin, s]
    x_HS[rng.random(x_HS.shape) < settings.missing] = np.nan
    times = BEGIN + np.arange(hours) * HOUR
    frame = pd.DataFrame(x_HS.round(4), columns=sensors)
    frame.insert(0, "asset", name)
    frame.insert(1, "time", times)
    frame.insert(2, "load", load_H)
    found["sensors"].append(frame)
    table = pd.DataFrame(sorted(events), columns=["hour", "kind", "code", "text"]).astype({"hour": "int64"})
    found["events"].append(table.assign(asset=name, time=BEGIN + table["hour"].to_numpy() * HOUR))


def _sign(
    cause: Cause,
    begin: int,
    grown_H: F64,
    x_HS: F64,
    events: list[tuple[int, str, str, str]],
    settings: FleetSettings,
    rng: np.random.Generator,
) -> None:
    """Move the sensors of a cause by `grown_H` from an hour on, and write the codes and notes that go with it."""
    end = min(begin + len(grown_H), len(x_HS))
    for sensor, push in ((cause.primary, cause.push), (cause.secondary, cause.second_push)):
        x_HS[begin:end, list(SENSORS).index(sensor)] += grown_H[: end - begin] * push * SENSORS[sensor][2]
    for when in range(begin, end, 24):
        weight = 0.4 + 1.2 * float(grown_H[when - begin])
        at = min(when + int(rng.integers(24)), end - 1)
        if rng.random() < settings.codes * weight:
            events.append((at, "errors", cause.code, ""))
        if rng.random() < settings.notes * weight:
            events.append((at, "work_orders", "", str(rng.choice(cause.notes))))


def _loads(settings: FleetSettings, rng: np.random.Generator) -> F64:
    """Three regimes that hold for hours to days; a new one later on, when asked for."""
    hours = settings.days * 24
    load_H, levels = np.empty(hours), [0.3, 0.6, 0.9]
    # chance of its own, so that a fleet with a new regime is the fleet without it in all else
    chance = np.random.default_rng(rng.bit_generator.seed_seq.spawn(1)[0])  # type: ignore[attr-defined]
    hour = 0
    while hour < hours:
        later = settings.new_regime_day is not None and hour >= settings.new_regime_day * 24
        until = min(hour + int(rng.integers(8, 72)), hours)
        load_H[hour:until] = rng.choice(levels)
        if later and chance.random() < 0.7:
            load_H[hour:until] = 1.3
        hour = until
    return load_H


def _normal(load_H: F64, settings: FleetSettings, rng: np.random.Generator) -> F64:
    """Readings of a healthy pump: level and gain of each sensor, ambient temperature, correlated noise."""
    hours = len(load_H)
    ambient_H = 3.0 * np.sin(2.0 * np.pi * np.arange(hours) / 24.0) + rng.normal(0.0, 0.5, hours)
    if settings.drift_day is not None:
        ambient_H[settings.drift_day * 24 :] += 8.0
    columns = []
    for name, (rest, gain, noise) in SENSORS.items():
        own = rest * (1.0 + rng.normal(0.0, 0.01)) + gain * load_H + noise * _noise(hours, settings.memory, rng)
        columns.append(own + (0.3 * ambient_H if "temperature" in name else 0.0))
    return np.stack(columns, axis=1)


def _noise(hours: int, memory: float, rng: np.random.Generator) -> F64:
    """Unit variance, half of it correlated from hour to hour (an autoregression of the first order)."""
    from scipy.signal import lfilter

    white, pushed = rng.normal(size=hours), rng.normal(size=hours)
    slow = lfilter([np.sqrt(1.0 - memory**2)], [1.0, -memory], pushed)
    return np.asarray(np.sqrt(0.5) * (white + slow))


def _services(hours: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.arange(int(rng.integers(24, 30 * 24)), hours, 30 * 24)


def write_fleet(settings: FleetSettings, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """Write every table of a simulated fleet as parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = simulate(settings, seed)
    for name, frame in tables.items():
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    return tables


FLEET_COLUMNS = "sensors.condition=load"

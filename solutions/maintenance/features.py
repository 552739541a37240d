"""As-of features of every row: sensors within their condition, events by code, the asset's record. Slow twin: the tests.

R rows, S sensors, P components, F features, G codes of events, L newest log entries. What a row knows is what happened up to
its time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.maintenance import windows
from solutions.maintenance.conditions import Conditions
from solutions.maintenance.data import History
from solutions.maintenance.panel import Panel, hours_of
from solutions.maintenance.text import coded

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
LONG_AGO = 24 * 365.0  # hours since an event that never happened, and the largest age that is told apart
LOG_TOKENS = 16
SLOPE_SHRINK = 2_500.0  # z-scores with noise 1 that wear by about .02 a step; 10,000 and 30,000 are worse out of fold
GROUPS = ("sensors", "logs", "asset")


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Which statistics, in steps of the grid.

    Args:
        means, ewma, first, deviation: windows of the rolling and exponential means, of the change since the first rows,
            and of deviation, slope and largest value.
        counts: windows, in hours, over which events are counted.
        from_new: histories begin when the asset is new, so that the age of a row, its mean and slope ever since and the
            change since its first rows tell something. Without it nothing but the window and the events matters.
        components: principal components of the z-scores, which stand beside the sensors: what sensors share has less
            noise than each of them.
        hour_of_day: failures and repairs follow shifts.
        least_events: a code that is seldom seen is not told apart from others of its kind.
    """

    means: tuple[int, ...] = (5, 15, 30, 60)
    ewma: tuple[int, ...] = (10, 30)
    deviation: int = 30
    first: int = 20
    counts: tuple[int, ...] = (24, 72, 168)
    from_new: bool = False
    components: int = 0
    hour_of_day: bool = False
    least_events: int = 5

    def __post_init__(self) -> None:
        if min((*self.means, *self.ewma, self.deviation, self.first, *self.counts), default=0) < 1:
            raise ValueError(f"all windows must be >= 1. Received: {self}.")
        if self.components < 0:
            raise ValueError(f"`components` must be >= 0. Received: components={self.components}.")


@dataclass(frozen=True)
class Features:
    """x_RF with a name and a group (sensors | logs | asset) for each column, z_RS for patches, and the newest log entries.

    log_RL: code + 1, 0 for none; log_age_RL: hours since.
    """

    x_RF: F32
    names: tuple[str, ...]
    groups: tuple[str, ...]
    z_RS: F32
    log_RL: I64
    log_age_RL: F32

    def columns_of(self, groups: tuple[str, ...]) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(self.groups, groups))


@dataclass(frozen=True, kw_only=True)
class Featurizer:
    """What is learnt from training rows: conditions, components of the sensors, codes of events, values of attributes.

    axes_PS: directions of the components among the living sensors, in units in which a component has variance 1.
    """

    settings: FeatureSettings
    sensors: tuple[str, ...]
    conditions: Conditions
    axes_PS: F64
    codes: tuple[str, ...]
    numeric: tuple[str, ...]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def fit(cls, history: History, panel: Panel, rows_R: NDArray[np.bool_], settings: FeatureSettings) -> Featurizer:
        """Learn from the rows marked in `rows_R` and from the events before the newest of them."""
        conditions = Conditions.fit(panel.condition_RC[rows_R], panel.x_RS[rows_R])
        z_RS = conditions.z_RS(panel.condition_RC[rows_R], panel.x_RS[rows_R])[:, conditions.alive_S()]
        newest = int(panel.hour_R[rows_R].max())
        seen = history.events[hours_of(history.events["time"]) <= newest]
        if settings.from_new:  # a failure ends the life: it is never seen before a row
            seen = seen[seen["kind"] != "failure"]
        count = pd.Series(event_codes(seen), dtype=object).explode().value_counts()
        codes = tuple(sorted(str(code) for code in count.index[count >= settings.least_events]))
        numeric, categories = [], {}
        for name, column in history.assets.items():
            if pd.api.types.is_numeric_dtype(column):
                numeric.append(str(name))
            else:
                categories[str(name)] = tuple(sorted(str(v) for v in column.dropna().unique()))
        return cls(
            settings=settings,
            sensors=panel.sensors,
            conditions=conditions,
            axes_PS=_axes(z_RS, settings.components),
            codes=codes,
            numeric=tuple(numeric),
            categories=categories,
        )

    def transform(self, history: History, panel: Panel) -> Features:
        """Features of all rows of a panel; sensors that training never saw are left out, missing ones are NaN."""
        x_RS = np.full((len(panel), len(self.sensors)), np.nan)
        for s, name in enumerate(self.sensors):
            if name in panel.sensors:
                x_RS[:, s] = panel.x_RS[:, panel.sensors.index(name)]
        condition_RC = panel.condition_RC
        if condition_RC.shape[1] != len(self.conditions.shift_C):
            condition_RC = np.full((len(panel), len(self.conditions.shift_C)), np.nan)
        alive = self.conditions.alive_S()
        z_RS = self.conditions.z_RS(condition_RC, x_RS)[:, alive]
        names = [n for n, a in zip(self.sensors, alive, strict=True) if a]
        names += [f"component {p + 1}" for p in range(len(self.axes_PS))]
        parts: list[F64] = []
        labels: list[tuple[str, str]] = []
        for label, values in self._sensor_statistics(np.concatenate([z_RS, self._components(z_RS)], 1), panel).items():
            parts.append(values)
            labels += [(f"{name} {label}", "sensors") for name in names]
        log_RL, log_age_RL = self._logs(history, panel, parts, labels)
        self._record(history, panel, parts, labels)
        x_RF = np.concatenate(parts, axis=1).astype(np.float32)
        return Features(
            x_RF,
            tuple(name for name, _ in labels),
            tuple(group for _, group in labels),
            z_RS.astype(np.float32),
            log_RL,
            log_age_RL,
        )

    def all_codes(self) -> list[str]:
        """Codes that are told apart, and one for the rest of each kind; none when training saw no event that recurs."""
        kinds = ("error", "maintenance", "failure") if self.codes else ()
        return list(dict.fromkeys([*self.codes, *(f"{kind}:other" for kind in kinds)]))

    def _components(self, z_RS: F64) -> F64:
        """(R, P); a missing sensor passes for average, a row without any is missing."""
        known_R1 = np.isfinite(z_RS).any(axis=1, keepdims=True)
        return np.where(known_R1, np.nan_to_num(z_RS) @ self.axes_PS.T, np.nan)

    def _sensor_statistics(self, z_RS: F64, panel: Panel) -> dict[str, F64]:
        options, start_R, slices = self.settings, panel.start_R, panel.slices()
        value, age = windows.last_known(z_RS, slices)
        found = {"now": value, "age": np.minimum(age, LONG_AGO)}
        found |= {f"mean {w}": windows.rolling_mean(z_RS, start_R, w) for w in options.means}
        found |= {f"ewma {w}": windows.ewma(z_RS, slices, w) for w in options.ewma}
        found[f"deviation {options.deviation}"] = windows.rolling_deviation(z_RS, start_R, options.deviation)
        found[f"slope {options.deviation}"] = windows.rolling_slope(z_RS, start_R, options.deviation)
        found[f"largest {options.deviation}"] = windows.largest(z_RS, slices, options.deviation)
        if options.from_new:
            since = windows.first_mean(z_RS, slices, options.first)
            found[f"change since first {options.first}"] = found[f"mean {options.means[0]}"] - since
            found["mean ever"] = windows.rolling_mean(z_RS, start_R, len(z_RS))
            found["slope ever"] = windows.rolling_slope(z_RS, start_R, len(z_RS), shrink=SLOPE_SHRINK)
        return found

    def _logs(self, history: History, panel: Panel, parts: list[F64], labels: list[tuple[str, str]]) -> tuple[I64, F32]:
        """Hours since, and counts of, each code; also the newest entries as tokens."""
        entries = history.events.assign(all=event_codes(history.events), hour=hours_of(history.events["time"]))
        entries = entries.explode("all")[["asset", "hour", "all"]].dropna()
        # codes that are seldom or unknown still count as one of their kind
        entries["all"] = [c if c in set(self.codes) else f"{str(c).split(':')[0]}:other" for c in entries["all"]]
        codes = self.all_codes()
        log_RL = np.zeros((len(panel), LOG_TOKENS), np.int64)
        log_age_RL = np.zeros((len(panel), LOG_TOKENS), np.float32)
        since = np.full((len(panel), len(codes)), LONG_AGO)
        counts = np.zeros((len(panel), len(codes), len(self.settings.counts)))
        number = {code: g for g, code in enumerate(codes)}
        by_asset = dict(list(entries.groupby("asset")))
        for name, rows in zip(panel.assets, panel.slices(), strict=True):
            if name not in by_asset:
                continue
            mine = by_asset[name].sort_values(["hour", "all"])
            hour_R = panel.hour_R[rows]
            for code, times in mine.groupby("all")["hour"]:
                if code not in number:
                    continue
                g, when = number[str(code)], times.to_numpy(np.int64)
                upto = np.searchsorted(when, hour_R, side="right")
                newest = np.where(upto > 0, hour_R - when[np.maximum(upto - 1, 0)], LONG_AGO)
                since[rows, g] = np.minimum(newest, LONG_AGO)
                for w, window in enumerate(self.settings.counts):
                    counts[rows, g, w] = upto - np.searchsorted(when, hour_R - window, side="right")
            kept = mine[mine["all"].isin(number)]
            when, token = kept["hour"].to_numpy(np.int64), kept["all"].map(number).to_numpy(np.int64) + 1
            upto = np.searchsorted(when, hour_R, side="right")
            index = upto[:, None] - 1 - np.arange(LOG_TOKENS)
            there = index >= 0
            if len(when):
                log_RL[rows] = np.where(there, token[np.maximum(index, 0)], 0)
                age = np.where(there, hour_R[:, None] - when[np.maximum(index, 0)], 0)
                log_age_RL[rows] = np.minimum(age, LONG_AGO)
        if codes:
            parts.append(since)
            labels += [(f"hours since {code}", "logs") for code in codes]
            for w, window in enumerate(self.settings.counts):
                parts.append(counts[:, :, w])
                labels += [(f"{code} in {window} h", "logs") for code in codes]
        return log_RL, log_age_RL

    def _record(self, history: History, panel: Panel, parts: list[F64], labels: list[tuple[str, str]]) -> None:
        columns: dict[str, F64] = {}
        record = history.assets.reindex(panel.assets)
        for name in self.numeric:
            values = pd.to_numeric(record[name], errors="coerce") if name in record else pd.Series(np.nan, record.index)
            columns[name] = values.to_numpy(float)[panel.asset_R]
        for name, known in self.categories.items():
            values = record[name].astype("object") if name in record else pd.Series(None, record.index, dtype="object")
            for value in known:
                columns[f"{name} {value}"] = (values == value).to_numpy(float)[panel.asset_R]
        if self.settings.from_new:
            columns["age"] = panel.age_R().astype(float)
        if self.settings.hour_of_day:
            columns["hour of day"] = (panel.hour_R % 24).astype(float)
        if columns:
            parts.append(np.stack(list(columns.values()), axis=1))
            labels += [(name, "asset") for name in columns]

    def to_json(self) -> dict[str, Any]:
        fitted = {"conditions": self.conditions.to_json(), "axes_PS": self.axes_PS.tolist()}
        return {**vars(self), "settings": vars(self.settings), **fitted}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Featurizer:
        plain = {key: tuple(stored[key]) for key in ("sensors", "codes", "numeric")}
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["settings"].items()}
        conditions = Conditions.from_json(stored["conditions"])
        sensors = int(conditions.alive_S().sum())
        return cls(
            settings=FeatureSettings(**settings),
            conditions=conditions,
            axes_PS=np.asarray(stored["axes_PS"], float).reshape(len(stored["axes_PS"]), sensors),
            categories={name: tuple(values) for name, values in stored["categories"].items()},
            **plain,
        )


def _axes(z_RS: F64, components: int) -> F64:
    """(P, S) leading principal directions over the standard deviation along each."""
    sensors = z_RS.shape[1]
    if not min(components, sensors):
        return np.zeros((0, sensors))
    value_S, axis_SS = np.linalg.eigh(np.cov(np.nan_to_num(z_RS), rowvar=False).reshape(sensors, sensors))
    leading = np.argsort(-value_S)[:components]
    return np.asarray(axis_SS[:, leading].T / np.sqrt(np.maximum(value_S[leading], 1e-12))[:, None])


def event_codes(events: pd.DataFrame) -> list[list[str]]:
    """The codes of each event: `kind:code`, and what its text says as `item:pump`, `state:leak`, `action:replace`."""
    found = []
    for kind, code, text in zip(events["kind"], events["code"], events["text"], strict=True):
        codes = [f"{kind}:{code}"] if isinstance(code, str) and code else []
        found.append([*codes, *(coded(text) if isinstance(text, str) and text else [])])
    return found

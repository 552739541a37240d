"""Is the sensor ill, or the machine? Stuck, dead, spiking, silent and rescaled sensors are found and reported as such.

A sensor that is ill is left out of features and scores (its readings become missing), so that it raises a data-quality
alert and no failure alert. R rows of a panel, S sensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solutions.maintenance.panel import Panel
from solutions.maintenance.windows import last_known, rolling_deviation, rolling_mean, rolling_sums

F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
ADVICE = {
    "stuck": "the same value again and again: check the transmitter and the historian's compression",
    "dead": "at zero while it never was before: check supply and cable",
    "spiking": "single readings far from both neighbours: check shielding and connectors",
    "silent": "no reading: check the gateway; the prediction goes on without it",
    "rescaled": "level and spread changed together by one factor: was it replaced, or its unit changed?",
}


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """Windows in steps.

    Args:
        stuck: this many equal readings in a row, for sensors that repeat a value in less than `repeats` of training.
        silent: this many steps without a reading.
        spike: distance from both neighbours, in robust deviations of the steps; `spikes` of them within `window`.
        factor: smallest change of scale, as a factor of level and of spread alike within `agree`.
    """

    stuck: int = 6
    repeats: float = 0.05
    silent: int = 12
    spike: float = 12.0
    spikes: int = 2
    window: int = 48
    factor: float = 1.5
    agree: float = 0.5


@dataclass(frozen=True)
class Finding:
    """One ill sensor of an asset: what is wrong, from which hour to which."""

    asset: str
    sensor: str
    cause: str
    first_hour: int
    last_hour: int

    @property
    def advice(self) -> str:
        return ADVICE[self.cause]


def summary(findings: Sequence[Finding]) -> list[str]:
    """One line per asset and cause, with the sensors it concerns."""
    grouped: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        grouped.setdefault((finding.asset, finding.cause), []).append(finding)
    return [
        f"{asset} {', '.join(dict.fromkeys(f.sensor for f in same))} {cause}: {same[0].advice}"
        for (asset, cause), same in grouped.items()
    ]


@dataclass(frozen=True)
class SensorHealth:
    """What is normal for each sensor, learnt in training."""

    sensors: tuple[str, ...]
    repeats_S: F64
    zeros_S: F64
    step_S: F64
    mean_S: F64
    spread_S: F64
    settings: QualitySettings

    @classmethod
    def fit(cls, panel: Panel, rows_R: Bool, settings: QualitySettings | None = None) -> SensorHealth:
        """Learn from training rows how often a sensor repeats itself, is zero, and how far it moves in a step."""
        x = panel.x_RS
        same_asset = np.diff(panel.asset_R, prepend=-1) == 0
        step = np.abs(np.diff(x, axis=0, prepend=np.nan))
        step[~(same_asset & rows_R)] = np.nan
        known = np.isfinite(step)
        count = np.maximum(known.sum(0), 1)
        used = np.where(rows_R[:, None], x, np.nan)
        some = np.maximum(np.isfinite(used).sum(0), 1)
        mean = np.nansum(used, axis=0) / some
        return cls(
            sensors=panel.sensors,
            repeats_S=((step == 0.0) & known).sum(0) / count,
            zeros_S=(used == 0.0).sum(0) / some,
            step_S=np.array([np.median(step[known[:, s], s]) if known[:, s].any() else 0.0 for s in range(x.shape[1])]),
            mean_S=mean,
            spread_S=np.sqrt(np.nansum((used - mean) ** 2, axis=0) / some),
            settings=settings or QualitySettings(),
        )

    def ill(self, panel: Panel) -> dict[str, Bool]:
        """cause -> (R, S) where each is found; only what has happened up to a row counts."""
        if panel.sensors != self.sensors:
            raise ValueError(f"expected sensors {self.sensors}. Received: {panel.sensors}.")
        options, x, start_R, slices = self.settings, panel.x_RS, panel.start_R, panel.slices()
        moving = (self.repeats_S < options.repeats) & (self.spread_S > 0.0)
        step = np.diff(x, axis=0, prepend=np.nan)
        step[panel.age_R() == 0] = np.nan
        same = np.where(np.isfinite(step), (step == 0.0).astype(float), np.nan)
        run, seen = rolling_sums(same, start_R, options.stuck)
        stuck = (run >= options.stuck) & (seen >= options.stuck) & moving
        zero, known = rolling_sums(np.where(np.isfinite(x), (x == 0.0).astype(float), np.nan), start_R, options.stuck)
        dead = (zero >= options.stuck) & (known >= options.stuck) & (self.zeros_S < 0.01) & (self.spread_S > 0.0)
        silent = last_known(x, slices)[1] >= options.silent
        return {
            "dead": dead,
            "stuck": stuck & ~dead,
            "silent": silent,
            "spiking": self._spiking(step, start_R) & moving,
            "rescaled": self._rescaled(panel) & moving & ~dead,
        }

    def _spiking(self, step_RS: F64, start_R: NDArray[np.int64]) -> Bool:
        """A jump and the jump back, both far beyond what the sensor does; known one step later."""
        limit = self.settings.spike * np.maximum(self.step_S, 1e-12)
        before = np.vstack([np.full((1, step_RS.shape[1]), np.nan), step_RS[:-1]])
        with np.errstate(invalid="ignore"):
            spike = (np.abs(step_RS) > limit) & (np.abs(before) > limit) & (step_RS * before < 0.0)
        return rolling_sums(spike.astype(float), start_R, self.settings.window)[0] >= self.settings.spikes

    def _rescaled(self, panel: Panel) -> Bool:
        """Mean and spread of the newest window against those of training, by the same factor; and for as long as the mean
        stays away: the spread of a window that sees one load only says little."""
        options = self.settings
        x = panel.x_RS / np.where(self.spread_S > 0.0, self.spread_S, 1.0)
        mean = rolling_mean(x, panel.start_R, options.window)
        spread = rolling_deviation(x, panel.start_R, options.window)
        level = np.where(self.spread_S > 0.0, self.mean_S / np.where(self.spread_S > 0.0, self.spread_S, 1.0), 0.0)
        usable = (np.abs(level) > 3.0) & (rolling_sums(x, panel.start_R, options.window)[1] >= options.window / 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_level, by_spread = np.abs(mean / np.where(level == 0.0, 1.0, level)), spread
            far = (by_level > options.factor) | (by_level < 1.0 / options.factor)
            alike = np.abs(np.log(by_spread / by_level)) < options.agree
        away, row = usable & far, np.arange(len(x))[:, None]
        since = np.maximum(np.maximum.accumulate(np.where(away, -1, row)), panel.start_R[:, None] - 1)
        return np.asarray(away & (np.maximum.accumulate(np.where(away & alike, row, -1)) > since))

    def check(self, panel: Panel) -> tuple[Panel, list[Finding]]:
        """The panel with the readings of ill sensors taken out, and what was found."""
        found: list[Finding] = []
        gone = np.zeros(panel.x_RS.shape, bool)
        for cause, ill in self.ill(panel).items():
            gone |= ill
            for rows, name in zip(panel.slices(), panel.assets, strict=True):
                for s in np.flatnonzero(ill[rows].any(axis=0)):
                    hours = panel.hour_R[rows][ill[rows][:, s]]
                    found.append(Finding(name, panel.sensors[s], cause, int(hours[0]), int(hours[-1])))
        if not found:
            return panel, []
        return replace(panel, x_RS=np.where(gone, np.nan, panel.x_RS)), found

"""Operating conditions, and z-scores within each: the same reading may be normal at take-off and alarming at rest.

R rows, S sensors, C condition columns, K conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
MOST_CONDITIONS = 8
CLEAR = 0.7  # silhouette from which clusters count as conditions (Kaufman and Rousseeuw 1990: "strong structure")
ROWS_TRIED = 2_000
LARGEST = 8.0  # a z-score beyond is cut off: one spike must not drown a window


@dataclass(frozen=True)
class Conditions:
    """centre_KC in units of `scale_C`; mean_KS and scale_KS of training readings. A dead sensor has scale 0."""

    shift_C: F64
    scale_C: F64
    centre_KC: F64
    mean_KS: F64
    scale_KS: F64

    @classmethod
    def fit(cls, condition_RC: F64, x_RS: F64, *, seed: int = 0) -> Conditions:
        """Cluster the settings when they fall into clear groups, else take one condition for all."""
        shift, scale = np.zeros(condition_RC.shape[1]), np.ones(condition_RC.shape[1])
        centre = np.zeros((1, condition_RC.shape[1]))
        known = np.isfinite(condition_RC).all(axis=1)
        if condition_RC.shape[1] and known.any():
            shift, scale = condition_RC[known].mean(0), np.maximum(condition_RC[known].std(0), 1e-9)
            centre = _clusters((condition_RC[known] - shift) / scale, seed)
        made = cls(shift, scale, centre, np.zeros((len(centre), x_RS.shape[1])), np.ones((len(centre), x_RS.shape[1])))
        k_R = made.of(condition_RC)
        mean, spread = made.mean_KS, made.scale_KS
        for k in range(len(centre)):
            part = x_RS[k_R == k]
            count = np.isfinite(part).sum(0)
            enough = count >= 2
            mean[k] = np.where(enough, np.nansum(part, axis=0) / np.maximum(count, 1), 0.0)
            spread[k] = np.sqrt(np.nansum((part - mean[k]) ** 2, axis=0) / np.maximum(count, 1))
            spread[k] = np.where(enough & (spread[k] > 1e-6 * np.maximum(np.abs(mean[k]), 1.0)), spread[k], 0.0)
        return made

    @property
    def count(self) -> int:
        return len(self.centre_KC)

    def alive_S(self) -> NDArray[np.bool_]:
        """Sensors that moved in training, in any condition."""
        return np.asarray((self.scale_KS > 0.0).any(axis=0))

    def of(self, condition_RC: F64) -> NDArray[np.int64]:
        """(R,) the nearest condition; settings that are missing pass for average."""
        z_RC = np.nan_to_num((condition_RC - self.shift_C) / self.scale_C)
        far_RK = ((z_RC[:, None, :] - self.centre_KC[None]) ** 2).sum(-1)
        return np.asarray(far_RK.argmin(1))

    def z_RS(self, condition_RC: F64, x_RS: F64) -> F64:
        """Readings in standard deviations of their condition; 0 for what never moved there, NaN where missing."""
        k_R = self.of(condition_RC)
        scale_RS = self.scale_KS[k_R]
        z = np.where(scale_RS > 0.0, (x_RS - self.mean_KS[k_R]) / np.where(scale_RS > 0.0, scale_RS, 1.0), 0.0)
        return np.where(np.isfinite(x_RS), np.clip(z, -LARGEST, LARGEST), np.nan)

    def to_json(self) -> dict[str, Any]:
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Conditions:
        made = {name: np.asarray(values, float) for name, values in stored.items()}
        made["centre_KC"] = made["centre_KC"].reshape(len(made["mean_KS"]), len(made["shift_C"]))
        return cls(**made)


def _clusters(z_NC: F64, seed: int) -> F64:
    """Centres of the best clustering into 2..8 groups, or one centre when no clustering is clear."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(seed)
    sample = z_NC[rng.choice(len(z_NC), min(ROWS_TRIED, len(z_NC)), replace=False)]
    best, centre = CLEAR, z_NC.mean(axis=0, keepdims=True)
    for k in range(2, min(MOST_CONDITIONS, len(np.unique(sample.round(3), axis=0))) + 1):
        found = KMeans(k, n_init=3, random_state=seed).fit(sample)
        smallest = np.bincount(found.labels_).min() / len(sample)
        score = silhouette_score(sample, found.labels_) if smallest > 0.01 else 0.0
        if score > best:
            best, centre = score, found.cluster_centers_
    return np.asarray(centre)

"""The second stage: gradient boosting on a candidate's features, trained in seconds.

N candidates, F features, H heads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.examples import FEATURES, HEADS, LOGITS, Example, features

F32 = NDArray[np.float32]
PARAMETERS: dict[str, Any] = {
    "learning_rate": 0.05,
    "num_leaves": 6,
    "min_data_in_leaf": 15,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "verbosity": -1,
    "num_threads": 1,
    "deterministic": True,
}
ROUNDS = 120
# densities and sizes tell the crops that nodules come from apart from the scans that the others come from
SHAPE = ("elongation", "flatness", "roundness", "rim_hu")


@dataclass(frozen=True)
class BoostedRater:
    """One LightGBM model per head: logits, and ratings as (rating - 3) / 2."""

    boosters: tuple[Any, ...]

    @classmethod
    def fit(cls, feature_NF: NDArray[Any], target_NH: NDArray[Any], *, seed: int = 0) -> BoostedRater:
        """Fit every head on its known targets; NaN is unknown."""
        import lightgbm

        boosters = []
        for i, name in enumerate(HEADS):
            known = np.isfinite(target_NH[:, i])
            objective = "binary" if name in LOGITS else "regression"
            used = np.isin(FEATURES, SHAPE) if name == "nodule" else np.ones(len(FEATURES), bool)
            data = lightgbm.Dataset(np.where(used, feature_NF[known], 0.0), target_NH[known, i])
            boosters.append(lightgbm.train(PARAMETERS | {"objective": objective, "seed": seed}, data, ROUNDS))
        return cls(tuple(boosters))

    def rate(self, examples: Sequence[Example]) -> F32:
        """(N, H) outputs."""
        if not examples:
            return np.zeros((0, len(HEADS)), np.float32)
        return self.outputs(np.stack([features(e) for e in examples]))

    def outputs(self, feature_NF: NDArray[Any]) -> F32:
        """(N, H) outputs of features that were computed before."""
        return np.stack([b.predict(feature_NF, raw_score=True) for b in self.boosters], 1).astype(np.float32)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps([b.model_to_string() for b in self.boosters]) + "\n")

    @classmethod
    def load(cls, path: Path) -> BoostedRater:
        import lightgbm

        return cls(tuple(lightgbm.Booster(model_str=text) for text in json.loads(path.read_text())))

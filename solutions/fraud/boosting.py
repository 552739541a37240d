"""Gradient boosting on the streaming aggregates: the published baseline, the strong baseline, and a part of the champion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.features import AGGREGATES, BOOK, STRONG
from solutions.fraud.prior import Prior

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
BOOK_COLUMNS = [AGGREGATES.index(name) for name in BOOK]
PATIENCE = 50  # trees without a smaller log loss on the held-out slice
STRONG_COLUMNS = [AGGREGATES.index(name) for name in STRONG]


def published_xgboost(x_TF: F32, fraud_T: NDArray[np.bool_], *, seed: int) -> Any:
    """The handbook's XGBoost. `tree_method` and `base_score` as in the release it was published with: the defaults since
    XGBoost 2 lose .10 of average precision."""
    from xgboost import XGBClassifier

    model = XGBClassifier(
        n_estimators=50,
        learning_rate=0.3,
        max_depth=3,
        tree_method="exact",
        base_score=0.5,
        random_state=seed,
        n_jobs=1,
    )
    return model.fit(x_TF[:, BOOK_COLUMNS], fraud_T)


def strong_lightgbm(x_TF: F32, fraud_T: NDArray[np.bool_], *, seed: int, threads: int = 2) -> Any:
    """The baseline to beat: 700 trees of 15 leaves on the 38 strong aggregates."""
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(
        n_estimators=700,
        num_leaves=15,
        learning_rate=0.02,
        random_state=seed,
        n_jobs=threads,
        verbose=-1,
        deterministic=True,
    )
    return model.fit(x_TF[:, STRONG_COLUMNS], fraud_T)


class Boosting:
    """LightGBM on all aggregates, regularised, started from the prior: shallow trees are enough for what it misses."""

    def __init__(self, booster: Any, prior: Prior) -> None:
        self.booster, self.prior = booster, prior

    @classmethod
    def train(
        cls,
        x_TF: F32,
        fraud_T: NDArray[np.bool_],
        prior: Prior,
        *,
        seed: int,
        trees: int,
        held: tuple[F32, NDArray[np.bool_]] | None = None,
        threads: int = 2,
    ) -> Boosting:
        """Train at most `trees` trees; with `held` (aggregates and truth of later payments), as many as are best there."""
        import lightgbm

        parameters = {
            "objective": "binary",
            "num_leaves": 8,
            "learning_rate": 0.02,
            "min_data_in_leaf": max(20, min(200, len(x_TF) // 500)),
            "lambda_l2": 10.0,
            "feature_fraction": 0.5,
            "seed": seed,
            "num_threads": threads,
            "deterministic": True,
            "verbose": -1,
        }

        def dataset(x: F32, fraud: NDArray[np.bool_]) -> Any:
            return lightgbm.Dataset(
                x, label=fraud.astype(np.float32), init_score=prior.logit(x), feature_name=list(AGGREGATES)
            )

        watched: dict[str, Any] = {}
        if held is not None:
            watched = {
                "valid_sets": [dataset(*held)],
                "callbacks": [lightgbm.early_stopping(PATIENCE, verbose=False)],
            }
        booster = lightgbm.train(parameters, dataset(x_TF, fraud_T), num_boost_round=trees, **watched)
        return cls(booster, prior)

    @property
    def trees(self) -> int:
        """Trees that score: fewer than were grown when training stopped early."""
        return int(self.booster.best_iteration if self.booster.best_iteration > 0 else self.booster.num_trees())

    def logit(self, x_TF: F32, threads: int = 1) -> F64:
        rest_T = self.booster.predict(x_TF, raw_score=True, num_threads=threads)
        return np.asarray(rest_T + self.prior.logit(x_TF), dtype=np.float64)

    def save(self, path: Path) -> None:
        self.booster.save_model(str(path))

    @classmethod
    def load(cls, path: Path, prior: Prior) -> Boosting:
        import lightgbm

        return cls(lightgbm.Booster(model_file=str(path)), prior)

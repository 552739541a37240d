"""What the learnt episodes and the amount say before anything else: boosting and network start there and learn the rest.

On the handbook's validation folds the posterior alone ranks as well as boosting on all aggregates that has to find it
anew, and starting from it lifts both (boosting from a base margin: Friedman 2001, section 4.4).

T payments, F aggregates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.features import AGGREGATES

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
COLUMNS = (AGGREGATES.index("any_fraud"), AGGREGATES.index("high_amount"))


@dataclass(frozen=True)
class Prior:
    """log odds = posterior * any_fraud + high * high_amount + intercept."""

    posterior: float
    high: float
    intercept: float

    @classmethod
    def fit(cls, x_TF: F32, fraud_T: NDArray[np.bool_]) -> Prior:
        """Logistic regression on two aggregates, hardly regularised: an amount that is fraud by itself may say so."""
        from sklearn.linear_model import LogisticRegression

        fitted = LogisticRegression(C=100.0, max_iter=1000).fit(x_TF[:, COLUMNS], fraud_T)
        posterior, high = fitted.coef_[0]
        return cls(float(posterior), float(high), float(fitted.intercept_[0]))

    def logit(self, x_TF: Any) -> Any:
        """(T,) of arrays or tensors (T, F)."""
        return self.posterior * x_TF[:, COLUMNS[0]] + self.high * x_TF[:, COLUMNS[1]] + self.intercept

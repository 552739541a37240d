"""Both parts of the champion as compiled code: what the scorer and the replay ask for logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.fast_network import Weights, network_addition
from solutions.fraud.fast_trees import Trees, tree_logit

if TYPE_CHECKING:
    from solutions.fraud.boosting import Boosting
    from solutions.fraud.engine import Observed
    from solutions.fraud.network import TemporalGraphNetwork

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class FastLogits:
    """Logits without the interpreter lock, on the thread that asks; slow twins: `Boosting` and `TemporalGraphNetwork`."""

    def __init__(self, boosting: Boosting, network: TemporalGraphNetwork) -> None:
        self._trees, self._weights = Trees.of(boosting.booster), Weights.of(network)
        self._tree_prior, self._network_prior = boosting.prior, network.prior

    def boosting(self, x_TF: F32) -> F64:
        out_T = np.empty(len(x_TF))
        tree_logit(self._trees, x_TF, out_T)
        return np.asarray(out_T + self._tree_prior.logit(x_TF))

    def network(self, observed: Observed, chosen: slice) -> F64:
        x_TF = observed.x_TF[chosen]
        out_T = np.empty(len(x_TF))
        tokens = [part[chosen] for part in (*observed.token_SKF, *observed.mask_SK)]
        arguments: tuple[Any, ...] = (self._weights, x_TF, *tokens, out_T)
        network_addition(*arguments)
        return np.asarray(out_T + self._network_prior.logit(x_TF))

    def logits(self, observed: Observed, chosen: slice) -> dict[str, F64]:
        """Logits of both parts, for a slice of events that were observed with tokens."""
        return {"lightgbm": self.boosting(observed.x_TF[chosen]), "network": self.network(observed, chosen)}

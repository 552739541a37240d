"""A reservoir of the past: every sample seen so far is in it with the same probability (Vitter 1985, algorithm R).

N samples, C capacity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Reservoir:
    """Keeps `capacity` rows of named arrays (inputs, targets, and the logits that dark experience replay matches)."""

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"`capacity` must be >= 1. Received: capacity={capacity}.")
        self.capacity, self.seen = capacity, 0
        self.rows: Arrays = {}
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Offer rows in order of time; all arrays have the same length."""
        lengths = {name: len(values) for name, values in rows.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"all arrays must have one length. Received: {lengths}.")
        if not self.rows:
            self.rows = {n: np.zeros((self.capacity, *v.shape[1:]), v.dtype) for n, v in rows.items()}
        if set(rows) != set(self.rows):
            raise ValueError(f"expected the arrays {sorted(self.rows)}. Received: {sorted(rows)}.")
        for i in range(next(iter(lengths.values()))):
            place = self.seen if self.seen < self.capacity else int(self._rng.integers(self.seen + 1))
            self.seen += 1
            if place < self.capacity:
                for name, values in rows.items():
                    self.rows[name][place] = values[i]

    def sample(self, n: int) -> Arrays:
        """`n` rows with replacement."""
        if not len(self):
            raise ValueError("the reservoir is empty: nothing was added yet.")
        chosen = self._rng.integers(len(self), size=n)
        return {name: values[chosen] for name, values in self.rows.items()}

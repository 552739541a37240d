"""A reservoir of the past: whatever the length of the stream, each sample seen is in it with the same probability.

Vitter 1985, algorithm R. With `balance` the classes share the room instead: class-balancing reservoir sampling
(Chrysakis and Moens, ICML 2020, algorithm 1). N samples, C capacity.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Reservoir:
    """Keeps `capacity` rows of named arrays: inputs, targets, and the logits that dark experience replay matches."""

    def __init__(self, capacity: int, seed: int = 0, *, balance: str | None = None) -> None:
        """`balance` names the array that holds the class of a row; None keeps the mix of the stream."""
        if capacity < 1:
            raise ValueError(f"`capacity` must be >= 1. Received: capacity={capacity}.")
        self.capacity, self.balance, self.seen = capacity, balance, 0
        self.rows: Arrays = {}
        self._rng = np.random.default_rng(seed)
        self._seen_of: dict[Any, int] = {}  # rows offered per class
        self._full: set[Any] = set()  # classes that were the largest at some time

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Offer rows in order of time; all arrays have the same length, and types and shapes as at the first call."""
        n = self._check(rows)
        if not self.rows:
            self.rows = {name: np.zeros((self.capacity, *v.shape[1:]), v.dtype) for name, v in rows.items()}
        place_N = self._places(n) if self.balance is None else self._balanced_places(rows[self.balance])
        kept = np.flatnonzero(place_N >= 0)
        # of rows with one place the last wins, as if they had been added one by one
        last = kept[::-1][np.unique(place_N[kept][::-1], return_index=True)[1]]
        for name, values in rows.items():
            self.rows[name][place_N[last]] = values[last]

    def _places(self, n: int) -> NDArray[np.int64]:
        """Place of each of the next n rows, or -1: row number t comes in with probability capacity / t."""
        order_N = self.seen + np.arange(n)
        place_N = np.where(order_N < self.capacity, order_N, self._rng.integers(order_N + 1))
        self.seen += n
        return np.where(place_N < self.capacity, place_N, -1)

    def _balanced_places(self, class_N: NDArray[Any]) -> NDArray[np.int64]:
        members: dict[Any, list[int]] = {}  # places that each class holds
        for place, kind in enumerate(self.rows[str(self.balance)][: len(self)].tolist()):
            members.setdefault(kind, []).append(place)
        places = []
        for kind in class_N.tolist():
            self._seen_of[kind] = self._seen_of.get(kind, 0) + 1
            place = self.seen if self.seen < self.capacity else self._swap(kind, members)
            self.seen += 1
            if place >= 0:
                members.setdefault(kind, []).append(place)
            places.append(place)
        return np.array(places, np.int64)

    def _swap(self, kind: Any, members: dict[Any, list[int]]) -> int:
        """Place that a row takes in a full reservoir: one of the largest class, or by chance one of its own, or none."""
        most = max(map(len, members.values()))
        largest = [k for k, places in members.items() if len(places) == most]
        self._full.update(largest)
        if kind not in self._full:
            own = members[largest[int(self._rng.integers(len(largest)))]]
        else:
            own = members[kind]
            if self._rng.random() > len(own) / self._seen_of[kind]:
                return -1
        return own.pop(int(self._rng.integers(len(own))))

    def sample(self, n: int) -> Arrays:
        """`n` rows drawn with replacement."""
        if not len(self):
            raise ValueError("the reservoir is empty: nothing was added yet.")
        chosen = self._rng.integers(len(self), size=n)
        return {name: values[chosen] for name, values in self.rows.items()}

    def save(self, path: Path) -> None:
        """Write rows, counters and the state of the random numbers to one npz file, atomically."""
        state = {
            **{"capacity": self.capacity, "balance": self.balance, "seen": self.seen},
            "random": self._rng.bit_generator.state,
            "classes": [[kind, seen, kind in self._full] for kind, seen in self._seen_of.items()],
        }
        arrays = {f"row_{name}": values[: len(self)] for name, values in self.rows.items()}
        temporary = path.with_name(f"{path.name}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, state=np.array(json.dumps(state)), **arrays)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Reservoir:
        """A reservoir that goes on as the saved one would have."""
        with np.load(path, allow_pickle=False) as file:
            state = json.loads(str(file["state"]))
            reservoir = cls(state["capacity"], balance=state["balance"])
            for key in file.files:
                if key.startswith("row_"):
                    held = file[key]
                    whole = np.zeros((reservoir.capacity, *held.shape[1:]), held.dtype)
                    whole[: len(held)] = held
                    reservoir.rows[key.removeprefix("row_")] = whole
        reservoir.seen = state["seen"]
        reservoir._rng.bit_generator.state = state["random"]
        reservoir._seen_of = {kind: seen for kind, seen, _ in state["classes"]}
        reservoir._full = {kind for kind, _, full in state["classes"] if full}
        return reservoir

    def _check(self, rows: Mapping[str, NDArray[Any]]) -> int:
        lengths = {name: len(values) for name, values in rows.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"all arrays must have one length. Received: {lengths}.")
        if self.balance is not None and (self.balance not in rows or rows[self.balance].ndim != 1):
            raise ValueError(f"`{self.balance}` must be a vector with the class of each row. Received: {sorted(rows)}.")
        for values in rows.values():
            if values.dtype.hasobject:
                raise TypeError("arrays must hold numbers or fixed-width text. Received: objects.")
        expected = {name: (v.dtype, v.shape[1:]) for name, v in self.rows.items()}
        received = {name: (v.dtype, v.shape[1:]) for name, v in rows.items()}
        if expected and expected != received:
            raise ValueError(f"expected arrays {_names(expected)}. Received: {_names(received)}.")
        return next(iter(lengths.values()))


def _names(arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in sorted(arrays.items()))

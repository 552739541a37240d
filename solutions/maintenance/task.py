"""What is predicted for a fleet, and how: horizons, edges of the hazard, features, sizes of the models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from solutions.maintenance.features import FeatureSettings

Kind = Literal["life", "event"]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Sizes and training of the network; window and patch chosen on training engines of C-MAPSS FD001."""

    width: int = 32
    heads: int = 4
    read_outs: int = 4
    summary_tokens: int = 4
    layers: int = 1
    moe: bool = True
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 16
    shared_width: int = 32
    dropout: float = 0.2
    window: int = 30
    patch: int = 5
    epochs: int = 12
    rows: int = 6_000  # drawn anew for each epoch, at most: neighbours say nearly the same
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    life_weight: float = 1.0  # of the squared error of the expected life beside the likelihood

    def __post_init__(self) -> None:
        if self.window % self.patch:
            raise ValueError(f"`patch` must divide `window`. Received: window={self.window}, patch={self.patch}.")
        if min(self.rows, self.epochs) < 1 or self.batch_size < 2:
            raise ValueError(
                "`rows` and `epochs` must be >= 1, `batch_size` >= 2. "
                f"Received: rows={self.rows}, epochs={self.epochs}, batch_size={self.batch_size}."
            )


@dataclass(frozen=True, kw_only=True)
class BoostingSettings:
    """Gradient boosting; leaves and rate from the strong recipe of the literature."""

    most_rows: int = 8_000  # a longer training part is thinned evenly: neighbours say nearly the same
    trees: int = 200
    leaves: int = 31
    learning_rate: float = 0.04
    least_rows: int = 20
    features: float = 0.3
    rows: float = 0.7
    l2: float = 5.0
    bins: int = 127


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prediction problem.

    Args:
        kind: "life": assets run once from new to failure, the expected life matters; "event": failures recur, the
            probability within the horizons matters.
        edges: of the hazard's intervals, in hours (or cycles); the last one is the cap of the life.
        horizons: P(failure within each) is reported.
        folds: parts of the machines; each member of the ensemble is trained without one of them.
        rounds: partitions, of so many folds each. A machine is predicted out of fold by as many members.
        origins: shares of the training time after which an earlier ensemble looks ahead to the next origin (rolling origin,
            Tashman 2000, doi:10.1016/S0169-2070(00)00065-0). What it says calibrates. None: machines left out do.
    """

    kind: Kind
    edges: tuple[float, ...]
    horizons: tuple[float, ...] = (24.0, 72.0, 168.0)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    boosting: BoostingSettings = field(default_factory=BoostingSettings)
    folds: int = 5
    rounds: int = 1
    origins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("life", "event"):
            raise ValueError(f"`kind` must be life or event. Received: kind={self.kind!r}.")
        if self.edges[0] != 0.0 or any(h > self.edges[-1] for h in self.horizons):
            raise ValueError(
                f"`edges` must begin with 0 and reach all horizons. Received: edges={self.edges}, horizons={self.horizons}."
            )
        if self.folds < 2 or self.rounds < 1:
            raise ValueError(
                f"`folds` must be >= 2, `rounds` >= 1. Received: folds={self.folds}, rounds={self.rounds}."
            )
        if any(not 0.0 < share < 1.0 for share in self.origins) or list(self.origins) != sorted(set(self.origins)):
            raise ValueError(f"`origins` must rise within (0, 1). Received: origins={self.origins}.")

    @property
    def cap(self) -> float:
        return self.edges[-1]

    def to_json(self) -> dict[str, Any]:
        nested = {name: vars(getattr(self, name)) for name in ("features", "network", "boosting")}
        return {**vars(self), **nested}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Task:
        features: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["features"].items()}
        return cls(
            **{k: stored[k] for k in ("kind", "folds", "rounds")},
            edges=tuple(stored["edges"]),
            origins=tuple(stored["origins"]),
            horizons=tuple(stored["horizons"]),
            features=FeatureSettings(**features),
            network=NetworkSettings(**stored["network"]),
            boosting=BoostingSettings(**stored["boosting"]),
        )


def run_to_failure_task() -> Task:
    """Turbofans: life in cycles, capped at 125 as is customary (arXiv 1801.05512 and most of C-MAPSS)."""
    edges = tuple(float(e) for e in range(0, 126, 5))
    # ten folds rather than five, and several rounds rather than one, lower the error out of fold on FD001; so do all rows and
    # many small trees for boosting, and two components with their slope since new most of all: 10.03 to 7.72 on FD001
    # (boosting alone, five folds)
    boosting = BoostingSettings(most_rows=60_000, trees=800, leaves=8, learning_rate=0.03)
    features = FeatureSettings(from_new=True, components=2)
    return Task(
        kind="life", edges=edges, horizons=(24.0, 72.0), features=features, boosting=boosting, folds=10, rounds=2
    )


def recurring_task() -> Task:
    """Machines that fail, are repaired and go on: hours, with the edges closest where decisions are made."""
    edges = (0.0, 12.0, 24.0, 36.0, 48.0, 60.0, 72.0, 96.0, 120.0, 168.0)
    features = FeatureSettings(means=(3, 12, 24, 48), ewma=(24,), deviation=24)
    network = NetworkSettings(window=48, patch=6, epochs=6, life_weight=0.1)
    return Task(kind="event", edges=edges, features=features, network=network, folds=4, origins=(0.4, 0.6, 0.8))

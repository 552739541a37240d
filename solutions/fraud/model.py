"""The champion as one object: state parameters, boosting, network, and how they are blended and calibrated."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from solutions.fraud.boosting import Boosting
from solutions.fraud.engine import Engine, EngineSettings, Observed
from solutions.fraud.episodes import Episodes
from solutions.fraud.fast import FastLogits
from solutions.fraud.features import AGGREGATES
from solutions.fraud.graph_state import StateSettings
from solutions.fraud.network import TemporalGraphNetwork
from solutions.fraud.prior import Prior

F64 = NDArray[np.float64]
PARTS = ("lightgbm", "network")
FORMAT = 2  # of the directory on disk


class UnknownModelError(ValueError):
    """There is no usable model where one was named."""

    exit_code = 2


@dataclass(frozen=True)
class Blend:
    """probability = sigmoid(sum of weights * logits + intercept); one row for the champion and one for each part alone."""

    weights: dict[str, tuple[float, float]]  # name -> (lightgbm, network)
    intercepts: dict[str, float]

    @classmethod
    def fit(cls, logits: dict[str, F64], fraud_T: NDArray[np.bool_]) -> Blend:
        """Logistic regression with weights >= 0 on a slice that the parts have not seen, drawn weakly to equal weights."""
        x_TP = np.stack([logits[name] for name in PARTS], axis=1)
        y_T = fraud_T.astype(float)
        weights, intercepts = {}, {}
        for name, used in {"fused": (1.0, 1.0), "lightgbm": (1.0, 0.0), "network": (0.0, 1.0)}.items():
            centre = np.array(used) / sum(used)

            def loss(w: F64, centre: F64 = centre) -> float:
                z_T = x_TP @ w[:2] + w[2]
                fit = np.logaddexp(0.0, z_T).sum() - (y_T * z_T).sum()
                return float(fit + 2.0 * ((w[:2] - centre) ** 2).sum())

            bounds = [(0.0, 4.0 * u) for u in used] + [(-10.0, 10.0)]
            best = minimize(loss, np.append(centre, 0.0), bounds=bounds, method="L-BFGS-B").x
            weights[name], intercepts[name] = (float(best[0]), float(best[1])), float(best[2])
        return cls(weights, intercepts)

    def probability(self, logits: dict[str, F64], name: str = "fused") -> F64:
        w = self.weights[name]
        return np.asarray(expit(w[0] * logits["lightgbm"] + w[1] * logits["network"] + self.intercepts[name]))


@dataclass
class FraudModel:
    """Everything that scoring needs but the state itself; `new_engine()` makes an empty one."""

    engine: EngineSettings
    high_amount: float
    episodes: tuple[Episodes, Episodes, Episodes]
    boosting: Boosting
    network: TemporalGraphNetwork
    blend: Blend

    def new_engine(self) -> Engine:
        return Engine(self.engine, high_amount=self.high_amount, episodes=self.episodes)

    @cached_property
    def fast(self) -> FastLogits:
        """Both parts compiled, as they are at the first use: a part that is trained on belongs into a new model."""
        return FastLogits(self.boosting, self.network)

    def logits(self, observed: Observed, *, threads: int = 1) -> dict[str, F64]:
        """Logits of both parts, for events that were observed with tokens; the same to the bit in any batch."""
        events = len(observed.x_TF)
        if threads == 1 or events < threads:
            return self.fast.logits(observed, slice(0, events))
        bounds = np.linspace(0, events, threads + 1).astype(int)
        with ThreadPoolExecutor(threads) as pool:
            slices = [slice(*pair) for pair in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
            parts = list(pool.map(lambda chosen: self.fast.logits(observed, chosen), slices))
        return {name: np.concatenate([part[name] for part in parts]) for name in PARTS}

    def probability(self, observed: Observed, *, threads: int = 1) -> F64:
        return self.blend.probability(self.logits(observed, threads=threads))

    def save(self, directory: Path) -> None:
        """Write `directory` (made if missing). model.json is written last: a directory without it is not a model."""
        directory.mkdir(parents=True, exist_ok=True)
        self.boosting.save(directory / "lightgbm.txt")
        self.network.save(directory / "network.pt")
        description = {
            "format": FORMAT,
            "aggregates": list(AGGREGATES),
            "engine": asdict(self.engine),
            "high_amount": self.high_amount if np.isfinite(self.high_amount) else None,
            "episodes": [e.to_json() for e in self.episodes],
            "prior": asdict(self.boosting.prior),
            "blend": asdict(self.blend),
        }
        (directory / "model.json").write_text(json.dumps(description, indent=1))

    @classmethod
    def load(cls, directory: Path) -> FraudModel:
        """Read a directory written by `save`.

        Raises:
            UnknownModelError: nothing there, or written by another version.
        """
        path = directory / "model.json"
        if not path.exists():
            raise UnknownModelError(
                f"no fraud model in {directory}: model.json is missing. Train one with `vigil fraud train --out {directory}`."
            )
        stored = json.loads(path.read_text())
        if stored.get("format") != FORMAT or stored.get("aggregates") != list(AGGREGATES):
            raise UnknownModelError(
                f"the model in {directory} was written by another version (format {stored.get('format')}, expected "
                f"{FORMAT}, {len(stored.get('aggregates', []))} aggregates, expected {len(AGGREGATES)}). Train it again."
            )
        engine = EngineSettings(**{**stored["engine"], "state": StateSettings(**stored["engine"]["state"])})
        first, second, third = (Episodes.from_json(e) for e in stored["episodes"])
        blend = Blend({k: (v[0], v[1]) for k, v in stored["blend"]["weights"].items()}, stored["blend"]["intercepts"])
        return cls(
            engine=engine,
            high_amount=float("inf") if stored["high_amount"] is None else stored["high_amount"],
            episodes=(first, second, third),
            boosting=Boosting.load(directory / "lightgbm.txt", Prior(**stored["prior"])),
            network=TemporalGraphNetwork.load(directory / "network.pt"),
            blend=blend,
        )

"""The shipped models, their calibration, and the digest that names them in every export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.texture import TextureRule

if TYPE_CHECKING:
    from solutions.medical_imaging.context import ContextFuser
    from solutions.medical_imaging.network import NoduleNet

WEIGHTS = Path(__file__).parent / "weights"
BOOSTED, NETWORK, CALIBRATION, CONTEXT = "boosted.json", "network.npz", "calibration.json", "context.npz"
NAME = "Vigil nodules 0.3"
# of a candidate: both raters' logits, the outline's at its surest, the logarithm of the first stage's score
EVIDENCE = ("boosting", "network", "outline", "roundness")
STRONGEST = 6.0  # what goes beyond, in either direction, is no stronger evidence
F64 = NDArray[np.float64]


def joined_logit(nodule: Sequence[float], evidence_NE: ArrayLike) -> F64:
    """(N,) logits of a nodule by weights of the evidence and a shift."""
    *weights, shift = nodule
    evidence = np.clip(np.asarray(evidence_NE, np.float64), -STRONGEST, STRONGEST)
    return np.asarray(evidence @ weights + shift)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Everything that was fitted on validation patients.

    Args:
        nodule: weights of a candidate's evidence in the order of EVIDENCE, and a shift, for the logit of a nodule.
        malignancy: weights of the boosted and the network's logit and of the logarithm of the volume in mm3, and a shift.
        outline_level: probability of the network's outline at which its volumes are neither too large nor too small.
        texture: rule from densities and size.
        show, sure: probabilities from which a place is shown as uncertain, and as a nodule.
        abstain_low, abstain_high: between them the malignancy model abstains.
        volume_low, volume_high: factors around the volume that hold 90 % of the readers' volumes.
    """

    nodule: tuple[float, float, float, float, float]
    malignancy: tuple[float, float, float, float]
    texture: TextureRule
    outline_level: float
    show: float
    sure: float
    abstain_low: float
    abstain_high: float
    volume_low: float
    volume_high: float

    def __post_init__(self) -> None:
        if not 0.0 < self.show <= self.sure < 1.0 or not 0.0 < self.volume_low <= 1.0 <= self.volume_high:
            raise ValueError(
                "calibration must have 0 < show <= sure < 1 and volume_low <= 1 <= volume_high. "
                f"Received: show={self.show}, sure={self.sure}, "
                f"volume_low={self.volume_low}, volume_high={self.volume_high}."
            )

    def nodule_logit(self, evidence_NE: ArrayLike) -> F64:
        return joined_logit(self.nodule, evidence_NE)

    def malignancy_probability(self, columns_N3: ArrayLike) -> F64:
        """columns: boosted and network logit, logarithm of the volume in mm3."""
        *weights, shift = self.malignancy
        return np.asarray(expit(np.asarray(columns_N3, np.float64) @ weights + shift))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Models:
    """What a model folder holds: the two raters, their calibration, and what joins them with text and record."""

    second: BoostedRater
    network: NoduleNet
    calibration: Calibration
    context: ContextFuser
    digest: str

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> Models:
        """Load from a folder; the digest covers every byte that decides the output.

        Raises:
            InputError: a file is missing.
        """
        from solutions.medical_imaging.context import ContextFuser

        names = (BOOSTED, NETWORK, CALIBRATION, CONTEXT)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(f"the model folder must hold {', '.join(names)}. Missing: {', '.join(missing)}.")
        digest = hashlib.sha256()
        for name in names:
            digest.update(name.encode() + (folder / name).read_bytes())
        values = json.loads((folder / CALIBRATION).read_text())
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        network = load_network(folder / NETWORK)
        values |= lists | {"texture": TextureRule(**values["texture"])}
        context = ContextFuser.load(folder / CONTEXT)
        return cls(BoostedRater.load(folder / BOOSTED), network, Calibration(**values), context, digest.hexdigest())


def save_network(network: NoduleNet, path: Path) -> None:
    """Weights in half precision."""
    np.savez_compressed(
        path, **{name: value.numpy().astype(np.float16) for name, value in network.state_dict().items()}
    )


def load_network(path: Path) -> NoduleNet:
    """A network of the default settings with the weights of a file, for inference."""
    import torch

    from solutions.medical_imaging.network import NetworkSettings, NoduleNet

    network = NoduleNet(NetworkSettings())
    with np.load(path) as stored:
        network.load_state_dict({name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files})
    return network.eval()

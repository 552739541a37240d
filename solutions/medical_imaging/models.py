"""The shipped models, their calibration, and the digest that names them in every export."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.files import InputError

WEIGHTS = Path(__file__).parent / "weights"
BOOSTED, CALIBRATION = "boosted.json", "calibration.json"
NAME = "Vigil nodules 0.1"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Everything that was fitted on validation patients.

    Args:
        nodule_scale, nodule_shift: Platt's line from the second stage's logit to a probability.
        malignancy_scale, malignancy_shift: the same for malignancy.
        show, sure: probabilities from which a place is shown as uncertain, and as a nodule.
        abstain_low, abstain_high: between them the malignancy model abstains.
        volume_low, volume_high: factors around the volume that hold 90 % of the readers' volumes.
    """

    nodule_scale: float
    nodule_shift: float
    malignancy_scale: float
    malignancy_shift: float
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

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Models:
    """What a model folder holds: the second stage and its calibration."""

    second: BoostedRater
    calibration: Calibration
    digest: str

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> Models:
        """Load from a folder; the digest covers every byte that decides the output.

        Raises:
            InputError: calibration or second stage are missing.
        """
        missing = [name for name in (BOOSTED, CALIBRATION) if not (folder / name).is_file()]
        if missing:
            raise InputError(f"the model folder must hold {BOOSTED} and {CALIBRATION}. Missing: {', '.join(missing)}.")
        digest = hashlib.sha256()
        for name in (BOOSTED, CALIBRATION):
            digest.update(name.encode() + (folder / name).read_bytes())
        calibration = Calibration(**json.loads((folder / CALIBRATION).read_text()))
        return cls(BoostedRater.load(folder / BOOSTED), calibration, digest.hexdigest())

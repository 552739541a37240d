"""What the pipeline found in a scan: nodules with masks, measurements, intervals and categories, before any export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from solutions.medical_imaging.measure import Measurement, Segment
from solutions.medical_imaging.rules import Texture

Side = Literal["left", "right"]
Zone = Literal["upper", "middle", "lower"]
Assessment = Literal["nodule", "uncertain"]


@dataclass(frozen=True)
class Bounds:
    """A 90 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class DetectedNodule:
    """One nodule.

    Args:
        confidence: calibrated probability that it is a nodule.
        assessment: "uncertain" is shown apart and counted apart: it is neither a nodule nor the absence of one.
        malignancy: probability that readers would call it likely malignant; None when the model abstains.
        lung_rads, fleischner: categories; more than one means borderline.
        cancer: by the Brock model from the record too; None when the record does not say enough.
        spiculation, lobulation: as readers would rate them, 1 (none) to 5 (marked).
        calcified: probability that they would see calcium.
    """

    number: int
    segment: Segment
    measurement: Measurement
    volume: Bounds
    mean_diameter: Bounds
    confidence: float
    assessment: Assessment
    side: Side
    zone: Zone
    texture: Texture
    lung_rads: tuple[str, ...]
    fleischner: tuple[str, ...]
    spiculation: float
    lobulation: float
    calcified: float
    malignancy: float | None = None
    cancer: Bounds | None = None


@dataclass(frozen=True)
class Detection:
    """All nodules of a scan, best first, and with what they were found."""

    nodules: tuple[DetectedNodule, ...]
    model: str
    model_digest: str
    notes: tuple[str, ...] = ()

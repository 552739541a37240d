"""Detections for tests of what comes after detection: from a phantom's truth, no network needed."""

from __future__ import annotations

import numpy as np

from solutions.medical_imaging.detected import Bounds, DetectedNodule, Detection
from solutions.medical_imaging.gate import Series
from solutions.medical_imaging.measure import measure, outline
from solutions.medical_imaging.phantom import Phantom


def truth_detection(phantom: Phantom, series: Series, digest: str = "d" * 64) -> Detection:
    """The phantom's own nodules as if they had been detected; the last one as uncertain."""
    nodules = []
    for i in range(1, len(phantom.nodules) + 1):
        mask = (phantom.labels_ZYX == i).astype(np.float32)
        z, y, x = (float(v) for v in np.argwhere(mask > 0).mean(0))
        found = outline(mask, series.volume.geometry, series.volume.geometry, (z, y, x), 20.0)
        assert found is not None
        m = measure(found)
        last = i == len(phantom.nodules)
        nodules.append(
            DetectedNodule(
                number=i,
                segment=found.segment,
                measurement=m,
                volume=Bounds(0.8 * m.volume_mm3, 1.2 * m.volume_mm3),
                mean_diameter=Bounds(0.9 * m.mean_mm, 1.1 * m.mean_mm),
                confidence=0.4 if last else 0.93,
                assessment="uncertain" if last else "nodule",
                side="left" if m.centre[0] > 0 else "right",
                zone="middle",
                texture="solid",
                lung_rads=("4A", "4B") if i == 1 else ("4A",),
                fleischner=("consider CT at 3 months, PET/CT or tissue sampling",),
                spiculation=1.4,
                lobulation=2.1,
                calcified=0.07,
                malignancy=None if last else 0.71,
                cancer=None if last else Bounds(0.05, 0.08),
            )
        )
    return Detection(tuple(nodules), "Vigil test", digest)

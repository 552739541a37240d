"""DICOM SEG: one binary segment per nodule on the grid of the source, empty frames left out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.detected import Detection
from solutions.medical_imaging.exports.concepts import sct
from solutions.medical_imaging.exports.identity import MANUFACTURER, SOFTWARE, Identity
from solutions.medical_imaging.gate import Series

MOST_FRAMES = 400  # viewers stop there


def make_segmentation(series: Series, detection: Detection, identity: Identity) -> Any:
    """The segmentation as a data set; None without nodules, since a SEG can not be empty."""
    if not detection.nodules:
        return None
    import highdicom as hd
    from pydicom.sr.codedict import codes

    used = sorted({z for n in detection.nodules for z in n.segment.slices})
    masks = stack(series, detection, used)
    algorithm = hd.AlgorithmIdentificationSequence(
        name=detection.model, version=detection.model_digest[:16], family=codes.DCM.ArtificialIntelligence
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=i,
            segment_label=f"Nodule {n.number}",
            segmented_property_category=sct("abnormal"),
            segmented_property_type=sct("nodule"),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=identity.nodule(n.number),
            tracking_id=f"Nodule {n.number}",
            anatomic_regions=[sct("lung")],
        )
        for i, n in enumerate(detection.nodules, start=1)
    ]
    made = hd.seg.Segmentation(
        source_images=[series.headers[z] for z in used],
        pixel_array=masks,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=identity.uid("seg", "series"),
        series_number=7001,
        sop_instance_uid=identity.uid("seg", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=detection.model,
        software_versions=SOFTWARE,
        device_serial_number="1",
        content_label="NODULES",
        content_description="Lung nodules, unverified",
        omit_empty_frames=True,
    )
    made.SeriesDescription = "Vigil lung nodules (unverified)"
    _fix_dimensions(made, identity.uid("seg", "dimensions"))
    _name_segments_by_frame(made)
    return made


def stack(series: Series, detection: Detection, used: list[int]) -> NDArray[np.uint8]:
    """Masks of the used slices, (frames, rows, columns, segments)."""
    _, rows, columns = series.volume.geometry.shape
    out = np.zeros((len(used), rows, columns, len(detection.nodules)), np.uint8)
    for i, nodule in enumerate(detection.nodules):
        z0, y0, x0 = nodule.segment.start
        depth, height, width = nodule.segment.mask_ZYX.shape
        for d in range(depth):
            out[used.index(z0 + d), y0 : y0 + height, x0 : x0 + width, i] = nodule.segment.mask_ZYX[d]
    return out


def _fix_dimensions(made: Any, uid: str) -> None:
    """The library draws a random UID for the dimensions; a re-run must write the same."""
    for item in made.DimensionOrganizationSequence:
        item.DimensionOrganizationUID = uid
    for item in made.DimensionIndexSequence:
        item.DimensionOrganizationUID = uid


def _name_segments_by_frame(made: Any) -> None:
    """With one segment the library names it once for all frames, and then can not find it again for the report."""
    from copy import deepcopy

    shared = made.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:
        for group in made.PerFrameFunctionalGroupsSequence:
            group.SegmentIdentificationSequence = deepcopy(shared.SegmentIdentificationSequence)
        del shared.SegmentIdentificationSequence


def read_segmentation(dataset: Any, series: Series) -> dict[int, NDArray[np.bool_]]:
    """Masks (Z, Y, X) on the grid of the series by segment number; frames are placed by their positions.

    Raises:
        ValueError: a frame lies beside the grid of the series.
    """
    g = series.volume.geometry
    frames = np.atleast_3d(dataset.pixel_array)
    frames = frames[None] if dataset.pixel_array.ndim == 2 else dataset.pixel_array
    out = {int(s.SegmentNumber): np.zeros(g.shape, bool) for s in dataset.SegmentSequence}
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        index = g.to_index([position])[0]
        z = round(float(index[0]))
        if np.abs(index - [z, 0, 0]).max() > 0.01 or not 0 <= z < g.shape[0]:
            raise ValueError(f"a frame of the segmentation must lie on a slice of the series. Received: index {index}.")
        out[int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)][z] |= frame > 0
    return out

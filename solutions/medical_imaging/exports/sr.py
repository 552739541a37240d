"""DICOM SR: Comprehensive 3D SR after TID 1500, one measurement group per nodule. The source of truth of all exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from solutions.medical_imaging.detected import DetectedNodule, Detection
from solutions.medical_imaging.exports.concepts import OWN, SCHEME, free, own, sct
from solutions.medical_imaging.exports.identity import MANUFACTURER, SOFTWARE, Identity
from solutions.medical_imaging.gate import Series
from solutions.medical_imaging.priors import Change


def make_report(
    series: Series,
    detection: Detection,
    segmentation: Any | None,
    identity: Identity,
    changes: Mapping[int, Change] | None = None,
) -> Any:
    """The structured report as a data set, UNVERIFIED.

    Args:
        changes: since a prior review, by nodule number.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=identity.uid("device"), name=MANUFACTURER, model_name=detection.model
        ),
    )
    groups: list[Any] = [
        _group(series, n, i, segmentation, detection, identity, (changes or {}).get(n.number))
        for i, n in enumerate(detection.nodules, start=1)
    ]
    groups.append(_result(detection, identity))
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=sct("ct_chest"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    used = sorted({z for n in detection.nodules for z in n.segment.slices}) or [0]
    evidence = [series.headers[z] for z in used] + ([segmentation] if segmentation is not None else [])
    made = hd.sr.Comprehensive3DSR(
        evidence=evidence,
        content=content,
        series_instance_uid=identity.uid("sr", "series"),
        series_number=7002,
        sop_instance_uid=identity.uid("sr", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    made.SeriesDescription = "Vigil lung nodules (unverified)"
    made.ManufacturerModelName, made.SoftwareVersions = detection.model, SOFTWARE
    return made


def _group(
    series: Series,
    nodule: DetectedNodule,
    segment: int,
    segmentation: Any,
    detection: Detection,
    identity: Identity,
    change: Change | None,
) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    mm, mm3, percent = codes.UCUM.Millimeter, codes.UCUM.CubicMillimeter, codes.UCUM.Percent
    m = nodule.measurement

    def number(name: Any, value: float, unit: Any, derivation: Any = None) -> Any:
        return hd.sr.Measurement(name=name, value=value, unit=unit, derivation=derivation)

    measurements = [
        number(sct("volume"), round(m.volume_mm3, 1), mm3),
        number(own("volume_low"), round(nodule.volume.low, 1), mm3),
        number(own("volume_high"), round(nodule.volume.high, 1), mm3),
        number(sct("long"), round(m.long_mm, 1), mm),
        number(sct("short"), round(m.short_mm, 1), mm),
        number(sct("diameter"), m.mean_mm, mm, sct("mean")),
        number(own("diameter_low"), round(nodule.mean_diameter.low, 1), mm),
        number(own("diameter_high"), round(nodule.mean_diameter.high, 1), mm),
        number(own("confidence"), round(100.0 * nodule.confidence, 1), percent),
        number(own("spiculation"), round(nodule.spiculation, 1), codes.UCUM.NoUnits),
        number(own("lobulation"), round(nodule.lobulation, 1), codes.UCUM.NoUnits),
        number(own("calcified"), round(100.0 * nodule.calcified, 1), percent),
    ]
    if nodule.malignancy is not None:
        measurements.append(number(own("malignancy"), round(100.0 * nodule.malignancy, 1), percent))
    if nodule.cancer is not None:
        bounds = {"cancer_low": nodule.cancer.low, "cancer_high": nodule.cancer.high}
        measurements += [number(own(key), round(100.0 * v, 1), percent) for key, v in bounds.items()]
    evaluations = [
        hd.sr.QualitativeEvaluation(own("assessment"), own(nodule.assessment)),
        hd.sr.QualitativeEvaluation(own("texture"), own(nodule.texture)),
        hd.sr.QualitativeEvaluation(own("zone"), own(nodule.zone)),
    ]
    evaluations += [hd.sr.QualitativeEvaluation(own("lung_rads"), free(f"LR{c}", c)) for c in nodule.lung_rads]
    for i, advice in enumerate(nodule.fleischner, start=1):
        evaluations.append(hd.sr.QualitativeEvaluation(own("fleischner"), free(f"FL{i}", advice)))
    if change is not None:
        evaluations.append(hd.sr.QualitativeEvaluation(own("since_prior"), own(_growth_word(change))))
        evaluations += (
            []
            if change.prior is None
            else [hd.sr.QualitativeEvaluation(own("prior_name"), free("PRIOR", change.prior))]
        )
        if (g := change.growth) is not None:
            shares = {"change": g.change, "change_low": g.change_low, "change_high": g.change_high}
            measurements += [number(own(key), round(100.0 * v, 1), percent) for key, v in shares.items()]
            if g.doubling_days is not None:
                measurements.append(number(own("doubling"), round(g.doubling_days, 1), codes.UCUM.Day))
    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(identity.nodule(nodule.number), f"Nodule {nodule.number}"),
        referenced_segment=hd.sr.ReferencedSegment.from_segmentation(segmentation, segment_number=segment),
        finding_type=sct("nodule"),
        finding_category=sct("abnormal"),
        algorithm_id=hd.sr.AlgorithmIdentification(detection.model, detection.model_digest[:16]),
        finding_sites=[hd.sr.FindingSite(sct("lung"), laterality=sct(nodule.side))],
        measurements=measurements,
        qualitative_evaluations=evaluations,
    )
    # the point by which viewers jump to the nodule
    group[0].ContentSequence.append(
        hd.sr.Scoord3DContentItem(
            name=codes.DCM.Center,
            graphic_type=hd.sr.GraphicTypeValues3D.POINT,
            graphic_data=np.array([m.centre]),
            frame_of_reference_uid=str(series.first.FrameOfReferenceUID),
            relationship_type="CONTAINS",
        )
    )
    return group


def _growth_word(change: Change) -> str:
    if change.growth is None:
        return "new"
    return "grown" if change.growth.grown or change.growth.lung_rads_growth else "not_grown"


def _result(detection: Detection, identity: Identity) -> Any:
    """The result as a group of its own, so that "none found" is a statement and not an absence."""
    import highdicom as hd

    kinds = {n.assessment for n in detection.nodules}
    result = "nodules_found" if "nodule" in kinds else "only_uncertain" if kinds else "none_found"
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(identity.uid("result"), "Result"),
        algorithm_id=hd.sr.AlgorithmIdentification(detection.model, detection.model_digest[:16]),
        finding_sites=[hd.sr.FindingSite(sct("lung"))],
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(own("result"), own(result))],
    )


@dataclass(frozen=True)
class Reported:
    """One nodule as the report says it."""

    name: str
    tracking_uid: str
    segment: int
    centre: tuple[float, float, float]
    numbers: dict[str, float]
    words: dict[str, tuple[str, ...]]
    side: str


@dataclass(frozen=True)
class ReadReport:
    """What a report says: the result and the nodules."""

    result: str
    model: str
    nodules: tuple[Reported, ...]


NUMBERS = {
    "118565006": "volume_mm3",
    "103339001": "long_mm",
    "103340004": "short_mm",
    "81827009": "mean_diameter_mm",
    "VOLUME_LOW": "volume_low_mm3",
    "VOLUME_HIGH": "volume_high_mm3",
    "DIAMETER_LOW": "mean_diameter_low_mm",
    "DIAMETER_HIGH": "mean_diameter_high_mm",
    "CONFIDENCE": "confidence_percent",
    "MALIGNANCY": "malignancy_percent",
    "SPICULATION": "spiculation_rating",
    "LOBULATION": "lobulation_rating",
    "CALCIFIED": "calcified_percent",
    "CANCER_LOW": "cancer_low_percent",
    "CANCER_HIGH": "cancer_high_percent",
    "CHANGE": "volume_change_percent",
    "CHANGE_LOW": "volume_change_low_percent",
    "CHANGE_HIGH": "volume_change_high_percent",
    "DOUBLING": "doubling_days",
}
WORDS = {own_key.replace("-", "_").upper()[:16]: own_key for own_key in OWN}


def read_report(dataset: Any) -> ReadReport:
    """Walk the content tree of a report that `make_report` made."""
    nodules, result, model = [], "", ""
    for group in _named(dataset, "125007"):
        reported = _read_group(group)
        if "result" in reported.words:
            result = reported.words["result"][0]
            model = next((str(i.TextValue) for i in _named(group, "111001")), "")
        else:
            nodules.append(reported)
    return ReadReport(result, model, tuple(nodules))


def _named(item: Any, code: str) -> Iterator[Any]:
    for child in item.get("ContentSequence", ()):
        if "ConceptNameCodeSequence" in child and child.ConceptNameCodeSequence[0].CodeValue == code:
            yield child
        yield from _named(child, code)


def _read_group(group: Any) -> Reported:
    numbers: dict[str, float] = {}
    words: dict[str, tuple[str, ...]] = {}
    centre, segment, side = (0.0, 0.0, 0.0), 0, ""
    name = tracking = ""
    for child in group.ContentSequence:
        code = child.ConceptNameCodeSequence[0].CodeValue if "ConceptNameCodeSequence" in child else ""
        kind = child.ValueType
        if kind == "NUM" and code in NUMBERS:
            numbers[NUMBERS[code]] = float(child.MeasuredValueSequence[0].NumericValue)
        elif kind == "CODE" and child.ConceptNameCodeSequence[0].CodingSchemeDesignator == SCHEME:
            value = child.ConceptCodeSequence[0]
            word = WORDS.get(value.CodeValue, "")
            key = WORDS[code]
            words[key] = (*words.get(key, ()), word or str(value.CodeMeaning))
        elif kind == "SCOORD3D":
            x, y, z = (float(v) for v in child.GraphicData)
            centre = (x, y, z)
        elif kind == "IMAGE" and "ReferencedSegmentNumber" in child.ReferencedSOPSequence[0]:
            segment = _first(child.ReferencedSOPSequence[0].ReferencedSegmentNumber)
        elif code == "112039":
            name = str(child.TextValue)
        elif code == "112040":
            tracking = str(child.UID)
        elif code == "363698007" and "ContentSequence" in child:
            side = str(child.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning).lower()
    return Reported(name, tracking, segment, centre, numbers, words, side)


def _first(value: Any) -> int:
    return int(value[0]) if isinstance(value, Sequence) and not isinstance(value, str) else int(value)

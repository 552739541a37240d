"""What the headers of a series must say before anything is computed from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from solutions.medical_imaging.codes import Report

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
DEFAULT_SYNTAX = "1.2.840.10008.1.2"
LOSSY_SYNTAXES = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91, 93, 203))
LEAST_SLICES = 20
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
TYPE_2 = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime")
TYPE_2_MORE = (
    "AccessionNumber",
    "ReferringPhysicianName",
    "SeriesNumber",
    "Manufacturer",
    "PositionReferenceIndicator",
)
CHEST_WORDS = ("CHEST", "THORAX", "LUNG", "TORSO", "BODY", "TAP", "CAP", "WHOLE", "PULM", "HEART", "CARDIAC", "MEDIAST")


@dataclass
class Slice:
    """One image as it was read. `dropped` images are left out with a record."""

    dataset: Any
    place: str
    marked: bool
    size: int
    dropped: bool = False

    @property
    def uid(self) -> str:
        return str(self.dataset.get("SOPInstanceUID", "")) or self.place

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """`count` finite numbers of a tag, or None."""
        try:
            raw = self.dataset.get(name)
            values = [float(raw)] if count == 1 and raw is not None else [float(v) for v in raw or ()]
        except (TypeError, ValueError):
            return None
        return tuple(values) if len(values) == count and all(math.isfinite(v) for v in values) else None


def text(dataset: Any, name: str) -> str:
    value = dataset.get(name)
    return "" if value is None else str(value)


def is_localiser(dataset: Any) -> bool:
    kinds = dataset.get("ImageType") or []
    return "LOCALIZER" in ([kinds] if isinstance(kinds, str) else list(kinds))


def choose_series(slices: list[Slice], series_uid: str, report: Report) -> list[Slice]:
    """The images of one series. Series of localisers alone are left out; of several others the caller must choose."""
    if not slices:
        return []
    groups: dict[str, list[Slice]] = {}
    for s in slices:
        groups.setdefault(text(s.dataset, "SeriesInstanceUID"), []).append(s)
    known = ", ".join(f"{uid or 'without UID'} ({len(group)})" for uid, group in groups.items())
    if series_uid:
        if series_uid not in groups:
            report.add("refuse", "SERIES_UNKNOWN", f"there are {known}", groups)
        return groups.get(series_uid, [])
    real = {uid: group for uid, group in groups.items() if not all(is_localiser(s.dataset) for s in group)}
    if len(real) > 1:
        report.add("refuse", "SEVERAL_SERIES", f"{len(real)} series: {known}", real)
        return []
    if real and len(groups) > 1:
        report.add("note", "LOCALISER_DROPPED", f"{len(groups) - 1} series of localisers")
    return next(iter(real.values())) if real else slices


def check_headers(slices: list[Slice], report: Report) -> None:
    """Every check that needs no pixels and no neighbours."""
    if not slices:
        return
    report.series_uid = text(slices[0].dataset, "SeriesInstanceUID")
    _localisers(slices, report)
    slices = [s for s in slices if not s.dropped]
    for check in (_kind, _uids, _one_of_each, _pixels, _rescale, _syntax, _type_2):
        check(slices, report)
    if report.refused:
        return
    _copies(slices, report)
    slices = [s for s in slices if not s.dropped]
    _count(slices, report)


def _where(slices: Iterable[Slice], wrong: Callable[[Slice], bool]) -> list[str]:
    return [s.uid for s in slices if wrong(s)]


def _localisers(slices: list[Slice], report: Report) -> None:
    found = [s for s in slices if is_localiser(s.dataset)]
    if len(found) == len(slices):
        report.add("refuse", "LOCALISER", f"all {len(slices)} images are localisers")
    elif found:
        for s in found:
            s.dropped = True
        report.add("repair", "LOCALISER_DROPPED", f"{len(found)} of {len(slices)} images", [s.uid for s in found])


def _kind(slices: list[Slice], report: Report) -> None:
    def refuse(code: str, detail: str, wrong: Callable[[Slice], bool]) -> None:
        if uids := _where(slices, wrong):
            report.add("refuse", code, detail, uids)

    def sop(s: Slice) -> str:
        return text(s.dataset, "SOPClassUID")

    refuse("NOT_CT", "Modality is not CT", lambda s: text(s.dataset, "Modality") != "CT")
    refuse(
        "MULTIFRAME",
        "images of more than one frame",
        lambda s: sop(s) == ENHANCED_CT or (s.numbers("NumberOfFrames", 1) or (1.0,))[0] > 1,
    )
    refuse("SECONDARY", "SOPClassUID is not CT Image Storage", lambda s: sop(s) not in (CT, ENHANCED_CT))
    refuse(
        "COLOUR",
        "SamplesPerPixel is not 1",
        lambda s: (
            text(s.dataset, "SamplesPerPixel") not in ("1", "")
            or text(s.dataset, "PhotometricInterpretation").startswith(("RGB", "YBR", "PALETTE"))
        ),
    )
    refuse(
        "INVERTED",
        "PhotometricInterpretation is MONOCHROME1",
        lambda s: text(s.dataset, "PhotometricInterpretation") == "MONOCHROME1",
    )
    parts = {text(s.dataset, "BodyPartExamined").upper() for s in slices} - {""}
    if parts and not any(word in part for part in parts for word in CHEST_WORDS):
        report.add("refuse", "BODY_PART", "BodyPartExamined names another part of the body")


def _uids(slices: list[Slice], report: Report) -> None:
    from pydicom.uid import UID

    for name in UIDS:
        if uids := _where(slices, lambda s, n=name: not text(s.dataset, n)):  # type: ignore[misc]
            report.add("refuse", "UID_MISSING", f"{name} is missing in {len(uids)} images", uids)
        bad = _where(slices, lambda s, n=name: bool(text(s.dataset, n)) and not UID(text(s.dataset, n)).is_valid)  # type: ignore[misc]
        if bad:
            report.add("refuse", "UID_INVALID", f"{name} is no valid UID in {len(bad)} images", bad)


def _one_of_each(slices: list[Slice], report: Report) -> None:
    """What must be the same in all images; the images that differ from most are named."""
    for name, code in (
        ("PatientID", "SEVERAL_PATIENTS"),
        ("PatientName", "SEVERAL_PATIENTS"),
        ("StudyInstanceUID", "SEVERAL_STUDIES"),
        ("FrameOfReferenceUID", "SEVERAL_FRAMES"),
        ("Rows", "MATRIX_DIFFERS"),
        ("Columns", "MATRIX_DIFFERS"),
    ):
        values = Counter(text(s.dataset, name) for s in slices)
        if len(values) > 1 and code not in report.codes:
            usual = values.most_common(1)[0][0]
            uids = _where(slices, lambda s, n=name, u=usual: text(s.dataset, n) != u)  # type: ignore[misc]
            report.add("refuse", code, f"{name} has {len(values)} values", uids)


def _pixels(slices: list[Slice], report: Report) -> None:
    def broken(s: Slice) -> bool:
        allocated, stored = s.numbers("BitsAllocated", 1), s.numbers("BitsStored", 1)
        high, sign = s.numbers("HighBit", 1), s.numbers("PixelRepresentation", 1)
        if allocated is None or stored is None or sign is None or allocated[0] not in (8.0, 16.0, 32.0):
            return True
        return not (1 <= stored[0] <= allocated[0] and (high is None or high[0] == stored[0] - 1) and sign[0] in (0, 1))

    def empty(s: Slice) -> bool:
        return any((s.numbers(name, 1) or (0.0,))[0] < 16 for name in ("Rows", "Columns"))

    if uids := _where(slices, broken):
        report.add(
            "refuse", "BITS_INVALID", "BitsAllocated, BitsStored, HighBit and PixelRepresentation disagree", uids
        )
    if uids := _where(slices, empty):
        report.add("refuse", "MATRIX_DIFFERS", "Rows or Columns are missing or below 16", uids)


def _rescale(slices: list[Slice], report: Report) -> None:
    for name in ("RescaleSlope", "RescaleIntercept"):
        if uids := _where(slices, lambda s, n=name: not text(s.dataset, n)):  # type: ignore[misc]
            report.add("refuse", "RESCALE_MISSING", f"{name} is missing in {len(uids)} images", uids)
        elif uids := _where(slices, lambda s, n=name: s.numbers(n, 1) is None):  # type: ignore[misc]
            report.add("refuse", "RESCALE_INVALID", f"{name} is no number in {len(uids)} images", uids)
    if report.refused:
        return
    if uids := _where(slices, lambda s: (s.numbers("RescaleSlope", 1) or (0.0,))[0] <= 0.0):
        report.add("refuse", "RESCALE_INVALID", "RescaleSlope is not above 0", uids)
    pairs = Counter((s.numbers("RescaleSlope", 1), s.numbers("RescaleIntercept", 1)) for s in slices)
    if len(pairs) > 1:
        usual = pairs.most_common(1)[0][0]
        uids = _where(slices, lambda s: (s.numbers("RescaleSlope", 1), s.numbers("RescaleIntercept", 1)) != usual)
        report.add("repair", "RESCALE_VARIES", f"{len(pairs)} pairs of rescale values", uids)


def _syntax(slices: list[Slice], report: Report) -> None:
    bare = [s for s in slices if not text(getattr(s.dataset, "file_meta", {}), "TransferSyntaxUID")]
    for s in bare:
        from pydicom.dataset import FileMetaDataset

        s.dataset.file_meta = FileMetaDataset()
        s.dataset.file_meta.TransferSyntaxUID = DEFAULT_SYNTAX
    if bare:
        report.add("repair", "NO_PREAMBLE", f"{len(bare)} files without a file header", [s.uid for s in bare])

    def lossy(s: Slice) -> bool:
        return (
            text(s.dataset.file_meta, "TransferSyntaxUID") in LOSSY_SYNTAXES
            or text(s.dataset, "LossyImageCompression") == "01"
        )

    if uids := _where(slices, lossy):
        report.add("refuse", "LOSSY", f"{len(uids)} images were compressed with losses", uids)


def _type_2(slices: list[Slice], report: Report) -> None:
    """Tags that must be there but may be empty: exports copy them."""
    added: Counter[str] = Counter()
    for s in slices:
        for name in (*TYPE_2, *TYPE_2_MORE):
            if name not in s.dataset:
                setattr(s.dataset, name, None)
                added[name] += 1
    if missing := [name for name in TYPE_2 if added[name]]:
        report.add("repair", "TYPE_2_MISSING", f"{', '.join(missing)} were absent")


def _copies(slices: list[Slice], report: Report) -> None:
    """The same file twice is left out; two images with one UID are not told apart."""
    seen: dict[str, Slice] = {}
    copies: list[Slice] = []
    clashes: list[Slice] = []
    for s in slices:
        other = seen.setdefault(text(s.dataset, "SOPInstanceUID"), s)
        if other is s:
            continue
        same = s.dataset.get("PixelData") == other.dataset.get("PixelData") and text(
            s.dataset, "ImagePositionPatient"
        ) == text(other.dataset, "ImagePositionPatient")
        (copies if same else clashes).append(s)
    for s in copies:
        s.dropped = True
    if copies:
        report.add("repair", "DUPLICATE_FILE", f"{len(copies)} copies", [s.uid for s in copies])
    if clashes:
        report.add("refuse", "DUPLICATE_UID", f"{len(clashes)} images", [s.uid for s in clashes])


def _count(slices: list[Slice], report: Report) -> None:
    if len(slices) < LEAST_SLICES:
        report.add("refuse", "TOO_FEW_SLICES", f"{len(slices)} slices, expected at least {LEAST_SLICES}")
    for name in ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances"):
        announced = {int(n[0]) for s in slices if (n := s.numbers(name, 1)) is not None}
        # one acquisition may fill several series, so fewer are no contradiction
        if len(announced) == 1 and (n_slices := announced.pop()) > len(slices) and name not in ("ImagesInAcquisition",):
            report.add("refuse", "COUNT", f"{len(slices)} images, {name} says {n_slices}")

"""Faults that series arrive with, each made from the same clean phantom, and what the gate must say."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solutions.medical_imaging.phantom import write_series

Mutate = Callable[[list[Any]], list[Any]]
Write = Callable[[list[Any], Path], None]


@dataclass(frozen=True)
class Fault:
    """What is done to the data sets (or to the written folder), and the verdict and code that must follow."""

    name: str
    verdict: str
    code: str
    mutate: Mutate = list
    write: Write | None = None


def every(**values: Any) -> Mutate:
    """Set tags of all images; None removes the tag."""
    return lambda sets: [_set(ds, values) for ds in sets]


def one(index: int = 7, **values: Any) -> Mutate:
    """Set tags of one image."""
    return lambda sets: [_set(ds, values) if i == index else ds for i, ds in enumerate(sets)]


def _set(ds: Any, values: dict[str, Any]) -> Any:
    for name, value in values.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    return ds


def _pixels(change: Callable[[np.ndarray], np.ndarray], only: set[int] | None = None) -> Mutate:
    def mutate(sets: list[Any]) -> list[Any]:
        for i, ds in enumerate(sets):
            if only is None or i in only:
                ds.PixelData = change(np.frombuffer(ds.PixelData, "<i2").copy()).astype("<i2").tobytes()
        return sets

    return mutate


def _move(change: Callable[[int, list[float]], list[float]]) -> Mutate:
    def mutate(sets: list[Any]) -> list[Any]:
        for i, ds in enumerate(sets):
            ds.ImagePositionPatient = change(i, [float(v) for v in ds.ImagePositionPatient])
        return sets

    return mutate


def _duplicate(sets: list[Any], *, uid: str | None = None, change: bool = False) -> list[Any]:
    twin = copy.deepcopy(sets[9])
    if uid is not None:
        twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = uid
    if change:
        twin.PixelData = twin.PixelData[::-1]
    return [*sets, twin]


def _second_series(sets: list[Any]) -> list[Any]:
    more = [copy.deepcopy(ds) for ds in sets[:25]]
    for i, ds in enumerate(more):
        ds.SeriesInstanceUID = "2.25.777"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.777.{i}"
    return [*sets, *more]


def _localiser_series(sets: list[Any]) -> list[Any]:
    scout = copy.deepcopy(sets[0])
    scout.SeriesInstanceUID, scout.ImageType = "2.25.778", ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = "2.25.778.1"
    return [*sets, scout]


def _localiser_inside(sets: list[Any]) -> list[Any]:
    scout = _localiser_series(sets)[-1]
    scout.SeriesInstanceUID = sets[0].SeriesInstanceUID
    return [*sets, scout]


def _without(*gone: int) -> Mutate:
    return lambda sets: [ds for i, ds in enumerate(sets) if i not in gone]


def _every_second(sets: list[Any]) -> list[Any]:
    return sets[::2]


def _renumber_reversed(sets: list[Any]) -> list[Any]:
    for i, ds in enumerate(sets):
        ds.InstanceNumber = len(sets) - i
    return sets


def _renumber_shuffled(sets: list[Any]) -> list[Any]:
    order = np.random.default_rng(1).permutation(len(sets))
    for i, ds in enumerate(sets):
        ds.InstanceNumber = int(order[i]) + 1
    return sets


def _rescale_per_slice(sets: list[Any]) -> list[Any]:
    """Other stored values, the same densities: legal, and must be read slice by slice."""
    for i, ds in enumerate(sets):
        if i % 2:
            stored = np.frombuffer(ds.PixelData, "<i2") - 200
            ds.PixelData, ds.RescaleIntercept = stored.astype("<i2").tobytes(), -824
    return sets


def _truncate_pixels(sets: list[Any]) -> list[Any]:
    sets[11].PixelData = sets[11].PixelData[: len(sets[11].PixelData) // 2]
    return sets


def _as_zip(sets: list[Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        for i, ds in enumerate(sets):
            buffer = io.BytesIO()
            ds.save_as(buffer, enforce_file_format=True)
            archive.writestr(f"a/b/{i:03d}", buffer.getvalue())


def _nested(sets: list[Any], folder: Path) -> None:
    write_series(sets[::2], folder / "one" / "two")
    write_series(sets[1::2], folder / "three")


def _with_strays(sets: list[Any], folder: Path) -> None:
    write_series(sets, folder)
    (folder / "readme.txt").write_text("not an image")
    (folder / "DICOMDIR").write_bytes(b"x" * 200)


def _no_preamble(sets: list[Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, ds in enumerate(sets):
        del ds.file_meta
        with (folder / f"{i:03d}").open("wb") as file:
            from pydicom.filewriter import write_dataset

            buffer = io.BytesIO()
            from pydicom.filebase import DicomIO

            stream = DicomIO(buffer)
            stream.is_little_endian, stream.is_implicit_VR = True, True
            write_dataset(stream, ds)
            file.write(buffer.getvalue())


def _cut_file(sets: list[Any], folder: Path) -> None:
    write_series(sets, folder)
    path = sorted(folder.iterdir())[5]
    path.write_bytes(path.read_bytes()[:300])


def _cut_pixels_on_disk(sets: list[Any], folder: Path) -> None:
    write_series(sets, folder)
    path = sorted(folder.iterdir())[5]
    path.write_bytes(path.read_bytes()[:-3000])


def _broken_zip(sets: list[Any], folder: Path) -> None:
    _as_zip(sets, folder)
    path = folder / "study.zip"
    path.write_bytes(path.read_bytes()[:-4000])


def _empty(_: list[Any], folder: Path) -> None:
    folder.mkdir(parents=True)


def _only_text(_: list[Any], folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("nothing to see")


def _wrong_syntax(sets: list[Any]) -> list[Any]:
    """Declared JPEG-LS, but the bytes are raw."""
    from pydicom.encaps import encapsulate

    for ds in sets:
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"
        ds.PixelData = encapsulate([ds.PixelData])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    return sets


def _tilt(i: int, p: list[float]) -> list[float]:
    return [p[0], p[1] + i * 5.0 * float(np.tan(np.radians(2.4))), p[2]]


def _bump(at: int, by: tuple[float, float, float]) -> Mutate:
    return _move(lambda i, p: [a + b for a, b in zip(p, by, strict=True)] if i == at else p)


REFUSED = "refuse"
FAULTS = (
    Fault("empty folder", REFUSED, "NO_FILES", write=_empty),
    Fault("folder without DICOM", REFUSED, "NO_IMAGES", write=_only_text),
    Fault("broken zip", REFUSED, "ZIP_BROKEN", write=_broken_zip),
    Fault("file cut within its header", REFUSED, "FILE_UNREADABLE", write=_cut_file),
    Fault("file cut within its pixels", REFUSED, "PIXELS_TRUNCATED", write=_cut_pixels_on_disk),
    Fault("two series", REFUSED, "SEVERAL_SERIES", _second_series),
    Fault("two patients", REFUSED, "SEVERAL_PATIENTS", one(PatientID="OTHER")),
    Fault("two names", REFUSED, "SEVERAL_PATIENTS", one(PatientName="OTHER")),
    Fault("two studies", REFUSED, "SEVERAL_STUDIES", one(StudyInstanceUID="2.25.5")),
    Fault("two frames of reference", REFUSED, "SEVERAL_FRAMES", one(FrameOfReferenceUID="2.25.6")),
    Fault("MR", REFUSED, "NOT_CT", every(Modality="MR")),
    Fault("secondary capture", REFUSED, "SECONDARY", every(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")),
    Fault("enhanced CT", REFUSED, "MULTIFRAME", every(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")),
    Fault("several frames", REFUSED, "MULTIFRAME", one(NumberOfFrames=2)),
    Fault("localisers only", REFUSED, "LOCALISER", every(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    Fault("colour", REFUSED, "COLOUR", every(SamplesPerPixel=3, PhotometricInterpretation="RGB")),
    Fault("inverted", REFUSED, "INVERTED", every(PhotometricInterpretation="MONOCHROME1")),
    Fault("ten slices", REFUSED, "TOO_FEW_SLICES", lambda sets: sets[:10]),
    Fault("announced count", REFUSED, "COUNT", every(NumberOfSeriesRelatedInstances="90")),
    Fault("one slice missing", REFUSED, "GAP", _without(20)),
    Fault("five slices missing", REFUSED, "GAP", _without(12, 13, 14, 15, 16)),
    Fault("every second slice missing", REFUSED, "GAP", _every_second),
    Fault("same UID, other pixels", REFUSED, "DUPLICATE_UID", lambda sets: _duplicate(sets, change=True)),
    Fault("same position, other UID", REFUSED, "DUPLICATE_POSITION", lambda sets: _duplicate(sets, uid="2.25.8.8")),
    Fault(
        "uneven spacing", REFUSED, "SPACING_UNEVEN", _move(lambda i, p: [p[0], p[1], p[2] + (1.0 if i % 3 else 0.0)])
    ),
    Fault("two spacings", REFUSED, "SPACING_UNEVEN", _move(lambda i, p: [p[0], p[1], p[2] + max(0, i - 30) * 1.0])),
    Fault("8 mm slices", REFUSED, "THICK_SLICES", _move(lambda i, p: [p[0], p[1], p[2] * 1.6])),
    Fault("gantry tilt of 2.4 degrees", REFUSED, "TILT", _move(_tilt)),
    Fault("one slice shifted", REFUSED, "SHIFTED", _bump(15, (3.0, 0.0, 0.0))),
    Fault("no position", REFUSED, "POSITION_MISSING", one(ImagePositionPatient=None)),
    Fault("two numbers of three", REFUSED, "POSITION_INVALID", one(ImagePositionPatient=[1.0, 2.0])),
    Fault("no orientation", REFUSED, "ORIENTATION_MISSING", one(ImageOrientationPatient=None)),
    Fault(
        "skewed orientation", REFUSED, "ORIENTATION_INVALID", every(ImageOrientationPatient=[1, 0, 0, 0.5, 0.866, 0])
    ),
    Fault("zero orientation", REFUSED, "ORIENTATION_INVALID", every(ImageOrientationPatient=[0, 0, 0, 0, 0, 0])),
    Fault("one slice turned", REFUSED, "ORIENTATION_DIFFERS", one(ImageOrientationPatient=[0, 1, 0, -1, 0, 0])),
    Fault("one slice flipped", REFUSED, "ORIENTATION_DIFFERS", one(ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])),
    Fault("coronal", REFUSED, "NOT_AXIAL", every(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
    Fault("no pixel spacing", REFUSED, "PIXEL_SPACING_MISSING", every(PixelSpacing=None)),
    Fault("pixel spacing 0", REFUSED, "PIXEL_SPACING_INVALID", every(PixelSpacing=[0.0, 0.0])),
    Fault("one field of view differs", REFUSED, "PIXEL_SPACING_DIFFERS", one(PixelSpacing=[2.0, 2.0])),
    Fault("pixel spacing halved", REFUSED, "LUNG_SIZE", every(PixelSpacing=[1.4, 1.4])),
    Fault("one matrix differs", REFUSED, "MATRIX_DIFFERS", one(Rows=64)),
    Fault("no slope", REFUSED, "RESCALE_MISSING", every(RescaleSlope=None)),
    Fault("no intercept in one slice", REFUSED, "RESCALE_MISSING", one(RescaleIntercept=None)),
    Fault("slope 0", REFUSED, "RESCALE_INVALID", every(RescaleSlope=0)),
    Fault("intercept 0", REFUSED, "HU_AIR", every(RescaleIntercept=0)),
    Fault("slope 2", REFUSED, "HU_TISSUE", every(RescaleSlope=2)),
    Fault("intercept of one slice", REFUSED, "HU_SLICE", one(RescaleIntercept=-800)),
    Fault("bits stored above allocated", REFUSED, "BITS_INVALID", every(BitsStored=24, HighBit=23)),
    Fault("lossy flag", REFUSED, "LOSSY", every(LossyImageCompression="01")),
    Fault("pixels are no JPEG-LS", REFUSED, "PIXELS_UNDECODABLE", _wrong_syntax),
    Fault("no pixels in one slice", REFUSED, "PIXELS_MISSING", one(PixelData=None)),
    Fault("half of the pixels", REFUSED, "PIXELS_TRUNCATED", _truncate_pixels),
    Fault("one empty frame", REFUSED, "FRAME_CONSTANT", _pixels(np.zeros_like, {18})),
    Fault("swapped bytes", REFUSED, "HU_AIR", _pixels(lambda p: p.byteswap())),
    Fault("head", REFUSED, "BODY_PART", every(BodyPartExamined="HEAD")),
    Fault("no lungs", REFUSED, "NO_LUNGS", _pixels(lambda p: np.where((p > 100) & (p < 400), 1060, p))),
    Fault("half of the chest", REFUSED, "LUNGS_CUT", lambda sets: sets[: len(sets) // 2]),
    Fault("no study UID", REFUSED, "UID_MISSING", every(StudyInstanceUID=None)),
    Fault("no frame of reference", REFUSED, "UID_MISSING", every(FrameOfReferenceUID=None)),
    Fault("UID with letters", REFUSED, "UID_INVALID", every(SeriesInstanceUID="1.2.abc")),
    Fault("copy of a file", "repair", "DUPLICATE_FILE", _duplicate),
    Fault("localiser in the series", "repair", "LOCALISER_DROPPED", _localiser_inside),
    Fault("no instance numbers", "repair", "INSTANCE_NUMBER", every(InstanceNumber=None)),
    Fault("one instance number for all", "repair", "INSTANCE_NUMBER", every(InstanceNumber=1)),
    Fault("instance numbers shuffled", "repair", "INSTANCE_NUMBER", _renumber_shuffled),
    Fault("no birth date", "repair", "TYPE_2_MISSING", every(PatientBirthDate=None)),
    Fault("no slice thickness", "repair", "SPACING_TAG", every(SliceThickness=None)),
    Fault("wrong SpacingBetweenSlices", "repair", "SPACING_TAG", every(SpacingBetweenSlices=2.5)),
    Fault("rescale values per slice", "repair", "RESCALE_VARIES", _rescale_per_slice),
    Fault("no file header", "repair", "NO_PREAMBLE", write=_no_preamble),
)
CLEAN = (
    Fault("as written", "accept", ""),
    Fault("numbered from above", "accept", "", _renumber_reversed),
    Fault("files in another order", "accept", "", lambda sets: sets[::-1]),
    Fault("zip", "accept", "", write=_as_zip),
    Fault("nested folders", "accept", "", write=_nested),
    Fault("stray files", "accept", "STRAY_FILES", write=_with_strays),
    Fault("localiser series beside it", "accept", "LOCALISER_DROPPED", _localiser_series),
    Fault("empty body part", "accept", "", every(BodyPartExamined="")),
)

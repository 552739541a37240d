"""The gate before the model: a series is accepted, repaired with a record, or refused with a cause. Never read in part."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.codes import RefusedError, Report
from solutions.medical_imaging.files import Blob, collect
from solutions.medical_imaging.geometry import Volume
from solutions.medical_imaging.headers import Slice, check_headers, choose_series
from solutions.medical_imaging.lungs import Lungs, find_lungs
from solutions.medical_imaging.placement import place

LOWEST_HU, HIGHEST_HU = -1024, 3071  # outside the field scanners write -2000 to -3024; metal may exceed the top
AIR_RANGE = (-1150.0, -850.0)
TISSUE_RANGE = (-60.0, 110.0)
SLICE_JUMP = 120.0  # HU between the tissue of a slice and of the series


@dataclass(frozen=True)
class Series:
    """An accepted series: ascending along the slice normal, headers without pixels, one geometry."""

    volume: Volume
    headers: tuple[Any, ...]
    lungs: Lungs
    report: Report

    @property
    def first(self) -> Any:
        return self.headers[0]


def check(path: Path, series_uid: str = "") -> tuple[Report, Series | None]:
    """Read a folder, zip file or file and judge it; the series is None when it is refused."""
    report = Report()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        series = _check(path, series_uid, report)
    return report, None if report.refused else series


def open_series(path: Path, series_uid: str = "") -> Series:
    """The series, or RefusedError with the report."""
    report, series = check(path, series_uid)
    if series is None:
        raise RefusedError(report)
    return series


def _check(path: Path, series_uid: str, report: Report) -> Series | None:
    blobs = collect(path, report)
    slices = parse(blobs, report)
    slices = choose_series(slices, series_uid, report)
    if report.refused:
        return None
    check_headers(slices, report)
    slices = [s for s in slices if not s.dropped]
    report.slices = len(slices)
    if report.refused or not slices:
        return None
    placed = place(slices, report)
    if placed is None or report.refused:
        return None
    hu = decode(placed.slices, report)
    if hu is None or report.refused:
        return None
    volume = Volume(hu, placed.geometry)
    check_densities(volume, placed.slices, report)
    if report.refused:
        return None
    lungs = find_lungs(volume)
    if lungs.failure is not None:
        report.add("refuse", *lungs.failure)
        return None
    headers = []
    for s in placed.slices:
        del s.dataset.PixelData
        headers.append(s.dataset)
    return Series(volume, tuple(headers), lungs, report)


def parse(blobs: list[Blob], report: Report) -> list[Slice]:
    """Data sets of all blobs that are DICOM images."""
    import io

    from pydicom import dcmread

    slices, stray = [], 0
    for blob in blobs:
        marked = blob.data[128:132] == b"DICM"
        try:
            dataset = dcmread(io.BytesIO(blob.data), force=not marked)
            uid = str(dataset.get("SOPClassUID", ""))
            image = "PixelData" in dataset or "Rows" in dataset
        except Exception as error:  # whatever a parser trips over: the file is named, and the series refused
            if marked:
                report.add("refuse", "FILE_UNREADABLE", f"{blob.place} can not be parsed ({type(error).__name__})")
            else:
                stray += 1
            continue
        if marked and not uid and not image:
            report.add("refuse", "FILE_UNREADABLE", f"{blob.place} ends within its header")
        elif not image or (not marked and not uid):
            stray += 1
        else:
            slices.append(Slice(dataset, blob.place, marked, len(blob.data)))
    if stray:
        report.add("note", "STRAY_FILES", f"{stray} files are no DICOM images")
    if not slices and not report.refused:
        report.add("refuse", "NO_IMAGES", f"{len(blobs)} files, none of them a DICOM image")
    return slices


def decode(slices: list[Slice], report: Report) -> NDArray[np.int16] | None:
    """Hounsfield units of all slices, every slice with its own rescale values; None when one can not be decoded."""
    first = slices[0].dataset
    hu_ZYX = np.empty((len(slices), int(first.Rows), int(first.Columns)), np.int16)
    bad: dict[str, list[str]] = {}
    for z, s in enumerate(slices):
        stored, cause = _stored(s.dataset)
        if stored is None:
            bad.setdefault(cause, []).append(s.uid)
            continue
        if int(stored.min()) == int(stored.max()):
            bad.setdefault("FRAME_CONSTANT", []).append(s.uid)
            continue
        value = stored.astype(np.float32) * float(s.dataset.RescaleSlope) + float(s.dataset.RescaleIntercept)
        hu_ZYX[z] = np.rint(np.clip(value, LOWEST_HU, HIGHEST_HU)).astype(np.int16)
    for code, uids in bad.items():
        report.add("refuse", code, f"{len(uids)} of {len(slices)} slices", uids)
    return None if bad else hu_ZYX


def _stored(dataset: Any) -> tuple[NDArray[Any] | None, str]:
    from pydicom.uid import UID

    if "PixelData" not in dataset or not len(dataset.PixelData):
        return None, "PIXELS_MISSING"
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    expected = int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    if not syntax.is_compressed and len(dataset.PixelData) < expected:
        return None, "PIXELS_TRUNCATED"
    try:
        stored = np.asarray(dataset.pixel_array)
    except (NotImplementedError, RuntimeError) as error:
        missing = "missing" in str(error) or "no available" in str(error) or isinstance(error, NotImplementedError)
        return None, "SYNTAX" if missing and not _known(syntax) else "PIXELS_UNDECODABLE"
    except Exception:  # decoders raise anything on broken streams
        return None, "PIXELS_UNDECODABLE"
    if stored.shape != (int(dataset.Rows), int(dataset.Columns)):
        return None, "PIXELS_UNDECODABLE"
    return stored, ""


def _known(syntax: Any) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def check_densities(volume: Volume, slices: list[Slice], report: Report) -> None:
    """Air and soft tissue of the series, and of every slice, where they should be."""
    step = max(1, volume.hu_ZYX.shape[1] // 128)
    small = volume.hu_ZYX[:, ::step, ::step]
    air_Z, tissue_Z, has_Z = _peaks(small)
    with_air = air_Z[np.isfinite(air_Z)]
    air = float(np.median(with_air)) if len(with_air) else float("nan")
    if not AIR_RANGE[0] <= air <= AIR_RANGE[1]:
        what = "no air was found" if not np.isfinite(air) else f"air measures {air:.0f} HU"
        report.add("refuse", "HU_AIR", f"{what}, expected {AIR_RANGE[0]:.0f} to {AIR_RANGE[1]:.0f}")
        return
    tissue = float(np.median(tissue_Z[has_Z])) if has_Z.any() else float("nan")
    if not TISSUE_RANGE[0] <= tissue <= TISSUE_RANGE[1]:
        what = "no soft tissue was found" if not np.isfinite(tissue) else f"soft tissue measures {tissue:.0f} HU"
        report.add("refuse", "HU_TISSUE", f"{what}, expected {TISSUE_RANGE[0]:.0f} to {TISSUE_RANGE[1]:.0f}")
        return
    odd = ~has_Z | (np.abs(tissue_Z - tissue) > SLICE_JUMP) | (np.isfinite(air_Z) & (np.abs(air_Z - air) > SLICE_JUMP))
    if odd.any():
        uids = [slices[z].uid for z in np.flatnonzero(odd)]
        report.add("refuse", "HU_SLICE", f"{len(uids)} slices, tissue {tissue:.0f} HU in the others", uids)


def _peaks(hu_ZYX: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of every slice: the commonest density of air, that of soft tissue, and whether it has soft tissue.

    Padding at the very bottom is no air: scanners write it where they measured nothing.
    """
    edges = np.arange(-1020.0, 301.0, 10.0)
    centre = (edges[:-1] + edges[1:]) / 2
    counts = np.stack([np.histogram(s, edges)[0] for s in hu_ZYX]).astype(float)
    low, soft = centre < -700.0, (centre > -250.0) & (centre < 250.0)
    air_Z = np.where(counts[:, low].sum(1) > 0, centre[low][counts[:, low].argmax(1)], np.nan)
    # fat and muscle are two peaks; the one that matters is above -60
    muscle = (centre > -60.0) & (centre < 250.0)
    has_Z = counts[:, soft].sum(1) >= 0.02 * hu_ZYX[0].size
    tissue_Z = centre[muscle][counts[:, muscle].argmax(1)]
    return air_Z, tissue_Z, has_Z

"""Where the real data lie: complete scans, crops and annotations of LIDC-IDRI, unpacked on demand."""

from __future__ import annotations

import csv
import lzma
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from solutions.medical_imaging.crop import LungCrop, lung_crop
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.froc import Reference
from solutions.medical_imaging.gate import open_series
from solutions.medical_imaging.geometry import Geometry
from solutions.medical_imaging.lidc import SCAN_PATIENTS

ARCHIVES = {"0001": "LIDC-IDRI-0001.tar.xz", "0002": "LIDC-IDRI-0002.jpegls.tar", "0003": "LIDC-IDRI-0003.tar.xz"}
EXCLUDED_MM = 10.0  # LUNA16 lists excluded findings without a diameter: their places are ignored within this


@dataclass(frozen=True)
class LidcData:
    """The folder of CT data."""

    root: Path

    @classmethod
    def find(cls, data: Path) -> LidcData:
        """`data` or `data`/ct, whichever holds the crops."""
        for root in (data / "ct", data):
            if (root / "lidc_nodule_crops" / "nodules.csv").is_file():
                return cls(root)
        raise InputError("the data folder must hold ct/lidc_nodule_crops/nodules.csv. It does not.")

    @property
    def crops(self) -> Path:
        return self.root / "lidc_nodule_crops"

    def unpack(self, scan: str, into: Path) -> Path:
        """The DICOM files of a complete scan, below `into`."""
        folder = into / f"scan-{scan}"
        if not folder.is_dir():
            with tarfile.open(self.root / "lidc_idri_dicom" / ARCHIVES[scan]) as archive:
                archive.extractall(folder, filter="data")
        return folder

    def references(self, series_uid: str) -> tuple[list[Reference], list[Reference]]:
        """LUNA16's nodules of a series, and the findings that are neither right nor wrong."""
        folder = self.root / "annotations" / "luna16"
        with (folder / "annotations.csv").open() as file:
            nodules = [r for r in csv.DictReader(file) if r["seriesuid"] == series_uid]
        with lzma.open(folder / "annotations_excluded.csv.xz", "rt") as packed:
            excluded = [r for r in csv.DictReader(packed) if r["seriesuid"] == series_uid]
        return [_reference(r) for r in nodules], [_reference(r) for r in excluded]


def _reference(row: dict[str, str]) -> Reference:
    diameter = float(row["diameter_mm"])
    return Reference(
        (float(row["coordX"]), float(row["coordY"]), float(row["coordZ"])), diameter if diameter > 0 else EXCLUDED_MM
    )


@dataclass(frozen=True)
class RealScan:
    """The lungs of a complete scan on the working grid, LUNA16's nodules and every other marked place."""

    crop: LungCrop
    nodules: list[Reference]
    excluded: list[Reference]

    def avoid(self) -> list[tuple[float, float, float]]:
        """Indices on the working grid of the nodules and of the excluded findings."""
        places = [r.position for r in (*self.nodules, *self.excluded)]
        if not places:
            return []
        return [(float(z), float(y), float(x)) for z, y, x in self.crop.geometry.to_index(np.array(places))]


def load_scan(data: LidcData, scan: str, cache: Path) -> RealScan:
    """The lungs of a scan; they are kept in `cache`, so that a second call takes a second."""
    assert f"LIDC-IDRI-{scan}" in SCAN_PATIENTS
    kept = cache / f"lungs-{scan}.npz"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            series = open_series(data.unpack(scan, Path(scratch)))
        crop = lung_crop(series.volume, series.lungs)
        beside = kept.with_suffix(".partial.npz")
        g = crop.geometry
        np.savez(
            beside,
            hu=np.rint(crop.hu_ZYX).astype(np.int16),
            lung=crop.lung_ZYX,
            place=np.array([*g.origin, *g.spacing, *g.row_cosine, *g.column_cosine]),
            series_uid=series.report.series_uid,
        )
        beside.replace(kept)
    with np.load(kept) as stored:
        hu, lung, place, uid = (stored[name] for name in ("hu", "lung", "place", "series_uid"))
    origin, spacing, row, column = ((float(a), float(b), float(c)) for a, b, c in place.reshape(4, 3))
    geometry = Geometry(origin=origin, spacing=spacing, row_cosine=row, column_cosine=column, shape=lung.shape)
    return RealScan(LungCrop(hu.astype(np.float32), lung, geometry), *data.references(str(uid)))

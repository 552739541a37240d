"""A chest of our own making: body, lungs, vessels and nodules whose truth is known, as a volume and as a DICOM series.

Z slices, Y rows, X columns. The demo and the tests use it, since real scans may not be passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.geometry import HU, Geometry, Mask, Volume

F32 = NDArray[np.float32]
LUNGS = ((-68.0, 0.0, 0.0), (68.0, 0.0, 0.0))  # centres in mm
LUNG_AXES = (50.0, 78.0, 112.0)
BODY_AXES = (168.0, 118.0)
UID_ROOT = "2.25."


@dataclass(frozen=True)
class PhantomNodule:
    """Centre in mm from the middle of the chest (x to the left, y to the back, z to the head), and its make-up."""

    centre: tuple[float, float, float]
    diameter_mm: float
    hu: float = 40.0
    roughness: float = 0.12


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """Size of the phantom. 270 mm of chest lie around the lungs."""

    slices: int = 54
    side: int = 128
    spacing: tuple[float, float, float] = (5.0, 2.8, 2.8)
    nodules: tuple[PhantomNodule, ...] = ()
    vessels: int = 40
    noise_hu: float = 12.0
    seed: int = 0


@dataclass(frozen=True)
class Phantom:
    """The volume, and which voxels belong to which nodule (0: none, i: the i-th)."""

    volume: Volume
    labels_ZYX: NDArray[np.uint8]
    nodules: tuple[PhantomNodule, ...]


def make_phantom(settings: PhantomSettings) -> Phantom:
    """Draw the chest; the same settings give the same voxels."""
    rng = np.random.default_rng(settings.seed)
    geometry = _geometry(settings)
    shape = geometry.shape
    z, y, x = (_axis(n, s) for n, s in zip(shape, geometry.spacing, strict=True))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    hu = np.full(shape, -1000.0, np.float32)
    body = (x / BODY_AXES[0]) ** 2 + (y / BODY_AXES[1]) ** 2 + 0.0 * z
    hu[body < 1.0] = -95.0  # fat
    hu[body < 0.82] = 45.0  # muscle
    ribs = (body > 0.72) & (body < 0.79) & (np.abs((z + 0.25 * y) % 30.0 - 15.0) < 5.0)
    hu[ribs] = 420.0
    spine = ((x / 16.0) ** 2 + ((y - 78.0) / 15.0) ** 2 + 0.0 * z) < 1.0
    lung = np.zeros(shape, bool)
    for cx, cy, cz in LUNGS:
        ax, ay, az = LUNG_AXES
        inside = ((x - cx) / ax) ** 2 + ((y - cy) / ay) ** 2 + ((z - cz) / az) ** 2
        lung |= inside < 1.0
    hu[lung] = -860.0 + 25.0 * _texture(shape, rng)[lung]
    hu[spine] = 250.0
    _vessels(hu, lung, geometry, settings.vessels, rng)
    trachea = ((x / 8.0) ** 2 + ((y - 10.0) / 8.0) ** 2 + 0.0 * z < 1.0) & (z > 20.0)
    hu[trachea] = -1000.0
    labels = np.zeros(shape, np.uint8)
    for i, nodule in enumerate(settings.nodules, start=1):
        labels[_nodule(hu, nodule, (z, y, x), shape, rng)] = i
    hu += settings.noise_hu * rng.standard_normal(shape).astype(np.float32)
    stored = np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
    return Phantom(Volume(stored, geometry), labels, settings.nodules)


def _geometry(settings: PhantomSettings) -> Geometry:
    shape = (settings.slices, settings.side, settings.side)
    corner = [-(n - 1) / 2 * s for n, s in zip(shape, settings.spacing, strict=True)]
    return Geometry(
        origin=(corner[2], corner[1], corner[0]),
        spacing=settings.spacing,
        row_cosine=(1.0, 0.0, 0.0),
        column_cosine=(0.0, 1.0, 0.0),
        shape=shape,
    )


def _axis(count: int, spacing: float) -> F32:
    return ((np.arange(count) - (count - 1) / 2) * spacing).astype(np.float32)


def _texture(shape: Sequence[int], rng: np.random.Generator) -> F32:
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 1.2)
    return np.asarray(noise / max(float(noise.std()), 1e-6), np.float32)


def _vessels(hu: F32, lung: Mask, geometry: Geometry, count: int, rng: np.random.Generator) -> None:
    """Tapering tubes that wander from the hilum to the wall."""
    spacing = np.asarray(geometry.spacing)
    middle = (np.asarray(geometry.shape) - 1) / 2
    for _ in range(count):
        side = rng.choice((-1.0, 1.0))
        place = np.array(
            [rng.normal(0.0, 25.0), rng.normal(5.0, 12.0), side * 10.0]
        )  # outside the lung: nothing ends in it
        heading = np.array([rng.normal(0.0, 0.8), rng.normal(0.0, 0.7), side])
        radius = rng.uniform(2.0, 4.0)
        for _ in range(70):
            heading += rng.normal(0.0, 0.18, 3)
            heading /= np.linalg.norm(heading)
            place = place + 1.6 * heading
            radius = max(0.8, 0.975 * radius)
            _blob(hu, lung, place / spacing + middle, radius / spacing, 35.0)


def _blob(hu: F32, lung: Mask, centre: NDArray[np.float64], radius: NDArray[np.float64], value: float) -> None:
    low = np.maximum(np.floor(centre - radius - 1).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius + 2).astype(int), hu.shape)
    if (high <= low).any():
        return
    grids = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    axes = np.meshgrid(*grids, indexing="ij", sparse=True)
    reach = sum(((a - c) / max(r, 0.5)) ** 2 for a, c, r in zip(axes, centre, radius, strict=True))
    where = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    weight = np.clip(1.5 - np.sqrt(np.asarray(reach)), 0.0, 1.0) * lung[where]
    hu[where] = np.maximum(hu[where], (1.0 - weight) * hu[where] + weight * value)


def _nodule(
    hu: F32, nodule: PhantomNodule, axes: tuple[F32, F32, F32], shape: Sequence[int], rng: np.random.Generator
) -> Mask:
    """Draw a nodule with an uneven surface and a rim of one voxel; returns its voxels."""
    z, y, x = axes
    cx, cy, cz = nodule.centre
    dz, dy, dx = z - cz, y - cy, x - cx
    distance = np.sqrt(dz**2 + dy**2 + dx**2)
    radius = np.full(shape, nodule.diameter_mm / 2.0, np.float32)
    for _ in range(4):  # bumps
        bump = rng.standard_normal(3)
        bump /= np.linalg.norm(bump)
        towards = (dz * bump[0] + dy * bump[1] + dx * bump[2]) / np.maximum(distance, 1e-3)
        radius *= 1.0 + nodule.roughness * rng.uniform(-1.0, 1.0) * towards**3
    weight = np.clip((radius - distance) / 0.8 + 0.5, 0.0, 1.0)
    hu[...] = (1.0 - weight) * hu + weight * nodule.hu
    return np.asarray(distance <= radius)


def demo_settings(seed: int = 0) -> PhantomSettings:
    """The chest of `make demo`: three nodules of different make in thin slices."""
    nodules = (
        PhantomNodule((-72.0, -18.0, 38.0), 15.0, roughness=0.3),
        PhantomNodule((62.0, 24.0, -28.0), 8.5, roughness=0.15),
        PhantomNodule((80.0, -30.0, 30.0), 11.0, hu=-420.0),
    )
    return PhantomSettings(slices=135, side=240, spacing=(2.0, 1.5, 1.5), nodules=nodules, seed=seed)


def derive_uid(*parts: str) -> str:
    """A UID that depends on nothing but its parts (DICOM PS3.5, annex B.2)."""
    import hashlib

    return UID_ROOT + str(int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:15], "big"))


def datasets(volume: Volume, *, key: str = "phantom", patient: str = "PHANTOM^", date: str = "20240102") -> list[Any]:
    """The volume as CT images, one data set per slice, in ascending order."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    g = volume.geometry
    made = []
    for i in range(g.shape[0]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        ds.SOPInstanceUID = derive_uid(key, "instance", str(i))
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.StudyInstanceUID = derive_uid(key, "study")
        ds.SeriesInstanceUID = derive_uid(key, "series")
        ds.FrameOfReferenceUID = derive_uid(key, "frame")
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = date
        ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101500"
        ds.AccessionNumber = ds.StudyID = ds.ReferringPhysicianName = ""
        ds.Modality, ds.Manufacturer, ds.BodyPartExamined = "CT", "Vigil phantom", "CHEST"
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = patient, patient, "", ""
        ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 1, i + 1, 1
        ds.KVP, ds.SliceThickness, ds.PositionReferenceIndicator = "120", g.spacing[0], ""
        ds.PatientPosition, ds.ConvolutionKernel = "HFS", "STANDARD"
        position = g.to_patient([[i, 0, 0]])[0]
        ds.ImagePositionPatient = [round(float(v), 4) for v in position]
        ds.ImageOrientationPatient = [*g.row_cosine, *g.column_cosine]
        ds.PixelSpacing = [g.spacing[1], g.spacing[2]]
        ds.Rows, ds.Columns, ds.SamplesPerPixel = g.shape[1], g.shape[2], 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
        ds.WindowCenter, ds.WindowWidth = -600, 1500
        stored: HU = volume.hu_ZYX[i] + np.int16(1024)
        ds.PixelData = stored.astype("<i2").tobytes()
        ds["PixelData"].VR = "OW"
        made.append(ds)
    return made


def write_series(made: Sequence[Any], folder: Path) -> Path:
    """Write data sets as numbered files."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, ds in enumerate(made, start=1):
        ds.save_as(folder / f"{i:05d}.dcm", enforce_file_format=True)
    return folder

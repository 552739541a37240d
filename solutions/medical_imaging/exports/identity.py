"""UIDs that depend on the study, the series, the model and the nodule alone: a re-run writes the same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from solutions.medical_imaging.phantom import derive_uid

MANUFACTURER = "Vigil"
SOFTWARE = "0.1.0"


@dataclass(frozen=True)
class Identity:
    """Of one study and series under one model."""

    study_uid: str
    series_uid: str
    model_digest: str

    def uid(self, *parts: str) -> str:
        return derive_uid(self.study_uid, self.series_uid, self.model_digest, *parts)

    def nodule(self, number: int) -> str:
        """Tracking UID, shared by segment and report."""
        return self.uid("nodule", str(number))

    @property
    def study_key(self) -> str:
        """A pseudonym of the study: for partitions, logs and file names."""
        return study_key(self.study_uid)


def study_key(study_uid: str) -> str:
    return hashlib.sha256(f"vigil study {study_uid}".encode()).hexdigest()[:16]


def patient_key(patient_id: str) -> str:
    """A pseudonym, to tell whether two reviews are of one patient. Written into the clinician's files only."""
    return hashlib.sha256(f"vigil patient {patient_id}".encode()).hexdigest()[:16]

"""From a folder of DICOM files to the files of a review, or to a refusal."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from core.logs import EventLog
from solutions.medical_imaging.codes import RefusedError
from solutions.medical_imaging.exports.identity import study_key
from solutions.medical_imaging.exports.writer import Beside, export, refuse
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.gate import check
from solutions.medical_imaging.models import WEIGHTS, Models
from solutions.medical_imaging.priors import changes, study_of
from solutions.medical_imaging.rules import Person

EVENTS = EventLog("vigil.imaging", ("study", "verdict", "codes", "nodules", "uncertain", "slices", "seconds"))


def review(
    path: Path,
    out: Path,
    *,
    series_uid: str = "",
    record: Path | None = None,
    request: Path | None = None,
    report_text: Path | None = None,
    prior: Path | None = None,
    weights: Path = WEIGHTS,
) -> dict[str, Any]:
    """Gate, detection, exports; returns what `findings.json` holds.

    Raises:
        RefusedError: the gate refused; `refusal.json` says why.
        InputError: record, request, report or prior review can not be used, or belong to another patient.
    """
    import time

    start = time.perf_counter()
    gate, series = check(path, series_uid)
    if series is None:
        refuse(gate, out)
        EVENTS.warning("refused", verdict=gate.decision, codes=",".join(gate.codes), slices=gate.slices)
        raise RefusedError(gate)
    patient_id = str(series.first.PatientID or "")
    person = Person() if record is None else read_person(record, patient_id)
    models = Models.load(weights)
    from solutions.medical_imaging.context import Known
    from solutions.medical_imaging.detect import detect
    from solutions.medical_imaging.text import compare_with_text, read_text

    written = None if report_text is None else read_text(report_text, patient_id)
    asked = None if request is None else read_text(request, patient_id, past=True)
    detection = detect(series, models, Known(asked, person))
    said = () if written is None else compare_with_text(detection, written)
    if asked is not None and asked.present:  # that an earlier report denies nodules is no contradiction
        said = (*said, *compare_with_text(detection, asked, "request"))
    beside = Beside(
        detection.notes,
        said,
        {} if prior is None else changes(prior, study_of(series), detection.nodules),
    )
    found = export(series, detection, out, beside)
    unsure = sum(n.assessment == "uncertain" for n in detection.nodules)
    EVENTS.info(
        "reviewed",
        study=study_key(str(series.first.StudyInstanceUID)),
        verdict=gate.decision,
        nodules=len(detection.nodules) - unsure,
        uncertain=unsure,
        slices=gate.slices,
        seconds=round(time.perf_counter() - start, 1),
    )
    return found


def read_person(path: Path, patient_id: str) -> Person:
    """A record {patient_id, age, known_cancer, immunosuppressed, screening, risk}: what is absent stays unknown."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"the record must be a JSON object. Received: {type(error).__name__}.") from error
    known = {f.name for f in fields(Person)}
    if not isinstance(raw, dict) or set(raw) - known - {"patient_id"}:
        raise InputError(f"the record may hold patient_id, {', '.join(sorted(known))}. Received other names.")
    if raw.pop("patient_id", patient_id) != patient_id:
        raise InputError("the record belongs to another patient than the series.")
    if raw.get("risk") not in (None, "low", "high"):
        raise InputError("`risk` of the record must be low or high.")
    if raw.get("sex") not in (None, "female", "male"):
        raise InputError("`sex` of the record must be female or male.")
    for name in sorted(known - {"age", "risk", "sex"}):
        if raw.get(name) not in (None, True, False):
            raise InputError(f"`{name}` of the record must be true or false.")
    if not isinstance(raw.get("age"), int | None) or isinstance(raw.get("age"), bool):
        raise InputError("`age` of the record must be a whole number of years.")
    return Person(**raw)

"""What the pipeline's steps call: an inbox of studies, and reviews by pseudonymous study key."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files import replacing
from core.tracking import CHAMPION, Tracker
from solutions.medical_imaging.codes import RefusedError
from solutions.medical_imaging.exports.writer import complete
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.models import WEIGHTS

if TYPE_CHECKING:
    from solutions.medical_imaging.retraining import Retrained

SETTLED_SECONDS = 10.0  # a study is taken when nothing in it has changed for so long


@dataclass(frozen=True)
class Workspace:
    """Folders of the solution below the run-time folder."""

    root: Path

    @property
    def inbox(self) -> Path:
        return Path(os.environ.get("VIGIL_IMAGING_INBOX", self.root / "inbox"))

    def verdict(self, key: str) -> Path:
        return self.root / "verdicts" / f"{key}.json"

    @property
    def reviews(self) -> Path:
        return self.root / "reviews"

    def review(self, key: str) -> Path:
        return self.reviews / key

    def model(self, run: str) -> Path:
        return self.root / "models" / run


def entries(workspace: Workspace, *, settled: float = SETTLED_SECONDS) -> dict[str, Path]:
    """Studies of the inbox that have arrived whole, by key: a pseudonym of the entry's name and content."""
    if not workspace.inbox.is_dir():
        return {}
    found = {}
    for path in sorted(workspace.inbox.iterdir()):
        if path.name.startswith("."):
            continue
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        stats = [p.stat() for p in files]
        if stats and time.time() - max(s.st_mtime for s in stats) >= settled:
            found[_key(path, files, [s.st_size for s in stats])] = path
    return found


def _key(path: Path, files: list[Path], sizes: list[int]) -> str:
    """The same for the same delivery, another one when files are added; says nothing about the patient."""
    digest = hashlib.sha256(path.name.encode())
    for file, size in sorted(zip(files, sizes, strict=True), key=lambda pair: str(pair[0])):
        digest.update(f"{file.relative_to(path.parent)}:{size};".encode())
    return digest.hexdigest()[:16]


def find(workspace: Workspace, key: str) -> Path:
    path = entries(workspace, settled=0.0).get(key)
    if path is None:
        raise InputError(f"the inbox must hold the study {key}. It was removed or changed.")
    return path


def judge_series(workspace: Workspace, key: str) -> dict[str, Any]:
    """Run the gate and write its verdict; returns counts and codes, nothing that names a patient."""
    from solutions.medical_imaging.gate import check

    report, _ = check(find(workspace, key))
    with replacing(workspace.verdict(key)) as temporary:
        temporary.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    return {"verdict": report.decision, "codes": ", ".join(report.codes), "slices": report.slices}


def verdict_of(workspace: Workspace, key: str) -> str:
    return str(json.loads(workspace.verdict(key).read_text())["verdict"])


def review_study(workspace: Workspace, key: str, weights: Path = WEIGHTS) -> dict[str, Any]:
    """Review one study."""
    from solutions.medical_imaging.review import review

    try:
        found = review(find(workspace, key), workspace.review(key), weights=weights)
    except RefusedError as refusal:
        return {"result": "refused", "codes": ", ".join(refusal.report.codes)}
    unsure = sum("uncertain" in n["assessment"] for n in found["nodules"])
    return {"result": found["result"], "nodules": len(found["nodules"]) - unsure, "uncertain": unsure}


def serving_weights(tracker: Tracker) -> tuple[Path, str]:
    """Folder and name of the model that reviews studies: the champion, or the shipped one while there is none."""
    from solutions.medical_imaging.retraining import MODEL_NAME

    if tracker.version_of(MODEL_NAME, CHAMPION) is None:
        return WEIGHTS, "shipped"
    return tracker.resolve(f"{MODEL_NAME}@{CHAMPION}")


def retrain_from_signatures(workspace: Workspace, weights: Path, run: str) -> Retrained | str:
    """Correct the serving model with all signed reviews that it made; the challenger lies in the run's model folder."""
    from solutions.medical_imaging.models import Models
    from solutions.medical_imaging.retraining import read_signed, retrain, save_challenger

    models = Models.load(weights)
    made = retrain(models, read_signed(sorted(workspace.reviews.glob("*")), models.digest[:16]))
    if not isinstance(made, str):
        save_challenger(made, weights, workspace.model(run))
    return made


def is_reviewed(workspace: Workspace, key: str) -> bool:
    return complete(workspace.review(key)) is not None

"""What the pipeline's steps call: an inbox of studies, and reviews by pseudonymous study key."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solutions.medical_imaging.codes import RefusedError
from solutions.medical_imaging.exports.writer import complete
from solutions.medical_imaging.files import InputError

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

    def review(self, key: str) -> Path:
        return self.root / "reviews" / key


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
    path = workspace.verdict(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    os.replace(temporary, path)
    return {"verdict": report.decision, "codes": ", ".join(report.codes), "slices": report.slices}


def verdict_of(workspace: Workspace, key: str) -> str:
    return str(json.loads(workspace.verdict(key).read_text())["verdict"])


def review_study(workspace: Workspace, key: str) -> dict[str, Any]:
    """Review one study with the shipped models."""
    from solutions.medical_imaging.review import review

    try:
        found = review(find(workspace, key), workspace.review(key))
    except RefusedError as refusal:
        return {"result": "refused", "codes": ", ".join(refusal.report.codes)}
    unsure = sum("uncertain" in n["assessment"] for n in found["nodules"])
    return {"result": found["result"], "nodules": len(found["nodules"]) - unsure, "uncertain": unsure}


def is_reviewed(workspace: Workspace, key: str) -> bool:
    return complete(workspace.review(key)) is not None

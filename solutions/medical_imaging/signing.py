"""The clinician's word on a review: accept, reject or edit, with a reason, in a chain of hashes; each becomes a label.

One JSON object per line in `signatures.jsonl`; every line holds the hash of the one before, so that a changed or
missing line shows.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from solutions.medical_imaging.exports.writer import JSON, SEG, SR, complete
from solutions.medical_imaging.files import InputError

CHAIN = "signatures.jsonl"
Action = Literal["accept", "reject", "edit"]
EDITABLE = ("mean_diameter_mm", "volume_mm3", "texture", "side")
START = "0" * 64


class BrokenChainError(InputError):
    """A line of the chain was changed or is missing."""


@dataclass(frozen=True)
class Signature:
    """One act: what was signed, by whom, why."""

    nodule: int
    action: Action
    reason: str
    reader: str
    edits: dict[str, Any]


def sign(folder: Path, signature: Signature) -> dict[str, Any]:
    """Append a signature to the chain of a finished review; returns the line.

    Raises:
        InputError: the review is not complete, there is no such nodule, or the reason is missing.
        BrokenChainError: the chain does not hold.
    """
    found = complete(folder)
    if found is None:
        raise InputError(
            f"the folder must hold a complete review ({JSON} and its files). Run `vigil imaging review` first."
        )
    if signature.action not in get_args(Action):
        raise InputError(f"`--action` must be one of {', '.join(get_args(Action))}. Received: {signature.action}.")
    if not 1 <= signature.nodule <= len(found["nodules"]):
        raise InputError(f"`--nodule` must be in 1 to {len(found['nodules'])}. Received: {signature.nodule}.")
    if not signature.reason.strip() or not signature.reader.strip():
        raise InputError("`--reason` and `--reader` must not be empty: a signature without them says nothing.")
    if (signature.action == "edit") != bool(signature.edits):
        raise InputError("`--set NAME=VALUE` belongs to the action edit, and edit needs at least one.")
    if strange := sorted(set(signature.edits) - set(EDITABLE)):
        raise InputError(f"`--set` may change {', '.join(EDITABLE)}. Received: {', '.join(strange)}.")
    lines = read_chain(folder)
    body = {
        "number": len(lines) + 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "tracking_uid": found["nodules"][signature.nodule - 1]["tracking_uid"],
        "nodule": signature.nodule,
        "action": signature.action,
        "reason": signature.reason.strip(),
        # who signed is kept as a pseudonym: the chain travels with the label
        "reader": hashlib.sha256(f"vigil reader {signature.reader.strip()}".encode()).hexdigest()[:16],
        "edits": signature.edits,
        "report_sha256": found["files"][SR],
        "segmentation_sha256": found["files"][SEG],
        "before": lines[-1]["hash"] if lines else START,
    }
    line = body | {"hash": _hash(body)}
    with (folder / CHAIN).open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return line


def read_chain(folder: Path) -> list[dict[str, Any]]:
    """All signatures, verified from the first to the last."""
    path = folder / CHAIN
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    before = START
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            line = json.loads(text)
            body = {key: value for key, value in line.items() if key != "hash"}
            holds = line["hash"] == _hash(body) and line["before"] == before and line["number"] == number
        except (ValueError, KeyError, AttributeError):
            holds = False
        if not holds:
            raise BrokenChainError(f"the chain of signatures does not hold at line {number}: it was changed or cut.")
        lines.append(line)
        before = line["hash"]
    return lines


def labels(folder: Path) -> list[dict[str, Any]]:
    """The last word on each nodule as a training label: tracking UID, nodule or not, edits."""
    last = {line["tracking_uid"]: line for line in read_chain(folder)}
    return [
        {"tracking_uid": uid, "is_nodule": line["action"] != "reject", "edits": line["edits"], "source": "signed"}
        | {"time": line["time"]}
        for uid, line in sorted(last.items())
    ]


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

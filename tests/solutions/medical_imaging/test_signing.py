"""Signatures: a reason is needed, the chain shows every change, the last word is the label."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from solutions.medical_imaging.exports.writer import export
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.gate import open_series
from solutions.medical_imaging.phantom import Phantom
from solutions.medical_imaging.signing import CHAIN, BrokenChainError, Signature, labels, read_chain, sign
from tests.solutions.medical_imaging.examples import truth_detection


@pytest.fixture(scope="module")
def exported(fine_phantom: Phantom, series_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "review"
    series = open_series(series_dir)
    export(series, truth_detection(fine_phantom, series), out)
    return out


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "review")
    return tmp_path / "review"


def word(nodule: int, action: str, **edits: str) -> Signature:
    return Signature(nodule, action, "vessel on the thin slices", "Dr Bird", dict(edits))  # type: ignore[arg-type]


def test_chain_labels_and_tampering(folder: Path) -> None:
    sign(folder, word(1, "accept"))
    sign(folder, word(2, "reject"))
    sign(folder, word(1, "edit", texture="part-solid"))
    assert [line["number"] for line in read_chain(folder)] == [1, 2, 3]
    made = {item["is_nodule"]: item for item in labels(folder)}
    assert made[True]["edits"] == {"texture": "part-solid"}
    assert made[False]["edits"] == {}
    assert "Bird" not in (folder / CHAIN).read_text()
    lines = (folder / CHAIN).read_text().splitlines()
    changed = json.loads(lines[1]) | {"action": "accept"}
    (folder / CHAIN).write_text("\n".join([lines[0], json.dumps(changed), lines[2]]) + "\n")
    with pytest.raises(BrokenChainError, match="line 2"):
        read_chain(folder)
    (folder / CHAIN).write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(BrokenChainError, match="line 2"):
        sign(folder, word(1, "accept"))


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        (word(9, "accept"), "in 1 to 2"),
        (word(1, "maybe"), "must be one of"),
        (Signature(1, "accept", "  ", "Dr Bird", {}), "must not be empty"),
        (word(1, "edit"), "needs at least one"),
        (word(1, "accept", texture="solid"), "belongs to the action edit"),
        (word(1, "edit", name="x"), "may change"),
    ],
)
def test_what_can_not_be_signed(folder: Path, signature: Signature, why: str) -> None:
    with pytest.raises(InputError, match=why):
        sign(folder, signature)
    assert not (folder / CHAIN).exists()


def test_an_incomplete_review_can_not_be_signed(folder: Path) -> None:
    (folder / "report.dcm").write_bytes(b"changed")
    with pytest.raises(InputError, match="complete review"):
        sign(folder, word(1, "accept"))

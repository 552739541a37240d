"""What reports say: size, side, lobe, negation; and where they disagree with the images."""

from __future__ import annotations

from pathlib import Path

import pytest

from solutions.medical_imaging.detected import Detection
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.gate import open_series
from solutions.medical_imaging.phantom import Phantom
from solutions.medical_imaging.text import compare_with_text, extract, read_text
from tests.solutions.medical_imaging.examples import truth_detection


@pytest.mark.parametrize(
    ("sentence", "size", "side", "lobe", "negated"),
    [
        ("There is an 8 mm nodule in the right upper lobe.", 8.0, "right", "upper", False),
        ("A 1.2 cm spiculated mass in the LLL.", 12.0, "left", "lower", False),
        ("Nodule of 12 x 8 mm in the lingula, left lung.", 10.0, "left", "upper", False),
        ("No suspicious pulmonary nodule.", None, None, "", True),
        ("Lungs are clear without nodules or masses.", None, None, "", True),
        ("6,5 mm ground-glass opacity, right.", 6.5, "right", "", False),
    ],
)
def test_mentions(sentence: str, size: float | None, side: str | None, lobe: str, negated: bool) -> None:
    (mention,) = extract(sentence).mentions
    assert (mention.size_mm, mention.side, mention.lobe, mention.negated) == (size, side, lobe, negated)


def test_a_negation_ends_at_but_and_old_studies_do_not_count() -> None:
    found = extract("No effusion, but a 5 mm nodule on the left. Previous nodule of 9 mm. Heart is normal.")
    assert [(m.size_mm, m.negated) for m in found.mentions] == [(5.0, False)]


def test_discordance(fine_phantom: Phantom, series_dir: Path) -> None:
    detection = truth_detection(fine_phantom, open_series(series_dir))
    assert compare_with_text(detection, extract("A 16 mm nodule in the right lung.")) == ()
    assert "denies" in compare_with_text(detection, extract("No nodules."))[0]
    assert "none was found" in compare_with_text(Detection((), "m", "d"), extract("An 8 mm nodule."))[0]
    assert "measures 40 mm" in compare_with_text(detection, extract("A 40 mm mass, right."))[0]
    right = Detection(tuple(n for n in detection.nodules if n.side == "right"), "m", "d")
    assert "nothing was found there" in compare_with_text(right, extract("A 12 mm nodule on the left."))[0]


def test_a_report_of_another_patient_is_refused_without_naming_either(tmp_path: Path) -> None:
    path = tmp_path / "report.txt"
    path.write_text("Patient ID: CANARY-1\nNo nodules.")
    assert read_text(path, "CANARY-1").denies
    with pytest.raises(InputError, match="another patient") as caught:
        read_text(path, "CANARY-2")
    assert "CANARY" not in str(caught.value)

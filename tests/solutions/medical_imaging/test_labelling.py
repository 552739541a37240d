"""Whom to ask next: the most doubtful first, never what was signed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from solutions.medical_imaging.exports.writer import export
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.gate import open_series
from solutions.medical_imaging.labelling import doubt, rank
from solutions.medical_imaging.phantom import Phantom
from solutions.medical_imaging.signing import Signature, sign
from tests.solutions.medical_imaging.examples import truth_detection


def test_doubt_is_largest_at_one_half() -> None:
    assert doubt(np.array([0.0, 0.25, 0.5, 0.9, 1.0])) == pytest.approx([0.0, 0.5, 1.0, 0.2, 0.0])


def test_the_most_doubtful_comes_first_and_what_was_signed_not_at_all(
    fine_phantom: Phantom, series_dir: Path, tmp_path: Path
) -> None:
    series = open_series(series_dir)
    out = tmp_path / "review"
    export(series, truth_detection(fine_phantom, series), out)
    first, second = rank([out])
    assert (first.doubt, first.because) == (1.0, "likely malignant")  # the model abstained on it
    assert second.doubt < 1.0
    sign(out, Signature(2, "accept", "seen", "reader", {}))
    assert [asked.nodule for asked in rank([out])] == [second.nodule]


def test_a_folder_without_a_review_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder `nothing` holds no findings.json"):
        rank([tmp_path / "nothing"])

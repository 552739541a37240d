"""Make the shipped models of the imaging solution from LIDC crops and two complete scans; about an hour of two cores.

    python -m benchmarks.imaging_train [OUT]
    python -m benchmarks.imaging_train context [OUT]

context: only what joins the image with text and record; ten minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.common import CACHE, Clock, data
from solutions.medical_imaging.models import WEIGHTS
from solutions.medical_imaging.training import build, build_context


def main(words: list[str]) -> None:
    make = build_context if words[:1] == ["context"] else build
    names = words[1:] if make is build_context else words
    out = Path(names[0]) if names else WEIGHTS
    make(data("ct/lidc_nodule_crops/nodules.csv").parents[2], out, CACHE, say=Clock())


if __name__ == "__main__":
    main(sys.argv[1:])

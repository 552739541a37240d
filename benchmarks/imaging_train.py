"""Make the shipped models of the imaging solution from LIDC crops and two complete scans; about an hour of two cores.

python -m benchmarks.imaging_train [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.common import CACHE, Clock, data
from solutions.medical_imaging.models import WEIGHTS
from solutions.medical_imaging.training import build


def main(out: Path) -> None:
    build(data("ct/lidc_nodule_crops/nodules.csv").parents[2], out, CACHE, say=Clock())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS)

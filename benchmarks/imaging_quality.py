"""What the shipped models are worth on patients that they have not seen; some minutes of one core.

python -m benchmarks.imaging_quality
"""

from __future__ import annotations

from benchmarks.common import CACHE, RESULTS, Clock, data
from solutions.medical_imaging.data import LidcData
from solutions.medical_imaging.evaluate import evaluate
from solutions.medical_imaging.models import Models


def main() -> None:
    path = data("ct/lidc_nodule_crops/nodules.csv")
    results = evaluate(LidcData.find(path.parents[2]), Models.load(), CACHE, Clock())
    results.print()
    results.write(RESULTS / "imaging_quality.json")


if __name__ == "__main__":
    main()

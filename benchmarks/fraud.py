"""Every benchmark of the fraud solution, one process after another.

    python -m benchmarks.fraud [--quick]

--quick: one seed each. Scripts whose data is absent skip themselves. Ends with 1 when one of them failed.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import Clock

# module and arguments; the last argument is the number of seeds, where there are any
RUNS = (
    ("fraud_quality", "handbook", "5"),
    ("fraud_quality", "long", "5"),
    ("fraud_quality", "long_1_day", "5"),
    ("fraud_simulator", "3"),
    ("fraud_bitcoin", "5"),
    ("fraud_drift", "3"),
    ("fraud_speed",),
)


def commands(quick: bool) -> list[list[str]]:
    """Arguments of each process."""
    runs = [[*run[:-1], "1"] if quick and run[-1].isdigit() else [*run] for run in RUNS]
    return [[sys.executable, "-m", f"benchmarks.{module}", *arguments] for module, *arguments in runs]


def main(arguments: list[str]) -> int:
    if unknown := [a for a in arguments if a != "--quick"]:
        print(f"expected nothing or --quick. Received: {' '.join(unknown)}.", file=sys.stderr)
        return 2
    progress, failed = Clock(), []
    for command in commands("--quick" in arguments):
        name = " ".join(command[2:])
        progress(name)
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

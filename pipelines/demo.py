"""`vigil demo`: every solution on one machine, one after the other, on embedded defaults."""

from __future__ import annotations

from pathlib import Path


def run_demo(var_dir: Path, *, transactions: Path | None = None, columns: str = "", seed: int = 0) -> None:
    """Run the demos; each ends with a summary and a page of pictures under `var_dir`/demo."""
    from pipelines.demos import fraud, maintenance, medical_imaging

    fraud.run_demo(var_dir, transactions=transactions, columns=columns, seed=seed)
    maintenance.run_demo(var_dir, seed=seed)
    medical_imaging.run_demo(var_dir, seed=seed)

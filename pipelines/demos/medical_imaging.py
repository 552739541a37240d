"""The imaging solution on a chest of our own making: gate, detection, exports, and the sheet as a picture."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any


def run_demo(var_dir: Path, *, seed: int = 0) -> None:
    """Make a phantom, break a copy of it, review both; ends with the sheet and a picture of it below `var_dir`/demo/imaging."""
    from rich.console import Console

    from solutions.medical_imaging.codes import RefusedError
    from solutions.medical_imaging.gate import check
    from solutions.medical_imaging.phantom import datasets, demo_settings, make_phantom, write_series
    from solutions.medical_imaging.review import review

    console = Console()
    begin = time.perf_counter()
    root = var_dir / "demo" / "imaging"
    shutil.rmtree(root, ignore_errors=True)
    with console.status("a chest with three nodules"):
        phantom = make_phantom(demo_settings(seed))
        made = datasets(phantom.volume, key=f"demo {seed}")
        write_series(made, root / "series")
        write_series([ds for i, ds in enumerate(made) if not 60 <= i < 65], root / "broken")
    try:
        with console.status("the same chest with five slices missing"):
            review(root / "broken", root / "refused")
    except RefusedError as refusal:
        console.print(f"Five slices missing: refused, {', '.join(refusal.report.codes)}; {root / 'refused'}")
    with console.status("gate, lungs, candidates, second stage, measurement, exports"):
        found = review(root / "series", root / "review")
    picture = draw(root / "review", check(root / "series")[1], found, root / "review.png")
    summarise(console, phantom, found)
    console.print(f"Sheet: {root / 'review' / 'review.html'}   picture: {picture}")
    console.print(f"Imaging done in {time.perf_counter() - begin:.0f} s. Not a medical device.")


def draw(folder: Path, series: Any, found: dict[str, Any], path: Path) -> Path:
    """The nodules of the report in three planes, as one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from pydicom import dcmread

    from solutions.medical_imaging.exports.seg import read_segmentation
    from solutions.medical_imaging.exports.sheet import draw_plane
    from solutions.medical_imaging.exports.sr import read_report

    report = read_report(dcmread(folder / "report.dcm"))
    masks = {}
    if (folder / "segmentation.dcm").exists():
        masks = read_segmentation(dcmread(folder / "segmentation.dcm"), series)
    shown = report.nodules[:4]
    figure = Figure(figsize=(8.0, 2.7 * max(len(shown), 1) + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Review sheet: {found['result'].replace('_', ' ')}, unverified", fontsize=11)
    for row, nodule in enumerate(shown):
        for column, name in enumerate(("axial", "coronal", "sagittal")):
            axes = figure.add_subplot(len(shown), 3, 3 * row + column + 1)
            draw_plane(axes, name, nodule, series.volume, masks.get(nodule.segment))
            if column == 0:
                v = nodule.numbers
                label = f"{nodule.name}: {v['mean_diameter_mm']:.1f} mm, {v['confidence_percent']:.0f} %"
                axes.set_ylabel(label, fontsize=8)
    figure.savefig(path)
    return path


def summarise(console: Any, phantom: Any, found: dict[str, Any]) -> None:
    """What was put in against what came out."""
    import math

    from rich.table import Table

    table = Table(title="Phantom: what was put in, and what the report says")
    for name in ("put in", "found", "probability", "Lung-RADS"):
        table.add_column(name, justify="left" if name == "put in" else "right")
    matched = set()
    for nodule in phantom.nodules:
        near = [n for n in found["nodules"] if math.dist(n["centre_mm"], nodule.centre) < nodule.diameter_mm / 2]
        best = near[0] if near else None
        kind = "ground-glass" if nodule.hu < -200 else "solid"
        row = [f"{nodule.diameter_mm:.1f} mm, {kind}"]
        if best is None:
            row += ["missed", "", ""]
        else:
            matched.add(best["tracking_uid"])
            size = (
                f"{best['mean_diameter_mm']:.1f} mm ({best['mean_diameter_low_mm']:.1f} to "
                f"{best['mean_diameter_high_mm']:.1f})"
            )
            row += [size, f"{best['confidence_percent']:.0f} %", " or ".join(best["lung_rads"])]
        table.add_row(*row)
    console.print(table)
    more = sum(n["tracking_uid"] not in matched for n in found["nodules"])
    console.print(f"{more} further places were shown that hold no nodule.")

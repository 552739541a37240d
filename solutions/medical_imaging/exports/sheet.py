"""The review sheet: two pages of HTML rendered from the structured report, every nodule with its box in three planes."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.exports.concepts import OWN
from solutions.medical_imaging.exports.sr import ReadReport, Reported
from solutions.medical_imaging.geometry import Volume

MOST_SHOWN = 10  # nodules with pictures, so that two pages hold them; the table names all
WINDOW = (-1350.0, 150.0)
REACH_MM = 32.0
RESULTS = {
    "nodules_found": "Nodules found",
    "only_uncertain": "No nodule found, but uncertain places that need a look",
    "none_found": "No nodule found",
}
STYLE = """
@page{size:A4;margin:12mm} body{font:13px/1.4 system-ui,sans-serif;color:#1d2733;max-width:190mm;margin:0 auto;padding:6mm}
h1{font-size:20px;margin:0} .note{color:#5b6672} .result{font-size:16px;font-weight:600;margin:.5em 0}
.uncertain{color:#9a5b00}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:3px 6px;border-bottom:1px solid #dde2e7;text-align:right;vertical-align:top}
td:first-child,th:first-child{text-align:left;white-space:nowrap} .words{text-align:left}
.case{display:flex;gap:4mm;align-items:center;margin:3mm 0;break-inside:avoid} .case img{width:108mm} .case p{margin:0}
@media print{body{font-size:8.5pt;line-height:1.25;padding:0;max-width:none} td,th{padding:1px 4px}
.case{margin:1.5mm 0} .case img{width:80mm}}
"""


def render(report: ReadReport, volume: Volume, masks: dict[int, NDArray[np.bool_]], context: dict[str, str]) -> str:
    """HTML of at most two A4 pages.

    Args:
        masks: of the segmentation, by segment number, on the grid of the volume.
        context: lines for the head of the sheet, by name.
    """
    shown = report.nodules[:MOST_SHOWN]
    cases = [_case(n, volume, masks.get(n.segment)) for n in shown]
    head = "".join(f"<tr><td>{escape(k)}</td><td class=words>{escape(v)}</td></tr>" for k, v in context.items())
    rest = len(report.nodules) - len(shown)
    more = (
        f"<p class=note>{rest} more are listed without pictures; the segmentation holds them all.</p>"
        if rest > 0
        else ""
    )
    body = f"""<h1>Lung nodules: for review</h1>
<p class=note>Computed by {escape(report.model)}, not verified by anyone. Not a medical device. Intervals cover 90 %.</p>
<p class="result{" uncertain" if report.result == "only_uncertain" else ""}">{RESULTS[report.result]}</p>
<table>{head}</table>{_table(report)}{more}{"".join(cases)}"""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Lung nodules: for review</title>'
        f"<style>{STYLE}</style>{body}</html>\n"
    )


def _table(report: ReadReport) -> str:
    if not report.nodules:
        return ""
    rows = []
    for n in report.nodules:
        v = n.numbers
        rows.append(
            f"<tr><td>{escape(n.name)}</td><td class=words>{escape(n.side)}, {escape(_word(n, 'zone'))}</td>"
            f"<td>{v['mean_diameter_mm']:.1f} ({v['mean_diameter_low_mm']:.1f} to {v['mean_diameter_high_mm']:.1f})</td>"
            f"<td>{v['volume_mm3']:.0f} ({v['volume_low_mm3']:.0f} to {v['volume_high_mm3']:.0f})</td>"
            f"<td>{v['confidence_percent']:.0f} %</td><td class=words>{escape(_assessment(n))}</td>"
            f"<td class=words>{escape(' or '.join(n.words.get('lung_rads', ('-',))))}</td></tr>"
        )
    return (
        "<table><tr><th>place</th><th class=words>where</th><th>mean diameter, mm</th><th>volume, mm³</th>"
        "<th>probability</th><th class=words>assessment</th><th class=words>Lung-RADS</th></tr>"
        + "".join(rows)
        + "</table>"
    )


def _word(nodule: Reported, key: str) -> str:
    return " or ".join(nodule.words.get(key, ("",)))


def _assessment(nodule: Reported) -> str:
    return "uncertain" if "uncertain" in nodule.words.get("assessment", ()) else "nodule"


def _case(nodule: Reported, volume: Volume, mask_ZYX: NDArray[np.bool_] | None) -> str:
    v = nodule.numbers
    likely = v.get("malignancy_percent")
    lines = [
        f"<strong>{escape(nodule.name)}</strong> ({_assessment(nodule)}, {v['confidence_percent']:.0f} %)",
        f"{escape(nodule.side)} lung, {escape(_word(nodule, 'zone'))} third, {escape(_word(nodule, 'texture'))}",
        f"{v['long_mm']:.1f} x {v['short_mm']:.1f} mm, {v['volume_mm3']:.0f} mm³",
        f"Lung-RADS v2022: {escape(_word(nodule, 'lung_rads'))}",
        f"Fleischner 2017: {escape(_word(nodule, 'fleischner'))}" if "fleischner" in nodule.words else "",
        "malignancy-likeness: " + ("abstained" if likely is None else f"{likely:.0f} %"),
        f"spiculation {v['spiculation_rating']:.1f}, lobulation {v['lobulation_rating']:.1f} of 5; "
        f"calcified {v['calcified_percent']:.0f} %",
        _cancer(nodule),
        _growth(nodule),
    ]
    text = "<br>".join(line for line in lines if line)
    picture = base64.b64encode(planes(nodule, volume, mask_ZYX)).decode()
    image = f'<img alt="{escape(nodule.name)} in three planes" src="data:image/png;base64,{picture}">'
    return f"<div class=case>{image}<p>{text}</p></div>"


def _cancer(nodule: Reported) -> str:
    v = nodule.numbers
    if "cancer_low_percent" not in v:
        return ""
    low, high = v["cancer_low_percent"], v["cancer_high_percent"]
    return "Brock, with the record: " + (f"{low:.1f} %" if low == high else f"{low:.1f} to {high:.1f} %")


def _growth(nodule: Reported) -> str:
    v = nodule.numbers
    if "since_prior" not in nodule.words:
        return ""
    said = f"Since the prior: {OWN[nodule.words['since_prior'][0]].lower()}"
    if "volume_change_percent" in v:
        low, high = v["volume_change_low_percent"], v["volume_change_high_percent"]
        said += f", volume {v['volume_change_percent']:+.0f} % ({low:+.0f} to {high:+.0f})"
    if "doubling_days" in v:
        said += f", doubles in {v['doubling_days']:.0f} days"
    return escape(said)


def planes(nodule: Reported, volume: Volume, mask_ZYX: NDArray[np.bool_] | None) -> bytes:
    """A PNG of axial, coronal and sagittal plane through the centre, with box and outline."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 3), ("axial", "coronal", "sagittal"), strict=True):
        draw_plane(axes, name, nodule, volume, mask_ZYX)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw_plane(axes: Any, name: str, nodule: Reported, volume: Volume, mask_ZYX: NDArray[np.bool_] | None) -> None:
    """One plane through the centre of the nodule, in mm around it."""
    g = volume.geometry
    centre = g.to_index([nodule.centre])[0]
    middle = np.clip(np.rint(centre), 0, np.asarray(g.shape) - 1).astype(int)
    cut, vertical, across = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}[name]
    sides = []
    for axis in (vertical, across):
        half = int(np.ceil(REACH_MM / g.spacing[axis]))
        sides.append((max(0, middle[axis] - half), min(g.shape[axis], middle[axis] + half + 1)))
    where: list[Any] = [0, 0, 0]
    where[cut], where[vertical], where[across] = middle[cut], slice(*sides[0]), slice(*sides[1])
    (v0, v1), (a0, a1) = sides
    mm = [
        (a0 - 0.5 - centre[across]) * g.spacing[across],
        (a1 - 0.5 - centre[across]) * g.spacing[across],
        (v1 - 0.5 - centre[vertical]) * g.spacing[vertical],
        (v0 - 0.5 - centre[vertical]) * g.spacing[vertical],
    ]
    if vertical == 0:  # head up
        mm[2], mm[3] = mm[3], mm[2]
    origin = "lower" if vertical == 0 else "upper"
    picture = volume.hu_ZYX[tuple(where)]
    axes.imshow(
        picture, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], extent=mm, origin=origin, interpolation="bilinear"
    )
    if mask_ZYX is not None and mask_ZYX[tuple(where)].any():
        part = mask_ZYX[tuple(where)].astype(float)
        axes.contour(part, [0.5], colors="#f2b134", linewidths=0.9, extent=mm, origin=origin)
    box = max(nodule.numbers["long_mm"] / 2.0 + 3.0, 6.0)
    axes.plot([-box, box, box, -box, -box], [-box, -box, box, box, -box], color="#4cc3ff", lw=0.9)
    axes.set(xlim=(-REACH_MM, REACH_MM), ylim=(-REACH_MM, REACH_MM) if vertical == 0 else (REACH_MM, -REACH_MM))
    axes.set_title(name, fontsize=8, pad=2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")

"""The draft of a work order: what to look at, why, how soon, what was done before; as JSON, Markdown and one HTML page."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from solutions.maintenance.cases import Case
from solutions.maintenance.data import HOUR, History
from solutions.maintenance.explain import Explanation
from solutions.maintenance.model import Prepared
from solutions.maintenance.monitor import Monitor
from solutions.maintenance.text import extract

INK, GREY, RED, BLUE = "#1d2733", "#8a94a0", "#c4453c", "#2f6f9f"
STYLE = """
body{font:16px/1.55 system-ui,sans-serif;color:#1d2733;background:#fbfaf8;margin:0 auto;max-width:860px;padding:2.5rem 1.5rem}
h1{font-size:1.7rem;margin:0 0 .3rem} h2{font-size:1.1rem;margin:1.8rem 0 .5rem} img{width:100%;display:block}
table{border-collapse:collapse;font-variant-numeric:tabular-nums} td,th{padding:.3rem .9rem .3rem 0;text-align:left;
border-bottom:1px solid #e4e0da} .draft{color:#c4453c;font-weight:600} code{background:#f0ede8;padding:.1rem .35rem}
"""
SAFE_RISK = 0.1  # the latest safe date leaves this probability of failing before it
SIMILAR = 4
UNSURE = 0.5  # likeness below which no past finding is named as suspect


@dataclass(frozen=True)
class WorkOrder:
    """Everything a planner needs. `fields` is plain JSON; `picture` a PNG of the evidence."""

    fields: dict[str, Any]
    picture: bytes

    def markdown(self) -> str:
        f = self.fields
        lines = [
            f"# Work order draft: {f['asset']}",
            "",
            "*Draft by Vigil; a person decides.*",
            "",
            f"- Suspected item: **{f['suspected_item']}**",
            f"- Latest safe date: **{f['latest_safe_date']}** ({SAFE_RISK:.0%} risk of failing before it)",
            "- Probability of failure: " + ", ".join(f"{p:.0%} within {h} h" for h, p in f["probability"].items()),
            f"- Remaining life: {f['rul_hours']:.0f} h (90 % interval {f['rul_low']:.0f} to {f['rul_high']:.0f} h)",
            f"- As known at {f['as_of']}; case {f['case'] or 'none open'}",
            "",
            "## Evidence",
            "",
            "| sensor | deviations from what the other sensors say |",
            "|---|---|",
            *(f"| {s['sensor']} | {s['residual']:+.1f} |" for s in f["evidence"]["sensors"]),
            "",
            f["evidence"]["deletion"],
            "",
            *(
                f"- {line['time']}: {line['kind']} {line['code']} {line['text']}".rstrip()
                for line in f["evidence"]["log"]
            ),
            *(["", "Ill sensors, left out:", ""] if f["data_quality"] else []),
            *(f"- {q['sensor']} {q['cause']}: {q['advice']}" for q in f["data_quality"]),
            "",
            "## Similar past orders",
            "",
            *(f"- {o['time']} {o['asset']}: {o['code']} {o['text']}".rstrip() for o in f["similar_orders"]),
            *([] if f["similar_orders"] else ["None."]),
            "",
            f"Parts that were used then: {', '.join(f['parts']) or 'not recorded'}.",
        ]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        f = self.fields
        image = base64.b64encode(self.picture).decode()

        def table(rows: list[list[Any]], head: list[str]) -> str:
            cells = "".join("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
            return f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{cells}</table>"

        risks = [[f"{h} h", f"{p:.0%}"] for h, p in f["probability"].items()]
        sensors = [[s["sensor"], f"{s['residual']:+.1f}"] for s in f["evidence"]["sensors"]]
        log = [[line["time"], f"{line['kind']} {line['code']}", line["text"]] for line in f["evidence"]["log"]]
        past = [[o["time"], o["asset"], o["code"], o["text"]] for o in f["similar_orders"]]
        ill = [[q["sensor"], q["cause"], q["advice"]] for q in f["data_quality"]]
        return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Work order draft</title><style>{STYLE}</style>
<h1>Work order: {escape(f["asset"])}</h1><p class="draft">Draft by Vigil; a person decides.</p>
<p>Suspected item <b>{escape(f["suspected_item"])}</b>. Latest safe date <b>{escape(f["latest_safe_date"])}</b>
({SAFE_RISK:.0%} risk of failing before it). Remaining life {f["rul_hours"]:.0f} h, 90 % interval {f["rul_low"]:.0f} to
{f["rul_high"]:.0f} h. As known at {escape(f["as_of"])}.</p>
{table(risks, ["failure within", "probability"])}
<h2>Evidence</h2><img alt="sensors and risk over the last days" src="data:image/png;base64,{image}">
{table(sensors, ["sensor", "deviations from what the other sensors say"])}<p>{escape(f["evidence"]["deletion"])}</p>
{table(log, ["time", "entry", "text"])}
{"<h2>Ill sensors, left out</h2>" + table(ill, ["sensor", "cause", "advice"]) if ill else ""}
<h2>Similar past orders</h2>{table(past, ["time", "asset", "finding", "text"])}
<p>Parts that were used then: {escape(", ".join(f["parts"]) or "not recorded")}.</p></html>"""

    def write(self, directory: Path) -> Path:
        """Write ASSET.json, ASSET.md and ASSET.html; returns the page."""
        directory.mkdir(parents=True, exist_ok=True)
        stem = quote(self.fields["asset"], safe="")  # an asset's name is data: it must not walk the file system
        (directory / f"{stem}.json").write_text(json.dumps(self.fields, indent=1))
        (directory / f"{stem}.md").write_text(self.markdown())
        page = directory / f"{stem}.html"
        page.write_text(self.html())
        return page


def draft(
    monitor: Monitor,
    prepared: Prepared,
    row: int,
    explanation: Explanation,
    *,
    findings: list[Any],
    case: Case | None = None,
) -> WorkOrder:
    """Draft the order for the asset of a row, as known at the time of the row."""
    panel, model = prepared.panel, monitor.model
    asset, now = panel.assets[panel.asset_R[row]], panel.time_R()[row]
    rows = np.array([row])
    curves = model.curves(prepared, rows)
    low, high = model.interval[model.best](curves)
    suspect = _suspect(explanation)
    safe = now + np.timedelta64(int(curves.quantile(SAFE_RISK)[0] * 3_600_000_000), "us")
    orders = similar_orders(prepared.history, suspect, explanation.log, now, asset)
    test = explanation.deletion
    verdict = (
        f"Deletion test passed: with the top three sensors back to normal the risk falls from {test.risk:.2f} to "
        f"{test.without_top:.2f}, with three others to {test.without_random:.2f}."
        if test.passed
        else "Deletion test not passed: the sensors above deviate, but are not shown to be the cause of the risk."
    )
    fields = {
        **{"asset": asset, "as_of": _day(now), "case": case.name if case else "", "suspected_item": suspect},
        "latest_safe_date": _day(safe),
        "probability": {f"{h:g}": round(float(curves.fails_within(h)[0]), 4) for h in model.task.horizons},
        **{"rul_hours": float(curves.median()[0]), "rul_low": float(low[0]), "rul_high": float(high[0])},
        "evidence": {
            "sensors": [{"sensor": n, "residual": round(r, 2)} for n, r in explanation.sensors[:3]],
            "deletion": verdict,
            "log": [
                {"time": _day(e.time), "kind": e.kind, "code": str(e.code), "text": str(e.text)}
                for e in explanation.log.itertuples()
            ],
        },
        "data_quality": [
            {"sensor": f.sensor, "cause": f.cause, "advice": f.advice} for f in findings if f.asset == asset
        ],
        "similar_orders": orders,
        "parts": parts_of(orders),
    }
    return WorkOrder(fields, _picture(monitor, prepared, row, explanation))


def _suspect(explanation: Explanation) -> str:
    """The past finding most like this one; else the item that the log speaks of; else the sensor that deviates most."""
    if explanation.suspects and explanation.suspects[0][1] >= UNSURE:
        return explanation.suspects[0][0]
    items = [item for text in explanation.log["text"] for item in extract(str(text)).items]
    return items[0] if items else f"what {explanation.sensors[0][0]} measures"


def similar_orders(
    history: History, suspect: str, log: pd.DataFrame, now: np.datetime64, asset: str
) -> list[dict[str, str]]:
    """Repairs of the past with the same finding, or whose words the newest log entries share."""
    events = history.events
    past = events[(events["kind"].isin(["maintenance", "work_order"])) & (events["time"] < now)]
    past = past[(past["text"] != "") & ~((past["asset"] == asset) & (past["time"] > now - 240 * HOUR))]
    said = {code for text in log["text"] for code in extract(str(text)).codes()}
    shared = past["text"].map(lambda text: len(said & set(extract(text).codes())))
    score = 3 * (past["code"] == suspect) + shared
    best = past.assign(score=score)[score > 0].sort_values(["score", "time"], ascending=False).head(SIMILAR)
    return [
        {"time": _day(e.time), "asset": str(e.asset), "code": str(e.code), "text": str(e.text)}
        for e in best.itertuples()
    ]


def parts_of(orders: list[dict[str, str]]) -> list[str]:
    """Items that past orders replaced."""
    found = [extract(order["text"]) for order in orders]
    return list(dict.fromkeys(item for e in found if "replace" in e.actions for item in e.items))


def _day(moment: Any) -> str:
    return f"{pd.Timestamp(moment):%Y-%m-%d %H:%M}"


def _picture(monitor: Monitor, prepared: Prepared, row: int, explanation: Explanation) -> bytes:
    """Risk and the three sensors that deviate most, over the last ten days; grey is what is usual in the condition."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panel = prepared.panel
    rows = np.arange(max(int(panel.start_R[row]), row - 239), row + 1)
    time = panel.time_R()[rows]
    risk = monitor.model.curves(prepared, rows).fails_within(monitor.horizon)
    figure, axes = plt.subplots(4, 1, figsize=(8, 6.4), sharex=True, layout="constrained")
    axes[0].plot(time, risk, color=RED, lw=1.6)
    axes[0].axhline(monitor.alarm.threshold, color=GREY, lw=0.9, ls="--")
    axes[0].set_ylim(0, 1)
    axes[0].set_ylabel(f"P({monitor.horizon:g} h)", fontsize=8)
    featurizer = monitor.model.featurizer
    condition = featurizer.conditions.of(panel.condition_RC[rows])
    for axis, (name, _) in zip(axes[1:], explanation.sensors[:3], strict=False):
        s = featurizer.sensors.index(name)
        usual, spread = featurizer.conditions.mean_KS[condition, s], featurizer.conditions.scale_KS[condition, s]
        axis.fill_between(time, usual - 2.0 * spread, usual + 2.0 * spread, color=GREY, alpha=0.25, lw=0)
        axis.plot(time, panel.x_RS[rows, panel.sensors.index(name)], color=BLUE, lw=1.0)
        axis.set_ylabel(name.replace("_", "\n"), fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
    figure.autofmt_xdate()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    return buffer.getvalue()

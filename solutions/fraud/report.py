"""One HTML page that shows what the champion does: curves, alerts by day, and one alert with its neighbourhood.

Identifiers never reach the page: endpoints are called by their role and a letter.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

INK, GREY, RED, BLUE, AMBER = "#1d2733", "#8a94a0", "#c4453c", "#2f6f9f", "#d99a2b"
MODELS = (
    ("fused", "champion", RED, "-"),
    ("network", "network alone", BLUE, "--"),
    ("lightgbm_strong", "LightGBM baseline", GREY, "-"),
)
STYLE = """
body{font:16px/1.55 system-ui,sans-serif;color:#1d2733;background:#fbfaf8;margin:0 auto;max-width:1080px;padding:2.5rem 1.5rem}
h1{font-size:1.9rem;margin:0 0 .3rem} h2{font-size:1.15rem;margin:2.4rem 0 .6rem} p{max-width:46rem}
figure{margin:0;background:#fff;border:1px solid #e4e0da;border-radius:10px;padding:.8rem} img{width:100%;display:block}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1.1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.35rem .9rem;border-bottom:1px solid #e4e0da;text-align:right}
td:first-child,th:first-child{text-align:left;padding-left:0} figcaption{color:#5b6672;font-size:.86rem;margin-top:.4rem}
code{background:#f0ede8;border-radius:4px;padding:.1rem .35rem}
"""


def _axes(width: float = 6.4, height: float = 4.2) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=140)
    plt.close(figure)
    return path


def precision_recall(window: pd.DataFrame, path: Path) -> Path:
    """Precision over recall on the held-out days, every model on the same payments."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, axes = _axes()
    fraud_T = window["is_fraud"].to_numpy() == 1
    for column, name, colour, line in MODELS:
        precision, recall, _ = precision_recall_curve(fraud_T, window[column])
        score = average_precision_score(fraud_T, window[column])
        axes.plot(recall, precision, line, color=colour, lw=1.8, label=f"{name}, AP {score:.3f}")
    axes.set(
        xlabel="recall: share of frauds caught", ylabel="precision: share of alerts that are fraud", ylim=(0, 1.03)
    )
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    return _save(figure, path)


def alerts_per_day(scores: pd.DataFrame, path: Path) -> Path:
    """Stops by day, right and wrong, and the frauds that passed."""
    figure, axes = _axes()
    day = scores["event_time_sent"].dt.strftime("%d %b")
    stopped, fraud = scores["decision"] != "allow", scores["is_fraud"] == 1
    days = list(dict.fromkeys(day))
    right = np.array([int((stopped & fraud & (day == d)).sum()) for d in days])
    wrong = np.array([int((stopped & ~fraud & (day == d)).sum()) for d in days])
    missed = np.array([int((~stopped & fraud & (day == d)).sum()) for d in days])
    axes.bar(days, right, color=BLUE, label="fraud stopped", width=0.55)
    axes.bar(days, wrong, bottom=right, color=AMBER, label="genuine, asked to confirm or blocked", width=0.55)
    axes.bar(days, -missed, color=RED, label="fraud that passed", width=0.55)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_ylabel("payments")
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def calibration(window: pd.DataFrame, path: Path, *, frauds_per_group: int = 25) -> Path:
    """Observed share of fraud over mean predicted probability, in groups that hold as many frauds each."""
    figure, axes = _axes()
    order = np.argsort(window["fused"].to_numpy(float))
    p, fraud = window["fused"].to_numpy(float)[order], (window["is_fraud"] == 1).to_numpy(float)[order]
    ends = np.flatnonzero(fraud)[frauds_per_group - 1 :: frauds_per_group] + 1
    for group in np.split(np.arange(len(p)), ends)[: len(ends)]:
        axes.plot(p[group].mean(), fraud[group].mean(), "o", color=RED, ms=5)
    lowest = max(float(p[: ends[0]].mean()) if len(ends) else 1e-3, 1e-6)
    axes.plot([lowest, 1], [lowest, 1], color=GREY, lw=1)
    axes.set(xscale="log", yscale="log", xlabel="predicted probability", ylabel="observed share of fraud")
    return _save(figure, path)


def _neighbours(alert: pd.Series, history: pd.DataFrame) -> pd.DataFrame:
    """Earlier payments that share an endpoint or a device with the alert, newest first."""
    earlier = history[history["event_time"] < alert["event_time_sent"]]
    near = earlier["payer"].isin([alert["payer"], alert["payee"]]) | earlier["payee"].isin(
        [alert["payer"], alert["payee"]]
    )
    if "device" in earlier and pd.notna(alert.get("device")):
        near |= earlier["device"] == alert["device"]
    found = earlier[near]
    frauds = found[found["is_fraud"] == 1].tail(6)
    return pd.concat([frauds, found.tail(12)]).drop_duplicates("transaction_id").tail(14)


def neighbourhood(alert: pd.Series, history: pd.DataFrame, path: Path) -> Path:
    """The alert's payment in the middle, what its endpoints did before around it; proven fraud in red."""
    import networkx as nx

    figure, axes = _axes(6.4, 4.6)
    graph = nx.MultiGraph()
    letters: dict[tuple[str, str], str] = {}

    def node(kind: str, key: Any) -> str:
        seen = sum(k[0] == kind for k in letters)
        return letters.setdefault((kind, str(key)), f"{kind} {chr(65 + seen % 26)}")

    payer, payee = node("account", alert["payer"]), node("account", alert["payee"])
    graph.add_edge(payer, payee, colour=AMBER, width=3.0)
    rows = [*_neighbours(alert, history).itertuples()]
    for row in rows:
        known = row.is_fraud == 1 and row.label_time < alert["event_time_sent"]
        a, b = node("account", row.payer), node("account", row.payee)
        graph.add_edge(a, b, colour=RED if known else "#c9ced4", width=1.6 if known else 1.0)
        if pd.notna(getattr(row, "device", None)):
            graph.add_edge(a, node("device", row.device), colour="#c9ced4", width=1.0)
    if pd.notna(alert.get("device")):
        graph.add_edge(payer, node("device", alert["device"]), colour=AMBER, width=2.0)
    where = nx.spring_layout(graph, seed=3, k=0.9)
    edges = list(graph.edges(data=True))
    nx.draw_networkx_edges(
        graph,
        where,
        ax=axes,
        edgelist=[(a, b) for a, b, _ in edges],
        edge_color=[d["colour"] for *_, d in edges],
        width=[d["width"] for *_, d in edges],
    )
    colours = [AMBER if n in (payer, payee) else (INK if n.startswith("device") else "#aab4be") for n in graph]
    nx.draw_networkx_nodes(
        graph, where, ax=axes, node_color=colours, node_size=[190 if n in (payer, payee) else 90 for n in graph]
    )
    named = {n: n for n in graph if n in (payer, payee) or n.startswith("device")}
    named |= {payer: f"{payer} (pays)", payee: f"{payee} (is paid)"}
    nx.draw_networkx_labels(
        graph, {n: (x, y + 0.09) for n, (x, y) in where.items()}, labels=named, font_size=8, ax=axes
    )
    from matplotlib.lines import Line2D

    lines = {"this payment": AMBER, "proven fraud by then": RED, "earlier payment or device used": "#c9ced4"}
    axes.legend(
        handles=[Line2D([], [], color=colour, lw=2, label=name) for name, colour in lines.items()],
        frameon=False,
        fontsize=8,
        loc="lower left",
    )
    axes.set_axis_off()
    axes.margins(0.15)
    return _save(figure, path)


def pick_alert(scores: pd.DataFrame) -> pd.Series:
    """A stopped fraud to show: one that its neighbours gave away if there is one, else the most probable."""
    stopped = scores[(scores["decision"] != "allow") & (scores["is_fraud"] == 1)]
    if stopped.empty:
        stopped = scores.nlargest(1, "probability")
    linked = stopped[stopped["reasons"].map(lambda r: any("LINKED" in code for code in r[:1]))]
    return (linked if len(linked) else stopped).nlargest(1, "probability").iloc[0]


def _image(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>"


def write_report(window: pd.DataFrame, scores: pd.DataFrame, history: pd.DataFrame, directory: Path) -> Path:
    """Write index.html and the PNGs beside it.

    Args:
        window: held-out days (see `operate.train_challenger`). scores: streamed payments with decision, reasons and truth.
        history: canonical frame of what came before the stream.
    """
    from solutions.fraud.operate import window_metrics

    directory.mkdir(parents=True, exist_ok=True)
    alert = pick_alert(scores)
    seen = pd.concat([history, scores.drop(columns=["event_time"]).rename(columns={"event_time_sent": "event_time"})])
    pictures = [
        (
            precision_recall(window, directory / "precision_recall.png"),
            "Precision and recall on held-out days, against the baseline on the same labels",
        ),
        (alerts_per_day(scores, directory / "alerts_per_day.png"), "Alerts of the streamed days"),
        (
            calibration(window, directory / "calibration.png"),
            "Calibration: on the line, a probability means what it says",
        ),
        (
            neighbourhood(alert, seen, directory / "neighbourhood.png"),
            "One alert (amber) and what its endpoints did before; red: proven fraud by then",
        ),
    ]
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{values[key]:.3f}</td>" for key in ("ap", "auc", "recall_fpr_0.003", "ece"))
        + "</tr>"
        for name, values in window_metrics(window).items()
    )
    reasons = ", ".join(f"<code>{escape(r)}</code>" for r in alert["reasons"]) or "none"
    grid = "".join(_image(path, text) for path, text in pictures)
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Vigil: fraud</title><style>{STYLE}</style>
<h1>Fraud on the stream</h1>
<p>{len(scores):,} payments were scored on arrival, while the labels of earlier ones came in late.</p>
<h2>Held-out days</h2>
<table>
<tr><th>model</th><th>average precision</th><th>AUC</th><th>recall at 0.3 % FPR</th><th>calibration error</th></tr>
{rows}</table>
<h2>Pictures</h2><div class="grid">{grid}</div>
<h2>The alert shown</h2>
<p>Amount {alert["amount"]:.2f}, probability {alert["probability"]:.3f}, decision
<code>{escape(alert["decision"])}</code>, reasons {reasons}.</p>
</html>"""
    path = directory / "index.html"
    path.write_text(page)
    return path

"""The scorer's figures for Prometheus: counters, lag and a latency histogram in the text format, over HTTP.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4). No figure carries an identifier.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import numpy as np

from core.continual.drift import population_stability

if TYPE_CHECKING:
    from solutions.fraud.stream import Service

EDGES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Histogram:
    """Cumulative counts of seconds, as Prometheus wants them."""

    def __init__(self) -> None:
        self.counts = [0] * len(EDGES)
        self.total, self.count = 0.0, 0

    def observe(self, seconds: float) -> None:
        self.total += seconds
        self.count += 1
        for i, edge in enumerate(EDGES):
            if seconds <= edge:
                self.counts[i] += 1

    def lines(self, name: str) -> Iterator[str]:
        for edge, count in zip(EDGES, self.counts, strict=True):
            yield f'{name}_bucket{{le="{edge:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.count}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {self.count}"


class ScoreDrift:
    """How far the newest scores have moved from the first ones since the start or the last change of model.

    The population stability index over deciles of the first ones; by custom, above .25 is a large shift. It needs no labels,
    and proves no loss: errors are watched where labels have matured (see `watch`).
    """

    def __init__(self, rows: int = 5_000) -> None:
        self.rows = rows
        self.start_anew()

    def start_anew(self) -> None:
        self._first: list[float] = []
        self._newest: deque[float] = deque(maxlen=self.rows)

    def observe(self, probability: float) -> None:
        if len(self._first) < self.rows:
            self._first.append(probability)
        else:
            self._newest.append(probability)

    def index(self) -> float:
        """NaN until there are enough scores of both kinds."""
        if len(self._newest) < self.rows:
            return float("nan")
        return population_stability(np.array(self._first), np.array(tuple(self._newest)))


def exposition(service: Service) -> str:
    """All figures of a service as text."""
    served = service.served
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: list[str]) -> None:
        lines.extend([f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples])

    decisions = [f'vigil_fraud_decisions_total{{decision="{k}"}} {v}' for k, v in served.decisions.items()]
    family("vigil_fraud_decisions_total", "counter", "Payments answered, by decision.", decisions)
    sources = [f'vigil_fraud_labels_total{{source="{k}"}} {v}' for k, v in served.labels_by_source.items()]
    family("vigil_fraud_labels_total", "counter", "Labels applied, by who said so.", sources)
    for name, text, value in (
        ("dead_letters", "Records sent to the dead-letter topic.", served.dead_letters),
        ("repeated", "Payments that had been answered before.", served.repeated),
        ("followed", "Payments and labels that other workers answered.", served.followed),
        ("transactions", "Transactions committed.", service.transactions.committed),
        ("shadow_differs", "Payments that the challenger would have decided otherwise.", service.shadow_differs),
    ):
        family(f"vigil_fraud_{name}_total", "counter", text, [f"vigil_fraud_{name}_total {value}"])
    lags = [f'vigil_fraud_lag{{topic="{t}",partition="{p}"}} {n}' for (t, p), n in service.lags.items()]
    family("vigil_fraud_lag", "gauge", "Records that wait, by partition.", lags)
    family(
        "vigil_fraud_snapshot_offset",
        "gauge",
        "Place in the changelog at which the newest snapshot was begun; -1: none yet.",
        [f"vigil_fraud_snapshot_offset {service.snapshot_offset}"],
    )
    family(
        "vigil_fraud_score_drift",
        "gauge",
        "Population stability index of the newest scores against the first ones; NaN while there are too few.",
        [f"vigil_fraud_score_drift {service.drift.index():.6f}".replace("nan", "NaN")],
    )
    name = "vigil_fraud_commit_seconds"
    family(
        name, "histogram", "From reading a payment to its decision being committed.", list(service.latency.lines(name))
    )
    return "\n".join(lines) + "\n"


def serve_metrics(service: Service, port: int, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """Answer GET /metrics until `shutdown()`; port 0 takes a free one (see `server_port`)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = exposition(service).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody needs to know who asked."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="vigil-metrics", daemon=True).start()
    return server

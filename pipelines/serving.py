"""One scorer process: the model looked up, the service run, the model changed while it runs, an orderly end.

SIGTERM and SIGINT end it after a commit and a snapshot. On SIGHUP, or every so often, the model's name is looked up again in
a thread of its own, and changed to between two transactions: that is how a promotion, and the way back, reach the stream.
"""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from core.logs import EventLog
from pipelines.commands.shared import find_model, say

if TYPE_CHECKING:
    from solutions.fraud.model import FraudModel
    from solutions.fraud.scorer import Scorer
    from solutions.fraud.stream import Served, Service, StreamSettings

log = EventLog("vigil.fraud.serving", fields=("cause", "version"))


@dataclass(frozen=True)
class Serving:
    """What to serve: see the options of `vigil fraud serve`."""

    settings: StreamSettings
    model: str
    tracking_uri: str
    look_for_model: float
    history: Path | None
    columns: str
    shadow: str
    metrics_port: int | None
    metrics_host: str


class ModelWatch:
    """Looks a model up in the background, and hands it over between two steps of the service."""

    def __init__(self, name: str, tracking_uri: str, scorer: Scorer) -> None:
        self.name, self.tracking_uri, self.scorer = name, tracking_uri, scorer
        self._found: list[tuple[FraudModel, str]] = []
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, name="vigil-model", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        from solutions.fraud.model import FraudModel

        try:
            directory, version = find_model(self.name, self.tracking_uri)
            if version != self.scorer.model_version:
                model = FraudModel.load(directory)
                model.fast  # noqa: B018  folded here, not while payments wait
                self._found.append((model, version))
        except Exception as error:  # the champion that runs is better than none
            log.warning("model not changed", cause=type(error).__name__)

    def hand_over(self, service: Service) -> None:
        """Change to what was found, if anything."""
        if not self._found:
            return
        model, version = self._found.pop()
        try:
            service.change_scorer(lambda: self.scorer.change_model(model, version))
        except ValueError as error:
            log.warning("model not changed", cause=str(error))
            return
        log.info("model changed", version=version)


def run_serving(serving: Serving) -> None:
    """Serve until SIGTERM or SIGINT. A worker that the group went on without rebuilds its state and joins again."""
    from core.logs import show_events
    from solutions.fraud.ownership import OwnershipLostError

    stopping: list[int] = []
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    signal.signal(signal.SIGHUP, lambda number, _: asked.append(number))
    show_events()
    while True:
        try:
            served = _serve_once(serving, stopping, asked)
            break
        except OwnershipLostError as error:
            log.warning("joining again", cause=str(error))
    say(f"stopped: {served.payments:,} payments, {served.labels:,} labels, {served.dead_letters:,} dead letters")


def _serve_once(serving: Serving, stopping: list[int], asked: list[int]) -> Served:
    from solutions.fraud.exposition import serve_metrics
    from solutions.fraud.model import FraudModel
    from solutions.fraud.scorer import Scorer
    from solutions.fraud.stream import Service

    directory, version = find_model(serving.model, serving.tracking_uri)
    champion = FraudModel.load(directory)
    scorer = Scorer(champion, model_version=version)
    if serving.shadow:
        scorer.watch(FraudModel.load(find_model(serving.shadow, serving.tracking_uri)[0]))
    if serving.history is not None:
        scorer.warm_up(_history(serving.history, serving.columns, champion))
    service = Service(serving.settings, scorer)
    watch = ModelWatch(serving.model, serving.tracking_uri, scorer)
    metrics = None
    if serving.metrics_port is not None:
        metrics = serve_metrics(service, serving.metrics_port, serving.metrics_host)
        say(f"figures for Prometheus on http://{serving.metrics_host}:{metrics.server_port}/metrics")
    say(f"serving {version} on {serving.settings.bootstrap_servers}; stop with Ctrl-C")

    looked = time.monotonic()

    def between(_: Served) -> None:
        nonlocal looked
        if asked or (serving.look_for_model and time.monotonic() - looked > serving.look_for_model):
            asked.clear()
            looked = time.monotonic()
            watch.ask()
        watch.hand_over(service)

    try:
        return service.run(lambda: bool(stopping), between)
    finally:
        if metrics is not None:
            metrics.shutdown()
            metrics.server_close()


def _history(path: Path, columns: str, champion: FraudModel):  # type: ignore[no-untyped-def]
    from solutions.fraud.data import ColumnMapping, load_payments

    return load_payments(
        path,
        ColumnMapping.parse(columns),
        label_delay=timedelta(days=champion.engine.maturity_days),
        account_to_account=champion.engine.account_to_account,
    ).frame

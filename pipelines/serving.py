"""One scorer process: the model looked up, the service run, the model changed while it runs, an orderly end.

SIGTERM and SIGINT end it after a commit and a snapshot. On SIGHUP, or every so often, the model's name is looked up again in
a thread of its own, and changed to between two transactions: that is how a promotion, and the way back, reach the stream.
"""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.logs import EventLog
from pipelines.commands.shared import find_model, say

if TYPE_CHECKING:
    from solutions.fraud.model import FraudModel
    from solutions.fraud.recovery import Recovered
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


@dataclass(frozen=True)
class Found:
    """A model to change to; rebuilt: with a scorer of its own, because its state differs, and where that stands."""

    model: FraudModel
    version: str
    rebuilt: tuple[Scorer, Recovered] | None = None


class ModelWatch:
    """Looks a model up in the background, and hands it over between two steps of the service."""

    def __init__(self, serving: Serving, scorer: Scorer) -> None:
        self.serving, self.scorer = serving, scorer
        self._before = Found(scorer.model, scorer.model_version)  # in memory, so the way back takes no loading
        self._found: Found | None = None
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._look, name="vigil-model", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        from solutions.fraud.model import FraudModel
        from solutions.fraud.rebuild import rebuild
        from solutions.fraud.wire import StreamError

        serving = self.serving
        try:
            directory, version = find_model(serving.model, serving.tracking_uri)
            if version == self.scorer.model_version or self._found is not None:
                return
            model = self._before.model if version == self._before.version else FraudModel.load(directory)
            model.fast  # noqa: B018  folded here, not while payments wait
            rebuilt = None
            if model.engine != self.scorer.model.engine:
                log.info("state is rebuilt", version=version)
                rebuilt = rebuild(serving.settings, directory, version, serving.history, serving.columns)
            self._found = Found(model, version, rebuilt)
        except Exception as error:  # the champion that runs is better than none
            known = isinstance(error, (ValueError, StreamError))  # their texts name nobody
            log.warning("model not changed", cause=str(error) if known else type(error).__name__)

    def hand_over(self, service: Service) -> None:
        """Change to what was found, if anything."""
        found = self._found
        if found is None:
            return
        before = Found(self.scorer.model, self.scorer.model_version)
        if found.rebuilt is None:
            service.change_scorer(lambda: self.scorer.change_model(found.model, found.version))
        elif service.adopt(*found.rebuilt):
            shadow, self.scorer = self.scorer.shadow, found.rebuilt[0]
            self.scorer.watch(shadow.model if shadow is not None else None)
        else:
            return  # soon
        self._before, self._found = before, None
        log.info("model changed", version=found.version)


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
    from solutions.fraud.rebuild import new_scorer
    from solutions.fraud.stream import Service

    directory, version = find_model(serving.model, serving.tracking_uri)
    scorer = new_scorer(FraudModel.load(directory), version, serving.history, serving.columns)
    if serving.shadow:
        scorer.watch(FraudModel.load(find_model(serving.shadow, serving.tracking_uri)[0]))
    service = Service(serving.settings, scorer)
    watch = ModelWatch(serving, scorer)
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

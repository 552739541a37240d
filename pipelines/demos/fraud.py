"""The whole fraud solution on one machine, from raw payments to scored ones, in a few minutes.

Dagster ingests, trains, gates and registers; then the last days are streamed through Kafka while their labels arrive
late, and the champion scores them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

STREAM_DAYS = 4
HOLDOUT_DAYS = 4.0
WARM_UP_DAYS = 5.0
SLICE_DAYS = 3.0
SIMULATED_DAYS = 40
LABEL_DELAY_DAYS = 7.0


class _Show(logging.Handler):
    """Hands what the pipeline reports to the progress bar."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        self.show(record.getMessage())


@dataclass(frozen=True)
class Streamed:
    """What the stream showed: one row per payment (scores and truth), and how fast it went."""

    scores: pd.DataFrame
    seconds: float
    labels: int
    dead_letters: int


def prepare_payments(var_dir: Path, transactions: Path | None, columns: str, seed: int) -> tuple[Path, str, bool]:
    """The file that the pipeline ingests: the user's own, or a simulated month."""
    if transactions is not None:
        return transactions, columns, False
    from solutions.fraud.simulator import SimulatorSettings, write_simulation

    path = var_dir / "demo" / "payments.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_simulation(replace(SimulatorSettings.demo(), days=SIMULATED_DAYS), seed, path)
    return path, "", True


def run_pipeline(source: Any, days: list[str], var_dir: Path, seed: int) -> bool:
    """Materialise the fraud assets in this process; returns whether the gate let the challenger through."""
    import dagster as dg

    from pipelines.defs import fraud
    from pipelines.resources import PaymentsResource, VarResource, dagster_instance

    var = VarResource(path=str(var_dir))
    resources: dict[str, Any] = {
        "var": var,
        "payments": PaymentsResource(
            transactions=str(source.transactions),
            columns=source.columns,
            label_delay_days=source.label_delay_days,
            account_to_account=source.account_to_account,
            warm_up_days=WARM_UP_DAYS,
            slice_days=SLICE_DAYS,
            holdout_days=HOLDOUT_DAYS,
            seed=seed,
        ),
    }
    with dagster_instance() as instance:
        ranged = {
            "dagster/asset_partition_range_start": days[0],
            "dagster/asset_partition_range_end": days[-1],
        }
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        dg.materialize([fraud.fraud_payments], resources=resources, instance=instance, tags=ranged, run_config=quiet)
        result = dg.materialize(
            [fraud.fraud_stream, fraud.fraud_challenger, fraud.fraud_champion, fraud.fraud_gate],
            resources=resources,
            instance=instance,
            run_config=quiet,
            raise_on_error=False,
        )
        tracker = var.tracker()
        tracker.close(result.run_id, "FINISHED" if result.success else "FAILED")
        return bool(result.success)


def stream_payments(frame: pd.DataFrame, history: pd.DataFrame, var_dir: Path, show: Any) -> Streamed:
    """Send `frame` through an embedded broker and score it with the champion, whose state `history` has warmed."""
    import threading

    from core.tracking import Tracker
    from solutions.fraud.broker import create_topics, embedded_broker
    from solutions.fraud.model import FraudModel
    from solutions.fraud.scorer import Scorer
    from solutions.fraud.stream import Service, StreamSettings, publish

    directory, version = Tracker(f"sqlite:///{var_dir / 'mlflow.db'}").resolve("fraud@champion")
    scorer = Scorer(FraudModel.load(directory), model_version=version)
    scorer.warm_up(history)
    with embedded_broker() as address:
        settings = StreamSettings(bootstrap_servers=address)
        create_topics(address, (settings.transactions, settings.labels, settings.scores, settings.dead_letters))
        service = Service(settings, scorer)
        # labels of the history that fall due while the stream runs come with it
        sender = threading.Thread(target=publish, args=(frame, settings), kwargs={"also_due": history}, daemon=True)
        start = time.perf_counter()
        sender.start()
        served = service.served
        while served.payments < len(frame) and time.perf_counter() - start < 240:
            service.step()
            show(served.payments, len(frame), served)
        seconds = time.perf_counter() - start
        sender.join(10)
        service.step()
        service.close()
        scores = _read_scores(address, settings.scores, len(frame))
    truth = frame.set_index("transaction_id")
    joined = scores.join(truth, on="transaction_id", rsuffix="_sent")
    return Streamed(joined, seconds, served.labels, served.dead_letters)


def _read_scores(address: str, topic: str, expected: int) -> pd.DataFrame:
    import json

    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic, bootstrap_servers=address, auto_offset_reset="earliest", isolation_level="read_committed", group_id=None
    )
    rows: list[dict[str, Any]] = []
    deadline = time.perf_counter() + 30
    while len(rows) < expected and time.perf_counter() < deadline:
        for part in consumer.poll(timeout_ms=500, max_records=5000).values():
            rows.extend(json.loads(record.value) for record in part)
    consumer.close()
    return pd.DataFrame(rows)


def run_demo(var_dir: Path, *, transactions: Path | None = None, columns: str = "", seed: int = 0) -> None:
    """Run everything and print a summary; the pictures lie beside var/demo/index.html."""
    import warnings

    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["VIGIL_VAR"] = str(var_dir)
    for noisy in ("dagster", "kafka", "mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message=".*(beta|preview|experimental).*")
    console = Console()
    begin = time.perf_counter()
    columns_of_bar = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns_of_bar, console=console) as bar:
        step = bar.add_task("1/4 payments", total=None)
        path, mapping, accounts = prepare_payments(var_dir, transactions, columns, seed)
        from solutions.fraud.operate import Source, Workspace, days_of, training_stream

        source = Source(path, mapping, LABEL_DELAY_DAYS, accounts)
        days = days_of(source)
        bar.update(step, total=1, completed=1, description=f"1/4 payments of {len(days)} days")
        step = bar.add_task("2/4 Dagster: ingest, train, gate, register (about a minute)", total=None)
        trained_days, streamed_days = days[:-STREAM_DAYS], days[-STREAM_DAYS:]
        reports = logging.getLogger("vigil.progress")
        reports.setLevel(logging.INFO)
        handler = _Show(lambda text: bar.update(step, description=f"2/4 Dagster: {text}"))
        reports.addHandler(handler)
        passed = run_pipeline(source, trained_days, var_dir, seed)
        reports.removeHandler(handler)
        bar.update(step, total=1, completed=1, description="2/4 Dagster: ingested, trained, judged")
        workspace = Workspace(var_dir / "fraud")
        newest = max((workspace.root / "evaluations").glob("*.parquet"), key=lambda p: p.stat().st_mtime)
        window = pd.read_parquet(newest)
        history = training_stream(workspace)
        history = history[history["event_time"].dt.strftime("%Y-%m-%d").isin(trained_days)]
        live = _live_days(source, streamed_days)
        step = bar.add_task("3/4 Kafka: streaming", total=len(live))

        def show(done: int, total: int, served: Any) -> None:
            alerts = served.decisions["step_up"] + served.decisions["block"]
            bar.update(
                step, completed=done, description=f"3/4 Kafka: {done:,} scored, {alerts} alerts, {served.labels} labels"
            )

        streamed = stream_payments(live, history, var_dir, show)
        step = bar.add_task("4/4 pictures", total=None)
        from solutions.fraud.report import write_report

        page = write_report(window, streamed.scores, history, var_dir / "demo")
        bar.update(step, total=1, completed=1)
    summarise(console, window, streamed, passed, page, time.perf_counter() - begin)


def _live_days(source: Any, days: list[str]) -> pd.DataFrame:
    from datetime import timedelta

    from solutions.fraud.data import ColumnMapping, load_payments

    loaded = load_payments(
        source.transactions,
        ColumnMapping.parse(source.columns),
        label_delay=timedelta(days=source.label_delay_days),
        account_to_account=source.account_to_account,
    )
    frame = loaded.frame
    return frame[frame["event_time"].dt.strftime("%Y-%m-%d").isin(days)].reset_index(drop=True)


def summarise(console: Any, window: pd.DataFrame, streamed: Streamed, passed: bool, page: Path, seconds: float) -> None:
    """Print what happened, in words and numbers."""
    from rich.table import Table
    from sklearn.metrics import average_precision_score

    from solutions.fraud.decisions import DecisionPolicy, money_saved
    from solutions.fraud.operate import window_metrics

    table = Table(title="Held-out days before the stream (simulated payments unless you gave your own)")
    for name in ("model", "average precision", "AUC", "recall at 0.3 % FPR"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name, values in window_metrics(window).items():
        table.add_row(name, f"{values['ap']:.3f}", f"{values['auc']:.3f}", f"{values['recall_fpr_0.003']:.3f}")
    console.print(table)
    scores = streamed.scores
    fraud_T = scores["is_fraud"].to_numpy() == 1
    decision_T = scores["decision"].to_numpy(str)
    amount_T, truth_T = scores["amount"].to_numpy(float), fraud_T.astype(np.int8)
    saved = money_saved(decision_T, amount_T, truth_T, policy=DecisionPolicy())
    stopped = decision_T != "allow"
    console.print(
        f"Gate: {'promoted; registered as fraud@champion' if passed else 'refused; the champion before it serves'}"
    )
    console.print(
        f"Stream: {len(scores):,} payments in {streamed.seconds:.0f} s ({len(scores) / streamed.seconds:,.0f}/s), "
        f"{streamed.labels} labels applied late, {streamed.dead_letters} dead letters, "
        f"average precision {average_precision_score(fraud_T, scores['probability']):.3f}"
    )
    console.print(
        f"Alerts: {int(stopped.sum()):,}, of which {int((stopped & fraud_T).sum()):,} stop one of "
        f"{int(fraud_T.sum()):,} frauds; saved against allowing everything: {saved:,.0f}"
    )
    console.print(f"Pictures: {page}")
    console.print(f"Done in {seconds:.0f} s. `make ui` shows the runs in Dagster and MLflow.")

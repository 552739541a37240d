"""`vigil fraud`: simulate, check, train, evaluate, replay, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.shared import Tracking, find_model, say

app = typer.Typer(help="Streaming fraud scoring on a temporal graph.", no_args_is_help=True)

Transactions = Annotated[Path, typer.Option(help="Payments as .parquet or .csv.")]
Columns = Annotated[str, typer.Option(help="Which column is which: event_time=TX_DATETIME,payer=CUSTOMER_ID,...")]
Delay = Annotated[float, typer.Option(help="Days until a payment's label is known.", min=0.0)]
Accounts = Annotated[bool, typer.Option("--account-to-account", help="Payer and payee share one name space.")]
Servers = Annotated[str, typer.Option(envvar="KAFKA_BOOTSTRAP_SERVERS", help="HOST:PORT of the Kafka broker.")]
ModelName = Annotated[str, typer.Option(help="NAME@champion, NAME/3, or a directory of `vigil fraud train`.")]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help=".parquet or .csv to write.")],
    preset: Annotated[str, typer.Option(help="demo, graph_fraud or drift.")] = "demo",
    seed: int = 0,
) -> None:
    """Write a simulated payments stream with known truth."""
    from solutions.fraud.data import InputError
    from solutions.fraud.simulator import SimulatorSettings, write_simulation

    presets = {
        "demo": SimulatorSettings.demo,
        "graph_fraud": SimulatorSettings.graph_fraud,
        "drift": SimulatorSettings.drift,
    }
    if preset not in presets:
        raise InputError(f"`--preset` must be one of {', '.join(presets)}. Received: {preset}.")
    frame = write_simulation(presets[preset](), seed, out)
    say(f"{len(frame):,} payments, {int((frame['is_fraud'] == 1).sum()):,} frauds -> {out}")


@app.command()
def check(
    transactions: Transactions,
    columns: Columns = "",
    label_delay_days: Delay = 7.0,
    account_to_account: Accounts = False,
    rejected: Annotated[Path | None, typer.Option(help="Where to write the refused rows and causes, as .csv.")] = None,
) -> None:
    """Validate a file of payments: what is in it, and which rows are refused for which cause."""
    from datetime import timedelta

    from solutions.fraud.data import ColumnMapping, load_payments

    loaded = load_payments(
        transactions,
        ColumnMapping.parse(columns),
        label_delay=timedelta(days=label_delay_days),
        account_to_account=account_to_account,
    )
    frame = loaded.frame
    print(f"{loaded.name}: {len(frame):,} of {loaded.rows:,} payments can be used")
    print(f"time   {frame['event_time'].iat[0]} .. {frame['event_time'].iat[-1]}")
    print(f"nodes  {frame['payer'].nunique():,} payers, {frame['payee'].nunique():,} payees")
    known = frame["is_fraud"] >= 0
    print(f"labels {int((frame['is_fraud'] == 1).sum()):,} frauds among {int(known.sum()):,} labelled payments")
    for remark in loaded.remarks():
        print(f"note   {remark}")
    if rejected is not None:
        loaded.rejected.to_csv(rejected, index=False)
        say(f"{len(loaded.rejected):,} refused rows -> {rejected}")


@app.command()
def train(
    transactions: Transactions,
    out: Annotated[Path, typer.Option(help="Directory of the model.")],
    columns: Columns = "",
    label_delay_days: Delay = 7.0,
    account_to_account: Accounts = False,
    seed: int = 0,
) -> None:
    """Train a champion on a file of payments."""
    from solutions.fraud.train import train_file

    train_file(transactions, columns, out, seed, label_delay_days, account_to_account, progress=say)
    say(f"model -> {out}")


@app.command()
def evaluate(
    transactions: Transactions,
    columns: Columns = "",
    protocol: Annotated[str, typer.Option(help="handbook, long or chronological.")] = "chronological",
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    label_delay_days: Delay = 7.0,
    account_to_account: Accounts = False,
    canaries: Annotated[bool, typer.Option(help="Also run the leakage canaries.")] = True,
    json: Annotated[Path | None, typer.Option(help="Where to write the results object.")] = None,
) -> None:
    """Compare published rows, baselines, network and champion on one protocol; then run the leakage canaries."""
    from solutions.fraud.evaluate import run_evaluation

    run_evaluation(
        transactions,
        columns,
        protocol,
        seeds,
        json,
        label_delay_days,
        account_to_account,
        canaries=canaries,
        progress=say,
    )


@app.command()
def replay(
    transactions: Transactions,
    model: ModelName,
    out: Annotated[Path, typer.Option(help=".parquet or .csv of scores.")],
    columns: Columns = "",
    label_delay_days: Delay = 7.0,
    account_to_account: Accounts = False,
    tracking_uri: Tracking = "",
) -> None:
    """Score a file with the engine that serves the stream; one row per payment."""
    from solutions.fraud.scorer import replay_file

    directory, _ = find_model(model, tracking_uri)
    scores = replay_file(transactions, columns, directory, out, label_delay_days, account_to_account)
    say(f"{len(scores):,} scores -> {out}")


@app.command()
def serve(
    bootstrap_servers: Servers,
    model: ModelName,
    tracking_uri: Tracking = "",
    history: Annotated[Path | None, typer.Option(help="Payments that warm the state before the stream begins.")] = None,
    columns: Columns = "",
    transactions_topic: Annotated[str, typer.Option(envvar="VIGIL_TRANSACTIONS_TOPIC")] = "transactions",
    labels_topic: Annotated[str, typer.Option(envvar="VIGIL_LABELS_TOPIC")] = "fraud_labels",
    scores_topic: Annotated[str, typer.Option(envvar="VIGIL_SCORES_TOPIC")] = "fraud_scores",
    dead_letters_topic: Annotated[str, typer.Option(envvar="VIGIL_DEAD_LETTERS_TOPIC")] = "fraud_dead_letters",
    group: Annotated[str, typer.Option(envvar="VIGIL_GROUP")] = "vigil-fraud",
) -> None:
    """Score the stream until SIGTERM or SIGINT."""
    from solutions.fraud.stream import StreamSettings

    settings = StreamSettings(
        bootstrap_servers=bootstrap_servers,
        transactions=transactions_topic,
        labels=labels_topic,
        scores=scores_topic,
        dead_letters=dead_letters_topic,
        group=group,
    )
    _serve(settings, model, tracking_uri, history, columns)


def _serve(settings: Any, model: str, tracking_uri: str, history: Path | None, columns: str) -> None:
    import signal
    from datetime import timedelta

    from solutions.fraud.data import ColumnMapping, load_payments
    from solutions.fraud.model import FraudModel
    from solutions.fraud.scorer import Scorer
    from solutions.fraud.stream import Service

    stopping: list[int] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _: stopping.append(number))
    directory, version = find_model(model, tracking_uri)
    champion = FraudModel.load(directory)
    scorer = Scorer(champion, model_version=version)
    if history is not None:
        delay = timedelta(days=champion.engine.maturity_days)
        loaded = load_payments(
            history,
            ColumnMapping.parse(columns),
            label_delay=delay,
            account_to_account=champion.engine.account_to_account,
        )
        scorer.warm_up(loaded.frame)
    service = Service(settings, scorer)
    say(f"serving {version} on {settings.bootstrap_servers}; stop with Ctrl-C")
    served = service.run(stop=lambda: bool(stopping))
    say(f"stopped: {served.payments:,} payments, {served.labels:,} labels, {served.dead_letters:,} dead letters")

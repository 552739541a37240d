"""`vigil fraud`: simulate, check, train, evaluate, replay, serve, learn, status, topics, what-if."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


Transactions_ = Annotated[str, typer.Option(envvar="VIGIL_TRANSACTIONS_TOPIC")]
Labels_ = Annotated[str, typer.Option(envvar="VIGIL_LABELS_TOPIC")]
Scores_ = Annotated[str, typer.Option(envvar="VIGIL_SCORES_TOPIC")]
DeadLetters_ = Annotated[str, typer.Option(envvar="VIGIL_DEAD_LETTERS_TOPIC")]
Group = Annotated[str, typer.Option(envvar="VIGIL_GROUP", help="One owner at a time; another one takes over.")]
SnapshotsDir = Annotated[
    Path | None,
    typer.Option(envvar="VIGIL_SNAPSHOTS", help="Directory of the state's snapshots; default: under var/ by group."),
]


@app.command()
def serve(
    bootstrap_servers: Servers,
    model: ModelName,
    tracking_uri: Tracking = "",
    history: Annotated[Path | None, typer.Option(help="Payments that warm the state before the stream begins.")] = None,
    columns: Columns = "",
    transactions_topic: Transactions_ = "transactions",
    labels_topic: Labels_ = "fraud_labels",
    scores_topic: Scores_ = "fraud_scores",
    dead_letters_topic: DeadLetters_ = "fraud_dead_letters",
    group: Group = "vigil-fraud",
    worker: Annotated[
        str | None,
        typer.Option(envvar="VIGIL_WORKER", help="Share the group's partitions with other workers, under this name."),
    ] = None,
    snapshots: SnapshotsDir = None,
    snapshot_seconds: Annotated[float, typer.Option(min=0.0, envvar="VIGIL_SNAPSHOT_SECONDS")] = 30.0,
    commit_ms: Annotated[
        int, typer.Option(min=0, envvar="VIGIL_COMMIT_MS", help="Decisions wait so long for company.")
    ] = 2,
    batch: Annotated[int, typer.Option(min=1, envvar="VIGIL_BATCH", help="Payments per transaction, at most.")] = 256,
    look_for_model: Annotated[
        float, typer.Option(min=0.0, help="Look the model up again every so many seconds; 0: on SIGHUP only.")
    ] = 0.0,
    shadow: Annotated[str, typer.Option(help="A challenger that scores along and decides nothing.")] = "",
    metrics_port: Annotated[
        int | None,
        typer.Option(envvar="VIGIL_METRICS_PORT", help="Figures for Prometheus at /metrics; 0: a free port."),
    ] = None,
    metrics_host: Annotated[str, typer.Option(envvar="VIGIL_METRICS_HOST")] = "127.0.0.1",
) -> None:
    """Score the stream until SIGTERM or SIGINT; on SIGHUP look the model up again and change to it while running."""
    from pipelines.commands.shared import var_dir
    from pipelines.serving import Serving, run_serving
    from solutions.fraud.data import ColumnMapping
    from solutions.fraud.stream import StreamSettings

    settings = StreamSettings(
        bootstrap_servers=bootstrap_servers,
        transactions=transactions_topic,
        labels=labels_topic,
        scores=scores_topic,
        dead_letters=dead_letters_topic,
        group=group,
        worker=worker,
        snapshots=snapshots or var_dir() / "fraud" / "state" / group,
        snapshot_seconds=snapshot_seconds,
        commit_ms=commit_ms,
        max_records=batch,
        columns=ColumnMapping.parse(columns).of_messages(),
    )
    run_serving(
        Serving(settings, model, tracking_uri, look_for_model, history, columns, shadow, metrics_port, metrics_host)
    )


@app.command()
def learn(
    bootstrap_servers: Servers,
    tracking_uri: Tracking = "",
    columns: Columns = "",
    transactions_topic: Transactions_ = "transactions",
    labels_topic: Labels_ = "fraud_labels",
    label_delay_days: Delay = 7.0,
    warm_up_days: Annotated[float, typer.Option(min=0.0, help="Days at the start that only fill the state.")] = 37.0,
    every_minutes: Annotated[float, typer.Option(min=0.0, help="Look so often until SIGTERM; 0: once.")] = 0.0,
) -> None:
    """Collect the stream into day files, and update the champion when matured labels ask for it and the gate agrees."""
    import signal

    from core.tracking import Tracker
    from pipelines.commands.shared import default_tracking_uri, var_dir
    from pipelines.learning import learn as repeat
    from pipelines.learning import learn_once
    from solutions.fraud.data import ColumnMapping
    from solutions.fraud.operate import Workspace
    from solutions.fraud.stream import StreamSettings

    settings = StreamSettings(
        bootstrap_servers=bootstrap_servers,
        transactions=transactions_topic,
        labels=labels_topic,
        columns=ColumnMapping.parse(columns).of_messages(),
    )
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    workspace, tracker = Workspace(var_dir() / "fraud"), Tracker(tracking_uri or default_tracking_uri())
    repeat(
        lambda: learn_once(settings, workspace, tracker, maturity_days=label_delay_days, warm_up_days=warm_up_days),
        every_minutes,
        lambda: bool(stopping),
    )


@app.command()
def status(
    bootstrap_servers: Servers,
    transactions_topic: Transactions_ = "transactions",
    labels_topic: Labels_ = "fraud_labels",
    scores_topic: Scores_ = "fraud_scores",
    dead_letters_topic: DeadLetters_ = "fraud_dead_letters",
    group: Group = "vigil-fraud",
    snapshots: SnapshotsDir = None,
) -> None:
    """Show where a group stands: records that wait, the last transaction, the newest snapshot."""
    import time

    from pipelines.commands.shared import var_dir
    from solutions.fraud.changelog import newest_marker
    from solutions.fraud.snapshots import Snapshots
    from solutions.fraud.stream import StreamSettings, lag

    settings = StreamSettings(
        bootstrap_servers=bootstrap_servers,
        transactions=transactions_topic,
        labels=labels_topic,
        scores=scores_topic,
        dead_letters=dead_letters_topic,
        group=group,
    )
    directory = snapshots or var_dir() / "fraud" / "state" / group
    marker = newest_marker(settings)
    found = Snapshots(directory, keep=1).found() if directory.is_dir() else []
    print(f"records that wait    {lag(settings):,}")
    print(f"last transaction     {f'{marker.sequence} of {marker.worker}' if marker else 'none yet'}")
    if found:
        offset, path = found[0]
        age = time.time() - path.stat().st_mtime
        print(f"newest snapshot      at {offset} of the changelog, {age:,.0f} s old, {len(found)} kept")
    else:
        print("newest snapshot      none")


@app.command()
def topics(
    bootstrap_servers: Servers,
    transactions_topic: Transactions_ = "transactions",
    labels_topic: Labels_ = "fraud_labels",
    scores_topic: Scores_ = "fraud_scores",
    dead_letters_topic: DeadLetters_ = "fraud_dead_letters",
    partitions: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Create the four topics where they do not exist, with unlimited retention and the broker's default of replicas."""
    from solutions.fraud.broker import create_topics

    names = (transactions_topic, labels_topic, scores_topic, dead_letters_topic)
    create_topics(bootstrap_servers, names, partitions=partitions)
    say(f"{', '.join(names)} are there")


@app.command("what-if")
def what_if_command(
    scores: Annotated[Path, typer.Option(help="Scores that `vigil fraud replay` wrote.")],
    transactions: Transactions,
    columns: Columns = "",
    label_delay_days: Delay = 7.0,
    account_to_account: Accounts = False,
    fees: Annotated[str, typer.Option(help="Chargeback fees to try.")] = "5,15,50",
    capacities: Annotated[str, typer.Option(help="Reviews per day to try; 0 is without limit.")] = "50,200,0",
    exploration: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of would-be blocks let through.")] = 0.02,
) -> None:
    """Decide recorded traffic again under other costs and review capacities; shows shares and money saved."""
    from datetime import timedelta

    from solutions.fraud.data import ColumnMapping, InputError, load_payments
    from solutions.fraud.decisions import DecisionPolicy
    from solutions.fraud.what_if import read_scores, what_if

    try:
        grid = [(float(fee), int(room)) for fee in fees.split(",") for room in capacities.split(",")]
    except ValueError:
        raise InputError(
            f"`--fees` and `--capacities` must be numbers with commas between. Received: {fees} and {capacities}."
        ) from None
    policies = {
        f"fee {fee:g}, {room or 'unlimited'} reviews a day": DecisionPolicy(
            chargeback_fee=fee, review_capacity_per_day=room or None, exploration_fraction=exploration
        )
        for fee, room in grid
    }
    loaded = load_payments(
        transactions,
        ColumnMapping.parse(columns),
        label_delay=timedelta(days=label_delay_days),
        account_to_account=account_to_account,
    )
    print(f"{'policy':36s} {'allow':>8s} {'step up':>8s} {'block':>8s} {'changed':>8s} {'saved':>14s}")
    for told in what_if(read_scores(scores), loaded.frame, policies):
        shares = " ".join(f"{told.shares[action]:8.2%}" for action in ("allow", "step_up", "block"))
        saved = "unknown" if told.money_saved is None else f"{told.money_saved:,.0f}"
        print(f"{told.policy:36s} {shares} {told.changed:8.2%} {saved:>14s}")

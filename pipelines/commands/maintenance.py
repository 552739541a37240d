"""`vigil maintenance`: simulate, train, evaluate, score, cases, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.shared import Tracking, find_model, say, var_dir

app = typer.Typer(help="Failure prediction from sensors and logs.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--path", help="Folder of tables: sensors, errors, maintenance, failures, ...")]
Columns = Annotated[
    str, typer.Option(help="Which column is which: asset=machineID,time=datetime,errors.code=errorID,sensors.file=...")
]
ModelName = Annotated[str, typer.Option(help="NAME@champion, NAME/3, or a directory of `vigil maintenance train`.")]
Moment = Annotated[str, typer.Option(help="As known at this time (ISO 8601); default: the newest reading.")]


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write the tables to.")],
    assets: Annotated[int, typer.Option(min=1)] = 60,
    days: Annotated[int, typer.Option(min=20)] = 120,
    seed: int = 0,
) -> None:
    """Write a simulated fleet of pumps with known causes."""
    from solutions.maintenance.simulator import FLEET_COLUMNS, FleetSettings, write_fleet

    tables = write_fleet(FleetSettings(assets=assets, days=days), seed, out)
    say(f"{len(tables['sensors']):,} hours, {len(tables['failures'])} failures -> {out}; --columns {FLEET_COLUMNS}")


@app.command()
def train(
    path: Folder,
    out: Annotated[Path, typer.Option(help="Directory of the model.")],
    columns: Columns = "",
    seed: int = 0,
) -> None:
    """Train on a folder of tables: failure model, sensor health, normal operation, alarm threshold."""
    from solutions.maintenance.data import load_history
    from solutions.maintenance.monitor import fit_monitor
    from solutions.maintenance.task import recurring_task

    history = load_history(path, columns)
    _tell(history)
    monitor, _, _ = fit_monitor(history, recurring_task(), seed=seed, progress=say)
    monitor.save(out)
    say(f"model -> {out}")


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Option(help="cmapss or azure.")],
    path: Annotated[Path, typer.Option(help="Folder of the data set.")],
    subset: Annotated[str, typer.Option(help="FD001 to FD004, for cmapss.")] = "FD001",
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    json: Annotated[Path | None, typer.Option(help="Where to write the results object.")] = None,
) -> None:
    """Compare published rows, gradient boosting, network and their fusion; nothing is chosen on test labels."""
    from solutions.maintenance.evaluate import run_evaluation

    run_evaluation(dataset, path, subset, seeds, json, progress=say)


@app.command()
def score(path: Folder, model: ModelName, columns: Columns = "", at: Moment = "", tracking_uri: Tracking = "") -> None:
    """Score the day that ends at a moment for every asset, find ill sensors, and open cases."""
    from solutions.maintenance.cases import CaseBook
    from solutions.maintenance.data import load_history
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.operate import Workspace, open_cases, score_days

    directory, version = find_model(model, tracking_uri)
    monitor, history = Monitor.load(directory), load_history(path, columns)
    _tell(history)
    workspace = Workspace(var_dir() / "maintenance")
    moment = _moment(at, history)
    scored = score_days(monitor, history, moment, workspace)
    book = CaseBook(workspace.cases)
    new = open_cases(monitor, scored.frame, book)
    book.save()
    say(f"{version}: {scored.assets} assets scored as known at {moment}, {len(scored.refused)} could not be")
    for asset, why in scored.refused.items():
        say(f"  {asset}: {why}")
    for finding in scored.findings:
        say(f"  data quality: {finding.asset} {finding.sensor} {finding.cause}: {finding.advice}")
    newest = scored.frame.groupby("asset").tail(1).sort_values(f"p_{monitor.horizon:g}", ascending=False)
    print(newest.drop(columns=["hour"]).head(10).to_string(index=False, float_format="%.3f"))
    say(f"{len(new)} new cases, {len(book.active())} active")


@app.command()
def cases(
    acknowledge: Annotated[str, typer.Option(help="Name of a case that somebody looks after.")] = "",
    close: Annotated[str, typer.Option(help="Name of a case to close; needs --finding.")] = "",
    finding: Annotated[str, typer.Option(help="Code of what was found, or `nothing`. Becomes a label.")] = "",
) -> None:
    """List the active cases; acknowledge or close one."""
    import time

    from solutions.maintenance.cases import CaseBook
    from solutions.maintenance.operate import Workspace

    book = CaseBook(Workspace(var_dir() / "maintenance").cases)
    if acknowledge:
        say(f"{book.acknowledge(acknowledge).name} acknowledged")
    if close:
        say(f"{book.close(close, finding, int(time.time() // 3600)).name} closed: {finding}")
    if acknowledge or close:
        book.save()
    for case in book.active():
        print(f"{case.name}  {case.state:<12}  peak {case.peak:.2f}")
    say(f"{len(book.active())} active of {len(book.cases)} cases")


@app.command()
def report(
    asset: Annotated[str, typer.Argument(help="Name of the asset.")],
    path: Folder,
    model: ModelName,
    columns: Columns = "",
    at: Moment = "",
    out: Annotated[Path | None, typer.Option(help="Folder; default: work_orders beside the cases.")] = None,
    tracking_uri: Tracking = "",
) -> None:
    """Draft the work order of an asset as JSON, Markdown and HTML."""
    from solutions.maintenance.data import load_history
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.operate import Workspace, draft_order

    directory, _ = find_model(model, tracking_uri)
    history = load_history(path, columns)
    workspace = Workspace(var_dir() / "maintenance")
    order = draft_order(Monitor.load(directory), history, asset, _moment(at, history), workspace)
    page = order.write(out or workspace.root / "work_orders")
    print(order.markdown())
    say(f"work order -> {page}")


def _tell(history: Any) -> None:
    """What was read, and what was refused with its cause."""
    say(
        f"{history.name}: {history.rows:,} rows, {history.readings['asset'].nunique()} assets, {len(history.events)} events"
    )
    for note in history.notes:
        say(f"  note: {note}")
    for cause, count in history.causes().items():
        say(f"  refused: {count} x {cause}")


def _moment(at: str, history: Any) -> Any:
    import numpy as np

    from solutions.maintenance.data import InputError

    if not at:
        return history.readings["time"].max().to_datetime64()
    try:
        return np.datetime64(at, "us")
    except ValueError:
        raise InputError(f"`--at` must be a time in ISO 8601, as 2025-03-01T06:00. Received: {at}.") from None

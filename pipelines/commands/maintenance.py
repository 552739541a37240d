"""`vigil maintenance`: simulate, train, update, evaluate, score, cases, report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.shared import Tracking, find_model, say, var_dir


class Policy(StrEnum):
    """The cheapest threshold, or the one that warns of most failures."""

    cost = "cost"
    warnings = "warnings"


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
    alarms: Annotated[Policy, typer.Option(help="What the threshold is chosen for, within the budget.")] = Policy.cost,
    seed: int = 0,
) -> None:
    """Train on a folder of tables: failure model, sensor health, normal operation, alarm threshold."""
    from solutions.maintenance.monitor import fit_monitor
    from solutions.maintenance.task import recurring_task

    history, _ = _usable(path, columns, with_cases=True)
    monitor, _, _ = fit_monitor(history, recurring_task(), policy=alarms.value, seed=seed, progress=say)
    monitor.save(out)
    alarm = monitor.alarm
    say(
        f"model -> {out}; a case opens when {alarm.k} of {alarm.n} hours have P(failure within {monitor.horizon:g} h) "
        f">= {alarm.threshold:.3f}"
    )


@app.command()
def update(
    path: Folder,
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Directory of the updated model; written only when the gate lets it pass.")],
    finding: Annotated[str, typer.Option(help="A new failure mode to learn: the code of its failures.")] = "",
    since: Annotated[str, typer.Option(help="Learn what is new since this time (ISO 8601).")] = "",
    columns: Columns = "",
    seed: int = 0,
    tracking_uri: Tracking = "",
) -> None:
    """Teach a model a new failure mode from its first examples, or operation that it never saw; a gate judges it."""
    from core.continual.updater import UpdatePlan
    from core.promotion import NotPromotedError
    from solutions.maintenance.change import Change
    from solutions.maintenance.data import InputError
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.panel import hours_of
    from solutions.maintenance.update import carry_out

    if bool(finding) == bool(since):
        raise InputError("give either --finding CODE or --since TIME: what is new?")
    directory, version = find_model(model, tracking_uri)
    history, _ = _usable(path, columns, with_cases=True)
    if finding:
        change, plan = Change(finding=finding), UpdatePlan("head", f"failures were found to be `{finding}`")
    else:
        import numpy as np

        hour = int(hours_of(np.array([_moment(since, "--since")]))[0])
        change, plan = Change(since_hour=hour), UpdatePlan("full", f"asked for what is new since {since}")
    made = carry_out(Monitor.load(directory), history, change, plan, seed=seed, progress=say)
    say(f"average precision on what is new: {made.before:.3f} -> {made.after:.3f}; forgetting {made.forgetting:.3f}")
    if not made.kept:
        raise NotPromotedError(f"{version} stays: {'; '.join(made.reasons)}.")
    made.monitor.save(out)
    say(f"{'; '.join(made.reasons)}; model -> {out}")


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
    """Score the day that ends at a moment for every asset, find ill sensors, open cases, and close those that are settled."""
    from solutions.maintenance.cases import CLOSED, CaseBook
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.operate import Workspace, open_cases, read_scores, score_days
    from solutions.maintenance.quality import summary

    directory, version = find_model(model, tracking_uri)
    monitor = Monitor.load(directory)
    history, newest_moment = _usable(path, columns)
    workspace = Workspace(var_dir() / "maintenance")
    moment = _moment(at, "--at") if at else newest_moment
    scored = score_days(monitor, history, moment, workspace)
    book = CaseBook(workspace.cases)
    before = {case.name for case in book.cases if case.state == CLOSED}
    new = open_cases(monitor, read_scores(workspace), book, history.known_at(moment))
    book.save()
    if unknown := monitor.unknown_sensors(history):
        say(f"  left out: sensors that the model never saw: {', '.join(unknown)}")
    say(f"{version}: {scored.assets} assets scored as known at {str(moment)[:16]}, {len(scored.refused)} could not be")
    for asset, why in scored.refused.items():
        say(f"  {asset}: {why}")
    for line in summary(scored.findings):
        say(f"  data quality: {line}")
    newest = scored.frame.groupby("asset").tail(1).sort_values(f"p_{monitor.horizon:g}", ascending=False)
    print(newest.drop(columns=["hour"]).head(10).to_string(index=False, float_format="%.3f"))
    for case in book.cases:
        if case.state == CLOSED and case.name not in before:
            say(f"  closed by {case.by}: {case.name}, {case.finding}")
    say(f"{len(new)} new cases, {len(book.active())} active")


@app.command()
def cases(
    acknowledge: Annotated[str, typer.Option(help="Name of a case that somebody looks after.")] = "",
    close: Annotated[str, typer.Option(help="Name of a case to close; needs --finding.")] = "",
    finding: Annotated[str, typer.Option(help="Code of what was found, or `nothing`. Becomes a label.")] = "",
    at: Annotated[str, typer.Option(help="When it was found (ISO 8601); default: the newest scored hour.")] = "",
    every: Annotated[bool, typer.Option("--all", help="List closed cases too.")] = False,
) -> None:
    """List the active cases; acknowledge or close one."""
    import numpy as np

    from solutions.maintenance.cases import CLOSED, CaseBook
    from solutions.maintenance.operate import Workspace, read_scores
    from solutions.maintenance.panel import hours_of

    workspace = Workspace(var_dir() / "maintenance")
    book = CaseBook(workspace.cases)
    if acknowledge:
        say(f"{book.acknowledge(acknowledge).name} acknowledged")
    if close:
        hour = int(hours_of(np.array([_moment(at, "--at")]))[0]) if at else int(read_scores(workspace)["hour"].max())
        say(f"{book.close(close, finding, hour).name} closed: {finding}")
    if acknowledge or close:
        book.save()
    for case in book.cases if every else book.active():
        found = f"  {case.finding} ({case.by})" if case.state == CLOSED else ""
        print(f"{case.name}  {case.state:<12}  peak {case.peak:.2f}{found}")
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
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.operate import Workspace, draft_order

    directory, _ = find_model(model, tracking_uri)
    history, newest_moment = _usable(path, columns)
    workspace = Workspace(var_dir() / "maintenance")
    moment = _moment(at, "--at") if at else newest_moment
    order = draft_order(Monitor.load(directory), history, asset, moment, workspace)
    page = order.write(out or workspace.root / "work_orders")
    print(order.markdown())
    say(f"work order -> {page}")


def _usable(path: Path, columns: str, *, with_cases: bool = False) -> tuple[Any, Any]:
    """The history of a folder without assets whose clock has jumped, and its newest moment; says what was refused and why.

    `with_cases`: findings of closed cases count as failures.
    """
    from solutions.maintenance.cases import CaseBook, with_findings
    from solutions.maintenance.data import load_history
    from solutions.maintenance.operate import Workspace, newest_moment, without_jumps

    history = load_history(path, columns)
    say(
        f"{history.name}: {history.rows:,} rows, {history.readings['asset'].nunique()} assets, {len(history.events)} events"
    )
    for note in history.notes:
        say(f"  note: {note}")
    for cause, count in history.causes().items():
        say(f"  refused: {count} x {cause}")
    if with_cases:
        before = len(history.failures())
        history = with_findings(history, CaseBook(Workspace(var_dir() / "maintenance").cases))
        if gained := len(history.failures()) - before:
            say(f"  {gained} findings of closed cases count as failures")
    history, refused = without_jumps(history)
    for asset, why in refused.items():
        say(f"  left out: {asset}: {why}")
    return history, newest_moment(history)[0]


def _moment(given: str, option: str) -> Any:
    import numpy as np

    from solutions.maintenance.data import InputError

    try:
        return np.datetime64(given, "us")
    except ValueError:
        raise InputError(f"`{option}` must be a time in ISO 8601, as 2025-03-01T06:00. Received: {given}.") from None

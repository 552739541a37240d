"""The `vigil` command line. Heavy packages are imported by the commands that need them, so that help comes at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands import fraud, imaging, maintenance
from pipelines.commands.shared import default_tracking_uri, var_dir

app = typer.Typer(
    name="vigil",
    help="Watches payments, chest CTs and machines, where a missed signal costs money or lives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(fraud.app, name="fraud")
app.add_typer(maintenance.app, name="maintenance")
app.add_typer(imaging.app, name="imaging")


@app.command()
def demo(
    transactions: Annotated[Path | None, typer.Option(help="Own payments instead of the simulator.")] = None,
    columns: Annotated[str, typer.Option(help="Which column is which, as for `vigil fraud`.")] = "",
    seed: int = 0,
) -> None:
    """Train, gate, register, then stream several days of payments through Kafka; ends with a page of pictures."""
    from pipelines.demo import run_demo

    run_demo(var_dir(), transactions=transactions, columns=columns, seed=seed)


@app.command()
def ui(dagster_port: int = 3000, mlflow_port: int = 5000) -> None:
    """Show Dagster and MLflow on 127.0.0.1 until Ctrl-C."""
    from pipelines.ui import run_ui

    run_ui(var_dir(), default_tracking_uri(), dagster_port, mlflow_port)


def main() -> None:
    """Run a command; exit code 2 for a wrong call or input, 3 for a refusal, 1 for what nobody expected."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # threads that wait must not spin: on busy cores a training of one minute took twenty
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"vigil: {error}", file=sys.stderr)
        sys.exit(code)

"""What the commands share: progress, where run-time state lies, and how a model is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

Tracking = Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store; default: under var/.")]


def say(text: str) -> None:
    """Progress goes to standard error, so that standard output stays clean for pipes."""
    print(text, file=sys.stderr, flush=True)


def find_model(name: str, tracking_uri: str) -> tuple[Path, str]:
    """Directory and version of a model named by alias, by version or by directory."""
    path = Path(name)
    if path.is_dir():
        return path, path.name
    from core.tracking import Tracker

    return Tracker(tracking_uri or default_tracking_uri()).resolve(name)


def default_tracking_uri() -> str:
    return f"sqlite:///{var_dir() / 'mlflow.db'}"


def var_dir() -> Path:
    """Where run-time state lies: VIGIL_VAR, else var/ in the current folder."""
    return Path(os.environ.get("VIGIL_VAR", "var")).resolve()

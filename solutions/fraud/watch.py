"""Is the champion still right? Input and errors of the newest payments against those of its held-out window."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from core.continual.drift import DriftReport, detect
from core.continual.updater import UpdatePlan, Updater
from solutions.fraud.model import FraudModel
from solutions.fraud.operate import Workspace, score_with, training_stream

WATCHED = ["amount", "hour", "probability"]


def _inputs(window: pd.DataFrame, probability_T: np.ndarray) -> np.ndarray:
    hour = window["event_time"].dt.hour + window["event_time"].dt.minute / 60.0
    return np.stack([window["amount"].to_numpy(float), hour.to_numpy(float), probability_T], axis=1)


def compare(
    reference: pd.DataFrame, reference_T: np.ndarray, current: pd.DataFrame, current_T: np.ndarray
) -> DriftReport:
    """Drift between two windows: inputs, and the Brier error of the labelled payments in the order of time."""
    errors = [
        (p_T - (window["is_fraud"].to_numpy() == 1)) ** 2
        for window, p_T in ((reference, reference_T), (current, current_T))
    ]
    return detect(_inputs(reference, reference_T), _inputs(current, current_T), WATCHED, np.concatenate(errors))


def plan_update(workspace: Workspace) -> UpdatePlan | None:
    """Plan for the payments that arrived after the champion's training; None without a champion or such payments."""
    described = workspace.root / "champion.json"
    if not described.exists():
        return None
    run = json.loads(described.read_text())["run"]
    reference = pd.read_parquet(workspace.evaluation(run))
    frame = training_stream(workspace)
    current = frame[frame["event_time"] > reference["event_time"].max()]
    if current.empty:
        return None
    model = FraudModel.load(workspace.model(run))
    return Updater().plan(
        compare(reference, reference["fused"].to_numpy(float), current, score_with(model, frame, current))
    )

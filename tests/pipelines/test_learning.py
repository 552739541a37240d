"""The online update as a process of its own: it collects, updates once, obeys the gate, and is repaired after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from core.continual.updater import UpdatePlan
from core.tracking import Tracker
from pipelines import learning
from solutions.fraud import collector, operate, update, watch
from solutions.fraud.collector import Collected
from solutions.fraud.operate import MODEL_NAME, Workspace
from solutions.fraud.stream import StreamSettings
from tests.solutions.fraud.streams import random_stream, tiny_model

SETTINGS = StreamSettings(bootstrap_servers="127.0.0.1:1")


class Learner:
    """`learn_once` with training and broker taken out; `kept`: what the gate says."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workspace, self.tracker = Workspace(root / "fraud"), Tracker(f"sqlite:///{root / 'mlflow.db'}")
        self.kept, self.trained, self.scope, self.killed = True, 0, "full", False
        frame = random_stream(300)
        self.workspace.payments.mkdir(parents=True)
        frame.to_parquet(self.workspace.payments / "2024-03-01.parquet", index=False)
        (self.workspace.root / "champion.json").write_text(json.dumps({"version": 1, "run": "first"}))
        monkeypatch.setattr(collector, "collect", lambda *_, **__: Collected(0, 0, 0))
        monkeypatch.setattr(watch, "plan_update", lambda *_, **__: self.outlook())
        monkeypatch.setattr(update, "update_champion", self.train)

    def outlook(self) -> Any:
        return SimpleNamespace(plan=UpdatePlan(self.scope, "errors rose"), attempt="2024-03-10-2", since=1.0)  # type: ignore[arg-type]

    def train(self, workspace: Workspace, frame: pd.DataFrame, outlook: Any, run: str, *_: Any, **__: Any) -> None:
        self.trained += 1
        window = frame[["transaction_id", "event_time", "payer", "amount", "is_fraud"]]
        operate.save_challenger(tiny_model(), window.assign(fused=0.5), workspace, run)
        record = {"scope": "full", "why": "errors rose", "kept": self.kept, "reasons": ["no gain"], "since": 1.0}
        workspace.update(run).parent.mkdir(parents=True, exist_ok=True)
        workspace.update(run).write_text(json.dumps(record | {"before": 0.4, "after": 0.6, "forgetting": 0.0}))

    def once(self) -> str:
        return learning.learn_once(SETTINGS, self.workspace, self.tracker, maturity_days=4.0, warm_up_days=5.0)


@pytest.fixture
def learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Learner:
    return Learner(tmp_path, monkeypatch)


def test_a_gain_becomes_the_champion(learner: Learner) -> None:
    assert learner.once() == "version 1 is the champion"
    directory, _ = learner.tracker.resolve(f"{MODEL_NAME}@champion")
    assert directory.is_dir()
    assert watch.champion_run(learner.workspace) == "online-first-2024-03-10-2"


def test_what_the_gate_refused_is_not_trained_again(learner: Learner) -> None:
    learner.kept = False
    for _ in range(3):
        assert learner.once() == "the update was refused by the gate: no gain"
    assert learner.trained == 1
    assert watch.champion_run(learner.workspace) == "first"


def test_without_a_reason_nothing_is_trained(learner: Learner) -> None:
    learner.scope = "none"
    assert learner.once() == "errors rose"
    assert learner.trained == 0


def test_killed_after_the_training_it_goes_on_with_what_was_trained(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(operate, "register_challenger", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            learner.once()
    assert watch.champion_run(learner.workspace) == "first"
    assert learner.once() == "version 1 is the champion"
    assert learner.trained == 1
    runs = learner.tracker.client.search_runs([learner.tracker.client.get_experiment_by_name("vigil").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_it_repeats_until_it_is_told_to_stop(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    learning.learn(lambda: said.append("looked") or "looked", 0.001, lambda: len(said) == 3)  # type: ignore[func-returns-value]
    assert len(said) == 3
    learning.learn(lambda: said.append("once") or "once", 0.0, lambda: False)  # type: ignore[func-returns-value]
    assert said[-1] == "once"
    assert "looked" in capsys.readouterr().err

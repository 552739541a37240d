"""A scorer process from the command line: it answers, shows where it stands, changes its model, and ends in order."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.serving import ModelWatch
from solutions.fraud.broker import embedded_broker
from solutions.fraud.messages import Payment, encode_payment
from solutions.fraud.scorer import Scorer
from solutions.fraud.snapshots import Snapshots
from solutions.fraud.stream import Service
from tests.solutions.fraud.streams import tiny_model
from tests.solutions.fraud.stub import read, send, settings_for


def test_serve_and_status(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "model")
    with embedded_broker() as address:
        settings = settings_for(address, "served")
        names = {"transactions": settings.transactions, "labels": settings.labels, "scores": settings.scores}
        options = [f"--bootstrap-servers={address}", "--group=served", f"--snapshots={tmp_path / 'state'}"]
        options += [f"--{name}-topic={topic}" for name, topic in names.items()]
        options += [f"--dead-letters-topic={settings.dead_letters}"]
        serve = ["fraud", "serve", f"--model={tmp_path / 'model'}", "--metrics-port=0", *options]
        process = subprocess.Popen(
            [sys.executable, "-c", "from pipelines.cli import main; main()", *serve],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            send(address, settings.transactions, encode_payment(Payment("t1", 1.7e9, "card-0815", "m1", 9.0)))
            [score] = read(address, settings.scores, 1, seconds=150.0)
            assert json.loads(score.value)["transaction_id"] == "t1"
            first = process.stderr.readline()
            found = re.search(r"http://127.0.0.1:\d+/metrics", first)
            assert found is not None, first
            with urllib.request.urlopen(found[0]) as answer:
                assert b"vigil_fraud_transactions_total 1" in answer.read()
            process.send_signal(signal.SIGHUP)  # the name still means the same model: nothing changes
        finally:
            process.send_signal(signal.SIGTERM)
            errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors
        assert "stopped: 1 payments" in errors
        assert "0815" not in errors
        shown = CliRunner().invoke(app, ["fraud", "status", *options]).output
        assert re.search(r"records that wait +0\n", shown), shown
        assert re.search(r"last transaction +1 of owner", shown), shown
        assert re.search(r"newest snapshot +at \d+ of the changelog", shown), shown


def test_a_model_that_was_found_is_handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny_model()
    other = replace(
        model, blend=replace(model.blend, intercepts={k: v + 1.0 for k, v in model.blend.intercepts.items()})
    )
    other.save(tmp_path / "2")
    scorer = Scorer(model, model_version="1")
    watch = ModelWatch(str(tmp_path / "2"), "", scorer)
    with embedded_broker() as address:
        service = Service(settings_for(address, "changed", snapshots=tmp_path / "state"), scorer)
        watch.hand_over(service)
        assert scorer.model_version == "1"  # nothing was found yet
        watch.ask()
        assert watch._thread is not None
        watch._thread.join(60)
        watch.hand_over(service)
        assert scorer.model_version == "2"
        service.close()
    assert Snapshots(tmp_path / "state", keep=1).found() == []  # nothing was served that needed one

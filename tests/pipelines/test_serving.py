"""A scorer process from the command line: it answers, shows where it stands, changes its model, and ends in order."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.serving import ModelWatch, Serving
from solutions.fraud.broker import embedded_broker
from solutions.fraud.messages import Payment, encode_payment
from solutions.fraud.scorer import Scorer
from solutions.fraud.stream import Service, StreamSettings, publish
from tests.solutions.fraud.streams import random_stream, tiny_model
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


def serving_of(settings: StreamSettings, model: Path) -> Serving:
    return Serving(settings, str(model), "", 0.0, None, "", "", None, "127.0.0.1")


def found_and_handed_over(watch: ModelWatch, service: Service, name: Path) -> float:
    """Look for another model and change to it; returns the seconds that it took."""
    watch.serving = replace(watch.serving, model=str(name))
    began = time.monotonic()
    watch.ask()
    assert watch._thread is not None
    watch._thread.join(120)
    while watch._found is not None:
        watch.hand_over(service)
    return time.monotonic() - began


def test_a_model_that_was_found_is_handed_over_and_the_way_back_takes_less_than_a_second(tmp_path: Path) -> None:
    model = tiny_model()
    other = replace(
        model, blend=replace(model.blend, intercepts={k: v + 1.0 for k, v in model.blend.intercepts.items()})
    )
    other.save(tmp_path / "2")
    model.save(tmp_path / "1")
    scorer = Scorer(model, model_version="1")
    with embedded_broker() as address:
        settings = settings_for(address, "changed", snapshots=tmp_path / "state")
        watch = ModelWatch(serving_of(settings, tmp_path / "1"), scorer)
        service = Service(settings, scorer)
        watch.hand_over(service)
        assert scorer.model_version == "1"  # nothing was found yet
        found_and_handed_over(watch, service, tmp_path / "2")
        assert scorer.model_version == "2"
        assert found_and_handed_over(watch, service, tmp_path / "1") < 1.0
        assert (scorer.model_version, scorer.model) == ("1", model)
        service.close()


def test_a_model_of_another_state_is_rebuilt_by_replay_while_scoring_goes_on(tmp_path: Path) -> None:
    model, frame = tiny_model(), random_stream(400, days=20)
    slow = replace(model, engine=replace(model.engine, maturity_days=9.0))
    slow.save(tmp_path / "slow")
    with embedded_broker() as address:
        settings = settings_for(address, "rebuilt", snapshots=tmp_path / "state", patience_seconds=30.0)
        scorer = Scorer(model, model_version="1")
        service = Service(settings, scorer)
        publish(frame.head(200), settings)
        while service.served.payments < 200:
            service.step()
        watch = ModelWatch(serving_of(settings, tmp_path / "slow"), scorer)
        watch.ask()
        publish(frame.iloc[200:300], settings, also_due=frame.head(200))
        while service.served.payments < 300:  # scored meanwhile
            service.step()
        assert watch._thread is not None
        watch._thread.join(240)
        assert watch._found is not None
        watch.hand_over(service)
        assert service.scorer is watch.scorer is not scorer
        publish(frame.tail(100), settings, also_due=frame.head(300))
        service.run(until_idle=1.0)
        told = [json.loads(r.value) for r in read(address, settings.scores, 400)]
        assert [t["model_version"] for t in told] == ["1"] * 300 + ["slow"] * 100
        again = replace(settings, group="again", snapshots=None)
        alone = Scorer(slow, model_version="slow")
        Service(again, alone).run(until_idle=1.0)  # the same stream, from its start
        expected = [json.loads(r.value) for r in read(address, settings.scores, 800)][400:]
        assert [t["probability"] for t in told[300:]] == [e["probability"] for e in expected[300:]]


def test_a_state_that_can_not_be_rebuilt_leaves_the_model_that_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    replace(model, engine=replace(model.engine, maturity_days=9.0)).save(tmp_path / "slow")
    settings = StreamSettings(bootstrap_servers="127.0.0.1:1")
    watch = ModelWatch(serving_of(settings, tmp_path / "slow"), Scorer(model, model_version="1"))
    caplog.set_level("WARNING", "vigil.fraud")
    watch._look()
    assert watch._found is None
    [record] = caplog.records
    assert "needs a directory of snapshots" in record.vigil_fields["cause"]  # type: ignore[attr-defined]

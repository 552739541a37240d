"""The stream as day files: every payment once, labels when they come, killed at any point and called again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from solutions.fraud import collector
from solutions.fraud.collector import Collected, collect
from solutions.fraud.messages import Label, Payment, encode_label, encode_payment
from solutions.fraud.operate import Workspace, training_stream
from solutions.fraud.stream import publish
from tests.solutions.fraud.streams import random_stream
from tests.solutions.fraud.stub import send, settings_for
from tests.solutions.fraud.test_stream import NOON, fresh_name, label, payment


def test_a_stream_is_collected_as_the_file_would_be_read(tansu: str, tmp_path: Path) -> None:
    settings, workspace = settings_for(tansu, fresh_name(), partitions=2), Workspace(tmp_path)
    frame = random_stream(500, days=20)
    publish(frame.head(300), settings)
    first = collect(settings, workspace, maturity_days=7.0)
    publish(frame.tail(200), settings, also_due=frame.head(300))
    send(tansu, settings.transactions, b"poison", *[encode_payment(Payment("t3", NOON, "c", "m", 1.0))])
    second = collect(settings, workspace, maturity_days=7.0)
    assert first.payments + second.payments == 500  # t3 was there before
    assert second.labels > 0
    assert collect(settings, workspace, maturity_days=7.0) == Collected(0, 0, 0)
    stream = training_stream(workspace)
    expected = frame.sort_values("event_time", kind="stable").reset_index(drop=True)
    assert (stream["transaction_id"] == expected["transaction_id"]).all()
    assert (stream["event_time"] - expected["event_time"]).abs().max() <= pd.Timedelta(milliseconds=1)
    due = (expected["is_fraud"] == 1) & (expected["label_time"] <= expected["event_time"].max())
    assert ((stream["is_fraud"] == 1) == due).all()
    assert (stream["label_time"] - expected["label_time"])[due].abs().max() <= pd.Timedelta(milliseconds=1)
    genuine = stream["is_fraud"] == 0
    assert (stream["label_time"] - stream["event_time"])[genuine].eq(pd.Timedelta(days=7)).all()


def test_labels_before_their_payment_wait_and_fraud_stands(tansu: str, tmp_path: Path) -> None:
    settings, workspace = settings_for(tansu, fresh_name()), Workspace(tmp_path)
    send(tansu, settings.labels, label("t1", NOON + 5), label("never"))
    send(tansu, settings.labels, encode_label(Label("t1", False, NOON + 9, "analyst")))
    assert collect(settings, workspace, maturity_days=7.0) == Collected(0, 0, 3)
    send(tansu, settings.transactions, payment("t1"), payment("t2"))
    assert collect(settings, workspace, maturity_days=7.0) == Collected(2, 2, 1)
    assert training_stream(workspace)["is_fraud"].tolist() == [1, 0]


def test_killed_before_the_offsets_are_written_it_collects_again_and_nothing_twice(
    tansu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, workspace = settings_for(tansu, fresh_name()), Workspace(tmp_path)
    send(tansu, settings.transactions, payment("t1"), payment("t2"))
    send(tansu, settings.labels, label("t1"))
    with monkeypatch.context() as patched:
        patched.setattr(collector, "_apply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(settings, workspace, maturity_days=7.0)
    assert collect(settings, workspace, maturity_days=7.0) == Collected(0, 1, 0)
    assert training_stream(workspace)["is_fraud"].tolist() == [1, 0]

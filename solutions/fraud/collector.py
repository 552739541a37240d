"""Payments and labels of the stream as day files of the workspace: what training and updates read.

Offsets are written after the files. So a crash repeats records and loses none; a payment is kept once by its id, and saying a
label twice changes nothing. A payment without a label counts as genuine from the maturity on, as everywhere; fraud overrides
genuine, and nothing overrides fraud.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from core.files import replacing
from solutions.fraud.messages import BadRecordError, Label, Payment, parse_label, parse_payment
from solutions.fraud.operate import Workspace, write_frame
from solutions.fraud.ownership import all_partitions
from solutions.fraud.wire import StreamError, StreamSettings, insist, reader

WAITING = 100_000  # labels that are kept for payments which may still come
WAIT_MS = 200


@dataclass(frozen=True)
class Collected:
    """New payments and labels, and labels whose payment is not known yet."""

    payments: int
    labels: int
    waiting: int


def collect(settings: StreamSettings, workspace: Workspace, *, maturity_days: float) -> Collected:
    """Take in everything that is on the broker now. Records that can not be read are the scorer's to dead-letter.

    Raises:
        StreamError: no broker, no topic, or it stops answering.
    """
    noted = workspace.root / "collected.json"
    before = json.loads(noted.read_text()) if noted.exists() else {"offsets": [], "waiting": []}
    offsets = {(topic, partition): offset for topic, partition, offset in before["offsets"]}
    payments: dict[str, Payment] = {}
    labels: list[tuple[str, bool, float]] = [(name, fraud, when) for name, fraud, when in before["waiting"]]
    for record in _everything(settings, offsets):
        try:
            if record.topic == settings.labels:
                label: Label = parse_label(record.value or b"")
                labels.append((label.transaction_id, label.is_fraud, label.label_time))
            else:
                payment = parse_payment(record.value or b"", settings.columns)
                payments.setdefault(payment.transaction_id, payment)
        except BadRecordError:
            continue
    added = _add(workspace, _frame(list(payments.values()), maturity_days))
    waiting = _apply(workspace, labels)
    state = {"offsets": [[*place, offset] for place, offset in offsets.items()], "waiting": waiting[-WAITING:]}
    with replacing(noted) as temporary:
        temporary.write_text(json.dumps(state))
    return Collected(added, len(labels) - len(waiting), len(waiting))


def _everything(settings: StreamSettings, offsets: dict[tuple[str, int], int]) -> Iterator[Any]:
    """Records from `offsets` on, up to what was there at the beginning; moves `offsets` along."""

    consumer = reader(settings)
    try:
        partitions = all_partitions(consumer, settings)
        consumer.assign(partitions)
        for tp in partitions:
            consumer.seek(tp, offsets.get((tp.topic, tp.partition), 0))
        goals: dict[Any, int] = {}
        deadline = time.monotonic() + settings.outage_seconds
        while True:
            polled = insist(settings, lambda: consumer.poll(timeout_ms=WAIT_MS, max_records=5_000))
            for tp in partitions:
                if (newest := consumer.highwater(tp)) is not None:
                    goals.setdefault(tp, newest)
            for records in polled.values():
                deadline = time.monotonic() + settings.outage_seconds
                yield from records
            for tp in partitions:
                offsets[tp.topic, tp.partition] = consumer.position(tp) or 0
            if len(goals) == len(partitions) and all(offsets[tp.topic, tp.partition] >= goals[tp] for tp in partitions):
                return
            if time.monotonic() > deadline:
                raise StreamError(f"{settings.bootstrap_servers} does not tell how long its topics are.")
    finally:
        consumer.close()


def _frame(payments: list[Payment], maturity_days: float) -> pd.DataFrame:
    """The canonical frame; nobody has said fraud yet."""
    frame = pd.DataFrame([[p.transaction_id, p.event_time, p.payer, p.payee, p.amount, p.device] for p in payments])
    frame = frame.reindex(columns=range(6))
    frame.columns = pd.Index(["transaction_id", "event_time", "payer", "payee", "amount", "device"])
    frame["event_time"] = _moments(frame["event_time"])
    frame["is_fraud"] = pd.Series(0, index=frame.index, dtype="int8")
    frame["label_time"] = frame["event_time"] + pd.Timedelta(days=maturity_days)
    return frame


def _moments(seconds: Any) -> Any:
    return pd.to_datetime(pd.Series(seconds, dtype="float64"), unit="s").astype("datetime64[us]")


def _add(workspace: Workspace, frame: pd.DataFrame) -> int:
    """Append to the files of the days; returns how many payments were new."""
    known = {name for path in workspace.payments.glob("*.parquet") for name in _names(path)} if len(frame) else set()
    new = frame[~frame["transaction_id"].isin(known)]
    for day, payments in new.groupby(new["event_time"].dt.strftime("%Y-%m-%d")):
        path = workspace.payments / f"{day}.parquet"
        together = pd.concat([pd.read_parquet(path), payments], ignore_index=True) if path.exists() else payments
        write_frame(together.sort_values("event_time", kind="stable").reset_index(drop=True), path)
    return len(new)


def _names(path: Path) -> pd.Series:
    return pd.read_parquet(path, columns=["transaction_id"])["transaction_id"]


def _apply(workspace: Workspace, labels: list[tuple[str, bool, float]]) -> list[tuple[str, bool, float]]:
    """Write labels into the files of their payments' days; returns those whose payment is nowhere."""
    frauds = {name: when for name, fraud, when in reversed(labels) if fraud}  # the first word counts
    left = {name for name, _, _ in labels}
    for path in sorted(workspace.payments.glob("*.parquet"), reverse=True) if left else []:
        here = left & set(_names(path))
        if not here:
            continue
        left -= here
        frame = pd.read_parquet(path)
        told = frame["transaction_id"].isin(here & frauds.keys()) & (frame["is_fraud"] != 1)
        if told.any():
            frame.loc[told, "is_fraud"] = 1
            frame["is_fraud"] = frame["is_fraud"].astype("int8")
            frame.loc[told, "label_time"] = _moments(frame.loc[told, "transaction_id"].map(frauds)).to_numpy()
            write_frame(frame, path)
    return [label for label in labels if label[0] in left]

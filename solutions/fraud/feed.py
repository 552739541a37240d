"""A canonical frame as a live stream: payments, and their fraud labels when they fall due, in the order of time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from solutions.fraud.messages import Label, Payment, encode_label, encode_payment
from solutions.fraud.wire import StreamError, StreamSettings, connect


def publish(
    frame: pd.DataFrame,
    settings: StreamSettings,
    *,
    also_due: pd.DataFrame | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, int]:
    """Send a frame's payments, and the fraud labels when they are due, in the order of time.

    Args:
        also_due: earlier payments, whose labels fall due while `frame` is sent.

    Returns the numbers of payments and labels sent. Labels due after the last payment are not sent.

    Raises:
        StreamError: something was not taken by the broker.
    """
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    from solutions.fraud.engine import seconds

    if frame.empty:
        return 0, 0
    event_time = seconds(frame["event_time"])
    known = frame if also_due is None else pd.concat([also_due, frame], ignore_index=True)
    label_time = seconds(known["label_time"])
    in_time = (label_time >= event_time[0]) & (label_time < event_time[-1])
    frauds = np.flatnonzero((known["is_fraud"].to_numpy() == 1) & in_time)
    due = frauds[np.argsort(label_time[frauds], kind="stable")]
    known_names = known["transaction_id"].tolist()
    producer = connect(KafkaProducer, settings, linger_ms=5, acks="all")
    refused: list[BaseException] = []
    devices = frame["device"] if "device" in frame else pd.Series([None] * len(frame))
    rows = zip(
        frame["transaction_id"], event_time, frame["payer"], frame["payee"], frame["amount"], devices, strict=True
    )
    sent = 0
    try:
        for n, (name, when, payer, payee, amount, device) in enumerate(rows):
            while sent < len(due) and label_time[due[sent]] < when:
                label = Label(known_names[due[sent]], True, float(label_time[due[sent]]), "chargeback")
                producer.send(settings.labels, value=encode_label(label)).add_errback(refused.append)
                sent += 1
            payment = Payment(name, float(when), payer, payee, float(amount), None if pd.isna(device) else device)
            producer.send(settings.transactions, value=encode_payment(payment)).add_errback(refused.append)
            if progress is not None and n % 500 == 0:
                progress(n)
        producer.flush(timeout=settings.outage_seconds)
    except KafkaError as error:
        refused.append(error)
    finally:
        producer.close(timeout=10)
    if refused:
        raise StreamError(
            f"{settings.bootstrap_servers} did not take all payments and labels ({type(refused[0]).__name__})."
        ) from refused[0]
    return len(frame), sent

"""The four messages on the wire: payment and label in, score and dead letter out. JSON, one object each, UTF-8.

A cause names the field and what was expected; it never quotes an identifier.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

MAX_BYTES = 65_536
MILLISECONDS_FROM = 1e11  # epoch numbers above are milliseconds: as seconds they would lie after the year 5000
MOST_AMOUNT = 1e15  # above it single precision loses whole units; no currency needs it


class BadRecordError(ValueError):
    """A record that can not be processed; the message is the cause that goes to the dead-letter topic."""


@dataclass(frozen=True, slots=True)
class Payment:
    """event_time in Unix seconds, UTC."""

    transaction_id: str
    event_time: float
    payer: str
    payee: str
    amount: float
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    transaction_id: str
    is_fraud: bool
    label_time: float
    source: str


@dataclass(frozen=True, slots=True)
class Score:
    transaction_id: str
    event_time: float
    probability: float
    decision: Literal["allow", "step_up", "block"]
    reasons: tuple[str, ...]
    model_version: str


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_BYTES:
        raise BadRecordError(f"record is larger than {MAX_BYTES} bytes: {len(raw)}")
    try:
        value = json.loads(raw.decode())  # bytes would also be taken as UTF-16
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        raise BadRecordError("record is not JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise BadRecordError(f"record is not a JSON object but a {type(value).__name__}")
    return value


def _identifier(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRecordError(f"`{name}` must be a string or an integer; it is {_kind(record, name)}")
    text = str(value)
    if not 0 < len(text) <= 256:
        raise BadRecordError(f"`{name}` must have 1 to 256 characters; it has {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecordError(f"`{name}` must be Unicode text; it holds half a surrogate pair") from None
    return text


def _kind(record: dict[str, Any], name: str) -> str:
    return f"a {type(record[name]).__name__}" if name in record else "missing"


def _number(record: dict[str, Any], name: str, expected: str) -> float:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRecordError(f"`{name}` must be {expected}; it is {_kind(record, name)}")
    try:
        return float(value)
    except OverflowError:  # JSON integers have no bound
        return math.inf


def _time(record: dict[str, Any], name: str) -> float:
    expected = "ISO 8601 or epoch milliseconds"
    value = record.get(name)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise BadRecordError(f"`{name}` must be {expected}; it is another text") from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    else:
        number = _number(record, name, expected)
        seconds = number / 1000.0 if abs(number) >= MILLISECONDS_FROM else number
    if not 0.0 < seconds < MILLISECONDS_FROM:
        raise BadRecordError(f"`{name}` must lie after 1970 and before 5138; it does not")
    return seconds


def parse_payment(raw: bytes, mapping: dict[str, str] | None = None) -> Payment:
    """Parse one payment; `mapping` renames (our field -> theirs, and only theirs then counts).

    Raises:
        BadRecordError: with the cause.
    """
    record = _object(raw)
    if mapping:
        renamed = {ours: record[theirs] for ours, theirs in mapping.items() if theirs in record}
        record = {name: value for name, value in record.items() if name not in mapping} | renamed
    amount = _number(record, "amount", "a number")
    if not 0 <= amount <= MOST_AMOUNT:  # NaN compares false
        raise BadRecordError(f"`amount` must be finite, >= 0 and <= {MOST_AMOUNT:.0e}; it is not")
    return Payment(
        transaction_id=_identifier(record, "transaction_id"),
        event_time=_time(record, "event_time"),
        payer=_identifier(record, "payer"),
        payee=_identifier(record, "payee"),
        amount=amount,
        device=_identifier(record, "device") if record.get("device") is not None else None,
    )


def parse_label(raw: bytes) -> Label:
    """Parse one label.

    Raises:
        BadRecordError: with the cause.
    """
    record = _object(raw)
    verdict = record.get("is_fraud")
    if verdict not in (True, False):  # 1 and 0 equal them
        raise BadRecordError(f"`is_fraud` must be true, false, 1 or 0; it is {_kind(record, 'is_fraud')}")
    source = record.get("source", "unknown")
    if not isinstance(source, str):
        raise BadRecordError(f"`source` must be a string; it is {_kind(record, 'source')}")
    return Label(_identifier(record, "transaction_id"), bool(verdict), _time(record, "label_time"), source)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode()


def encode_payment(payment: Payment) -> bytes:
    record: dict[str, Any] = {
        "transaction_id": payment.transaction_id,
        "event_time": _milliseconds(payment.event_time),
        "payer": payment.payer,
        "payee": payment.payee,
        "amount": payment.amount,
    }
    return _encode(record | ({"device": payment.device} if payment.device else {}))


def encode_label(label: Label) -> bytes:
    return _encode(
        {
            "transaction_id": label.transaction_id,
            "is_fraud": label.is_fraud,
            "label_time": _milliseconds(label.label_time),
            "source": label.source,
        }
    )


def encode_score(score: Score, partition: int, offset: int) -> bytes:
    """`partition` and `offset`: where the payment was read."""
    return _encode(
        {
            "transaction_id": score.transaction_id,
            "event_time": _milliseconds(score.event_time),
            "probability": round(score.probability, 6),
            "decision": score.decision,
            "reasons": list(score.reasons),
            "model_version": score.model_version,
            "partition": partition,
            "offset": offset,
        }
    )

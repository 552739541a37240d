"""What docs/asyncapi.yaml says about the messages is what the code does: it takes and refuses the same records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from solutions.fraud.messages import BadRecordError, Score, encode_score, parse_label, parse_payment
from solutions.fraud.wire import StreamSettings

DESCRIBED = yaml.safe_load((Path(__file__).parents[3] / "docs" / "asyncapi.yaml").read_text())
PAYMENT = {"transaction_id": "t", "event_time": 1_714_557_600_000, "payer": "a", "payee": "b", "amount": 1.5}
LABEL = {"transaction_id": "t", "is_fraud": True, "label_time": "2024-05-01T10:00:00Z", "source": "analyst"}


def allowed(name: str, value: Any) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": DESCRIBED["components"]}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def taken(parse: Any, value: Any) -> bool:
    try:
        parse(json.dumps(value).encode())
    except BadRecordError:
        return False
    return True


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


PAYMENTS = [
    PAYMENT,
    PAYMENT | {"device": "d"},
    PAYMENT | {"device": None},
    PAYMENT | {"payer": 17, "event_time": "2024-05-01T10:00:00+02:00", "more": {"than": "we know"}},
    *(without(PAYMENT, name) for name in PAYMENT),
    *(PAYMENT | {"amount": amount} for amount in (-1, "5", None, 1e16, 0)),
    *(PAYMENT | {"payer": payer} for payer in ("", "x" * 257, "x" * 256, True, 1.5, None)),
    *(PAYMENT | {"event_time": when} for when in (0, -5, None, [1])),
    *([], "text", 5, None),
]
LABELS = [
    *(
        LABEL,
        without(LABEL, "source"),
        *(without(LABEL, name) for name in ("transaction_id", "is_fraud", "label_time")),
    ),
    *(LABEL | {"is_fraud": verdict} for verdict in (0, 1, False, 2, "true", None)),
    LABEL | {"source": 5},
]


@pytest.mark.parametrize("record", PAYMENTS)
def test_payments_are_taken_as_described(record: Any) -> None:
    assert taken(parse_payment, record) == allowed("payment", record)


@pytest.mark.parametrize("record", LABELS)
def test_labels_are_taken_as_described(record: Any) -> None:
    assert taken(parse_label, record) == allowed("label", record)


@pytest.mark.parametrize(("decision", "reasons"), [("allow", ()), ("block", ("NEW_ACCOUNT", "UNUSUAL_TIME"))])
def test_scores_are_as_described(decision: Any, reasons: tuple[str, ...]) -> None:
    score = json.loads(encode_score(Score("t", 1.7e9, 0.25, decision, reasons, "fraud/3"), 0, 12))
    assert allowed("score", score)
    assert not allowed("score", score | {"probability": 1.5})


def test_topics_are_the_default_ones() -> None:
    addresses = tuple(channel["address"] for channel in DESCRIBED["channels"].values())
    assert addresses == StreamSettings(bootstrap_servers="a:1").topics()

"""Messages: what is read is what was written, and what can not be read says why without saying who."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solutions.fraud.messages import (
    BadRecordError,
    Label,
    Payment,
    Score,
    encode_label,
    encode_payment,
    encode_score,
    parse_label,
    parse_payment,
)

GOOD = {"transaction_id": "t1", "event_time": "2024-05-01T10:00:00Z", "payer": "c1", "payee": "m1", "amount": 12.5}
names = st.text(min_size=1, max_size=40)
times = st.integers(min_value=1_000_000_000_000, max_value=4_000_000_000_000).map(lambda ms: ms / 1000)
amounts = st.floats(min_value=0, max_value=1e9, allow_nan=False)


@given(st.builds(Payment, names, times, names, names, amounts, st.none() | names))
def test_payments_round_trip(payment: Payment) -> None:
    assert parse_payment(encode_payment(payment)) == payment


@given(st.builds(Label, names, st.booleans(), times, names))
def test_labels_round_trip(label: Label) -> None:
    assert parse_label(encode_label(label)) == label


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_give_a_cause(raw: bytes) -> None:
    for parse in (parse_payment, parse_label):
        try:
            parse(raw)
        except BadRecordError as bad:
            assert str(bad)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"amount": -1}, "`amount` must be finite and >= 0"),
        ({"amount": float("nan")}, "`amount` must be finite and >= 0"),
        ({"amount": "12"}, "`amount` must be a number; it is a str"),
        ({"amount": None}, "`amount` must be a number; it is a NoneType"),
        ({"payer": None}, "`payer` must be a string or an integer"),
        ({"payer": ""}, "`payer` must have 1 to 256 characters; it has 0"),
        ({"event_time": "yesterday"}, "`event_time` must be ISO 8601 or epoch milliseconds"),
        ({"event_time": True}, "`event_time` must be ISO 8601"),
        ({"event_time": -5}, "`event_time` must lie after 1970"),
    ],
)
def test_a_bad_field_is_named_with_what_was_expected(change: dict[str, object], cause: str) -> None:
    with pytest.raises(BadRecordError, match=cause):
        parse_payment(json.dumps(GOOD | change).encode())


def test_causes_never_quote_identifiers() -> None:
    secret = "4929123412341234"
    with pytest.raises(BadRecordError) as bad:
        parse_payment(json.dumps(GOOD | {"payer": secret, "amount": -3}).encode())
    assert secret not in str(bad.value)


@pytest.mark.parametrize(
    "when", ["2024-05-01T10:00:00Z", "2024-05-01T12:00:00+02:00", 1714557600000, "2024-05-01T10:00:00"]
)
def test_all_spellings_of_a_moment_agree(when: object) -> None:
    assert parse_payment(json.dumps(GOOD | {"event_time": when}).encode()).event_time == 1714557600.0


def test_columns_can_be_renamed() -> None:
    raw = json.dumps({**GOOD, "CUSTOMER_ID": 77, "payer": "x"}).encode()
    assert parse_payment(raw, {"payer": "CUSTOMER_ID"}).payer == "77"


def test_a_score_names_where_its_payment_was_read() -> None:
    score = json.loads(encode_score(Score("t", 1.7e9, 0.25, "step_up", ("NEW_ACCOUNT",), "fraud/3"), 2, 17))
    assert (score["partition"], score["offset"], score["decision"]) == (2, 17, "step_up")
    assert score["event_time"] == 1_700_000_000_000

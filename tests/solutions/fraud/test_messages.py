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
        ({"amount": -1}, "`amount` must be finite, >= 0"),
        ({"amount": float("nan")}, "`amount` must be finite, >= 0"),
        ({"amount": float("inf")}, "`amount` must be finite, >= 0"),
        ({"amount": 10**400}, "`amount` must be finite, >= 0"),
        ({"amount": 1e300}, "`amount` must be finite, >= 0 and <= 1e"),
        ({"amount": "12"}, "`amount` must be a number; it is a str"),
        ({"amount": None}, "`amount` must be a number; it is a NoneType"),
        ({"payer": None}, "`payer` must be a string or an integer"),
        ({"payer": ""}, "`payer` must have 1 to 256 characters; it has 0"),
        ({"event_time": "yesterday"}, "`event_time` must be ISO 8601 or epoch milliseconds"),
        ({"event_time": True}, "`event_time` must be ISO 8601"),
        ({"event_time": -5}, "`event_time` must lie after 1970"),
        ({"event_time": float("nan")}, "`event_time` must lie after 1970"),
        ({"event_time": 10**400}, "`event_time` must lie after 1970"),
        ({"event_time": "0001-01-01T00:00:00+14:00"}, "`event_time` must lie after 1970"),
        ({"event_time": "9999-12-31"}, "`event_time` must lie after 1970 and before 5138"),
        ({"payee": "\ud800"}, "`payee` must be Unicode text; it holds half a surrogate pair"),
        ({"device": 1.5}, "`device` must be a string or an integer; it is a float"),
    ],
)
def test_a_bad_field_is_named_with_what_was_expected(change: dict[str, object], cause: str) -> None:
    with pytest.raises(BadRecordError, match=cause):
        parse_payment(json.dumps(GOOD | change).encode())


@pytest.mark.parametrize("name", ["transaction_id", "event_time", "payer", "payee", "amount"])
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(BadRecordError, match=f"`{name}` must be .*; it is missing"):
        parse_payment(json.dumps({k: v for k, v in GOOD.items() if k != name}).encode())


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "record is not JSON in UTF-8"),
        (b"\xff\xfe", "record is not JSON in UTF-8"),
        (json.dumps(GOOD).encode("utf-16"), "record is not JSON in UTF-8"),
        (b"[" * 60_000, "record is not JSON in UTF-8"),
        (b"1" * 5_000, "record is not JSON in UTF-8"),  # Python refuses integers of more than 4300 digits
        (b"[1]", "record is not a JSON object but a list"),
        (b"null", "record is not a JSON object but a NoneType"),
        (b" " * 65_537, "record is larger than 65536 bytes: 65537"),
    ],
)
def test_what_is_no_object_is_named(raw: bytes, cause: str) -> None:
    for parse in (parse_payment, parse_label):
        with pytest.raises(BadRecordError, match=cause):
            parse(raw)


LABEL = {"transaction_id": "t1", "is_fraud": True, "label_time": "2024-05-08", "source": "chargeback"}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"is_fraud": "yes"}, "`is_fraud` must be true, false, 1 or 0; it is a str"),
        ({"is_fraud": 2}, "`is_fraud` must be true, false, 1 or 0; it is a int"),
        ({"is_fraud": []}, "`is_fraud` must be true, false, 1 or 0; it is a list"),
        ({"label_time": None}, "`label_time` must be ISO 8601 or epoch milliseconds; it is a NoneType"),
        ({"source": 7}, "`source` must be a string; it is a int"),
    ],
)
def test_a_bad_label_is_named(change: dict[str, object], cause: str) -> None:
    with pytest.raises(BadRecordError, match=cause):
        parse_label(json.dumps(LABEL | change).encode())


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


def test_a_renamed_column_is_not_replaced_by_one_that_happens_to_have_our_name() -> None:
    with pytest.raises(BadRecordError, match="`payer` must be .*; it is missing"):
        parse_payment(json.dumps(GOOD).encode(), {"payer": "CUSTOMER_ID"})


def test_a_score_names_where_its_payment_was_read() -> None:
    score = json.loads(encode_score(Score("t", 1.7e9, 0.25, "step_up", ("NEW_ACCOUNT",), "fraud/3"), 2, 17))
    assert (score["partition"], score["offset"], score["decision"]) == (2, 17, "step_up")
    assert score["event_time"] == 1_700_000_000_000

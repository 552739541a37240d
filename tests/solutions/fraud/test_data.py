"""Loading payments: what comes through, what is refused and with which words."""

from __future__ import annotations

import math
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solutions.fraud.data import ColumnMapping, Comparison, InputError, load_payments

DATA = Path(os.environ.get("VIGIL_DATA", Path(__file__).parents[4] / "shared" / "data")) / "fraud"
HANDBOOK = DATA / "handbook_transactions.parquet"
BITCOIN = DATA / "bitcoin_alpha.parquet"
PUBLISHED = ColumnMapping.parse(
    "event_time=TX_DATETIME,payer=CUSTOMER_ID,payee=TERMINAL_ID,amount=TX_AMOUNT,label=TX_FRAUD,"
    "transaction_id=TRANSACTION_ID,scenario=TX_FRAUD_SCENARIO"
)


def payments(**changes: Any) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "transaction_id": ["a", "b", "c", "d"],
        "event_time": ["2024-01-01T10:00:00", "2024-01-01T11:00:00", "2024-01-02T00:00:00", "2024-01-03T00:00:00"],
        "payer": ["p1", "p2", "p1", "p3"],
        "payee": ["m1", "m1", "m2", "m2"],
        "amount": [10.0, 20.0, 30.0, 40.0],
        "is_fraud": [0, 1, 0, 0],
    }
    return pd.DataFrame({**columns, **changes})


def written(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["payments.csv", "payments.parquet"])
def test_a_clean_file_gives_the_canonical_frame(tmp_path: Path, name: str) -> None:
    loaded = load_payments(written(payments(), tmp_path / name), label_delay=timedelta(days=7))
    frame = loaded.frame
    assert {column: str(kind) for column, kind in frame.dtypes.items()} == {
        "transaction_id": "str",
        "event_time": "datetime64[us]",
        "payer": "str",
        "payee": "str",
        "amount": "float64",
        "is_fraud": "int8",
        "label_time": "datetime64[us]",
    }
    assert (frame["label_time"] - frame["event_time"]).eq(pd.Timedelta(days=7)).all()
    assert frame.attrs == {"account_to_account": False}
    assert (loaded.rows, len(loaded.rejected), loaded.notes, loaded.name) == (4, 0, (), name)
    assert len(loaded.sha256) == 64


BAD: dict[str, list[tuple[object, str]]] = {
    "transaction_id": [(None, "missing"), ("", "missing"), ("a", "duplicate id")],
    "event_time": [(None, "missing"), ("yesterday", "not a time"), ("1066-10-14", "out of range")],
    "payer": [(None, "missing"), ("  ", "missing")],
    "payee": [(None, "missing")],
    "amount": [(None, "missing"), ("NaN", "NaN"), ("inf", "infinite"), ("-1", "negative"), ("ten", "not a number")],
    "is_fraud": [("2", "not in 0..1"), ("0.5", "not in 0..1"), ("maybe", "not a number")],
}


@pytest.mark.parametrize(("column", "value", "cause"), [(c, v, cause) for c, bad in BAD.items() for v, cause in bad])
def test_each_kind_of_bad_value_is_refused_with_its_row_column_and_cause(
    tmp_path: Path, column: str, value: object, cause: str
) -> None:
    frame = payments().astype(object)
    frame.loc[2, column] = value
    loaded = load_payments(written(frame, tmp_path / "payments.csv"))
    field = {"is_fraud": "label"}.get(column, column)
    assert loaded.rejected[["row", "column", "cause"]].to_numpy().tolist() == [[2, field, cause]]
    assert loaded.frame["transaction_id"].tolist() == ["a", "b", "d"]
    assert loaded.causes() == {f"{field}: {cause}": 1}


def test_a_true_nan_and_an_infinite_amount_in_parquet_are_refused(tmp_path: Path) -> None:
    path = written(payments(amount=[1.0, math.nan, math.inf, 2.0]), tmp_path / "payments.parquet")
    assert load_payments(path).rejected["cause"].isin(["NaN", "missing", "infinite"]).tolist() == [True, True]


def test_the_first_usable_row_of_a_duplicated_id_is_kept(tmp_path: Path) -> None:
    frame = payments(transaction_id=["a", "a", "a", "d"], amount=[-1.0, 20.0, 30.0, 40.0])
    loaded = load_payments(written(frame, tmp_path / "payments.parquet"))
    assert loaded.frame["amount"].tolist() == [20.0, 40.0]
    assert loaded.rejected["cause"].tolist() == ["negative", "duplicate id"]


def test_a_csv_row_with_a_value_too_few_is_refused_and_later_rows_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "payments.csv"
    path.write_text(
        "event_time,payer,payee,amount\n2024-01-01,p,m,1\n2024-01-02,secret\n2024-01-03,p,m,-3\n2024-01-04,p,m,4\n"
    )
    loaded = load_payments(path)
    assert loaded.rejected[["row", "cause"]].to_numpy().tolist() == [[1, "wrong number of values"], [2, "negative"]]
    assert loaded.frame["transaction_id"].tolist() == ["0", "3"]
    assert loaded.rows == 4


def test_unsorted_time_is_sorted_stably_and_counted(tmp_path: Path) -> None:
    times = ["2024-01-02", "2024-01-01", "2024-01-02", "2024-01-01"]
    loaded = load_payments(written(payments(event_time=times), tmp_path / "payments.csv"))
    assert loaded.frame["transaction_id"].tolist() == ["b", "d", "a", "c"]
    assert loaded.notes == ("2 payments were out of time order; sorted by event_time",)
    assert loaded.frame.set_index("transaction_id").loc["b", "amount"] == 20.0


def test_every_way_to_write_a_time_means_the_same(tmp_path: Path) -> None:
    stamps = pd.to_datetime(payments()["event_time"]).dt.as_unit("us")
    seconds = (stamps - pd.Timestamp(0)).dt.total_seconds()
    ways: dict[str, Any] = {
        "datetime": stamps,
        "zone": stamps.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
        "iso": stamps.dt.strftime("%Y-%m-%dT%H:%M:%S"),
        "iso_zone": stamps.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo").map(lambda stamp: stamp.isoformat()),
        "seconds": seconds.astype(np.int64),
        "seconds_float": seconds,
        "milliseconds": (seconds * 1e3).astype(np.int64),
        "microseconds": (seconds * 1e6).astype(np.int64),
        "nanoseconds": (seconds * 1e9).astype(np.int64),
    }
    for way, values in ways.items():
        for suffix in ("csv", "parquet"):
            path = written(payments().assign(event_time=values), tmp_path / f"{way}.{suffix}")
            assert load_payments(path).frame["event_time"].tolist() == stamps.tolist(), (way, suffix)


def test_identifiers_stay_as_they_were_written(tmp_path: Path) -> None:
    for payers in (["007", "7", "7", "12"], ["1e3", "1000", "NA", "null"], ["true", "True", "2024-01-01", "nan"]):
        path = written(payments(payer=payers), tmp_path / "payments.csv")
        assert load_payments(path).frame["payer"].tolist() == payers
    path = written(payments(payer=[7.0, 12.0, np.nan, 2.5]), tmp_path / "payments.parquet")
    loaded = load_payments(path)
    assert loaded.frame["payer"].tolist() == ["7", "12"]
    assert loaded.rejected["cause"].tolist() == ["missing", "not a whole number"]


def test_without_an_amount_the_amount_is_zero_and_without_an_id_the_row_number_is_the_id(tmp_path: Path) -> None:
    frame = payments().drop(columns=["amount", "transaction_id", "is_fraud"])
    loaded = load_payments(written(frame, tmp_path / "payments.parquet"), account_to_account=True).frame
    assert loaded["amount"].tolist() == [0.0] * 4
    assert loaded["transaction_id"].tolist() == ["0", "1", "2", "3"]
    assert loaded["is_fraud"].tolist() == [-1] * 4
    assert loaded["label_time"].isna().all()
    assert loaded.attrs["account_to_account"] is True


def test_a_comparison_makes_the_label_and_a_missing_value_leaves_it_unknown(tmp_path: Path) -> None:
    frame = payments().drop(columns=["is_fraud"]).assign(rating=[-3.0, 0.0, np.nan, 5.0])
    path = written(frame, tmp_path / "payments.parquet")
    loaded = load_payments(path, ColumnMapping.parse("label=rating<0"), label_delay=timedelta(days=1)).frame
    assert loaded["is_fraud"].tolist() == [1, 0, -1, 0]
    assert loaded["label_time"].isna().tolist() == [False, False, True, False]
    assert load_payments(path, ColumnMapping.parse("label=rating >= 5")).frame["is_fraud"].tolist() == [0, 0, -1, 1]
    assert "rating" not in loaded


def test_the_column_that_makes_the_label_can_not_be_an_input(tmp_path: Path) -> None:
    path = written(payments(), tmp_path / "payments.parquet")
    with pytest.raises(
        InputError, match=r"`amount` is mapped to both.*The column that makes the label is never an input"
    ):
        load_payments(path, ColumnMapping.parse("amount=amount,label=amount<15"))


def test_a_label_stream_is_joined_by_id_and_its_bad_rows_are_named(tmp_path: Path) -> None:
    labels = pd.DataFrame(
        {
            "transaction_id": ["b", "a", "b", "nobody", "d", "c", None],
            "is_fraud": ["1", "true", "0", "1", "1", "5", "1"],
            "label_time": [
                "2024-01-09",
                "2024-01-08",
                "2024-01-05",
                "2024-01-09",
                "2024-01-02",
                "2024-01-09",
                "2024-01-09",
            ],
        }
    )
    frame = payments().drop(columns=["is_fraud"])
    loaded = load_payments(
        written(frame, tmp_path / "payments.parquet"), labels_path=written(labels, tmp_path / "labels.csv")
    )
    assert loaded.frame["is_fraud"].tolist() == [1, 1, -1, -1]  # the chargeback of b overrules its earlier all-clear
    assert loaded.frame["label_time"].dt.day.fillna(0).tolist() == [8, 9, 0, 0]
    assert loaded.rejected_labels[["row", "cause"]].to_numpy().tolist() == [
        [2, "duplicate id"],
        [3, "unknown payment"],
        [4, "earlier than its payment"],
        [5, "not in 0..1"],
        [6, "missing"],
    ]
    assert "labels: 1 refused (transaction_id: unknown payment)" in loaded.notes
    assert len(loaded.rejected) == 0


def test_label_times_of_the_file_win_over_the_delay_and_a_note_says_so(tmp_path: Path) -> None:
    times = pd.to_datetime(["2024-02-01", None, "2024-02-03", "2024-02-04"])
    path = written(payments().assign(label_time=times), tmp_path / "payments.parquet")
    loaded = load_payments(path, label_delay=timedelta(days=7))
    assert loaded.frame["label_time"].isna().tolist() == [False, True, False, False]
    assert loaded.notes == ("label times come from column `label_time`; label_delay is not used",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event_time", "each part must be `field=column`. Received: `event_time`"),
        ("event_tme=x", "unknown field `event_tme`. Did you mean `event_time`?"),
        ("payer=a,payer=b", "field `payer` is given twice"),
        ("label=rating<low", "must compare with a number. Received: `low`"),
        ("amount=rating<0", "only `label` can be a comparison"),
    ],
)
def test_a_bad_mapping_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        ColumnMapping.parse(text)
    assert message in str(error.value)


def test_a_mapping_reads_as_it_is_written() -> None:
    mapping = ColumnMapping.parse(" payer = CARD ID , label=rating!=-1 ")
    assert mapping == ColumnMapping(payer="CARD ID", label=Comparison(column="rating", operator="!=", number=-1.0))
    assert str(mapping.label) == "rating!=-1"


def test_structural_problems_name_file_column_and_way_out(tmp_path: Path) -> None:
    good = written(payments(), tmp_path / "payments.parquet")
    empty, header, broken = tmp_path / "empty.csv", tmp_path / "header.csv", tmp_path / "broken.parquet"
    empty.write_text("")
    header.write_text("event_time,payer,payee\n")
    broken.write_bytes(b"PAR1 no parquet")
    cases = [
        (
            good,
            "payer=PAYR",
            r"payments.parquet: no column `PAYR` for `payer`. Did you mean `payer`\? The file has: .*--columns payer=",
        ),
        (tmp_path / "none.csv", "", "none.csv: no such file"),
        (tmp_path, "", "not a file"),
        (empty, "", "empty.csv: the file is empty"),
        (header, "", "header.csv: the file has no rows"),
        (broken, "", "broken.parquet: can not be read as parquet"),
        (
            written(payments(amount=["x"] * 4), tmp_path / "a.csv"),
            "",
            r"column `amount` \(amount\) must hold numbers. Received: text",
        ),
        (
            written(payments(payer=[True] * 4), tmp_path / "b.parquet"),
            "",
            r"column `payer` \(payer\) must hold identifiers .*Received: bool",
        ),
        (
            written(payments(event_time=["x"] * 4), tmp_path / "c.csv"),
            "",
            r"\(event_time\) must hold times .*Received: other text",
        ),
        (
            written(payments(amount=[-1.0] * 4), tmp_path / "d.csv"),
            "",
            "none of 4 rows can be used. Most frequent cause: amount: negative",
        ),
        (good.rename(tmp_path / "payments.txt"), "", r"expected a .parquet or .csv file. Received: `.txt`"),
    ]
    for path, columns, message in cases:
        if not path.exists() and path.name == "payments.parquet":
            written(payments(), path)
        with pytest.raises(InputError, match=message):
            load_payments(path, ColumnMapping.parse(columns))


def test_a_negative_label_delay_and_two_sources_of_labels_are_refused(tmp_path: Path) -> None:
    path = written(payments(), tmp_path / "payments.parquet")
    with pytest.raises(InputError, match="label_delay=-1 day"):
        load_payments(path, label_delay=timedelta(days=-1))
    with pytest.raises(InputError, match="not from both"):
        load_payments(path, ColumnMapping.parse("label=is_fraud"), labels_path=path)


def test_no_message_holds_an_identifier(tmp_path: Path) -> None:
    secret = ["4929-1234", "4929-1234", "4929-1234", "4929-1234"]
    frame = payments(transaction_id=secret, payer=secret, payee=secret, amount=["1", "x", "2", "-1"])
    loaded = load_payments(written(frame, tmp_path / "payments.csv"))
    assert len(loaded.rejected) == 3
    assert "4929" not in loaded.rejected.to_string() + " ".join(loaded.notes) + str(loaded.causes())
    (tmp_path / "torn.csv").write_bytes(b"event_time,payer,payee\n2024-01-01,\xff4929,4929\n")
    with pytest.raises(InputError) as error:
        load_payments(tmp_path / "torn.csv")
    assert "4929" not in str(error.value)


VALUES = {
    "transaction_id": st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "", " a"]),
    "event_time": st.sampled_from(["2024-01-01", "2024-01-02T03:04:05Z", "2023-12-31 00:00:00", "soon", ""]),
    "payer": st.sampled_from(["p", "q", ""]),
    "payee": st.sampled_from(["m", "n", " "]),
    "amount": st.sampled_from(["0", "1.5", "2e3", "-0.01", "nan", "inf", "-inf", "x", ""]),
    "is_fraud": st.sampled_from(["0", "1", "true", "False", "2", "", "no"]),
}


def usable(row: dict[str, str]) -> bool:
    """The slow twin: one row, by hand."""
    if any(not row[column].strip() for column in ("transaction_id", "event_time", "payer", "payee", "amount")):
        return False
    if row["event_time"] == "soon" or row["is_fraud"] in ("2", "no"):
        return False
    return row["amount"] != "x" and math.isfinite(float(row["amount"])) and float(row["amount"]) >= 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=12))
def test_rows_are_kept_or_refused_exactly_as_one_row_at_a_time(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    anchor = {
        "transaction_id": "z",
        "event_time": "2024-02-01",
        "payer": "p",
        "payee": "m",
        "amount": "1",
        "is_fraud": "0",
    }
    rows = [anchor, *rows]
    path = written(pd.DataFrame(rows), tmp_path / "payments.csv")
    loaded = load_payments(path)
    expected: dict[str, dict[str, str]] = {}
    for row in rows:
        if usable(row):
            expected.setdefault(row["transaction_id"].strip(), row)
    assert set(loaded.frame["transaction_id"]) == set(expected)
    assert len(loaded.frame) + len(loaded.rejected) == loaded.rows == len(rows)
    assert loaded.rejected["row"].is_unique
    assert loaded.frame["event_time"].is_monotonic_increasing
    for key, amount, flag in loaded.frame[["transaction_id", "amount", "is_fraud"]].itertuples(index=False):
        assert amount == float(expected[key]["amount"])
        assert flag == {"0": 0, "1": 1, "true": 1, "False": 0, "": -1}[expected[key]["is_fraud"]]


@pytest.mark.skipif(not HANDBOOK.exists(), reason=f"the published handbook file is not in {DATA} (VIGIL_DATA)")
def test_the_published_handbook_file_loads_whole_and_fast() -> None:
    begin = time.process_time()
    loaded = load_payments(HANDBOOK, PUBLISHED, label_delay=timedelta(days=7))
    assert time.process_time() - begin < 10.0
    assert (loaded.rows, len(loaded.rejected), int(loaded.frame["is_fraud"].sum())) == (1_504_628, 0, 12_484)
    assert loaded.frame["payer"].nunique() == 4_989
    assert loaded.frame["scenario"].value_counts().index.tolist()[0] == 0


@pytest.mark.skipif(not BITCOIN.exists(), reason=f"the Bitcoin-Alpha file is not in {DATA} (VIGIL_DATA)")
def test_bitcoin_alpha_loads_with_the_rating_as_label_only() -> None:
    mapping = ColumnMapping.parse("event_time=time,payer=source,payee=target,label=rating<0")
    loaded = load_payments(BITCOIN, mapping, account_to_account=True)
    assert (loaded.rows, len(loaded.rejected)) == (24_186, 0)
    assert loaded.frame["is_fraud"].mean() == pytest.approx(0.0635, abs=1e-4)
    assert not loaded.frame["amount"].any()
    assert loaded.frame["event_time"].min() == pd.Timestamp("2010-11-08T05:00:00")

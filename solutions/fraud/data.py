"""Payments of a parquet or CSV file as one canonical frame, with a cause for every row that was refused.

Canonical columns: transaction_id, payer, payee, device (`str`; device may be absent or missing), event_time and
label_time (datetime64[us], naive UTC; NaT = the label never arrives), amount (float64; 0.0 when the source has none),
is_fraud (int8: 1, 0, -1 unknown) and, where the source tells, scenario (int16; 0 genuine or unknown). Sorted stably by
event_time. `frame.attrs["account_to_account"]`: do payer and payee share one name space?

Identifiers never appear in messages: row numbers (from 0, in file order) and column names do.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from core.fields import BadColumnError, Parsed, parse_amounts, parse_flags, parse_identifiers, parse_times
from core.refusals import Refusals, causes_of, did_you_mean, no_rejections
from core.tables import InputError as InputError
from core.tables import Table, column_names, read_columns, sha256_of

OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
OWN_NAME = {"label": "is_fraud"}  # the canonical column of a field, where it is not the field's own name
REQUIRED = ("event_time", "payer", "payee")
LABEL_COLUMNS = ("transaction_id", "is_fraud", "label_time")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A label made from a numeric column: `rating<0`. That column can then be no input."""

    column: str
    operator: str
    number: float

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{self.number:g}"


@dataclass(frozen=True, kw_only=True)
class ColumnMapping:
    """Which column of a file is which field. A field left None uses the column of its canonical name, if there is one.

    >>> ColumnMapping.parse("event_time=time,payer=source,payee=target,label=rating<0").label
    Comparison(column='rating', operator='<', number=0.0)
    """

    event_time: str | None = None
    payer: str | None = None
    payee: str | None = None
    amount: str | None = None
    label: str | Comparison | None = None
    transaction_id: str | None = None
    device: str | None = None
    label_time: str | None = None
    scenario: str | None = None

    @classmethod
    def parse(cls, text: str) -> ColumnMapping:
        """Read `field=column,...`; for the label also `label=column OPERATOR number`. Raises InputError."""
        known = [field.name for field in fields(cls)]
        found: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, column = (piece.strip() for piece in part.partition("="))
            if not equals or not column:
                raise InputError(f"column mapping: each part must be `field=column`. Received: `{part}`.")
            if key not in known:
                raise InputError(
                    f"column mapping: unknown field `{key}`.{did_you_mean(key, known)} Fields: {', '.join(known)}."
                )
            if key in found:
                raise InputError(f"column mapping: field `{key}` is given twice.")
            comparison = re.fullmatch(r"(.+?)\s*(<=|>=|==|!=|<|>)\s*(.*)", column)
            if comparison is None:
                found[key] = column
                continue
            try:
                number = float(comparison[3])
            except ValueError:
                raise InputError(
                    f"column mapping: `{part}` must compare with a number. Received: `{comparison[3]}`."
                ) from None
            if key != "label":
                raise InputError(f"column mapping: only `label` can be a comparison. Received: `{part}`.")
            found[key] = Comparison(column=comparison[1], operator=comparison[2], number=number)
        return cls(**found)

    def of_messages(self) -> dict[str, str]:
        """Our field -> theirs, for the fields that a payment's message has."""
        names = ("transaction_id", "event_time", "payer", "payee", "amount", "device")
        return {name: str(getattr(self, name)) for name in names if getattr(self, name) is not None}

    def resolve(self, available: Sequence[str], where: str) -> dict[str, str]:
        """Field -> column of a file that has the columns `available`. Raises InputError."""
        columns: dict[str, str] = {}
        for field in fields(self):
            given = getattr(self, field.name)
            own = OWN_NAME.get(field.name, field.name)
            column = given.column if isinstance(given, Comparison) else given or own
            if column in available:
                columns[field.name] = column
            elif given is not None or field.name in REQUIRED:
                hint = did_you_mean(column, available)
                raise InputError(
                    f"{where}: no column `{column}` for `{field.name}`.{hint} The file has: {', '.join(available)}. "
                    f"Map it with --columns {field.name}=COLUMN."
                )
        for field_name, column in columns.items():
            others = [other for other, used in columns.items() if used == column and other != field_name]
            if others:
                why = " The column that makes the label is never an input." if "label" in (field_name, *others) else ""
                raise InputError(f"{where}: column `{column}` is mapped to both `{field_name}` and `{others[0]}`.{why}")
        return columns


@dataclass(frozen=True, kw_only=True)
class LoadedPayments:
    """rejected, rejected_labels: columns row, column, cause, value_kind; a line per refused row. rows: of the file."""

    frame: pd.DataFrame
    rejected: pd.DataFrame
    rejected_labels: pd.DataFrame
    notes: tuple[str, ...]
    name: str
    sha256: str
    rows: int

    def causes(self) -> dict[str, int]:
        """How many payments were refused, by `column: cause`."""
        return causes_of(self.rejected)

    def remarks(self) -> list[str]:
        """What a reader should know before trusting the figures: notes, and refused payments by cause."""
        refused = [f"{count:,} of {self.rows:,} payments refused ({cause})" for cause, count in self.causes().items()]
        return [*self.notes, *refused]


def load_payments(
    path: Path | str,
    columns: ColumnMapping | None = None,
    *,
    label_delay: timedelta = timedelta(0),
    labels_path: Path | str | None = None,
    account_to_account: bool = False,
) -> LoadedPayments:
    """Read, validate and sort payments.

    Args:
        columns: the mapping; None looks for the canonical names.
        label_delay: label_time = event_time + label_delay, unless a `label_time` column or `labels_path` tells.
        labels_path: a label stream of its own with transaction_id, is_fraud, label_time[, source]; of several labels of
            one payment the first fraud counts, else the first to arrive.
        account_to_account: payer and payee share one name space.

    A missing label stays unknown (-1). Without a transaction_id, payments are numbered by row.
    Raises: InputError for an unreadable or empty file, an unknown column, a column of the wrong type.
    """
    path = Path(path)
    if label_delay < timedelta(0):
        raise InputError(f"`label_delay` must be >= 0. Received: label_delay={label_delay}.")
    mapping = columns or ColumnMapping()
    available = column_names(path)
    used = mapping.resolve(available, path.name)
    if labels_path is not None and mapping.label is not None:
        raise InputError(
            f"labels come either from `label` in {path.name} or from a stream of their own, not from both."
        )
    if labels_path is not None:
        used = {field: column for field, column in used.items() if field not in ("label", "label_time")}
    table = read_columns(path, list(used.values()))
    if table.rows == 0:
        raise InputError(f"{path.name}: the file has no rows.")
    refusals = Refusals(table)
    values = _parse_payments(table, used, mapping, refusals, path.name)
    keep = refusals.ok()
    repeated = pd.Series(values["transaction_id"][keep]).duplicated().to_numpy()
    refusals.add("transaction_id", np.flatnonzero(keep)[repeated], "duplicate id", "text")
    keep = refusals.ok()
    rejected = refusals.frame()
    if not keep.any():
        worst = next(iter(causes_of(rejected)))
        raise InputError(f"{path.name}: none of {table.rows} rows can be used. Most frequent cause: {worst}.")
    notes = []
    stamps = values["event_time"][keep]
    late = int((stamps < np.maximum.accumulate(stamps)).sum())
    order = np.flatnonzero(keep)
    if late:
        notes.append(f"{late} payments were out of time order; sorted by event_time")
        order = order[np.argsort(stamps, kind="stable")]
    unchanged = not late and keep.all()
    frame = pd.DataFrame({name: column if unchanged else column[order] for name, column in values.items()})
    rejected_labels = no_rejections()
    if labels_path is not None:
        rejected_labels = _join_labels(frame, Path(labels_path))
        notes += [f"labels: {count} refused ({cause})" for cause, count in causes_of(rejected_labels).items()]
    elif "label_time" not in used:
        known = frame["is_fraud"].to_numpy() >= 0
        arrival = frame["event_time"].to_numpy() + np.timedelta64(int(label_delay.total_seconds() * 1e6), "us")
        frame["label_time"] = np.where(known, arrival, np.datetime64("NaT", "us"))
    else:
        notes.append(f"label times come from column `{used['label_time']}`; label_delay is not used")
    present = [
        "transaction_id",
        "event_time",
        "payer",
        "payee",
        "amount",
        "device",
        "is_fraud",
        "label_time",
        "scenario",
    ]
    frame = frame[[name for name in present if name in frame]]
    frame.attrs["account_to_account"] = account_to_account
    return LoadedPayments(
        frame=frame,
        rejected=rejected,
        rejected_labels=rejected_labels,
        notes=tuple(notes),
        name=path.name,
        sha256=sha256_of(path),
        rows=table.rows,
    )


def _parse_payments(
    table: Table, used: dict[str, str], mapping: ColumnMapping, refusals: Refusals, where: str
) -> dict[str, Any]:
    """Canonical arrays of all rows, in file order; rows that can not be used are noted in `refusals`."""
    values: dict[str, Any] = {}
    for field, column in used.items():
        raw = table.columns.column(column)
        try:
            if field in ("event_time", "label_time"):
                parsed = parse_times(raw, required=field == "event_time")
            elif field == "amount":
                parsed = parse_amounts(raw)
            elif field == "label":
                parsed = _parse_label(raw, mapping.label)
            elif field == "scenario":
                parsed = parse_flags(raw, highest=np.iinfo(np.int16).max, missing=0)
            else:
                parsed = parse_identifiers(raw, required=field != "device")
        except BadColumnError as error:
            raise InputError(f"{where}: column `{column}` ({field}) must hold {error}.") from None
        for cause, value_kind, bad_rows in parsed.refused:
            refusals.add(field, bad_rows, cause, value_kind)
        values["is_fraud" if field == "label" else field] = parsed.values
    readable = len(table.row_N)
    if "transaction_id" not in used:
        values["transaction_id"] = pd.Series(pa.array(table.row_N).cast(pa.large_string()), dtype="str").array
    values.setdefault("amount", np.zeros(readable))
    values["is_fraud"] = values.get("is_fraud", np.full(readable, -1)).astype(np.int8)
    if "scenario" in values:
        values["scenario"] = values["scenario"].astype(np.int16)
    return values


def _parse_label(raw: Any, label: str | Comparison | None) -> Parsed:
    if not isinstance(label, Comparison):
        return parse_flags(raw, highest=1, missing=-1)
    numbers = parse_amounts(raw, lowest=-np.inf, required=False)
    known = ~np.isnan(numbers.values)
    flags = np.where(known, OPERATORS[label.operator](numbers.values, label.number), -1)
    return Parsed(flags, numbers.refused)


def _join_labels(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write is_fraud and label_time of a label stream into `frame`; returns the labels that were refused."""
    available = column_names(path)
    for column in LABEL_COLUMNS:
        if column not in available:
            raise InputError(
                f"{path.name}: no column `{column}`. A label stream has: {', '.join(LABEL_COLUMNS)}[, source]."
            )
    table = read_columns(path, list(LABEL_COLUMNS))
    refusals = Refusals(table)
    values = {}
    for column in LABEL_COLUMNS:
        raw = table.columns.column(column)
        try:
            if column == "label_time":
                parsed = parse_times(raw)
            else:
                parsed = parse_flags(raw, highest=1) if column == "is_fraud" else parse_identifiers(raw)
        except BadColumnError as error:
            raise InputError(f"{path.name}: column `{column}` must hold {error}.") from None
        for cause, value_kind, bad_rows in parsed.refused:
            refusals.add(column, bad_rows, cause, value_kind)
        values[column] = parsed.values
    position = pd.Index(frame["transaction_id"]).get_indexer(pd.Index(values["transaction_id"]))
    refusals.add("transaction_id", np.flatnonzero(refusals.ok() & (position < 0)), "unknown payment", "text")
    paid = frame["event_time"].to_numpy()[np.maximum(position, 0)]
    early = refusals.ok() & (values["label_time"] < paid)
    refusals.add("label_time", np.flatnonzero(early), "earlier than its payment", "time")
    by_arrival = np.flatnonzero(refusals.ok())
    by_arrival = by_arrival[np.argsort(values["label_time"][by_arrival], kind="stable")]
    by_arrival = by_arrival[np.argsort(-values["is_fraud"][by_arrival], kind="stable")]  # fraud overrules an all-clear
    repeated = pd.Series(position[by_arrival]).duplicated().to_numpy()
    refusals.add("transaction_id", by_arrival[repeated], "duplicate id", "text")
    chosen = by_arrival[~repeated]
    is_fraud = np.full(len(frame), -1, np.int8)
    label_time = np.full(len(frame), np.datetime64("NaT", "us"), "datetime64[us]")
    is_fraud[position[chosen]] = values["is_fraud"][chosen]
    label_time[position[chosen]] = values["label_time"][chosen]
    frame["is_fraud"], frame["label_time"] = is_fraud, label_time
    return refusals.frame()

"""One column of a file -> one canonical array, with the rows that can not be used and why.

A column whose type can not mean the field at all raises BadColumnError; single bad values are refused row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Unix time by magnitude of the column's median: seconds until the year 5138, milliseconds from 1973, and so on
EPOCH_UNITS = ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0), (np.inf, 1e-3))  # (largest, microseconds per unit)
EARLIEST, LATEST = np.datetime64("1900-01-01", "us"), np.datetime64("2200-01-01", "us")

Refused = tuple[str, str, NDArray[np.int64]]  # cause, value kind, rows


class BadColumnError(ValueError):
    """What the column should hold and what it holds."""


@dataclass(frozen=True)
class Parsed:
    """values: one per row, arbitrary where refused. refused: (cause, value kind, rows)."""

    values: Any
    refused: list[Refused]


def _rows(mask_N: Any) -> NDArray[np.int64]:
    return np.flatnonzero(np.asarray(mask_N)).astype(np.int64)


def _nulls(column: Any) -> NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(), bool)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain(column: Any) -> Any:
    """Dictionary-encoded columns decoded; the column of a file without a single value has type null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.float64()) if pa.types.is_null(column.type) else column


def parse_identifiers(column: Any, *, required: bool = True) -> Parsed:
    """Text or whole numbers -> `str` (surrounding blanks dropped); an empty one is missing."""
    column = _plain(column)
    kind = column.type
    refused: list[Refused] = []
    if pa.types.is_floating(kind):  # what pandas makes of integers with gaps
        numbers = column.to_numpy()
        usable = np.isnan(numbers) | ((numbers == np.round(numbers)) & (np.abs(numbers) < 2.0**53))
        if not usable.any():
            raise BadColumnError(f"identifiers (text or whole numbers). Received: {kind} with fractions")
        refused.append(("not a whole number", "number", _rows(~usable)))
        missing = np.isnan(numbers)
        column = pa.array(np.where(usable & ~missing, numbers, 0).astype(np.int64), mask=missing).cast(
            pa.large_string()
        )
    elif pa.types.is_integer(kind):
        missing, column = _nulls(column), column.cast(pa.large_string())
    elif _is_text(kind):
        column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        empty = pc.equal(column, "")
        column = pc.if_else(empty, pa.scalar(None, pa.large_string()), column)
        missing = _nulls(column)
    else:
        raise BadColumnError(f"identifiers (text or whole numbers). Received: {kind}")
    if required:
        refused.append(("missing", "missing", _rows(missing)))
    return Parsed(pd.Series(column, dtype="str").array, refused)


def parse_amounts(column: Any, *, lowest: float = 0.0, required: bool = True) -> Parsed:
    """Numbers, or text that reads as numbers -> float64, finite and >= lowest; not required: NaN where missing."""
    column = _plain(column)
    missing, numbers, unreadable = _numbers(column, "numbers")
    not_a_number = np.isnan(numbers) & ~missing & ~unreadable
    refused = [
        ("not a number", "text", _rows(unreadable)),
        ("infinite", "infinity", _rows(np.isinf(numbers))),
        ("negative", "negative number", _rows(numbers < lowest)),
    ]
    if required:
        refused += [("missing", "missing", _rows(missing)), ("NaN", "NaN", _rows(not_a_number))]
    return Parsed(numbers, refused)


def parse_flags(column: Any, *, highest: int, missing: int | None = None) -> Parsed:
    """Whole numbers 0..highest, or true / false -> int64; absent values become `missing` (None: refused)."""
    column = _plain(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    elif _is_text(column.type):
        lower = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        column = pc.replace_substring_regex(pc.replace_substring_regex(lower, "^true$", "1"), "^false$", "0")
    expected = f"whole numbers from 0 to {highest}"
    absent, numbers, unreadable = _numbers(column, expected)
    absent = absent | (np.isnan(numbers) & ~unreadable)
    with np.errstate(invalid="ignore"):
        valid = (numbers >= 0) & (numbers <= highest) & (numbers == np.round(numbers))
    refused: list[Refused] = [
        ("not a number", "text", _rows(unreadable)),
        (f"not in 0..{highest}", "number", _rows(~valid & ~absent & ~unreadable)),
    ]
    if missing is None:
        refused.append(("missing", "missing", _rows(absent)))
    fill = 0 if missing is None else missing
    return Parsed(np.where(valid, numbers, fill).astype(np.int64), refused)


def parse_times(column: Any, *, required: bool = True) -> Parsed:
    """Datetimes, ISO 8601 text or Unix time -> datetime64[us] in naive UTC; a time without a zone is taken as UTC.

    The unit of Unix time (s, ms, us, ns) is told by the magnitude of the column's median, see EPOCH_UNITS.
    """
    column = _plain(column)
    kind = column.type
    refused: list[Refused] = []
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = column.cast(pa.timestamp("us"), safe=False).to_numpy().astype("datetime64[us]")
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        stamps = _from_epoch(np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), float))
    elif _is_text(kind):
        missing, numbers, unreadable = _numbers(column, None)
        if unreadable.any():
            text = pd.Series(pc.utf8_trim_whitespace(column.cast(pa.large_string())), dtype="str")
            parsed = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
            stamps = parsed.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
            unreadable = np.isnat(stamps) & ~missing
            if unreadable.all():
                raise BadColumnError("times (datetimes, ISO 8601 text or Unix time). Received: other text")
            refused.append(("not a time", "text", _rows(unreadable)))
        else:
            stamps = _from_epoch(numbers)
    else:
        raise BadColumnError(f"times (datetimes, ISO 8601 text or Unix time). Received: {kind}")
    missing = np.isnat(stamps)
    refused.append(("out of range", "time", _rows(~missing & ((stamps < EARLIEST) | (stamps > LATEST)))))
    if required:
        refused.append(("missing", "missing", _rows(missing)))
    return Parsed(stamps, refused)


def _from_epoch(numbers: NDArray[np.float64]) -> NDArray[np.datetime64]:
    finite = np.isfinite(numbers)
    typical = float(np.median(np.abs(numbers[finite]))) if finite.any() else 0.0
    scale = next(factor for largest, factor in EPOCH_UNITS if typical < largest)
    limit = float(2**62)
    micros = np.clip(
        np.where(finite, numbers, 0.0) * scale, -limit, limit
    )  # clipped ones are out of range, not wrapped
    stamps = np.round(micros).astype(np.int64).astype("datetime64[us]")
    return np.where(
        np.isnan(numbers), np.datetime64("NaT", "us"), np.where(np.isinf(numbers), np.datetime64(2**62, "us"), stamps)
    )


def _numbers(column: Any, expected: str | None) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.bool_]]:
    """(missing, numbers, unreadable text). With `expected`, a column without any number raises BadColumnError."""
    kind = column.type
    missing = _nulls(column)
    unreadable = np.zeros(len(missing), bool)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return missing, np.array(pc.cast(column, pa.float64(), safe=False).to_numpy(), float), unreadable
    if not _is_text(kind):
        raise BadColumnError(f"{expected}. Received: {kind}")
    trimmed = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    missing = missing | np.asarray(pc.fill_null(pc.equal(trimmed, ""), False).to_numpy(), bool)
    try:  # the fast way, when all of it reads as numbers
        blank = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.large_string()), trimmed)
        return missing, np.array(pc.cast(blank, pa.float64()).to_numpy(), float), unreadable
    except pa.ArrowInvalid:
        text = pd.Series(trimmed, dtype="str")
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(float)
        says_nan = text.str.lower().isin(["nan", "-nan"]).to_numpy(bool)
        unreadable = np.isnan(numbers) & ~missing & ~says_nan
        if expected is not None and unreadable.any() and unreadable[~missing].all():
            raise BadColumnError(f"{expected}. Received: text") from None
        return missing, numbers, unreadable

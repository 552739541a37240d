"""Chosen columns of a parquet or CSV file as an arrow table; what can not be read is an InputError without data."""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray


class InputError(ValueError):
    """The caller's file or mapping can not be used; the message says what, where and what to do (exit code 2)."""

    exit_code = 2


@dataclass(frozen=True)
class Table:
    """row_N: number of each row in the file, from 0. broken: rows of a CSV with the wrong number of values."""

    columns: Any
    row_N: NDArray[np.int64]
    broken: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.row_N) + len(self.broken)


def column_names(path: Path) -> list[str]:
    try:
        if _is_parquet(path):
            return list(pa.parquet.read_schema(path).names)
        with path.open(
            encoding="utf-8-sig", newline=""
        ) as file:  # arrow's reader leaves threads that abort a quick exit
            return next(csv.reader(file), [])
    except UnicodeDecodeError:
        raise _unreadable(path, ValueError("invalid UTF8 data")) from None
    except (pa.ArrowException, OSError, csv.Error) as error:
        raise _unreadable(path, error) from None


def read_columns(path: Path, columns: list[str]) -> Table:
    """The columns, once each. CSV values come as text: a guessed integer type would turn account 007 into 7."""
    columns = list(dict.fromkeys(columns))
    broken: list[int] = []

    def skip(row: Any) -> str:
        broken.append(row.number - 2)  # counted from 1, after the header
        return "skip"

    try:
        if _is_parquet(path):
            table = pa.parquet.read_table(path, columns=columns)
        else:
            as_text = pa.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.large_string()),
                null_values=[""],
                strings_can_be_null=True,
            )
            table = pa.csv.read_csv(
                path,
                read_options=pa.csv.ReadOptions(use_threads=False),  # threads would leave row.number unset
                parse_options=pa.csv.ParseOptions(invalid_row_handler=skip),
                convert_options=as_text,
            )
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    row_N = np.delete(np.arange(table.num_rows + len(broken)), broken)
    return Table(table, row_N, np.array(broken, np.int64))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        raise InputError(f"{path.name}: {'not a file' if path.exists() else 'no such file'}.")
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise InputError(f"{path.name}: expected a .parquet or .csv file. Received: `{suffix}`.")
    if path.stat().st_size == 0:
        raise InputError(f"{path.name}: the file is empty.")
    return suffix == ".parquet"


def _unreadable(path: Path, error: Exception) -> InputError:
    what = re.sub(r"(got \d+).*|(UTF8 data).*", r"\1\2", str(error).splitlines()[0])  # arrow quotes the row: drop it
    return InputError(f"{path.name}: can not be read as {path.suffix[1:].lower()}: {what}")

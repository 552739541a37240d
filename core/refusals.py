"""Which rows of a file were refused, and why; row numbers and column names only, never what the row held."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.tables import Table

REJECTED = ("row", "column", "cause", "value_kind")


class Refusals:
    """The first cause found for each refused row."""

    def __init__(self, table: Table) -> None:
        self._row_N = table.row_N
        self._ok_N = np.ones(len(table.row_N), bool)
        self._parts: list[pd.DataFrame] = []
        self._note("row", table.broken, "wrong number of values", "row")

    def ok(self) -> NDArray[np.bool_]:
        return self._ok_N.copy()

    def add(self, column: str, rows: NDArray[np.int64], cause: str, value_kind: str) -> None:
        rows = rows[self._ok_N[rows]]
        self._ok_N[rows] = False
        self._note(column, self._row_N[rows], cause, value_kind)

    def _note(self, column: str, rows: NDArray[np.int64], cause: str, value_kind: str) -> None:
        if len(rows):
            self._parts.append(pd.DataFrame({"row": rows, "column": column, "cause": cause, "value_kind": value_kind}))

    def frame(self) -> pd.DataFrame:
        if not self._parts:
            return no_rejections()
        return pd.concat(self._parts).sort_values("row", kind="stable").reset_index(drop=True)


def no_rejections() -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(dtype="int64" if name == "row" else "str") for name in REJECTED})


def causes_of(rejected: pd.DataFrame) -> dict[str, int]:
    counts = (rejected["column"] + ": " + rejected["cause"]).value_counts()
    return {str(cause): int(count) for cause, count in counts.items()}


def did_you_mean(name: str, known: Sequence[str]) -> str:
    folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1)
    return f" Did you mean `{folded[close[0]]}`?" if close else ""

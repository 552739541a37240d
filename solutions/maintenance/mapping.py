"""Which file and which column is what: `asset=unit,sensors.file=train,sensors.condition=set1+set2,errors.code=errorID`.

A part without a table speaks for all tables that have such a field; `file` names a file of the folder without its suffix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.refusals import did_you_mean
from core.tables import InputError

# fields of each table; the first ones, up to the bar, must be there. A list of columns is written a+b+c.
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sensors": (("asset",), ("time", "cycle", "sensor", "value", "channels", "condition", "arrived")),
    "errors": (("asset", "time", "code"), ("text", "arrived")),
    "maintenance": (("asset", "time", "code"), ("text", "arrived")),
    "failures": (("asset", "time"), ("code", "text", "arrived")),
    "work_orders": (("asset", "time", "text"), ("code", "arrived")),
    "assets": (("asset",), ()),
}
LISTS = ("channels", "condition")
SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True)
class Mapping:
    """table -> field -> column, as written; what is not written has its canonical name.

    >>> Mapping.parse("asset=machineID,errors.code=errorID").column("errors", "code")
    'errorID'
    """

    given: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Mapping:
        """Read `[table.]field=column,...`. Raises InputError."""
        given: dict[tuple[str, str], str] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, column = (piece.strip() for piece in part.partition("="))
            if not equals or not column:
                raise InputError(f"column mapping: each part must be `field=column`. Received: `{part}`.")
            table, dot, name = key.partition(".")
            table, name = (table, name) if dot else ("", key)
            if table and table not in TABLES:
                raise InputError(
                    f"column mapping: unknown table `{table}`.{did_you_mean(table, list(TABLES))} "
                    f"Tables: {', '.join(TABLES)}."
                )
            known = _fields(table)
            if name not in known:
                raise InputError(
                    f"column mapping: unknown field `{name}`.{did_you_mean(name, known)} Fields: {', '.join(known)}."
                )
            if (table, name) in given:
                raise InputError(f"column mapping: field `{key}` is given twice.")
            given[table, name] = column
        return cls(given)

    def column(self, table: str, name: str) -> str:
        """The column of a field: as given for the table, as given for all, or of its own name."""
        return self.given.get((table, name)) or self.given.get(("", name)) or name

    def is_given(self, table: str, name: str) -> bool:
        return (table, name) in self.given or ("", name) in self.given

    def file(self, table: str, folder: Path) -> Path | None:
        """The file of a table; None when there is none and none was named. Raises InputError."""
        stem = self.given.get((table, "file"), table)
        for suffix in SUFFIXES:
            if (path := folder / f"{stem}{suffix}").is_file():
                return path
        if (table, "file") in self.given or table == "sensors":
            there = sorted(p.stem for p in folder.iterdir() if p.suffix in SUFFIXES) if folder.is_dir() else []
            raise InputError(
                f"no file `{stem}.parquet` or `{stem}.csv` for `{table}` in folder `{folder.name}`."
                f"{did_you_mean(stem, there)} The folder has: {', '.join(there) or 'no tables'}. "
                f"Map it with --columns {table}.file=NAME."
            )
        return None

    def resolve(self, table: str, available: Sequence[str], where: str) -> dict[str, list[str]]:
        """Field -> columns of a file. Raises InputError for a column that is not there or is used twice."""
        required, optional = TABLES[table]
        found: dict[str, list[str]] = {}
        for name in (*required, *optional):
            if name == "channels" and not self.is_given(table, name):
                continue
            column = self.column(table, name)
            wanted = column.split("+") if name in LISTS else [column]
            missing = [c for c in wanted if c not in available]
            if not missing:
                found[name] = wanted
            elif name in required or (table, name) in self.given:
                raise InputError(
                    f"{where}: no column `{missing[0]}` for `{name}`.{did_you_mean(missing[0], available)} "
                    f"The file has: {', '.join(available)}. Map it with --columns {table}.{name}=COLUMN."
                )
        used = [column for columns in found.values() for column in columns]
        if twice := {column for column in used if used.count(column) > 1}:
            raise InputError(f"{where}: column `{min(twice)}` is mapped to two fields.")
        return found


def _fields(table: str) -> list[str]:
    tables = [table] if table else list(TABLES)
    return list(dict.fromkeys(["file", *(name for t in tables for part in TABLES[t] for name in part)]))

"""Structured logs that can not leak: one JSON object per line, and only fields that were put on a list beforehand."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TextIO

ROOT = "vigil"
FIELDS = "vigil_fields"
Value = str | int | float | bool


class EventLog:
    """Logs events by name with fields of an allow-list.

    Args:
        name: of the logger; starts with `vigil.`.
        fields: names that may be logged. A field off the list is a mistake of the programmer, so it raises.

    Raises:
        ValueError: for a field that is not on the list.
    """

    def __init__(self, name: str, fields: Iterable[str]) -> None:
        self.logger = logging.getLogger(name)
        if not (root := logging.getLogger(ROOT)).handlers:
            root.addHandler(logging.NullHandler())  # silent until somebody asks with show_events
        self.fields = frozenset(fields)

    def info(self, event: str, **values: Value) -> None:
        self._emit(logging.INFO, event, values)

    def warning(self, event: str, **values: Value) -> None:
        self._emit(logging.WARNING, event, values)

    def _emit(self, level: int, event: str, values: dict[str, Value]) -> None:
        if strange := sorted(values.keys() - self.fields):
            raise ValueError(
                f"a log field must be one of {', '.join(sorted(self.fields))}. Received: {', '.join(strange)}."
            )
        self.logger.log(level, event, extra={FIELDS: values})


class JsonLines(logging.Formatter):
    """Time, level, logger, event and listed fields.

    Of any other record only the template is shown, never its arguments, and of an exception only its type: both may
    hold identifiers.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Value] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": str(record.msg),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line | getattr(record, FIELDS, {}))


def show_events(stream: TextIO = sys.stderr, level: int | str = logging.INFO) -> logging.Handler:
    """Send all `vigil.*` events to a stream as JSON lines, and nowhere else; returns the handler."""
    root = logging.getLogger(ROOT)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root.addHandler(handler)
    root.setLevel(level)
    root.propagate = False
    return handler

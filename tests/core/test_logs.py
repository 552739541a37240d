"""Logs: what is on the list is shown, and nothing else, whoever logs it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from core.logs import EventLog, show_events

CARD = "4929123412341234"


@pytest.fixture
def shown() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger("vigil")
    level, propagate = root.level, root.propagate
    handler = show_events(stream)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)
    root.propagate = propagate


def test_an_event_is_one_json_object_with_its_fields(shown: io.StringIO) -> None:
    EventLog("vigil.test", fields=("topic", "offset")).warning("dead letter", topic="transactions", offset=7)
    line = json.loads(shown.getvalue())
    assert {k: v for k, v in line.items() if k != "time"} == {
        "level": "warning",
        "logger": "vigil.test",
        "event": "dead letter",
        "topic": "transactions",
        "offset": 7,
    }


def test_a_field_that_is_not_listed_is_refused(shown: io.StringIO) -> None:
    log = EventLog("vigil.test", fields=("topic",))
    with pytest.raises(ValueError, match="must be one of topic. Received: payer"):
        log.info("scored", topic="t", payer=CARD)
    assert shown.getvalue() == ""


def test_arguments_and_exceptions_of_other_records_are_not_shown(shown: io.StringIO) -> None:
    logger = logging.getLogger("vigil.elsewhere")
    logger.warning("scored %s", CARD)
    try:
        raise KeyError(CARD)
    except KeyError:
        logger.exception("failed")
    lines = [json.loads(line) for line in shown.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["scored %s", "failed"]
    assert lines[1]["exception"] == "KeyError"
    assert CARD not in shown.getvalue()

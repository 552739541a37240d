"""Jargon, item, state and action of free text."""

from __future__ import annotations

import pandas as pd

from solutions.maintenance.features import event_codes
from solutions.maintenance.text import extract, words


def test_jargon_is_normalised() -> None:
    assert words("L/H BUCKET CYL LEAKING.") == ["l/h", "bucket", "cylinder", "leak"]
    assert words("brg noisy, o/heat 90 deg") == ["bearing", "noise", "overheat", "deg"]


def test_item_state_and_action_are_picked_out_once() -> None:
    found = extract("Replaced hyd hose, hose was leaking and leaking")
    assert (found.items, found.states, found.actions) == (("hydraulic", "hose"), ("leak",), ("replace",))
    assert found.codes() == ["item:hydraulic", "item:hose", "state:leak", "action:replace"]


def test_what_the_vocabulary_lacks_is_no_evidence() -> None:
    assert extract("zxqv 123 ... ÄÖ").codes() == []
    assert extract("").codes() == []


def test_events_carry_code_and_text() -> None:
    events = pd.DataFrame({"kind": ["error", "work_order"], "code": ["E1", ""], "text": ["", "pmp leaking"]})
    assert event_codes(events) == [["error:E1"], ["item:pump", "state:leak"]]

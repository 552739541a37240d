"""Alarms, their judgement and cost; cases and their findings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.tables import InputError
from solutions.maintenance.alarms import AlarmSettings, Costs, Episode, cost_curve, episodes, judge
from solutions.maintenance.cases import NOTHING, CaseBook, with_findings
from solutions.maintenance.data import load_history
from tests.solutions.maintenance.fleets import small_fleet, write

SETTINGS = AlarmSettings(threshold=0.5, k=2, n=3, release=0.5, rest=4.0)


def alarms(scores: list[float], settings: AlarmSettings = SETTINGS) -> list[tuple[int, int]]:
    n = len(scores)
    found = episodes(np.array(scores), np.zeros(n, np.int64), np.arange(n), settings)
    return [(e.opened, e.closed) for e in found]


def test_one_high_score_is_no_alarm_two_of_three_are() -> None:
    assert alarms([0, 0.9, 0, 0, 0.9, 0, 0]) == []
    assert alarms([0, 0.9, 0, 0.9, 0, 0, 0, 0]) == [(3, 6)]


def test_an_alarm_falls_only_when_the_score_has_been_low_for_long() -> None:
    scores = [0.9, 0.9, 0.4, 0.4, 0.4, 0.4, 0.9, 0.1, 0.1, 0.1, 0.1]  # .4 is below the threshold, not below its release
    assert alarms(scores) == [(1, 9)]
    flat = replace(SETTINGS, release=1.0)  # without hysteresis it falls at once
    assert alarms(scores, flat)[0] == (1, 4)


def test_after_an_alarm_the_asset_rests() -> None:
    scores = [0.9] * 3 + [0.0] * 3 + [0.9] * 6
    assert alarms(scores) == [(1, 5), (9, 11)]
    assert alarms(scores, replace(SETTINGS, rest=0.0)) == [(1, 5), (7, 11)]


def test_fast_and_slow_episodes_agree() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        score = rng.random(200) ** 2
        settings = AlarmSettings(
            threshold=0.5, k=2, n=3, release=float(rng.uniform(0.3, 1.0)), rest=float(rng.integers(9))
        )
        slow, opened, free = [], -1, -1.0
        for i in range(200):
            newest = score[max(i - 2, 0) : i + 1]
            if opened < 0 and (newest >= 0.5).sum() >= 2 and i >= free:
                opened = i
            elif opened >= 0 and len(newest) == 3 and (newest < settings.release * 0.5).all():
                slow.append((opened, i))
                opened, free = -1, i + settings.rest
        slow += [(opened, 199)] if opened >= 0 else []
        assert alarms(score.tolist(), settings) == slow


def test_assets_do_not_share_scores() -> None:
    score = np.array([0.0, 0.9, 0.9, 0.0])
    assert episodes(score, np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]), SETTINGS) == []


def test_cases_are_judged_not_points() -> None:
    found = [Episode(0, 100, 110, 0.9), Episode(0, 300, 305, 0.8), Episode(1, 50, 60, 0.7)]
    figures = judge(found, [(0, 150), (0, 1000), (1, 55)], 730.0, horizon=72.0)
    assert (figures.failures, figures.caught, figures.false) == (3, 2, 1)
    assert figures.lead_hours == np.median([50.0, 5.0])
    assert figures.false_per_asset_month == 1.0
    twice = [Episode(0, 100, 101, 0.9), Episode(0, 120, 121, 0.9)]
    assert judge(twice, [(0, 150)], 730.0, horizon=72.0).false == 1  # the second case for one failure is one too many
    standing = judge([Episode(0, 0, 500, 0.9)], [(0, 400)], 730.0, horizon=72.0)
    assert standing.lead_hours == 72.0  # a standing alarm earns no longer warning than was asked for
    assert judge([Episode(0, 200, 210, 0.9)], [(0, 150)], 730.0).caught == 0  # too late


def test_a_warning_that_is_too_short_saves_nothing() -> None:
    costs = Costs(unplanned=100.0, planned=10.0, inspection=1.0, least_notice=12.0)
    assert costs.of([Episode(0, 100, 110, 0.9)], [(0, 120)]) == 10.0
    assert costs.of([Episode(0, 100, 110, 0.9)], [(0, 105)]) == 100.0
    assert costs.of([], [(0, 105)]) == 100.0
    assert costs.of([Episode(0, 100, 110, 0.9)], []) == 1.0


def test_the_cheapest_threshold_keeps_the_budget() -> None:
    rng = np.random.default_rng(0)
    hours, assets = 1500, 6
    asset, hour = np.repeat(np.arange(assets), hours), np.tile(np.arange(hours), assets)
    failures = [(a, 1400) for a in range(assets)]
    score = rng.uniform(0.0, 0.35, assets * hours)
    score[(hour >= 1340) & (hour < 1400)] += 0.4
    for a in range(assets):
        score[a * hours + 200 : a * hours + 206] = 0.6
    curve = cost_curve(score, asset, hour, failures, costs=Costs(), settings=SETTINGS)
    best = curve.best(budget=1.0)
    figures = curve.figures[curve.thresholds.index(best)]
    assert figures.false_per_asset_month <= 1.0
    assert min(curve.costs) <= curve.costs[curve.thresholds.index(best)]
    assert curve.best(budget=0.0) >= best
    most = curve.figures[curve.thresholds.index(curve.most_warnings(budget=1.0))]
    within = [f for f in curve.figures if f.false_per_asset_month <= 1.0]
    assert most.false_per_asset_month <= 1.0
    assert most.caught == max(f.caught for f in within)
    assert most.lead_hours == max(f.lead_hours for f in within if f.caught == most.caught)
    assert curve.choose("cost", budget=1.0) == best
    assert curve.choose("warnings", budget=1.0) == curve.most_warnings(budget=1.0)


def test_scoring_again_finds_the_same_case(tmp_path: Path) -> None:
    book = CaseBook(tmp_path / "cases.json")
    names = ["A", "B"]
    assert [c.asset for c in book.take([Episode(0, 100, 110, 0.8)], names)] == ["A"]
    assert book.take([Episode(0, 100, 115, 0.9)], names) == []
    assert book.take([Episode(0, 130, 140, 0.7)], names) == []  # still open: no second one
    assert (book.cases[0].last, book.cases[0].peak) == (140, 0.9)
    book.save()
    again = CaseBook(tmp_path / "cases.json")
    assert again.cases == book.cases
    again.close(again.cases[0].name, "seal", 150)
    assert again.take([Episode(0, 100, 140, 0.9)], names) == []  # a closed case is not opened again by its own hours
    assert len(again.take([Episode(0, 200, 210, 0.9)], names)) == 1


def test_the_life_of_a_case(tmp_path: Path) -> None:
    book = CaseBook(tmp_path / "cases.json")
    (case,) = book.take([Episode(0, 480_000, 480_010, 0.8)], ["P/1"])
    assert book.acknowledge(case.name).state == "acknowledged"
    with pytest.raises(InputError, match="is acknowledged. Expected: open"):
        book.acknowledge(case.name)
    with pytest.raises(InputError, match="closed with a finding"):
        book.close(case.name, " ", 480_020)
    book.close(case.name, NOTHING, 480_020)
    with pytest.raises(InputError, match="no case `x`. Active cases: none"):
        book.close("x", "seal", 1)
    assert book.labels().empty  # nothing was found: no failure


def test_findings_become_labels_once(tmp_path: Path) -> None:
    history = load_history(write(small_fleet(2, 20), tmp_path), "sensors.condition=load")
    book = CaseBook(tmp_path / "cases.json")
    hour = int(history.readings["time"].min().timestamp() // 3600) + 100
    (case,) = book.take([Episode(0, hour, hour + 5, 0.8)], ["P-001"])
    book.close(case.name, "seal", hour + 10)
    labelled = with_findings(history, book)
    assert len(labelled.failures()) == len(history.failures()) + 1
    assert labelled.failures().iloc[-1]["code"] == "seal"
    assert len(with_findings(labelled, book).failures()) == len(labelled.failures())  # already recorded

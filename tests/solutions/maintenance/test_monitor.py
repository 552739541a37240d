"""The whole model on a tiny fleet: late data, ill sensors, saving, causes, work orders, operation, the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.tables import InputError
from core.tracking import Tracker
from solutions.maintenance import monitor as maintenance_monitor
from solutions.maintenance import operate, watch
from solutions.maintenance.cases import CaseBook
from solutions.maintenance.causes import Principal, Signatures, fit_reconstruction, rank, windowed
from solutions.maintenance.data import HOUR, History
from solutions.maintenance.explain import Deletion, deletion_test, explain
from solutions.maintenance.features import Featurizer
from solutions.maintenance.labels import make_labels
from solutions.maintenance.model import Prepared, Training, fit_model, partitions
from solutions.maintenance.monitor import LOOK_BACK, Monitor
from solutions.maintenance.network import HazardNetwork, Inputs
from solutions.maintenance.operate import Workspace
from solutions.maintenance.panel import hours_of, make_panel
from tests.solutions.maintenance.fleets import tiny_task


def shuffled(history: History) -> History:
    return replace(history, readings=history.readings.sample(frac=1.0, random_state=0).reset_index(drop=True))


def test_shuffled_arrival_gives_identical_scores(monitor: Monitor, history: History, cut: np.datetime64) -> None:
    straight, _ = monitor.score(history, cut, hours=6)
    mixed, _ = monitor.score(shuffled(history), cut, hours=6)
    pd.testing.assert_frame_equal(straight, mixed)
    assert set(straight["asset"]) == set(history.assets.index)
    assert (straight[["p_24", "p_72", "p_168"]].diff(axis=1).iloc[:, 1:] >= 0.0).all(axis=None)
    assert (straight["rul_low"] <= straight["rul"] + 1e-9).all()
    assert (straight["rul"] <= straight["rul_high"] + 1e-9).all()


def test_nothing_after_the_moment_changes_a_score(monitor: Monitor, history: History, cut: np.datetime64) -> None:
    readings = history.readings.copy()
    late = readings["time"] > cut
    readings.loc[late, list(history.sensors)] *= 100.0
    before, _ = monitor.score(history, cut)
    after, _ = monitor.score(replace(history, readings=readings), cut)
    pd.testing.assert_frame_equal(before, after)


def test_batched_scores_agree_with_one_asset_at_a_time(monitor: Monitor, history: History, cut: np.datetime64) -> None:
    whole, _ = monitor.score(history, cut)
    alone = pd.concat([monitor.score(history.of([asset]), cut)[0] for asset in whole["asset"]], ignore_index=True)
    pd.testing.assert_frame_equal(whole, alone, rtol=1e-4, atol=1e-5)


def test_a_large_fleet_is_scored_in_parts_and_silent_assets_hold_nobody_up(
    monitor: Monitor, history: History, cut: np.datetime64, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = [str(name) for name in history.assets.index[:2]]
    gone = history.readings["asset"].isin(silent) & (history.readings["time"] > cut - (LOOK_BACK + 5) * HOUR)
    part = replace(history, readings=history.readings[~gone].reset_index(drop=True))
    whole, _ = monitor.score(part, cut)
    monkeypatch.setattr(maintenance_monitor, "AT_ONCE", 1)
    parts, _ = monitor.score(part, cut)
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-4, atol=1e-5)
    assert not set(silent) & set(parts["asset"])
    with pytest.raises(InputError, match="no reading in this period"):
        monitor.score(part.of(silent), cut)


def test_a_stuck_sensor_is_a_data_quality_alert_not_a_failure_alert(
    monitor: Monitor, history: History, cut: np.datetime64
) -> None:
    asset = str(history.assets.index[0])
    readings = history.readings.copy()
    rows = (readings["asset"] == asset) & (readings["time"] > cut - 30 * HOUR) & (readings["time"] <= cut)
    readings.loc[rows, "vibration"] = 9.0
    scores, findings = monitor.score(replace(history, readings=readings), cut)
    assert ("vibration", "stuck") in {(f.sensor, f.cause) for f in findings if f.asset == asset}
    missing = history.readings.copy()
    missing.loc[rows, "vibration"] = np.nan
    expected, _ = monitor.score(replace(history, readings=missing), cut)
    mine, other = (f.set_index("asset").loc[asset, "p_72"] for f in (scores, expected))
    assert abs(mine - other) < 0.05  # almost as if it had said nothing


def test_a_missing_or_unknown_sensor_does_not_stop_scoring(
    monitor: Monitor, history: History, cut: np.datetime64
) -> None:
    readings = history.readings.drop(columns="flow").assign(novel=1.0)
    sensors = (*(s for s in history.sensors if s != "flow"), "novel")
    scores, findings = monitor.score(replace(history, readings=readings, sensors=sensors), cut)
    assert np.isfinite(scores["p_72"]).all()
    assert {(f.sensor, f.cause) for f in findings} >= {("flow", "silent")}


def test_saved_and_loaded_monitors_score_alike(
    monitor: Monitor, history: History, cut: np.datetime64, tmp_path: Path
) -> None:
    monitor.save(tmp_path)
    again = Monitor.load(tmp_path)
    pd.testing.assert_frame_equal(monitor.score(history, cut)[0], again.score(history, cut)[0])
    assert again.alarm == monitor.alarm
    with pytest.raises(InputError, match="holds no model"):
        Monitor.load(tmp_path / "none")


def test_no_machine_calibrates_a_model_that_it_trained(history: History) -> None:
    """Every out-of-fold prediction equals the mean over the members whose fold left the machine out."""
    task = replace(tiny_task(), rounds=2, origins=())
    panel = make_panel(history)
    labels = make_labels(history, panel)
    featurizer = Featurizer.fit(history, panel, np.ones(len(panel), bool), task.features)
    prepared = Prepared(history, panel, featurizer.transform(history, panel))
    rows = panel.age_R() > 400
    model, held = fit_model(prepared, labels, rows, task, featurizer, seed=1, parts=("lightgbm",))
    x, expected = prepared.features.x_RF[held.rows], np.zeros_like(held.raw["lightgbm"])
    for m, member in enumerate(model.members["lightgbm"]):
        turn, fold = divmod(m, task.folds)
        mine = partitions(panel, labels, task, 1)[turn][held.asset_N] == fold
        assert mine.any()
        expected[mine] += member.logit(x[mine]) / 2
    np.testing.assert_allclose(expected, held.raw["lightgbm"])


def test_looking_ahead_knows_nothing_of_later_failures(history: History) -> None:
    """What an earlier ensemble says of the days until a failure is the same whether the failure comes or not."""
    task = replace(tiny_task(), origins=(0.5,))
    panel = make_panel(history)
    labels, everything = make_labels(history, panel), np.ones(len(panel), bool)
    hour = int(np.quantile(panel.hour_R, 0.75))
    late = hours_of(history.events["time"]) > hour
    assert (history.events["kind"][late] == "failure").any()
    calm = replace(history, events=history.events[~late].reset_index(drop=True))
    featurizer = Featurizer.fit(history, panel, everything, task.features)
    said = []
    for known in (history, calm):
        prepared = Prepared(known, panel, featurizer.transform(known, panel))
        training = Training(prepared, task, featurizer, 0, ("sensors", "logs"), ("lightgbm", "network"), 1)
        found = training.look_ahead(labels, everything, lambda _: None)
        assert found is not None
        assert panel.hour_R[found.rows].min() >= panel.hour_R.min() + (np.ptp(panel.hour_R) + 1) // 2
        said.append({part: values[panel.hour_R[found.rows] < hour] for part, values in found.raw.items()})
    for part in said[0]:
        np.testing.assert_array_equal(said[0][part], said[1][part])


def test_the_network_does_not_see_masked_or_foreign_values() -> None:
    """Rows before an asset's first one belong to another asset; missing readings are masked, whatever they hold."""
    from solutions.maintenance.features import Features

    rng = np.random.default_rng(0)
    settings = tiny_task().network
    z = rng.normal(size=(120, 4)).astype(np.float32)
    features = Features(
        rng.normal(size=(120, 5)).astype(np.float32),
        tuple("abcde"),
        ("sensors", "sensors", "logs", "logs", "asset"),
        z,
        np.zeros((120, 16), np.int64),
        np.zeros((120, 16), np.float32),
    )
    torch.manual_seed(0)
    network = HazardNetwork(
        settings, sensors=4, codes=3, groups=features.groups, arms=("sensors", "logs"), edges=tiny_task().edges
    )
    start = np.repeat([0, 60], 60)
    row = np.array([70])
    first = network.logit(Inputs(features, start), row)
    foreign = z.copy()
    foreign[:60] = 99.0
    np.testing.assert_allclose(network.logit(Inputs(replace(features, z_RS=foreign), start), row), first, rtol=1e-5)
    gone = z.copy()
    gone[65] = np.nan
    assert np.isfinite(network.logit(Inputs(replace(features, z_RS=gone), start), row)).all()
    only = HazardNetwork(
        settings, sensors=4, codes=3, groups=features.groups, arms=("sensors",), edges=tiny_task().edges
    )
    assert only.used == ("sensors", "asset")


def test_reconstruction_names_the_sensor_that_deviates() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4000, 2))
    normal = hidden @ rng.normal(size=(2, 6)) + 0.2 * rng.normal(size=(4000, 6))
    model, linear = fit_reconstruction(normal, seed=0), Principal.fit(normal)
    ill = normal[:200].copy()
    ill[:, 4] += 2.0
    names = list("abcdef")
    assert np.mean([rank(r, names)[0][0] == "e" for r in model.residual(ill)]) > 0.9
    assert np.mean([rank(r, names)[0][0] == "e" for r in linear.residual(ill)]) > 0.6
    ill[:, 4] = np.nan
    assert (model.residual(ill)[:, 4] == 0.0).all()  # a missing sensor accuses nobody
    with pytest.raises(ValueError, match="at least 10 rows"):
        fit_reconstruction(normal[:5], seed=0)


def test_a_new_finding_is_recognised_from_few_examples() -> None:
    rng = np.random.default_rng(0)
    shapes = {"bearing": [4.0, 2.0, 0.0, 0.0], "seal": [0.0, 0.0, 5.0, -2.0]}
    rows = np.concatenate([np.asarray(v) + rng.normal(size=(5, 4)) for v in shapes.values()])
    signatures = Signatures.fit(rows, ["bearing"] * 5 + ["seal"] * 5)
    assert signatures.suspects(np.array([0.0, 0.5, 4.0, -1.0]))[0][0] == "seal"
    assert Signatures.fit(np.zeros((0, 4)), []).suspects(np.ones(4)) == []


def test_deletion_compares_with_random_sensors() -> None:
    assert Deletion(1.0, 0.2, 0.9).passed
    assert not Deletion(1.0, 0.7, 0.8).passed  # the top ones matter little more than any others
    assert not Deletion(1.0, 1.1, 1.0).passed


def row_before_a_failure(monitor: Monitor, prepared: Prepared, cut: np.datetime64) -> int:
    panel = prepared.panel
    labels = make_labels(prepared.history, panel)
    later = (panel.hour_R >= hours_of(np.array([cut]))[0]) & labels.failed_R & (labels.life_R <= 12)
    return int(np.flatnonzero(later)[0])


def test_explanation_and_work_order(monitor: Monitor, history: History, cut: np.datetime64, tmp_path: Path) -> None:
    prepared, _ = monitor.prepare(history)
    row = row_before_a_failure(monitor, prepared, cut)
    explanation = explain(monitor, prepared, row)
    assert {name for name, _ in explanation.sensors} == set(history.sensors)
    sizes = [abs(r) for _, r in explanation.sensors]
    assert sizes == sorted(sizes, reverse=True)
    same = deletion_test(monitor, prepared, row, [])
    p = monitor.model.curves(prepared, np.array([row])).fails_within(72.0)[0]
    np.testing.assert_allclose(same.risk, -np.log1p(-p), rtol=1e-5)
    panel = prepared.panel
    asset, now = panel.assets[panel.asset_R[row]], panel.time_R()[row]
    order = operate.draft_order(monitor, history, asset, now, Workspace(tmp_path))
    page = order.write(tmp_path / "orders")
    fields = json.loads((tmp_path / "orders" / f"{asset}.json").read_text())
    assert fields["asset"] == asset
    assert set(fields["probability"]) == {"24", "72", "168"}
    assert pd.Timestamp(fields["latest_safe_date"]) >= pd.Timestamp(now).floor("min")
    assert all(pd.Timestamp(o["time"]) < pd.Timestamp(now) for o in fields["similar_orders"])
    assert all(pd.Timestamp(e["time"]) <= pd.Timestamp(now) for e in fields["evidence"]["log"])
    assert "Draft" in page.read_text()
    assert "Latest safe date" in (tmp_path / "orders" / f"{asset}.md").read_text()
    with pytest.raises(InputError, match="no asset `P-0001`.*Did you mean"):
        operate.draft_order(monitor, history, "P-0001", now, Workspace(tmp_path))


def test_an_asset_day_touches_only_its_file_and_again_gives_the_same(
    monitor: Monitor, history: History, cut: np.datetime64, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    day = str(np.datetime64(cut, "D") - 1)
    for asset in ("P-001", "P-002"):
        assert operate.score_day(monitor, history, asset, day, workspace) == 24
    other = workspace.scores("P-002", day).read_bytes()
    first = pd.read_parquet(workspace.scores("P-001", day))
    operate.score_day(monitor, shuffled(history), "P-001", day, workspace)
    pd.testing.assert_frame_equal(pd.read_parquet(workspace.scores("P-001", day)), first)
    assert workspace.scores("P-002", day).read_bytes() == other
    assert operate.score_day(monitor, history, "P-001", "2035-01-01", workspace) == 0
    together = operate.score_days(monitor, history, np.datetime64(day, "us") + 24 * HOUR, Workspace(tmp_path / "b"))
    mine = together.frame[together.frame["asset"] == "P-001"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, first, rtol=1e-4, atol=1e-5)
    assert not together.refused
    assert workspace.scores("../x", day).is_relative_to(tmp_path / "scores")  # a name is no path


def test_scores_open_cases_once(monitor: Monitor, history: History, cut: np.datetime64, tmp_path: Path) -> None:
    workspace, book = Workspace(tmp_path), CaseBook(tmp_path / "cases.json")
    with pytest.raises(InputError, match="nothing is scored"):
        operate.read_scores(workspace)
    operate.score_days(monitor, history, cut, workspace, hours=72)
    easy = replace(monitor, alarm=replace(monitor.alarm, threshold=1e-4))
    scores = operate.read_scores(workspace)
    new = operate.open_cases(easy, scores, book, history.known_at(cut))
    assert len(new) == scores["asset"].nunique()
    assert operate.open_cases(easy, scores, book, history.known_at(cut)) == []


def test_silent_assets_are_named_and_the_others_go_on(
    monitor: Monitor, history: History, cut: np.datetime64, tmp_path: Path
) -> None:
    readings = history.readings
    readings = readings[~((readings["asset"] == "P-003") & (readings["time"] > cut - 300 * HOUR))]
    scored = operate.score_days(monitor, replace(history, readings=readings), cut, Workspace(tmp_path))
    assert list(scored.refused) == ["P-003"]
    assert scored.assets == len(history.assets) - 1


def test_the_gate_takes_the_better_and_refuses_the_equal() -> None:
    rng = np.random.default_rng(0)
    failed = rng.random(4000) < 0.1
    good = np.clip(failed * 0.6 + rng.random(4000) * 0.2, 0, 1)
    window = pd.DataFrame({"asset": rng.integers(0, 40, 4000).astype(str), "failed": failed.astype(int)})
    window = window.assign(fused=good, lightgbm=0.1)
    assert operate.judge(window, None).promote
    assert not operate.judge(window.assign(fused=float(failed.mean())), None).promote  # the base rate itself
    verdict = operate.judge(window, good)
    assert not verdict.promote
    assert verdict.reasons[0] == "against the champion"


def test_train_judge_register_and_watch(monitor: Monitor, history: History, cut: np.datetime64, tmp_path: Path) -> None:
    workspace, tracker = Workspace(tmp_path / "m"), Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}")
    prepared, _ = monitor.prepare(history)
    window = operate.held_out(monitor, prepared, cut)
    assert window["time"].min() >= pd.Timestamp(cut)
    assert set(window) == {"asset", "time", "failed", "lightgbm", "network", "fused"}
    metrics = operate.save_challenger(monitor, window, workspace, "run-1")
    assert {"fused_ap", "lightgbm_brier"} <= set(metrics)
    assert operate.champion_scores(tracker, history, window) is None
    version = operate.register_champion(tracker, tracker.run_for("run-1"), workspace, "run-1")
    assert version == 1
    np.testing.assert_allclose(operate.champion_scores(tracker, history, window), window["fused"], rtol=1e-5)
    assert watch.plan_update(Workspace(tmp_path / "empty"), history) is None


def test_average_windows_hide_nothing_of_other_assets(history: History) -> None:
    panel = make_panel(history)
    average = windowed(panel.x_RS, panel.start_R)
    first = panel.slices()[1].start
    np.testing.assert_allclose(average[first], panel.x_RS[first])


def test_observed_coverage_counts_known_lives_only(monitor: Monitor, history: History) -> None:
    begin, end = (int(h) for h in hours_of(history.readings["time"].agg(["min", "max"])))
    wide = pd.DataFrame({"asset": "none-fails", "hour": [begin, begin + 1, end - 5], "rul_low": 0.0, "rul_high": 168.0})
    watched = operate.observed_coverage(monitor, wide, history)
    assert list(watched.held) == [True]  # one per week, and nothing is known yet of the last days
    asset = history.failures()["asset"].iat[0]
    when = int(hours_of(history.failures()["time"])[0])
    early = pd.DataFrame({"asset": asset, "hour": [when - 10], "rul_low": [50.0], "rul_high": [168.0]})
    assert list(operate.observed_coverage(monitor, early, history).held) == [False]

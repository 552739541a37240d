"""Tracking on a real sqlite store: runs, versions, aliases, rollback, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.tracking import (
    FINGERPRINT_TAG,
    Tracker,
    TrackingError,
    UnknownAliasError,
    UnknownModelError,
    UnknownVersionError,
    tracked,
)

SIGNATURE = {"inputs": {"amount": "double"}, "outputs": {"probability": "double"}, "trees": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    """One store for the module: making the tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    before = os.getcwd()
    os.chdir(elsewhere := tmp_path_factory.mktemp("elsewhere"))
    yield Tracker(f"sqlite:///{folder / 'deep' / 'mlflow.db'}")
    os.chdir(before)
    assert list(elsewhere.iterdir()) == [], "nothing is written to the current folder"


def a_model(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "weights.bin").write_text(text)
    (path / "deep").mkdir()
    (path / "deep" / "more.json").write_text("{}")
    return path


def register(store: Tracker, tmp_path: Path, name: str, texts: str, run: str = "r") -> list[int]:
    run_id = store.run_for(run)
    return [
        store.register(run_id, a_model(tmp_path / f"{name}{t}", t), name, signature=SIGNATURE, fingerprint=f"sha-{t}")
        for t in texts
    ]


def test_one_run_per_orchestrator_run_and_it_can_be_resumed(store: Tracker) -> None:
    first = store.run_for("dagster-1")
    assert store.run_for("dagster-1") == first
    assert store.run_for("dagster-2") != first
    assert store.close("dagster-1", "FAILED")
    assert store.client.get_run(first).info.status == "FAILED"
    assert store.run_for("dagster-1") == first
    assert store.client.get_run(first).info.status == "RUNNING"


def test_closing_a_run_that_tracked_nothing_makes_none(store: Tracker) -> None:
    assert not store.close("never-started")
    assert store._find("never-started") is None


def test_two_processes_that_start_at_once_share_the_older_run(store: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    older = store.run_for("both")
    find, answers = store._find, iter([None])  # the other process's run was not there yet when this one looked
    monkeypatch.setattr(store, "_find", lambda run: next(answers, find(run)))
    assert store.run_for("both") == older
    open_runs = store.client.search_runs([store._experiment_id()], "tags.`vigil.run` = 'both'")
    assert [run.info.run_id for run in open_runs] == [older]


def test_a_failing_block_closes_its_run_as_failed(store: Tracker) -> None:
    with tracked(store, "good") as good:
        pass
    with pytest.raises(KeyError), tracked(store, "bad"):
        raise KeyError
    assert store.client.get_run(good).info.status == "FINISHED"
    assert store.client.get_run(store._find("bad")).info.status == "FAILED"


def test_params_and_metrics_arrive_in_batches(store: Tracker, tmp_path: Path) -> None:
    run_id = store.run_for("logged")
    params = {f"p{i:03d}": i for i in range(250)}
    store.log(run_id, params=params | {"flag": np.bool_(True), "none": None}, metrics={"ap": np.float32(0.5), "n": 3})
    (tmp_path / "note.txt").write_text("x")
    store.log_artifact(run_id, tmp_path / "note.txt", "notes")
    data = store.client.get_run(run_id).data
    assert (len(data.params), data.params["p249"], data.params["flag"]) == (252, "249", "True")
    assert data.metrics == {"ap": 0.5, "n": 3.0}
    assert [f.path for f in store.client.list_artifacts(run_id, "notes")] == ["notes/note.txt"]


@pytest.mark.parametrize(
    "value", [pd.DataFrame({"payer": ["C1"]}), pd.Series([1]), np.zeros(3), ["C1", "C2"], {"a": 1}]
)
def test_tables_and_arrays_are_refused(store: Tracker, value: object) -> None:
    kind = type(value).__name__
    with pytest.raises(TypeError, match=f"`cards` must be one number or text. Received: {kind}"):
        store.log("any", params={"cards": value})
    with pytest.raises(TypeError, match=f"`cards` must be one number. Received: {kind}"):
        store.log("any", metrics={"cards": value})  # type: ignore[dict-item]


def test_text_that_mlflow_would_cut_is_refused(store: Tracker) -> None:
    with pytest.raises(ValueError, match=r"`note` must be at most 500 characters. Received: 501"):
        store.log("any", params={"note": "x" * 501})


def test_versions_of_one_run_keep_their_own_files(store: Tracker, tmp_path: Path) -> None:
    assert register(store, tmp_path, "own", "AB") == [1, 2]
    first, second = store.resolve("own/1"), store.resolve("own/2")
    assert ((first.path / "weights.bin").read_text(), first.version) == ("A", "own/1")
    assert ((second.path / "weights.bin").read_text(), second.version) == ("B", "own/2")
    assert (first.path / "deep" / "more.json").exists()
    assert store.version_of("own", "challenger") == 2
    assert store.version_of("own", "champion") is None


def test_signature_and_data_fingerprint_are_registered(store: Tracker, tmp_path: Path) -> None:
    import yaml

    register(store, tmp_path, "signed", "A")
    version = store.client.get_model_version("signed", "1")
    assert version.tags[FINGERPRINT_TAG] == "sha-A"
    described = yaml.safe_load((store.resolve("signed/1").path.parent / "MLmodel").read_text())
    assert '"name": "amount"' in described["signature"]["inputs"]
    assert '"name": "probability"' in described["signature"]["outputs"]
    assert described["metadata"] == {FINGERPRINT_TAG: "sha-A", "trees": 3}


def test_promotion_keeps_the_way_back_and_rollback_takes_it(store: Tracker, tmp_path: Path) -> None:
    register(store, tmp_path, "house", "ABC")
    for version in (1, 2, 2):  # promoting the champion again must not make it its own predecessor
        store.promote("house", version)
    assert (store.version_of("house", "champion"), store.version_of("house", "previous")) == (2, 1)
    assert store.version_of("house", "challenger") == 3
    store.promote("house", 3)
    assert store.version_of("house", "challenger") is None
    assert store.roll_back("house") == 2
    assert (store.resolve("house@champion").path / "weights.bin").read_text() == "B"
    assert store.roll_back("house") == 3, "a rollback can be taken back"


def test_a_kill_between_the_two_aliases_keeps_the_champion(
    store: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(store, tmp_path, "killed", "AB")
    store.promote("killed", 1)
    write = store.client.set_registered_model_alias

    def die_at_champion(name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt
        write(name, alias, version)

    monkeypatch.setattr(store.client, "set_registered_model_alias", die_at_champion)
    with pytest.raises(KeyboardInterrupt):
        store.promote("killed", 2)
    assert (store.version_of("killed", "champion"), store.version_of("killed", "previous")) == (1, 1)


def test_unknown_names_versions_and_aliases_say_what_exists(store: Tracker, tmp_path: Path) -> None:
    register(store, tmp_path, "known", "AB")
    with pytest.raises(UnknownModelError, match=r"no model `nobody` in the registry. Known models: .*known"):
        store.resolve("nobody@champion")
    with pytest.raises(UnknownModelError, match="no model `nobody`"):
        store.resolve("nobody/3")
    with pytest.raises(UnknownVersionError, match=r"`known` has no version 7. Known versions: 1, 2."):
        store.resolve("known/7")
    with pytest.raises(UnknownVersionError, match="no version seven"):
        store.resolve("known/seven")
    with pytest.raises(UnknownAliasError, match="`known` is called `champion`. Known: challenger"):
        store.resolve("known@champion")
    with pytest.raises(UnknownAliasError, match="no previous champion"):
        store.roll_back("known")
    with pytest.raises(UnknownVersionError, match="no version 9"):
        store.promote("known", 9)
    for reference in ("known", "@champion", "known@", ""):
        with pytest.raises(UnknownModelError, match="NAME@champion or NAME/VERSION"):
            store.resolve(reference)
    assert UnknownModelError.exit_code == 2


def test_a_broken_store_is_not_an_absent_champion(store: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def fail(name: str, alias: str) -> None:
        raise MlflowException("database is locked")

    monkeypatch.setattr(store.client, "get_model_version_by_alias", fail)
    with pytest.raises(MlflowException, match="locked"):
        store.version_of("house", "champion")


def test_lost_files_are_named(store: Tracker, tmp_path: Path) -> None:
    import shutil

    register(store, tmp_path, "lost", "A")
    shutil.rmtree(store.resolve("lost/1").path.parent)
    with pytest.raises(TrackingError, match="files of lost/1"):
        store.resolve("lost/1")


def test_a_loader_module_makes_an_mlflow_model(store: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    module = "class Model:\n    def predict(self, x): return x['amount'] * 2\ndef _load_pyfunc(path): return Model()\n"
    (tmp_path / "some_loader.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = a_model(tmp_path / "m", "A")
    store.register(
        store.run_for("r"), path, "loadable", signature=SIGNATURE, fingerprint="f", loader_module="some_loader"
    )
    loaded = mlflow.pyfunc.load_model(str(store.resolve("loadable/1").path.parent))
    assert loaded.predict(pd.DataFrame({"amount": [2.0]})).tolist() == [4.0]
    assert loaded.metadata.signature.inputs.input_names() == ["amount"]


def test_registration_refuses_what_is_incomplete(store: Tracker, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="directory with files"):
        store.register("any", tmp_path / "empty", "m", signature=SIGNATURE, fingerprint="f")
    path = a_model(tmp_path / "m", "A")
    with pytest.raises(ValueError, match="`fingerprint` must be"):
        store.register("any", path, "m", signature=SIGNATURE, fingerprint="")
    run_id = store.run_for("r")
    with pytest.raises(ValueError, match="columns of `outputs`"):
        store.register(run_id, path, "m", signature={"inputs": ["a"]}, fingerprint="f")
    with pytest.raises(ValueError, match="amount: money"):
        store.register(run_id, path, "m", signature=SIGNATURE | {"inputs": {"amount": "money"}}, fingerprint="f")


def test_wrong_and_silent_addresses_are_named_at_once() -> None:
    with pytest.raises(TrackingError, match="Received: './mlruns'"):
        Tracker("./mlruns")
    with pytest.raises(TrackingError, match="no MLflow server answers at http://127.0.0.1:9"):
        Tracker("http://127.0.0.1:9")

"""The imaging pipeline in this process: a study arrives, is judged and reviewed once; a broken one is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dagster as dg
import pytest

from pipelines.definitions import defs
from pipelines.defs import medical_imaging
from pipelines.resources import VarResource
from solutions.medical_imaging.operate import Workspace, entries, find, is_reviewed
from solutions.medical_imaging.phantom import PhantomNodule, PhantomSettings, datasets, make_phantom, write_series


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VarResource:
    for name in ("VIGIL_VAR", "MLFLOW_TRACKING_URI", "VIGIL_IMAGING_INBOX"):
        monkeypatch.delenv(name, raising=False)
    return VarResource(path=str(tmp_path / "var"))


def test_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)


def test_from_the_inbox_to_reviews_and_refusals(
    var: VarResource, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    place = Workspace(var.root() / "imaging")
    settings = PhantomSettings(
        slices=72, side=110, spacing=(3.75, 3.2, 3.2), nodules=(PhantomNodule((-70.0, -10.0, 12.0), 18.0),), vessels=6
    )
    made = datasets(make_phantom(settings).volume, patient="CANARY^BIRD")
    write_series(made, place.inbox / "CANARY")
    write_series(made[:30], place.inbox / "cut")
    assert entries(place) == {}  # still arriving
    for file in place.inbox.rglob("*.dcm"):
        os.utime(file, (0, 0))
    keys = {path.name: key for key, path in entries(place).items()}
    assert "CANARY" not in "".join(keys.values())
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        asked = medical_imaging.inbox_sensor(dg.build_sensor_context(instance=instance, resources={"var": var}))
        assert isinstance(asked, dg.SensorResult)
        assert {r.partition_key for r in asked.run_requests or ()} == set(keys.values())
        instance.add_dynamic_partitions("imaging_studies", list(keys.values()))
        assets = [medical_imaging.imaging_verdict, medical_imaging.imaging_accepted, medical_imaging.imaging_review]
        for key in keys.values():
            done = dg.materialize(assets, resources={"var": var}, instance=instance, partition_key=key)
            assert done.success
            said = str([e.event_specific_data for e in done.all_events])
            assert "CANARY" not in said
        asked = medical_imaging.inbox_sensor(dg.build_sensor_context(instance=instance, resources={"var": var}))
        assert isinstance(asked, dg.SensorResult)
        assert [r.partition_key for r in asked.run_requests or ()] == [keys["cut"]]  # its run key makes it a repeat
    assert is_reviewed(place, keys["CANARY"])
    assert not is_reviewed(place, keys["cut"])
    assert json.loads((place.review(keys["cut"]) / "refusal.json").read_text())["verdict"] == "refuse"
    before = (place.review(keys["CANARY"]) / "report.dcm").read_bytes()
    from solutions.medical_imaging.operate import review_study

    review_study(place, keys["CANARY"])
    assert (place.review(keys["CANARY"]) / "report.dcm").read_bytes() == before
    assert "CANARY" not in caplog.text + "".join(capfd.readouterr())
    written = [p for p in tmp_path.rglob("*") if p.is_file() and place.inbox not in p.parents]
    assert {p.name for p in written} >= {"mlflow.db", "findings.json", "review.html"}
    assert any("dagster" in p.parts for p in written)
    leaks = [p.name for p in written if "CANARY" in p.name or (p.suffix != ".dcm" and b"CANARY" in p.read_bytes())]
    assert leaks == []  # the exports for the archive carry the patient, as they must


def test_a_study_that_went_away_is_named_by_its_key(var: VarResource) -> None:
    with pytest.raises(ValueError, match="must hold the study abc"):
        find(Workspace(var.root() / "imaging"), "abc")

"""compose.yaml, as far as it can be checked without an engine: what it names exists, and nothing is open to the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from solutions.fraud.broker import embedded_broker
from solutions.fraud.wire import StreamSettings, lag

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


@pytest.fixture(scope="module")
def tansu() -> Iterator[str]:
    with embedded_broker() as address:
        yield address


def test_ports_are_open_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_dependency_volume_and_file_is_there() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])
        assert {volume.split(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
    assert (ROOT / "Dockerfile").exists()


def test_the_topics_are_made_by_a_command_that_exists(tansu: str) -> None:
    assert SERVICES["topics"]["command"] == ["vigil", "fraud", "topics"]
    for _ in range(2):  # also when they are there
        made = CliRunner().invoke(app, ["fraud", "topics", f"--bootstrap-servers={tansu}", "--partitions=2"])
        assert made.exit_code == 0, made.output
    settings = StreamSettings(bootstrap_servers=tansu)
    assert lag(settings) == 0


def test_the_scorer_is_called_with_options_and_variables_that_exist() -> None:
    scorer = SERVICES["scorer"]
    shown = CliRunner().invoke(app, [*scorer["command"][1:3], "--help"], env={"COLUMNS": "200"}).output
    for word in scorer["command"]:
        assert not word.startswith("--") or word in shown
    for name in scorer["environment"]:
        if name.startswith("VIGIL_") and name != "VIGIL_VAR":
            assert name in shown


def test_no_password_is_written_down() -> None:
    assert "${VIGIL_DB_PASSWORD:?" in SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]

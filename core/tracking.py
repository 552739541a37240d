"""Runs, the model registry and its aliases, on MLflow.

One MLflow run per orchestrator run. Aliases: champion serves, challenger waits for the gate, previous is what a rollback
returns to. Nothing that identifies a payer or a patient belongs in a parameter, a metric or a tag.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUN_TAG = "vigil.run"
FINGERPRINT_TAG = "vigil.data_sha256"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


class UnknownModelError(ValueError):
    """No such model, version or alias in the registry."""

    exit_code = 2


class Tracker:
    """A store (`sqlite:///...`, a server's address) and an experiment in it."""

    def __init__(self, tracking_uri: str, experiment: str = "vigil") -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        if tracking_uri.startswith("sqlite:///"):
            Path(tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.uri, self.experiment = tracking_uri, experiment
        self.client = mlflow.MlflowClient(tracking_uri, tracking_uri)

    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if self.uri.startswith("sqlite:///"):
            location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        return str(self.client.create_experiment(self.experiment, artifact_location=location))

    def run_for(self, run: str) -> str:
        """MLflow run id of an orchestrator run; started at the first call, the same ever after."""
        experiment = self._experiment_id()
        found = self.client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        return str(self.client.create_run(experiment, tags={RUN_TAG: run}, run_name=run[:8]).info.run_id)

    def close(self, run: str, status: str = "FINISHED") -> None:
        """End the MLflow run of an orchestrator run; status FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_for(run), status)

    def log(self, run_id: str, *, params: dict[str, Any] | None = None, metrics: dict[str, float] | None = None) -> None:
        """Log in one batch."""
        import time

        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            metrics=[Metric(name, float(value), now, 0) for name, value in (metrics or {}).items()],
            params=[Param(name, str(value)[:500]) for name, value in (params or {}).items()],
        )

    def register(self, run_id: str, model_dir: Path, name: str, *, signature: dict[str, Any], fingerprint: str) -> int:
        """Store a model directory with its signature and data fingerprint; returns the new version (alias challenger)."""
        from mlflow.exceptions import MlflowException

        self.client.log_artifacts(run_id, str(model_dir), "model")
        self.client.log_dict(run_id, signature, "model/signature.json")
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run_id).info.artifact_uri}/model"
        version = self.client.create_model_version(name, source, run_id, tags={FINGERPRINT_TAG: fingerprint})
        self.client.set_registered_model_alias(name, CHALLENGER, version.version)
        return int(version.version)

    def version_of(self, name: str, alias: str) -> int | None:
        """Version behind an alias, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return int(self.client.get_model_version_by_alias(name, alias).version)
        except MlflowException:
            return None

    def promote(self, name: str, version: int) -> None:
        """Make a version the champion. `previous` is written first: a kill in between loses no way back."""
        champion = self.version_of(name, CHAMPION)
        if champion == version:
            return
        if champion is not None:
            self.client.set_registered_model_alias(name, PREVIOUS, str(champion))
        self.client.set_registered_model_alias(name, CHAMPION, str(version))

    def roll_back(self, name: str) -> int:
        """Champion and previous change places; returns the version that serves now."""
        champion, previous = self.version_of(name, CHAMPION), self.version_of(name, PREVIOUS)
        if previous is None:
            raise UnknownModelError(f"`{name}` has no previous champion to roll back to.")
        self.client.set_registered_model_alias(name, CHAMPION, str(previous))
        if champion is not None:
            self.client.set_registered_model_alias(name, PREVIOUS, str(champion))
        return previous

    def resolve(self, reference: str) -> tuple[Path, str]:
        """(local directory, "NAME/VERSION") of NAME@alias or NAME/version.

        Raises:
            UnknownModelError: what does not exist, and what does.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        name, at, alias = reference.partition("@")
        if not at:
            name, _, alias = reference.partition("/")
        if not name or not alias:
            raise UnknownModelError(f"a model is named NAME@champion or NAME/VERSION. Received: {reference}.")
        try:
            get = self.client.get_model_version_by_alias if at else self.client.get_model_version
            version = get(name, alias)
        except MlflowException as error:
            known = [model.name for model in self.client.search_registered_models()]
            raise UnknownModelError(
                f"no model {reference} in the registry. Known models: {', '.join(sorted(known)) or 'none'}. "
                "Train one with `vigil demo` or the Dagster job."
            ) from error
        path = mlflow.artifacts.download_artifacts(artifact_uri=version.source, tracking_uri=self.uri)
        return Path(path), f"{name}/{version.version}"


@contextmanager
def tracked(tracker: Tracker, run: str) -> Iterator[str]:
    """The MLflow run of a plain call: closed as FINISHED, or as FAILED when the block raises."""
    run_id = tracker.run_for(run)
    try:
        yield run_id
    except BaseException:
        tracker.close(run, "FAILED")
        raise
    tracker.close(run)

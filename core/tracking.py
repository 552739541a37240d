"""Runs, the model registry and its aliases, on MLflow: one MLflow run per orchestrator run, one call to roll back.

Aliases: champion serves, challenger waits for the gate, previous is what a rollback returns to. Nothing that identifies
a payer or a patient belongs in a parameter, a metric or a tag: only single numbers and short texts are taken.
"""

from __future__ import annotations

import logging
import numbers
import os
import platform
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from core.results import git_commit

RUN_TAG, FINGERPRINT_TAG, COMMIT_TAG = "vigil.run", "vigil.data_sha256", "vigil.commit"
PROCESS_TAG = "vigil.process"  # host, number and start of the process that a run lives in
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
STORES = ("sqlite:///", "http://", "https://", "postgresql", "mysql")
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes for a missing model, version, alias
LONGEST_TEXT = 500  # of a parameter; MLflow itself cuts at 6,000 without an error
BATCH = 100  # parameters per request, MLflow's limit (1,000 for metrics)


class UnknownModelError(ValueError):
    """No such model in the registry."""

    exit_code = 2


class UnknownVersionError(UnknownModelError):
    """The model has no such version."""


class UnknownAliasError(UnknownModelError):
    """No version of the model carries the alias."""


class TrackingError(RuntimeError):
    """The tracking store can not be used: wrong address, nobody answers, files are gone."""

    exit_code = 2


class Resolved(NamedTuple):
    """Local directory of a model, and its "NAME/VERSION"."""

    path: Path
    version: str


class Tracker:
    """A store (`sqlite:///...` or a server's address) and an experiment in it. Leaves MLflow's global state alone."""

    def __init__(self, tracking_uri: str, experiment: str = "vigil") -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # two lines about tables at the first use of a file
        if not tracking_uri.startswith(STORES):
            raise TrackingError(
                "the tracking URI must be sqlite:///PATH or the http:// address of an MLflow server. "
                f"Received: {tracking_uri!r}."
            )
        if tracking_uri.startswith("http"):
            _check_reachable(tracking_uri)
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)  # forty lines of migrations at the first use of a file
        self.uri, self.experiment = tracking_uri, experiment
        if (folder := self._folder()) is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.client = mlflow.MlflowClient(tracking_uri, tracking_uri)

    def _folder(self) -> Path | None:
        """Where a sqlite file lies; its artifacts lie beside it, not in the current folder."""
        return Path(self.uri.removeprefix("sqlite:///")).parent if self.uri.startswith("sqlite:///") else None

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self.client.get_experiment_by_name(self.experiment)) is not None:
            return str(found.experiment_id)
        folder = self._folder()
        location = None if folder is None else (folder.resolve() / "mlartifacts").as_uri()
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self.client.get_experiment_by_name(self.experiment).experiment_id)  # another process was faster

    def _find(self, run: str) -> str | None:
        if "'" in run or not run:
            raise ValueError(f"a run is named by its orchestrator's id. Received: {run!r}.")
        found = self.client.search_runs(
            [self._experiment_id()],
            f"tags.`{RUN_TAG}` = '{run}'",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            max_results=1,
        )
        return str(found[0].info.run_id) if found else None

    def run_for(self, run: str) -> str:
        """MLflow run id of an orchestrator run; started at the first call, resumed ever after."""
        if (found := self._find(run)) is not None:
            if self.client.get_run(found).info.status != "RUNNING":
                self.client.update_run(found, status="RUNNING")
            self.client.set_tag(found, PROCESS_TAG, _process(os.getpid()))
            return found
        tags = {RUN_TAG: run, PROCESS_TAG: _process(os.getpid())}
        made = self.client.create_run(self._experiment_id(), tags=tags, run_name=run[:8]).info.run_id
        kept = self._find(run) or made
        if kept != made:  # two steps in two processes came at once: the older run wins in both
            self.client.delete_run(made)
        return str(kept)

    def close(self, run: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> bool:
        """End the MLflow run of an orchestrator run; False when it never had one."""
        if (found := self._find(run)) is None:
            return False
        self.client.set_terminated(found, status)
        return True

    def close_orphans(self) -> int:
        """End, as KILLED, the runs whose process on this host is gone; returns how many. A run that is resumed is open
        again."""
        running = self.client.search_runs([self._experiment_id()], "attributes.status = 'RUNNING'", max_results=1000)
        ended = 0
        for found in running:
            process = found.data.tags.get(PROCESS_TAG, "")
            host, _, rest = process.partition(" ")
            if host == platform.node() and process != _process(int(rest.split()[0])):
                self.client.set_terminated(found.info.run_id, "KILLED")
                ended += 1
        return ended

    def log(
        self, run_id: str, *, params: Mapping[str, Any] | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Log in batches, not one by one.

        Raises:
            TypeError: a value is not one number or text: tables and arrays carry identifiers.
        """
        from mlflow.entities import Metric, Param

        texts = [Param(name, _text(name, value)) for name, value in (params or {}).items()]
        now = int(time.time() * 1000)
        figures = [Metric(name, _number(name, value), now, 0) for name, value in (metrics or {}).items()]
        for i in range(0, max(len(texts), len(figures)), BATCH):
            self.client.log_batch(run_id, metrics=figures[i : i + BATCH], params=texts[i : i + BATCH])

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Store a file or a directory with the run."""
        store = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        store(run_id, str(path), folder)

    def register(
        self,
        run_id: str,
        model_dir: Path,
        name: str,
        *,
        signature: Mapping[str, Any],
        fingerprint: str,
        loader_module: str | None = None,
    ) -> int:
        """Store a model directory as an MLflow model; returns the new version, which becomes the challenger.

        The directory is stored as it is: no code, no pickle of ours.

        Args:
            signature: "inputs" and "outputs", each {column: MLflow type} or a list of columns of any type; further
                entries are kept beside them.
            fingerprint: hash of the training data.
            loader_module: module with `_load_pyfunc(path)`, which makes the model loadable by `mlflow.pyfunc`.
        """
        from mlflow.exceptions import MlflowException

        if not model_dir.is_dir() or not any(model_dir.iterdir()):
            raise ValueError(f"`model_dir` must be a directory with files. Received: model_dir={model_dir}.")
        if not fingerprint:
            raise ValueError("`fingerprint` must be the hash of the training data. Received: nothing.")
        folder = f"models/{name}-{uuid.uuid4().hex[:8]}"  # a second model of the run never writes over the first
        self.client.log_artifacts(run_id, str(model_dir), f"{folder}/data")
        described = _describe(run_id, folder, signature, fingerprint, loader_module)
        with tempfile.TemporaryDirectory() as scratch:
            described.save(f"{scratch}/MLmodel")
            self.client.log_artifact(run_id, f"{scratch}/MLmodel", folder)
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run_id).info.artifact_uri}/{folder}"
        tags = {FINGERPRINT_TAG: fingerprint, COMMIT_TAG: git_commit()}
        version = self.client.create_model_version(name, source, run_id, tags=tags).version
        self.client.set_registered_model_alias(name, CHALLENGER, version)
        return int(version)

    def version_of(self, name: str, alias: str) -> int | None:
        """Version behind an alias; None when the model or the alias does not exist. A broken store raises."""
        from mlflow.exceptions import MlflowException

        try:
            return int(self.client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code not in UNKNOWN:
                raise
            return None

    def promote(self, name: str, version: int) -> None:
        """Make a version the champion. `previous` is written first: a kill in between loses no way back."""
        self._model_version(name, str(version))
        champion = self.version_of(name, CHAMPION)
        if champion == version:
            return
        if champion is not None:
            self.client.set_registered_model_alias(name, PREVIOUS, str(champion))
        self.client.set_registered_model_alias(name, CHAMPION, str(version))
        if self.version_of(name, CHALLENGER) == version:
            self.client.delete_registered_model_alias(name, CHALLENGER)

    def roll_back(self, name: str) -> int:
        """Champion and previous change places; returns the version that serves now."""
        champion, previous = self.version_of(name, CHAMPION), self.version_of(name, PREVIOUS)
        if previous is None:
            self._check_model(name)
            raise UnknownAliasError(f"`{name}` has no previous champion to roll back to.")
        self.client.set_registered_model_alias(name, CHAMPION, str(previous))  # first of all, the bad one stops serving
        if champion is not None:
            self.client.set_registered_model_alias(name, PREVIOUS, str(champion))
        return previous

    def resolve(self, reference: str, *, download_to: Path | None = None) -> Resolved:
        """Directory and version of NAME@alias or NAME/version; of a server's model, a copy.

        Raises:
            UnknownModelError, UnknownVersionError, UnknownAliasError: what does not exist, and what does.
            TrackingError: the registered files are gone.
        """
        import mlflow

        name, at, alias = reference.partition("@")
        if not at:
            name, _, alias = reference.partition("/")
        if not name or not alias:
            raise UnknownModelError(f"a model is named NAME@champion or NAME/VERSION. Received: {reference!r}.")
        if at:
            number = self.version_of(name, alias)
            if number is None:
                known = self._check_model(name).aliases
                raise UnknownAliasError(
                    f"no version of `{name}` is called `{alias}`. Known: {', '.join(sorted(known)) or 'no alias'}."
                )
            alias = str(number)
        version = self._model_version(name, alias)
        try:
            where = None if download_to is None else str(download_to)
            path = Path(mlflow.artifacts.download_artifacts(version.source, dst_path=where, tracking_uri=self.uri))
        except Exception as error:
            raise TrackingError(f"the files of {name}/{version.version} can not be read: {error}") from error
        if not (path / "data").is_dir():
            raise TrackingError(f"the files of {name}/{version.version} are gone. Register the model again.")
        return Resolved(path / "data", f"{name}/{version.version}")

    def _check_model(self, name: str) -> Any:
        """The registered model of a name."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code not in UNKNOWN:
                raise
            known = sorted(model.name for model in self.client.search_registered_models())
            raise UnknownModelError(
                f"no model `{name}` in the registry. Known models: {', '.join(known) or 'none'}. Train one first."
            ) from error

    def _model_version(self, name: str, version: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version(name, version)
        except MlflowException as error:
            if error.error_code not in UNKNOWN:
                raise
            self._check_model(name)
            known = sorted(int(v.version) for v in self.client.search_model_versions(f"name='{name}'"))
            raise UnknownVersionError(
                f"`{name}` has no version {version}. Known versions: {', '.join(map(str, known)) or 'none'}."
            ) from error


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


def _process(number: int) -> str:
    """Host, number and start of a process; the start tells it from a later one with the same number."""
    try:
        start = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        start = "gone" if os.path.isdir("/proc") else "unknown"
    return f"{platform.node()} {number} {start}"


def _check_reachable(uri: str) -> None:
    """One short try: MLflow's own client retries for minutes before it says that nobody answers."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5).close()
    except urllib.error.HTTPError:
        return  # somebody answers
    except OSError as error:
        raise TrackingError(f"no MLflow server answers at {uri} ({error}). Is it running?") from error


def _describe(
    run_id: str, folder: str, signature: Mapping[str, Any], fingerprint: str, loader_module: str | None
) -> Any:
    """The MLmodel file: what goes in, what comes out, trained on what."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    def schema(side: str) -> Any:
        columns = signature.get(side)
        if not columns or isinstance(columns, str):
            raise ValueError(f"`signature` must name the columns of `{side}`. Received: {side}={columns!r}.")
        if not isinstance(columns, Mapping):
            return Schema([ColSpec(AnyType(), column, required=False) for column in columns])
        types = [t.name for t in DataType]
        if wrong := [f"{c}: {t}" for c, t in columns.items() if t not in types]:
            raise ValueError(f"types of `{side}` must be among {', '.join(types)}. Received: {', '.join(wrong)}.")
        return Schema([ColSpec(kind, column) for column, kind in columns.items()])

    rest = {key: value for key, value in signature.items() if key not in ("inputs", "outputs")}
    model = Model(
        artifact_path=folder,
        run_id=run_id,
        signature=ModelSignature(schema("inputs"), schema("outputs")),
        metadata={FINGERPRINT_TAG: fingerprint, **rest},
    )
    if loader_module is None:
        return model.add_flavor("vigil", data="data")
    import mlflow.pyfunc

    mlflow.pyfunc.add_to_model(model, loader_module=loader_module, data="data")
    return model


def _number(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"metric `{name}` must be one number. Received: {type(value).__name__}.")
    return float(value)


def _text(name: str, value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, str | numbers.Real | None):
        raise TypeError(f"parameter `{name}` must be one number or text. Received: {type(value).__name__}.")
    if len(text := str(value)) > LONGEST_TEXT:
        raise ValueError(f"parameter `{name}` must be at most {LONGEST_TEXT} characters. Received: {len(text)}.")
    return text

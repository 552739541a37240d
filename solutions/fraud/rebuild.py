"""A state for a model with other engine settings: rebuilt by replay beside the one that serves, then changed to.

A child process follows the whole changelog, which the scorer's latency does not notice, and leaves a snapshot of its own
kind. The scorer's process loads that, follows what came meanwhile, and changes between two transactions.
"""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path

from solutions.fraud.answers import Answers
from solutions.fraud.changelog import RecoveryError
from solutions.fraud.model import FraudModel
from solutions.fraud.recovery import Recovered, recover
from solutions.fraud.scorer import Scorer
from solutions.fraud.snapshots import Snapshots
from solutions.fraud.wire import StreamSettings

WORKER = "rebuilt"  # whose snapshot it is


def new_scorer(model: FraudModel, version: str, history: Path | None, columns: str) -> Scorer:
    """A scorer whose state has seen a file of payments and its labels, or nothing."""
    from solutions.fraud.data import ColumnMapping, load_payments

    scorer = Scorer(model, model_version=version)
    if history is not None:
        loaded = load_payments(
            history,
            ColumnMapping.parse(columns),
            label_delay=timedelta(days=model.engine.maturity_days),
            account_to_account=model.engine.account_to_account,
        )
        scorer.warm_up(loaded.frame)
    return scorer


def rebuild(
    settings: StreamSettings, directory: Path, version: str, history: Path | None, columns: str
) -> tuple[Scorer, Recovered]:
    """A scorer for the model in `directory` with the state that the stream has led to, and where that stands.

    Raises:
        RecoveryError: there is no place for snapshots, or records or markers that are needed are gone.
    """
    if settings.snapshots is None:
        raise RecoveryError("a model with other engine settings needs a directory of snapshots to be rebuilt in.")
    process = multiprocessing.get_context("spawn").Process(
        target=_leave_snapshot, args=(settings, directory, version, history, columns), daemon=True
    )
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RecoveryError(f"the state could not be rebuilt (exit code {process.exitcode}): see the log.")
    scorer = Scorer(FraudModel.load(directory), model_version=version)
    scorer.model.fast  # noqa: B018  folded here, not while payments wait
    state = recover(settings, scorer, Answers(1), Snapshots(settings.snapshots, keep=1, worker=WORKER))
    if state.snapshot < 0:
        raise RecoveryError("the rebuilt state can not be read.")
    return scorer, state


def _leave_snapshot(
    settings: StreamSettings, directory: Path, version: str, history: Path | None, columns: str
) -> None:
    from core.logs import show_events

    show_events()
    assert settings.snapshots is not None
    scorer = new_scorer(FraudModel.load(directory), version, history, columns)
    answers = Answers(settings.remembered)
    state = recover(settings, scorer, answers, None)
    if state.sequences and not state.events:
        raise RecoveryError(f"topic `{settings.changelog}` does not reach back to the start of the state.")
    arrays, values = scorer.contents()
    own = {"kind": scorer.kind, "answers": answers.snapshot(), **state.to_json()}
    Snapshots(settings.snapshots, keep=1, worker=WORKER).take(
        state.changelog_next, lambda: (arrays, {"scorer": values, **own})
    )

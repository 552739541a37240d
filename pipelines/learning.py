"""The online update as a process of its own: collect what the stream brought, update the champion when labels ask for it.

It shares nothing with the scorer but the broker and the registry, so scoring does not wait for it. The scorer changes to a new
champion between two transactions (`vigil fraud serve --look-for-model`, or SIGHUP).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from core.logs import EventLog
from pipelines.commands.shared import say

if TYPE_CHECKING:
    from core.tracking import Tracker
    from solutions.fraud.operate import Workspace
    from solutions.fraud.stream import StreamSettings

log = EventLog("vigil.fraud.learning", fields=("cause", "payments", "labels", "version", "reasons"))


def learn_once(
    settings: StreamSettings, workspace: Workspace, tracker: Tracker, *, maturity_days: float, warm_up_days: float
) -> str:
    """Collect, look, and update if that is due; returns what came of it. What was tried is not tried again.

    A kill at any moment is repaired by the next call: the update's run has the name of what it answers to.
    """
    from solutions.fraud.collector import collect
    from solutions.fraud.operate import promote_challenger, register_challenger, training_stream
    from solutions.fraud.update import FraudUpdateSettings, update_champion
    from solutions.fraud.watch import champion_run, plan_update

    collected = collect(settings, workspace, maturity_days=maturity_days)
    log.info("collected", payments=collected.payments, labels=collected.labels)
    outlook = plan_update(workspace, warm_up_days=warm_up_days)
    if outlook is None:
        return "there is no champion, or no payment after its held-out window"
    if outlook.plan.scope == "none":
        return outlook.plan.why
    run = f"online-{champion_run(workspace)}-{outlook.attempt}"
    if not workspace.update(run).exists():
        stream = training_stream(workspace)
        update_champion(workspace, stream, outlook, run, FraudUpdateSettings(), warm_up_days=warm_up_days)
    found = json.loads(workspace.update(run).read_text())
    if not found["kept"]:
        return f"the update was refused by the gate: {'; '.join(found['reasons'])}"
    run_id = tracker.run_for(run)
    figures = {name: float(found[name]) for name in ("before", "after", "forgetting")}
    tracker.log(run_id, params={"scope": found["scope"], "why": found["why"]}, metrics=figures)
    version = register_challenger(tracker, run_id, workspace, run)
    promote_challenger(tracker, version, workspace, run)
    tracker.close(run)
    log.info("champion updated", version=str(version))
    return f"version {version} is the champion"


def learn(once: Callable[[], str], every_minutes: float, stop: Callable[[], bool]) -> None:
    """Repeat until told to stop; without an interval once."""
    while True:
        said = once()
        say(said)
        began = time.monotonic()
        while time.monotonic() - began < every_minutes * 60.0 and not stop():
            time.sleep(0.2)
        if stop() or not every_minutes:
            return

"""The command line as a stranger meets it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from tests.solutions.fraud.streams import random_stream, tiny_model

MAIN = "import sys; from pipelines.cli import main; sys.argv = ['vigil', *sys.argv[1:]]; main()"


def vigil(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *words], capture_output=True, text=True, timeout=120, check=False
    )


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        f"import sys\ntry:\n    exec({MAIN!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'dagster', 'mlflow', 'numba') if m in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60, check=True
        )
        seconds.append(time.perf_counter() - start)
    assert done.stdout.rstrip().endswith("[]")
    assert "fraud" in done.stdout
    assert min(seconds) < 1.0  # 0.35 s alone; the bound leaves room for busy machines


def test_a_wrong_column_is_answered_with_the_likely_one(tmp_path: Path) -> None:
    path = tmp_path / "payments.csv"
    random_stream(50).rename(columns={"payer": "CUSTOMER_ID"}).to_csv(path, index=False)
    done = vigil(
        "fraud", "train", "--transactions", str(path), "--out", str(tmp_path / "m"), "--columns", "payer=CUSTOMERID"
    )
    assert done.returncode == 2
    assert "CUSTOMER_ID" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_model_and_a_missing_file_are_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "payments.parquet"
    random_stream(50).to_parquet(path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = (
        "fraud",
        "replay",
        "--transactions",
        str(path),
        "--out",
        str(tmp_path / "s.parquet"),
        "--tracking-uri",
        store,
    )
    done = vigil(*words, "--model", "fraud@champion")
    assert done.returncode == 2
    assert "no model `fraud` in the registry" in done.stderr
    missing = vigil("fraud", "train", "--transactions", str(tmp_path / "none.parquet"), "--out", str(tmp_path / "m"))
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr


def test_replay_writes_one_row_per_payment(tmp_path: Path) -> None:
    path = tmp_path / "payments.parquet"
    frame = random_stream(300)
    frame.to_parquet(path)
    tiny_model().save(tmp_path / "model")
    done = vigil(
        *("fraud", "replay", "--transactions", str(path), "--model", str(tmp_path / "model")),
        *("--out", str(tmp_path / "scores.parquet"), "--label-delay-days", "4"),
    )
    assert done.returncode == 0, done.stderr
    scores = pd.read_parquet(tmp_path / "scores.parquet")
    assert scores["transaction_id"].tolist() == frame["transaction_id"].tolist()
    assert set(scores) == {"transaction_id", "event_time", "probability", "decision", "reasons", "model_version"}


def test_check_tells_what_is_refused_and_why(tmp_path: Path) -> None:
    frame = random_stream(60).astype({"amount": object})
    frame.loc[3, "amount"], frame.loc[4, "amount"] = "abc", -5
    frame.to_csv(tmp_path / "payments.csv", index=False)
    done = vigil(
        *("fraud", "check", "--transactions", str(tmp_path / "payments.csv")),
        *("--rejected", str(tmp_path / "rejected.csv")),
    )
    assert done.returncode == 0, done.stderr
    assert "58 of 60 payments can be used" in done.stdout
    assert "1 of 60 payments refused (amount: negative)" in done.stdout
    rejected = pd.read_csv(tmp_path / "rejected.csv")
    assert rejected[["row", "cause"]].to_numpy().tolist() == [[3, "not a number"], [4, "negative"]]

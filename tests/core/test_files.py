"""Replacing files: whole or not there, whatever happens in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.files import replacing

WRITER = """
import os, signal, sys
from pathlib import Path
from core.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    with replacing(tmp_path / "other.json") as first, replacing(path) as second:
        first.write_text("a")
        second.write_text("new")
        assert {p.name for p in tmp_path.glob(".*.tmp")} == {first.name, second.name}
    assert path.read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.json", "other.json"]

"""The repository tells the truth about itself: README tree and figures, results files, paths."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import readme
from core.results import METRIC_KEYS, SOURCES

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
CONTRACT = {
    "task",
    "protocol",
    "data",
    "seeds",
    "champion",
    "seconds",
    "cpu_seconds",
    "peak_rss_mb",
    "commit",
    "versions",
}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def tree(text: str) -> list[str]:
    """Paths of the README's layout block, from its indentation."""
    paths: list[str] = []
    parents: list[str] = []
    block = text.split("## Layout\n\n")[1].split("\n\n")[0]
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        parents = [*parents[:depth], name]
        paths.append("".join(parents))
    return paths


def test_the_readme_tree_is_the_real_tree() -> None:
    shown = tree((ROOT / "README.md").read_text())
    missing = [path for path in shown if not (ROOT / path).exists()]
    assert not missing
    modules = {f"core/{path.name}" for path in (ROOT / "core").glob("*.py")} - {"core/__init__.py"}
    solutions = {f"solutions/{path.parent.name}/" for path in (ROOT / "solutions").glob("*/__init__.py")}
    assert modules | solutions <= set(shown)


def test_the_readme_figures_are_the_results() -> None:
    for page in readme.PAGES:
        text = page.read_text()
        assert readme.rendered(text) == text, f"{page.name}: run `python -m benchmarks.readme`"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_follow_the_contract(path: Path) -> None:
    results = json.loads(path.read_text())
    assert set(results) >= CONTRACT | {"rows"}
    assert results["champion"] in [row["model"] for row in results["rows"]]
    for row in results["rows"]:
        assert set(row) == {"model", "source", "metrics"}
        assert row["source"] in SOURCES
        for entry in row["metrics"].values():
            assert {"mean"} <= set(entry) <= set(METRIC_KEYS)


def test_no_file_names_a_machine_or_a_registry() -> None:
    machine = re.compile(r"(^|[^A-Za-z0-9_.])/(work|root|home|opt)/[A-Za-z0-9_]")
    for path in tracked():
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".yml", ".json", ".html", "") and path.name != "LICENSE":
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                assert not machine.search(line), f"{path.relative_to(ROOT)}:{number}"


def test_every_module_says_what_it_is() -> None:
    for path in tracked():
        if path.suffix == ".py" and path.read_text().strip():
            assert path.read_text().lstrip().startswith('"""'), path.relative_to(ROOT)

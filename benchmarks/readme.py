"""Write the tables of README.md and of the pages from the results files, so that no figure there was typed.

    python -m benchmarks.readme [--check]

Every row: what was asked for, the baseline of the same run, what was measured, and whether that is enough.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "medical_imaging.md")


@dataclass(frozen=True)
class Claim:
    """One figure: the row and metric of a results file, the target if there is one, and the row that it is compared with."""

    what: str
    file: str
    metric: str
    target: float | None
    model: str = "fused"
    baseline: str | None = "lightgbm_strong"
    at_most: bool = False
    either_way: bool = False  # the distance from zero counts


FRAUD = (
    Claim("handbook, four folds: average precision", "fraud_handbook", "ap", 0.762),
    Claim("the same, network alone", "fraud_handbook", "ap", 0.75, model="network"),
    Claim("the same: card precision@100", "fraud_handbook", "cp100", 0.315),
    Claim("the same: AUC", "fraud_handbook", "auc", 0.88),
    Claim("long split, labels after 7 days: average precision", "fraud_long", "ap", 0.81),
    Claim("the same: recall at 0.3 % false positives", "fraud_long", "recall_fpr_0.003", 0.80),
    Claim("simulated rings, mules, shared devices: average precision over baseline", "fraud_simulator", "ap", 0.15,
          model="fused_minus_lightgbm_strong", baseline=None),
    Claim("Bitcoin-Alpha, negative ratings: average precision", "fraud_bitcoin", "ap", 0.549),
    Claim("the same: AUC", "fraud_bitcoin", "auc", 0.842),
    Claim("injected drift: average precision after 7 days of labels over that before", "fraud_drift", "ap_of_before", 0.8,
          model="vigil_updater", baseline="frozen"),
    Claim("the same: average precision lost on the old world", "fraud_drift", "forgetting_twin", 0.02,
          model="vigil_updater", baseline="retrained_from_scratch", at_most=True),
    Claim("updates tried when nothing drifts", "fraud_drift", "updates_tried_without_drift", 0.0,
          model="vigil_updater", baseline=None, at_most=True),
    Claim("experts' held-out utilisation (handbook, network)", "core_moe", "utilisation", 0.92,
          model="moe", baseline="moe_unbalanced"),
    Claim("replay, events per second (2 cores)", "fraud_speed", "replay_events_per_second", 15_000, baseline=None),
    Claim("score, decision and reasons at 1 M nodes, one by one: ms, p50", "fraud_speed", "p50_ms_1m_nodes", 0.5,
          baseline=None, at_most=True),
    Claim("the same: ms, p99", "fraud_speed", "p99_ms_1m_nodes", 2.0, baseline=None, at_most=True),
    Claim("cost of a payment at 1 M nodes over that at 10 k", "fraud_speed", "cost_ratio_1m_to_10k", 1.5,
          baseline=None, at_most=True),
    Claim("`vigil --help`, seconds", "fraud_speed", "help_seconds", 0.5, baseline=None, at_most=True),
)  # fmt: skip
STREAM = (
    Claim("payment sent to committed score read, 500/s: ms, p99", "fraud_stream", "p99_ms_500", 50.0,
          model="vigil_exactly_once", baseline="plain_at_least_once", at_most=True),
    Claim("the same, 1,500/s", "fraud_stream", "p99_ms_1500", 100.0,
          model="vigil_exactly_once", baseline="plain_at_least_once", at_most=True),
    Claim("sustained, scores per second", "fraud_stream", "sustained_per_second", 5_000.0,
          model="vigil_exactly_once", baseline="plain_at_least_once"),
    Claim("throughput lost to 1 % of records that nobody can read", "fraud_stream", "poison_throughput_loss", 0.05,
          model="vigil_exactly_once", baseline=None, at_most=True),
    Claim("kills with SIGKILL", "fraud_faults", "kills", 200.0, baseline=None),
    Claim("payments lost", "fraud_faults", "lost", 0.0, baseline=None, at_most=True),
    Claim("payments answered twice", "fraud_faults", "duplicated", 0.0, baseline=None, at_most=True),
    Claim("scores that differ from the uninterrupted run", "fraud_faults", "scores_changed", 0.0, baseline=None, at_most=True),
    Claim("restart with 1 M nodes and 45,000 payments after the snapshot: seconds", "fraud_faults",
          "recovery_1m_nodes_seconds", 10.0, baseline=None, at_most=True),
    Claim("4 partitions, 2 workers: joins and leaves", "fraud_sharing", "changes", 20.0, model="followed_1s", baseline=None),
    Claim("payments lost", "fraud_sharing", "lost", 0.0, model="followed_1s", baseline=None, at_most=True),
    Claim("payments answered twice", "fraud_sharing", "duplicated", 0.0, model="followed_1s", baseline=None, at_most=True),
    Claim("payments stuck", "fraud_sharing", "stuck", 0.0, model="followed_1s", baseline=None, at_most=True),
    Claim("average precision, each a second behind the other (baseline: one owner)", "fraud_sharing", "ap", None,
          model="followed_1s", baseline="one_owner"),
    Claim("the same when each knows only its own payments", "fraud_sharing", "ap", None, model="split", baseline="one_owner"),
    Claim("growth of memory in a soak", "fraud_speed", "soak_rss_growth", 0.01, baseline=None, at_most=True),
)  # fmt: skip
IMAGING = (
    Claim("real nodules inserted into a held-out lung: CPM (baseline: Laplacian of Gaussian)", "imaging_quality", "cpm", 0.80,
          model="shipped", baseline="log_response"),
    Claim("the same by the U-Net alone, over the whole lungs", "imaging_quality", "cpm", None,
          model="unet_alone", baseline="log_response"),
    Claim("the same by the first stage alone: round blobs", "imaging_quality", "cpm", None,
          model="blob_response", baseline="log_response"),
    Claim("the same: sensitivity at 1 false positive per scan", "imaging_quality", "sensitivity_1fp", 0.88,
          model="shipped", baseline="log_response"),
    Claim("the same: nodules among the candidates", "imaging_quality", "candidate_recall", None,
          model="shipped", baseline=None),
    Claim("median Dice with the readers' consensus", "imaging_quality", "dice", 0.80, model="shipped", baseline=None),
    Claim("median error of the volume, share", "imaging_quality", "volume_bias", 0.05, model="shipped", baseline=None,
          at_most=True, either_way=True),
    Claim("malignancy as readers rate it: AUC (baseline: the readers' volume)", "imaging_quality", "malignancy_auc", 0.90,
          model="shipped", baseline="size"),
    Claim("its calibration error", "imaging_quality", "ece", 0.03, model="shipped", baseline=None, at_most=True),
    Claim("what perfect probabilities would show by chance on so few nodules", "imaging_quality", "ece_by_chance", None,
          model="shipped", baseline=None),
    Claim("errors removed by abstaining", "imaging_quality", "errors_removed", 0.40, model="shipped", baseline=None),
    Claim("share of cases in which it abstains", "imaging_quality", "abstained", 0.15, model="shipped", baseline=None,
          at_most=True),
    Claim("a whole study: CPU-seconds", "imaging_quality", "cpu_seconds", 60.0, model="study", baseline="dynunet",
          at_most=True),
    Claim("the same over nnU-Net's network", "imaging_quality", "of_dynunet", 1 / 6, model="study", baseline=None,
          at_most=True),
    Claim("broken series that are named with their cause, share of 71", "imaging_exports", "handled_share", 1.0,
          model="gate", baseline=None),
    Claim("broken series that pass in silence", "imaging_exports", "silent", 0.0, model="gate", baseline=None, at_most=True),
    Claim("clean series that are refused", "imaging_exports", "false_refusals", 0.0, model="gate", baseline=None, at_most=True),
    Claim("five reviews, three of real scans: `dciodvfy` errors", "imaging_exports", "dciodvfy_errors", 0.0, model="exports",
          baseline=None, at_most=True),
    Claim("the same: voxels of the segmentation that do not come back", "imaging_exports", "voxels_off", 0.0, model="exports",
          baseline=None, at_most=True),
    Claim("the same: largest distance of a centre, mm", "imaging_exports", "centre_off_mm", 0.5, model="exports",
          baseline=None, at_most=True),
    Claim("the same: files that a second run changes", "imaging_exports", "changed_by_second_run", 0.0, model="exports",
          baseline=None, at_most=True),
    Claim("the same: planted identifiers in sheet or JSON", "imaging_exports", "leaks", 0.0, model="exports", baseline=None,
          at_most=True),
    Claim("reader opinions on malignancy until 99 % of the AUC of all 555 (baseline: random order)", "imaging_active",
          "opinions", None, model="doubtful_first", baseline="random"),
)  # fmt: skip
BACKBONE = (
    Claim("mixture of experts: median Dice (baseline: no backbone)", "imaging_backbone", "dice", None, model="moe",
          baseline="plain_unet"),
    Claim("dense control: median Dice", "imaging_backbone", "dice", None, model="dense", baseline="plain_unet"),
    Claim("mixture of experts: AUC of nodules against other candidates", "imaging_backbone", "candidate_auc", None,
          model="moe", baseline="plain_unet"),
    Claim("dense control: the same", "imaging_backbone", "candidate_auc", None, model="dense", baseline="plain_unet"),
    Claim("experts' utilisation", "imaging_backbone", "utilisation", None, model="moe", baseline=None),
)  # fmt: skip
MAINTENANCE = (
    Claim("C-MAPSS FD001, labels clipped at 125: RMSE in cycles", "maintenance_fd001", "rmse_clipped", 11.2,
          baseline="lightgbm", at_most=True),
    Claim("the same: NASA score", "maintenance_fd001", "nasa_score", 190.0, baseline="lightgbm", at_most=True),
    Claim("the same: coverage of the 90 % interval", "maintenance_fd001", "coverage_90", 0.88, baseline="lightgbm"),
    Claim("the same: its width in cycles", "maintenance_fd001", "width_90", 36.0, baseline="lightgbm", at_most=True),
    Claim("the same of the life with the least expected NASA score", "maintenance_fd001", "nasa_score_cautious", 190.0,
          baseline="lightgbm", at_most=True),
    Claim("FD002: RMSE, clipped", "maintenance_fd002", "rmse_clipped", 10.0, baseline="lightgbm", at_most=True),
    Claim("the same: NASA score", "maintenance_fd002", "nasa_score", 460.0, baseline="lightgbm", at_most=True),
    Claim("the same of the life with the least expected NASA score", "maintenance_fd002", "nasa_score_cautious", 460.0,
          baseline="lightgbm", at_most=True),
    Claim("Azure PdM, failure within 72 h: average precision", "maintenance_azure", "ap_72", 0.62, baseline="lightgbm"),
    Claim("the same, 24 to 72 h only", "maintenance_azure", "ap_24_72", 0.36, baseline="lightgbm"),
    Claim("the same: calibration error", "maintenance_azure", "ece", 0.02, baseline="lightgbm", at_most=True),
    Claim("Azure PdM, alarms: failures foreseen", "maintenance_alarms_azure", "recall", 0.80, baseline="pca_residual"),
    Claim("the same: median hours of warning", "maintenance_alarms_azure", "lead_hours", 48.0, baseline="pca_residual"),
    Claim("the same: false cases per asset-month", "maintenance_alarms_azure", "false_per_asset_month", 1.0,
          baseline="pca_residual", at_most=True),
    Claim("threshold chosen for warnings, not cost: failures foreseen", "maintenance_alarms_azure", "recall", 0.80,
          model="fused_most_warnings", baseline="pca_residual"),
    Claim("the same: median hours of warning", "maintenance_alarms_azure", "lead_hours", 48.0,
          model="fused_most_warnings", baseline="pca_residual"),
    Claim("the same: false cases per asset-month", "maintenance_alarms_azure", "false_per_asset_month", 1.0,
          model="fused_most_warnings", baseline="pca_residual", at_most=True),
    Claim("the same: cost over that of the F1-optimal threshold", "maintenance_alarms_azure", "cost_of_f1_optimal", 0.75,
          model="fused", baseline=None, at_most=True),
    Claim("nitrogen generator (real), fault within 30 min: average precision (baseline: time since the last)",
          "maintenance_polimi", "ap_30", None, baseline="time_since_fault"),
    Claim("the same, within an hour", "maintenance_polimi", "ap_60", None, baseline="time_since_fault"),
    Claim("the same, within five hours", "maintenance_polimi", "ap_300", None, baseline="time_since_fault"),
    Claim("FD001, network alone: RMSE with experts (baseline: dense)", "maintenance_experts", "rmse_clipped", None,
          model="moe", baseline="dense"),
    Claim("the same: experts' utilisation", "maintenance_experts", "utilisation", None, model="moe", baseline=None),
    Claim("simulated fleet, alarms: failures foreseen", "maintenance_fleet", "recall", 0.80, baseline="pca_residual"),
    Claim("the same: median hours of warning", "maintenance_fleet", "lead_hours", 48.0, baseline="pca_residual"),
    Claim("the same: false cases per asset-month", "maintenance_fleet", "false_per_asset_month", 1.0,
          baseline="pca_residual", at_most=True),
    Claim("the same: the cause is the first named", "maintenance_fleet", "hit_1", 0.70, baseline="pca_residual"),
    Claim("the same: among the first three", "maintenance_fleet", "hit_3", 0.90, baseline="pca_residual"),
    Claim("the same: cost over that of the F1-optimal threshold", "maintenance_fleet", "cost_of_f1_optimal", 0.75,
          baseline=None, at_most=True),
    Claim("the same: change of average precision with one sensor dead, mean over sensors", "maintenance_fleet",
          "change_dead_mean", -0.05, baseline=None),
    Claim("the same, worst sensor", "maintenance_fleet", "change_dead_worst", -0.05, baseline=None),
    Claim("the same with 30 % of readings missing", "maintenance_fleet", "change_missing_30", -0.10, baseline=None),
    Claim("training: CPU-seconds", "maintenance_fleet", "training_cpu_seconds", 600.0, baseline=None, at_most=True),
    Claim("scoring 1,000 assets: CPU-seconds", "maintenance_scoring", "cpu_seconds_with_loading", 30.0, baseline=None,
          at_most=True),
    Claim("the same: peak memory, MB", "maintenance_scoring", "peak_rss_mb", 2_000.0, baseline=None, at_most=True),
    Claim("a new operating regime, simulated: average precision after the update", "maintenance_new_regime", "ap_72", None,
          model="vigil_updater", baseline="frozen"),
    Claim("the same: average precision lost on the old regimes", "maintenance_new_regime", "forgetting_twin", None,
          model="vigil_updater", baseline="from_scratch"),
    Claim("a new failure mode, simulated: average precision after 20 examples", "maintenance_new_mode", "ap_new_mode", None,
          model="after_20", baseline="before"),
    Claim("the same after 50", "maintenance_new_mode", "ap_new_mode", None, model="after_50", baseline="before"),
    Claim("the same after 50: average precision of the old modes", "maintenance_new_mode", "ap_old_modes", None,
          model="after_50", baseline="before"),
    Claim("share of these updates that the gate lets pass", "maintenance_new_mode", "kept", None, model="after_50",
          baseline=None),
)  # fmt: skip
CONTEXT = (
    Claim("CPM of candidates with a request (baseline: image only)", "imaging_context", "cpm", None, model="with_request",
          baseline="image_only"),
    Claim("the same with the request of another scan", "imaging_context", "cpm", None,
          model="with_request_of_another_scan", baseline="image_only"),
    Claim("sensitivity at 1 false positive per scan, with a request", "imaging_context", "sensitivity_1fp", None,
          model="with_request", baseline="image_only"),
    Claim("CPM with a record (its influence is assumed)", "imaging_context", "cpm", None, model="with_record",
          baseline="image_only"),
    Claim("CPM with both", "imaging_context", "cpm", None, model="with_both", baseline="image_only"),
    Claim("log loss per scan, with a request", "imaging_context", "log_loss_per_scan", None, model="with_request",
          baseline="image_only"),
    Claim("the same with both", "imaging_context", "log_loss_per_scan", None, model="with_both", baseline="image_only"),
)  # fmt: skip
TABLES: dict[str, tuple[Claim, ...]] = {
    "fraud": FRAUD,
    "fraud_stream": STREAM,
    "imaging": IMAGING,
    "imaging_backbone": BACKBONE,
    "imaging_context": CONTEXT,
    "maintenance": MAINTENANCE,
}


def _row(results: dict[str, Any], model: str) -> dict[str, Any]:
    return next(row["metrics"] for row in results["rows"] if row["model"] == model)


def _text(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def line(claim: Claim) -> str:
    """One row of a table; a figure with an interval shows it."""
    results = json.loads((RESULTS / f"{claim.file}.json").read_text())
    entry = _row(results, claim.model)[claim.metric]
    value = entry["mean"]
    interval = f" [{_text(entry['low'])}, {_text(entry['high'])}]" if "low" in entry else ""
    baseline = ""
    if claim.baseline is not None:
        baseline = _text(_row(results, claim.baseline)[claim.metric]["mean"])
    asked = verdict = ""
    if claim.target is not None:
        judged = abs(value) if claim.either_way else value
        met = judged <= claim.target if claim.at_most else judged >= claim.target
        asked = f"{'<=' if claim.at_most else '>='} {_text(claim.target)}"
        verdict = "yes" if met else "**missed**"
    return f"| {claim.what} | {asked} | {baseline} | {_text(value)}{interval} | {verdict} |"


def table(name: str) -> str:
    head = "| figure | asked for | baseline, same run | measured | met |\n|---|---|---|---|---|"
    return "\n".join([head, *(line(claim) for claim in TABLES[name])])


def rendered(text: str) -> str:
    """The text with every block between `<!-- results: NAME -->` and `<!-- end -->` made anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n{table(match[2])}\n<!-- end -->"

    return re.sub(r"(<!-- results: (\w+) -->)\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        text = page.read_text()
        if "--check" in sys.argv and rendered(text) != text:
            sys.exit(f"{page.name} differs from the results: python -m benchmarks.readme")
        if "--check" not in sys.argv:
            page.write_text(rendered(text))


if __name__ == "__main__":
    main()

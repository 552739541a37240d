"""`vigil imaging`: check, review, sign, rank, evaluate."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.shared import say

app = typer.Typer(help="Lung nodules in chest CT: from a DICOM series to files for review.", no_args_is_help=True)

Weights = Annotated[Path | None, typer.Option(help="Folder of other models than the shipped ones.")]
SeriesUid = Annotated[str, typer.Option(help="Which series, when the folder holds several.")]


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(help="Folder (nested or not), zip file or DICOM file.")],
    series_uid: SeriesUid = "",
    json: Annotated[Path | None, typer.Option(help="Where to write the verdict as JSON.")] = None,
) -> None:
    """Judge a series: accept, repair or refuse, with codes, UIDs and advice. Exit code 3 for a refusal."""
    from solutions.medical_imaging.gate import check as judge

    report, _ = judge(directory, series_uid)
    if json is not None:
        json.write_text(json_module.dumps(report.to_json(), indent=1) + "\n")
    print(report.text())
    if report.decision == "refuse":
        raise typer.Exit(3)


@app.command()
def review(
    series: Annotated[Path, typer.Option(help="Folder, zip file or DICOM file of one CT series.")],
    out: Annotated[Path, typer.Option(help="Folder of segmentation.dcm, report.dcm, review.html, findings.json.")],
    series_uid: SeriesUid = "",
    record: Annotated[
        Path | None, typer.Option(help="JSON: age, sex, family_history, emphysema, known_cancer, ...")
    ] = None,
    request: Annotated[
        Path | None, typer.Option(help="Text from before the scan (indication, earlier reports), fused with the image.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Text of the radiologist's report, for discordance.")] = None,
    prior: Annotated[Path | None, typer.Option(help="Folder of an earlier review of the patient, for growth.")] = None,
    weights: Weights = None,
) -> None:
    """Find nodules and write the files of a review; a refused series leaves refusal.json and exit code 3."""
    from solutions.medical_imaging.models import WEIGHTS
    from solutions.medical_imaging.review import review as run

    found = run(
        series,
        out,
        series_uid=series_uid,
        record=record,
        request=request,
        report_text=report,
        prior=prior,
        weights=weights or WEIGHTS,
    )
    say(f"{found['result']}: {len(found['nodules'])} places -> {out}")


@app.command()
def sign(
    directory: Annotated[Path, typer.Argument(help="Folder of a review.")],
    nodule: Annotated[int, typer.Option(help="Number of the nodule.", min=1)],
    action: Annotated[str, typer.Option(help="accept, reject or edit.")],
    reason: Annotated[str, typer.Option(help="Why.")],
    reader: Annotated[str, typer.Option(help="Who signs; kept as a pseudonym.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, with the action edit.")] = None,
) -> None:
    """Sign one nodule; the signatures form a chain of hashes and become labels."""
    from solutions.medical_imaging.files import InputError
    from solutions.medical_imaging.signing import Signature
    from solutions.medical_imaging.signing import sign as run

    edits = {name: value for name, _, value in (part.partition("=") for part in set_ or [])}
    if any(not value for value in edits.values()):
        raise InputError(f"`--set` must be NAME=VALUE. Received: {', '.join(set_ or [])}.")
    line = run(directory, Signature(nodule, action, reason, reader, edits))  # type: ignore[arg-type]
    say(f"signature {line['number']}: nodule {nodule} {action}")


@app.command("rank")
def rank_command(
    reviews: Annotated[list[Path], typer.Argument(help="Folders of reviews.")],
    most: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20,
) -> None:
    """List the nodules that a reader should sign next: those of which the models are least sure."""
    from solutions.medical_imaging.labelling import rank

    for asked in rank(reviews)[:most]:
        print(f"{asked.doubt:5.0%} in doubt whether {asked.because:18s} {asked.nodule:12s} {asked.folder}")


@app.command()
def evaluate(
    path: Annotated[Path, typer.Option(help="Folder that holds ct/ with LIDC-IDRI crops, scans and annotations.")],
    weights: Weights = None,
    json: Annotated[Path | None, typer.Option(help="Where to write the results object.")] = None,
) -> None:
    """What models are worth on held-out patients: FROC, Dice, volume bias, malignancy, calibration, cost, with baselines."""
    from pipelines.commands.shared import var_dir
    from solutions.medical_imaging.data import LidcData
    from solutions.medical_imaging.evaluate import evaluate as run
    from solutions.medical_imaging.models import WEIGHTS, Models

    results = run(LidcData.find(path), Models.load(weights or WEIGHTS), var_dir() / "cache", say)
    results.print()
    if json is not None:
        results.write(json)

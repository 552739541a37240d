"""What the gate can say about a series: every code with its advice, and the verdict that follows from the codes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["note", "repair", "refuse"]
Decision = Literal["accept", "repair", "refuse"]

RESEND = "Send the series again from the archive or the scanner."
ADVICE: dict[str, str] = {
    "NO_FILES": "Name a folder or a zip file that holds one CT series.",
    "NO_IMAGES": "Name a folder that holds one CT series; this one has no DICOM images.",
    "ZIP_BROKEN": "Pack the series again, without a password.",
    "TOO_LARGE": "Name the folder of one series, not of an archive.",
    "FILE_UNREADABLE": RESEND,
    "SEVERAL_SERIES": "Choose one with --series-uid.",
    "SERIES_UNKNOWN": "Choose one of the series that are there.",
    "SEVERAL_PATIENTS": "Keep the images of one patient only and find out how they were mixed.",
    "SEVERAL_STUDIES": "Keep the images of one study only.",
    "SEVERAL_FRAMES": "Keep the images of one acquisition: they do not share a frame of reference.",
    "NOT_CT": "Vigil reads CT only.",
    "MULTIFRAME": "Export the series as single-frame CT images.",
    "LOCALISER": "Send the axial series, not the localiser.",
    "SECONDARY": "Send the original axial series: screenshots and secondary captures carry no Hounsfield units.",
    "COLOUR": "Send the original grey-scale images.",
    "INVERTED": "Send images with MONOCHROME2.",
    "TOO_FEW_SLICES": "Send the complete series.",
    "COUNT": "Send the complete series: its header announces another number of images.",
    "GAP": "Send the complete series: slices are missing, and volumes would come out too large.",
    "DUPLICATE_FILE": "Nothing to do: the copy was left out.",
    "DUPLICATE_UID": "Find out how two different images came to carry one UID, and send the series again.",
    "DUPLICATE_POSITION": "Send one phase or one reconstruction per series.",
    "SPACING_UNEVEN": "Send a reconstruction with even slice spacing.",
    "THICK_SLICES": "Send a reconstruction with slices of at most 5 mm.",
    "TILT": "Send a reconstruction without gantry tilt.",
    "SHIFTED": "Send a reconstruction in which all slices lie on one straight line.",
    "POSITION_MISSING": RESEND,
    "POSITION_INVALID": RESEND,
    "ORIENTATION_MISSING": RESEND,
    "ORIENTATION_INVALID": RESEND,
    "ORIENTATION_DIFFERS": "Send images of one orientation per series.",
    "NOT_AXIAL": "Send the axial reconstruction.",
    "PIXEL_SPACING_MISSING": "Send images with PixelSpacing: without it nothing can be measured.",
    "PIXEL_SPACING_INVALID": RESEND,
    "PIXEL_SPACING_DIFFERS": "Send images of one field of view per series.",
    "MATRIX_DIFFERS": "Send images of one matrix per series.",
    "RESCALE_MISSING": "Send images with RescaleSlope and RescaleIntercept.",
    "RESCALE_INVALID": RESEND,
    "RESCALE_VARIES": "Nothing to do: every slice was rescaled with its own values.",
    "BITS_INVALID": RESEND,
    "LOSSY": "Send the images without lossy compression: it changes densities and edges.",
    "SYNTAX": "Send the images uncompressed, or as JPEG lossless, JPEG-LS, JPEG 2000 lossless or RLE.",
    "PIXELS_MISSING": RESEND,
    "PIXELS_TRUNCATED": RESEND,
    "PIXELS_UNDECODABLE": RESEND,
    "FRAME_CONSTANT": "Send the series again: some slices hold no image.",
    "HU_AIR": "Check RescaleIntercept: air does not measure about -1000 HU.",
    "HU_TISSUE": "Check RescaleSlope and RescaleIntercept: soft tissue does not measure about 0 to 100 HU.",
    "HU_SLICE": "Check the rescale values and pixels of these slices: their densities differ from their neighbours'.",
    "BODY_PART": "Send a CT of the chest.",
    "NO_LUNGS": "Send a CT of the chest: no pair of lungs was found.",
    "LUNG_SIZE": "Check PixelSpacing and the slice positions: the lungs have an impossible size.",
    "LUNGS_CUT": "Send the complete chest: the series ends inside the lungs.",
    "UID_MISSING": "Send images with all UIDs: results could not refer to them.",
    "UID_INVALID": "Send images with valid UIDs: results could not refer to them.",
    "INSTANCE_NUMBER": "Nothing to do: slices were ordered by position.",
    "TYPE_2_MISSING": "Nothing to do: the empty value was assumed.",
    "NO_PREAMBLE": "Nothing to do: implicit little endian was assumed.",
    "SPACING_TAG": "Nothing to do: the slice positions were used instead.",
    "LOCALISER_DROPPED": "Nothing to do: the localiser images were left out.",
    "STRAY_FILES": "Nothing to do: files that are not DICOM images were left out.",
}


@dataclass(frozen=True)
class Finding:
    """One thing the gate saw. Detail holds numbers and tag names, never values that name a patient.

    Args:
        uids: SOP instance UIDs of the images concerned (series UIDs for SEVERAL_SERIES); empty when all are.
    """

    code: str
    severity: Severity
    detail: str
    uids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.code not in ADVICE:
            raise ValueError(f"`code` must be one of the gate's codes. Received: code={self.code!r}.")

    @property
    def advice(self) -> str:
        return ADVICE[self.code]


@dataclass
class Report:
    """All findings on a series, and the verdict."""

    findings: list[Finding] = field(default_factory=list)
    series_uid: str = ""
    slices: int = 0

    def add(self, severity: Severity, code: str, detail: str, uids: Any = ()) -> None:
        self.findings.append(Finding(code, severity, detail, tuple(uids)))

    @property
    def decision(self) -> Decision:
        kinds = {finding.severity for finding in self.findings}
        return "refuse" if "refuse" in kinds else "repair" if "repair" in kinds else "accept"

    @property
    def refused(self) -> bool:
        return any(finding.severity == "refuse" for finding in self.findings)

    @property
    def codes(self) -> list[str]:
        return [finding.code for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        found = [{**asdict(f), "uids": list(f.uids), "advice": f.advice} for f in self.findings]
        return {"verdict": self.decision, "series_uid": self.series_uid, "slices": self.slices, "findings": found}

    def text(self) -> str:
        lines = [f"{self.decision}: {self.slices} slices"]
        for f in self.findings:
            where = "" if not f.uids else f" [{f.uids[0]}{'' if len(f.uids) == 1 else f' and {len(f.uids) - 1} more'}]"
            lines.append(f"  {f.severity:<6} {f.code}: {f.detail}{where}\n         {f.advice}")
        return "\n".join(lines)


class RefusedError(RuntimeError):
    """The gate refused a series; `vigil` ends with exit code 3."""

    exit_code = 3

    def __init__(self, report: Report) -> None:
        self.report = report
        why = [f"{f.code} ({f.detail})" for f in report.findings if f.severity == "refuse"]
        super().__init__(f"the series was refused: {'; '.join(why)}")

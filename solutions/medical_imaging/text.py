"""What a radiologist's report says about nodules, and where it disagrees with what was found.

Rules, not a model: size, side, lobe, count and negation of sentences that speak of nodules. English.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from solutions.medical_imaging.detected import Detection, Side
from solutions.medical_imaging.files import InputError

NODULE = re.compile(r"\b(nodul\w*|mass(?:es)?|lesion\w*|opacit\w+)\b", re.I)
NEGATION = re.compile(r"\b(no|without|not|negative for|absence of|free of|denies|resolved|ruled out)\b", re.I)
GONE = re.compile(r"\b(resolved|no longer)\b", re.I)
# words after which a negation no longer reaches
BREAK = re.compile(r"\b(but|however|except|although)\b|;", re.I)
SIZE = re.compile(r"(\d+(?:[.,]\d+)?)(?:\s*[x\u00d7]\s*(\d+(?:[.,]\d+)?))?\s*(mm|cm)\b", re.I)
SIDES = {"right": "right", "left": "left", "rul": "right", "rml": "right", "rll": "right", "lul": "left", "lll": "left"}
SIDE = re.compile(r"\b(right|left|rul|rml|rll|lul|lll)\b", re.I)
LOBE = re.compile(r"\b(upper|middle|lower)\s+lobe\b|\b(rul|rml|rll|lul|lll)\b|\b(lingula)\b", re.I)
OLD = re.compile(r"\b(prior|previous|comparison|history of|formerly|was)\b", re.I)
SIZE_RATIO = 1.5


@dataclass(frozen=True)
class Mention:
    """One nodule that a report speaks of."""

    size_mm: float | None
    side: Side | None
    lobe: str
    negated: bool


@dataclass(frozen=True)
class Written:
    """All mentions of a report; negated ones say that there is none."""

    mentions: tuple[Mention, ...]

    @property
    def present(self) -> tuple[Mention, ...]:
        return tuple(m for m in self.mentions if not m.negated)

    @property
    def denies(self) -> bool:
        return any(m.negated and m.size_mm is None for m in self.mentions) and not self.present


def extract(text: str, *, past: bool = False) -> Written:
    """Mentions of nodules, clause by clause; `past` keeps those of earlier studies."""
    found = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
        for clause in BREAK.split(sentence):
            if not clause or not (word := NODULE.search(clause)):
                continue
            if not past and OLD.search(clause[: word.start()]):
                continue
            negated = NEGATION.search(clause[: word.start()]) is not None or GONE.search(clause) is not None
            size = SIZE.search(clause)
            side = SIDE.search(clause)
            lobe = LOBE.search(clause)
            found.append(
                Mention(
                    _mm(size) if size else None,
                    SIDES[side.group(1).lower()] if side else None,  # type: ignore[arg-type]
                    _lobe(lobe) if lobe else "",
                    negated,
                )
            )
    return Written(tuple(found))


def _mm(match: re.Match[str]) -> float:
    values = [float(v.replace(",", ".")) for v in match.group(1, 2) if v]
    return sum(values) / len(values) * (10.0 if match.group(3).lower() == "cm" else 1.0)


def _lobe(match: re.Match[str]) -> str:
    short = {"u": "upper", "m": "middle", "l": "lower"}
    if match.group(1):
        return match.group(1).lower()
    return short[match.group(2)[1].lower()] if match.group(2) else "upper"


def read_text(path: Path, patient_id: str, *, past: bool = False) -> Written:
    """Mentions of a report's or a request's file; a line "Patient ID: X" must name the patient of the series.

    Raises:
        InputError: the file can not be read, or it belongs to another patient.
    """
    what = "request" if past else "report"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the {what} must be the path of a text file in UTF-8. Received: {type(error).__name__}."
        ) from error
    named = re.search(r"^\s*patient\s*(?:id|number)\s*[:=]\s*(\S+)", text, re.I | re.M)
    if named and named.group(1) != patient_id:
        raise InputError(f"the {what} belongs to another patient than the series.")
    return extract(text, past=past)


def compare_with_text(detection: Detection, written: Written, source: str = "report") -> tuple[str, ...]:
    """Disagreements between a text and the images, as sentences; none when they agree."""
    sure = [n for n in detection.nodules if n.assessment == "nodule"]
    out = []
    if written.denies and sure:
        out.append(f"the {source} denies nodules, {len(sure)} were found")
    if written.present and not detection.nodules:
        out.append(f"the {source} names {len(written.present)}, none was found")
    for i, mention in enumerate(written.present, start=1):
        near = [n for n in detection.nodules if mention.side in (None, n.side)]
        if detection.nodules and not near:
            out.append(f"mention {i} of the {source} lies on the {mention.side}, nothing was found there")
        elif mention.size_mm is not None and near:
            closest = min(near, key=lambda n: abs(n.measurement.mean_mm - (mention.size_mm or 0.0)))
            ratio = closest.measurement.mean_mm / max(mention.size_mm, 0.1)
            if not 1 / SIZE_RATIO <= ratio <= SIZE_RATIO:
                out.append(
                    f"mention {i} of the {source} measures {mention.size_mm:.0f} mm, "
                    f"the closest in size that was found {closest.measurement.mean_mm:.1f} mm"
                )
    if len(written.present) > 1 and sure and len(sure) < len(written.present):
        out.append(f"the {source} names {len(written.present)}, {len(sure)} were found")
    return tuple(out)

"""Codes of the exports: SNOMED CT and DICOM where they exist, our own scheme for the rest."""

from __future__ import annotations

from typing import Any

SCHEME = "99VIGIL"
OWN = {
    "volume_low": "Volume, lower bound of 90 % interval",
    "volume_high": "Volume, upper bound of 90 % interval",
    "diameter_low": "Mean diameter, lower bound of 90 % interval",
    "diameter_high": "Mean diameter, upper bound of 90 % interval",
    "confidence": "Probability of nodule",
    "malignancy": "Probability of a reader calling it likely malignant",
    "spiculation": "Spiculation, 1 (none) to 5 (marked)",
    "lobulation": "Lobulation, 1 (none) to 5 (marked)",
    "calcified": "Probability of calcification",
    "change": "Change of volume since the prior study",
    "change_low": "Change of volume, lower bound of the interval",
    "change_high": "Change of volume, upper bound of the interval",
    "doubling": "Volume doubling time",
    "since_prior": "Growth since the prior study",
    "new": "New: not in the prior review",
    "grown": "Growing",
    "not_grown": "No growth beyond the intervals",
    "prior_name": "Name in the prior review",
    "cancer_low": "Brock probability of cancer, lower bound",
    "cancer_high": "Brock probability of cancer, upper bound",
    "assessment": "Assessment",
    "nodule": "Nodule",
    "uncertain": "Uncertain: needs a look, may be no nodule",
    "lung_rads": "Lung-RADS v2022 category",
    "fleischner": "Fleischner 2017 recommendation",
    "zone": "Zone of the lung",
    "upper": "Upper third",
    "middle": "Middle third",
    "lower": "Lower third",
    "texture": "Texture",
    "solid": "Solid",
    "part-solid": "Part-solid",
    "ground-glass": "Ground-glass",
    "result": "Result",
    "nodules_found": "Nodules found",
    "only_uncertain": "No nodule found; uncertain places need a look",
    "none_found": "No nodule found",
}


def own(key: str) -> Any:
    """A code of our own scheme."""
    from pydicom.sr.coding import Code

    return Code(key.replace("-", "_").upper()[:16], SCHEME, OWN[key])


def free(key: str, meaning: str) -> Any:
    """A value of our own scheme whose meaning is computed; 64 characters at most, as the standard allows."""
    from pydicom.sr.coding import Code

    assert len(meaning) <= 64, meaning
    return Code(key[:16], SCHEME, meaning)


def sct(name: str) -> Any:
    from pydicom.sr.coding import Code

    codes = {
        "nodule": Code("27925004", "SCT", "Nodule"),
        "abnormal": Code("49755003", "SCT", "Morphologically Abnormal Structure"),
        "lung": Code("39607008", "SCT", "Lung"),
        "left": Code("7771000", "SCT", "Left"),
        "right": Code("24028007", "SCT", "Right"),
        "volume": Code("118565006", "SCT", "Volume"),
        "long": Code("103339001", "SCT", "Long Axis"),
        "short": Code("103340004", "SCT", "Short Axis"),
        "diameter": Code("81827009", "SCT", "Diameter"),
        "mean": Code("373098007", "SCT", "Mean"),
        "ct_chest": Code("169069000", "SCT", "CT of chest"),
    }
    return codes[name]

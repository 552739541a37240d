"""The boosted trees as flat arrays and a compiled walk: LightGBM's own prediction of one row takes ten times as long.

`boosting.Boosting` is the slow twin; both add the leaves of the trees in the same order, in double precision.

T rows, F columns, N inner nodes of all trees, M leaves of all trees, B trees.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.compiled import vector_kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]


class UnsupportedTreesError(ValueError):
    """The booster uses something that the compiled walk does not know."""

    exit_code = 2


class Trees(NamedTuple):
    """child_N2: next node when x <= threshold, and when it is not; below zero: leaf -1 - child."""

    column_N: I32
    threshold_N: F64
    child_N2: I32
    root_B: I32
    leaf_M: F64

    @classmethod
    def of(cls, booster: Any) -> Trees:
        """Read a LightGBM booster of numerical splits.

        Raises:
            UnsupportedTreesError: categorical splits, or columns with missing values.
        """
        columns: list[int] = []
        thresholds: list[float] = []
        children: list[list[int]] = []
        leaves: list[float] = []
        roots: list[int] = []

        def add(node: dict[str, Any]) -> int:
            if "leaf_value" in node:
                leaves.append(node["leaf_value"])
                return -len(leaves)
            if node["decision_type"] != "<=" or node["missing_type"] != "None":
                raise UnsupportedTreesError(
                    "compiled trees need numerical splits on columns without missing values. Received: "
                    f"decision_type={node['decision_type']}, missing_type={node['missing_type']}."
                )
            here = len(columns)
            columns.append(node["split_feature"])
            thresholds.append(node["threshold"])
            children.append([0, 0])
            children[here] = [add(node["left_child"]), add(node["right_child"])]
            return here

        for tree in booster.dump_model()["tree_info"]:
            roots.append(add(tree["tree_structure"]))
        return cls(
            np.array(columns, np.int32),
            np.array(thresholds, float),
            np.array(children, np.int32).reshape(-1, 2),
            np.array(roots, np.int32),
            np.array(leaves, float),
        )


@vector_kernel
def tree_logit(trees: Trees, x_TF: F32, out_T: F64) -> None:
    """out = sum of the leaves that each row falls into."""
    for t in range(x_TF.shape[0]):
        total = 0.0
        for root in trees.root_B:
            node = root
            while node >= 0:
                node = trees.child_N2[node, 1 if x_TF[t, trees.column_N[node]] > trees.threshold_N[node] else 0]
            total += trees.leaf_M[-1 - node]
        out_T[t] = total

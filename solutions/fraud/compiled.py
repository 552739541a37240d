"""Compilation of the state's kernels: one cache directory per version of their sources.

Numba checks only the file of the function that it loads, not those of the functions it calls, so an upgrade could run
yesterday's machine code. Hence the directory is named after a digest of all kernel sources.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])
KERNELS = (
    *("graph_state.py", "episodes.py", "features.py", "tokens.py", "engine.py"),
    *("vector_math.py", "fast_network.py", "fast_trees.py"),
)


def _cache_directory() -> Path:
    digest = hashlib.sha256()
    for name in KERNELS:
        digest.update((Path(__file__).parent / name).read_bytes())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "vigil" / f"numba-{digest.hexdigest()[:16]}"


if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = str(_cache_directory())


def kernel(function: F) -> F:
    """Compile without the interpreter lock, cached on disk. No fast maths: batched and one-by-one must agree to the bit."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


def vector_kernel(function: F) -> F:
    """As `kernel`, for loops over whole vectors: a product and its sum may be rounded once, a division by zero is inf.

    Sums are never reordered, so the same input gives the same bits whatever stands around it.
    """
    compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(function)
    return cast(F, compiled)

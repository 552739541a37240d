"""Statistics over the past of each row, per asset: rolling means, deviations, slopes, exponential and running means.

R rows, S sensors. Missing values are left out of every statistic; a window without any value gives NaN. Nothing looks
past the row, nor before the first row of its asset (`start_R`).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def rolling_sums(x_RS: F64, start_R: I64, window: int) -> tuple[F64, F64]:
    """Sum of the known values and their count over the last `window` rows, this one included."""
    known = np.isfinite(x_RS)
    totals = np.cumsum(np.vstack([np.zeros((1, x_RS.shape[1])), np.where(known, x_RS, 0.0)]), axis=0)
    counts = np.cumsum(np.vstack([np.zeros((1, x_RS.shape[1])), known]), axis=0)
    end_R = np.arange(1, len(x_RS) + 1)
    begin_R = np.maximum(end_R - window, start_R)
    return totals[end_R] - totals[begin_R], counts[end_R] - counts[begin_R]


def rolling_mean(x_RS: F64, start_R: I64, window: int) -> F64:
    total, count = rolling_sums(x_RS, start_R, window)
    return _divide(total, count)


def rolling_deviation(x_RS: F64, start_R: I64, window: int) -> F64:
    """Population standard deviation; x should be of order one, as z-scores are."""
    mean = rolling_mean(x_RS, start_R, window)
    square = rolling_mean(x_RS**2, start_R, window)
    return np.sqrt(np.maximum(square - mean**2, 0.0))


def rolling_slope(x_RS: F64, start_R: I64, window: int, *, shrink: float = 0.0) -> F64:
    """Least-squares slope per row over the known values of the window; 0 with fewer than two.

    Args:
        shrink: variance of the noise over that of slopes (ridge): slopes over few rows, which are mostly noise, are drawn to 0.
    """
    step_R1 = (np.arange(len(x_RS)) - start_R).astype(float)[:, None]
    known = np.isfinite(x_RS)
    t_RS = np.where(known, step_R1, np.nan)
    count = rolling_sums(x_RS, start_R, window)[1]
    sum_x, sum_t = rolling_sums(x_RS, start_R, window)[0], rolling_sums(t_RS, start_R, window)[0]
    sum_xt, sum_tt = rolling_sums(x_RS * t_RS, start_R, window)[0], rolling_sums(t_RS**2, start_R, window)[0]
    spread = count * sum_tt - sum_t**2
    return np.where(spread > 0.5, (count * sum_xt - sum_x * sum_t) / (np.maximum(spread, 0.5) + count * shrink), 0.0)


def ewma(x_RS: F64, slices: list[slice], span: float) -> F64:
    """Exponential mean with bias correction (pandas' `ewm(span, adjust=True)`); missing values weigh nothing."""
    decay = 1.0 - 2.0 / (span + 1.0)
    out = np.empty_like(x_RS)
    for rows in slices:
        known = np.isfinite(x_RS[rows])
        total = lfilter([1.0], [1.0, -decay], np.where(known, x_RS[rows], 0.0), axis=0)
        weight = lfilter([1.0], [1.0, -decay], known.astype(float), axis=0)
        out[rows] = _divide(total, weight)
    return out


def first_mean(x_RS: F64, slices: list[slice], rows_counted: int) -> F64:
    """Mean over the asset's first rows, as far as they have happened."""
    out = np.empty_like(x_RS)
    for rows in slices:
        x = x_RS[rows]
        known = np.isfinite(x) & (np.arange(len(x)) < rows_counted)[:, None]
        out[rows] = _divide(np.cumsum(np.where(known, x, 0.0), axis=0), np.cumsum(known, axis=0))
    return out


def largest(x_RS: F64, slices: list[slice], window: int) -> F64:
    """Largest absolute value over the window; NaN without any."""
    out = np.empty_like(x_RS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for rows in slices:
            padded = np.vstack([np.full((window - 1, x_RS.shape[1]), np.nan), np.abs(x_RS[rows])])
            views = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0)
            out[rows] = np.nanmax(views, axis=-1)
    return out


def last_known(x_RS: F64, slices: list[slice]) -> tuple[F64, F64]:
    """The newest known value of each sensor, and its age in rows (NaN and age since the start before the first)."""
    value, age = np.empty_like(x_RS), np.empty_like(x_RS)
    for rows in slices:
        x = x_RS[rows]
        step = np.arange(len(x))[:, None]
        where = np.maximum.accumulate(np.where(np.isfinite(x), step, -1), axis=0)
        value[rows] = np.where(where >= 0, np.take_along_axis(x, np.maximum(where, 0), axis=0), np.nan)
        age[rows] = step - where
    return value, age


def _divide(total: F64, count: F64) -> F64:
    return np.where(count > 1e-12, total / np.maximum(count, 1e-12), np.nan)

"""Single-precision loops that compilers turn into vector instructions: products, exp, GELU, sine and cosine.

T rows, X inner width, D width, n any length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.compiled import vector_kernel

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
ONE, HALF, TWO = np.float32(1.0), np.float32(0.5), np.float32(2.0)
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST_EXPONENT = np.float32(-87.0)  # below, exp is taken for exp(-87) = 1.6e-38
MOST_EXPONENT = np.float32(88.0)
# exp on [-ln 2 / 2, ln 2 / 2]: Cephes, expf.c
E0, E1, E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
E3, E4, E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
# erf on [-4, 4] as x P(x^2) / Q(x^2): Eigen, SpecialFunctionsImpl.h
A1, A3, A5 = np.float32(-1.60960333262415e-02), np.float32(-2.95459980854025e-03), np.float32(-7.34990630326855e-04)
A7, A9 = np.float32(-5.69250639462346e-05), np.float32(-2.10102402082508e-06)
A11, A13 = np.float32(2.77068142495902e-08), np.float32(-2.72614225801306e-10)
B0, B2, B4 = np.float32(-1.42647390514189e-02), np.float32(-7.37332916720468e-03), np.float32(-1.68282697438203e-03)
B6, B8 = np.float32(-2.13374055278905e-04), np.float32(-1.45660718464996e-05)
ROOT_HALF, FOUR = np.float32(0.7071067811865476), np.float32(4.0)
# sine and cosine on [-pi / 4, pi / 4]: Cephes, sinf.c
S1, S2, S3 = np.float32(-1.6666654611e-1), np.float32(8.3321608736e-3), np.float32(-1.9515295891e-4)
C1, C2, C3 = np.float32(4.166664568298827e-2), np.float32(-1.388731625493765e-3), np.float32(2.443315711809948e-5)
QUARTERS, QUARTER = 0.6366197723675814, 1.5707963267948966  # 2 / pi, pi / 2


@vector_kernel
def product(x_TX: F32, w_XD: F32, out_TD: F32) -> None:
    """out += x @ w, four inner columns at a time, in the order of X."""
    inner, width = w_XD.shape
    whole = inner - inner % 4
    for t in range(x_TX.shape[0]):
        for j in range(0, whole, 4):
            x0, x1, x2, x3 = x_TX[t, j], x_TX[t, j + 1], x_TX[t, j + 2], x_TX[t, j + 3]
            for d in range(width):
                out_TD[t, d] = (
                    ((out_TD[t, d] + x0 * w_XD[j, d]) + x1 * w_XD[j + 1, d]) + x2 * w_XD[j + 2, d]
                ) + x3 * w_XD[j + 3, d]
        for j in range(whole, inner):
            x0 = x_TX[t, j]
            for d in range(width):
                out_TD[t, d] += x0 * w_XD[j, d]


@vector_kernel
def exp_(x_n: F32, power_n: I32) -> None:
    """x = exp(x), with scratch of the same length for the powers of two."""
    for i in range(len(x_n)):
        x = min(max(x_n[i], LEAST_EXPONENT), MOST_EXPONENT)
        n = np.floor(x * LOG2_E + HALF)
        r = (x - n * LN2_HIGH) - n * LN2_LOW
        p = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
        x_n[i] = p * (r * r) + r + ONE
        power_n[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
    two_n = power_n.view(np.float32)
    for i in range(len(x_n)):
        x_n[i] *= two_n[i]


@vector_kernel
def gelu_(x_n: F32) -> None:
    """x = x (1 + erf(x / sqrt 2)) / 2."""
    for i in range(len(x_n)):
        z = min(max(x_n[i] * ROOT_HALF, -FOUR), FOUR)
        s = z * z
        p = (((((A13 * s + A11) * s + A9) * s + A7) * s + A5) * s + A3) * s + A1
        q = (((B8 * s + B6) * s + B4) * s + B2) * s + B0
        x_n[i] = HALF * x_n[i] * (ONE + z * p / q)


@vector_kernel
def waves(age: np.float32, rate_Q: F32, cosine_Q: F32, sine_Q: F32) -> None:
    """cos and sin of age * rate; the angle is single precision (as the slow twin's), its reduction double."""
    for i in range(len(rate_Q)):
        angle = np.float64(age * rate_Q[i])
        n = np.floor(angle * QUARTERS + 0.5)
        r = np.float32(angle - n * QUARTER)
        s = r * r
        sine = r + r * s * ((S3 * s + S2) * s + S1)
        cosine = ONE - HALF * s + s * s * ((C3 * s + C2) * s + C1)
        half = np.floor(n * 0.5)
        odd = np.float32(n - 2.0 * half)  # 1: sine and cosine change places
        flip = ONE - TWO * np.float32(half - 2.0 * np.floor(half * 0.5))  # the half turn
        sine_Q[i] = flip * (sine + odd * (cosine - sine))
        cosine_Q[i] = flip * (cosine + odd * (-sine - cosine))

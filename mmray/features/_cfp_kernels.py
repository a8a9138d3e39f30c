"""Compiled parts of the CFP feature: everything but the Fourier transforms. Frames are rows.

`_log2` and `_exp2` are polynomials, which the compiler turns into vector code; the library's functions are called for
one value at a time and would cost more than the transforms.
"""
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types

from mmray.features.native import compiled, inlined, intrinsic


def _reinterpret(source: Any, target: Any, llvm_type: Any) -> Any:
    """An intrinsic that takes the bits of a `source` number for a `target` number."""

    @intrinsic
    def reinterpret(typing_context: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], llvm_type)

        return target(source), codegen

    return reinterpret


_bits = _reinterpret(types.float32, types.int32, ir.IntType(32))
_float = _reinterpret(types.int32, types.float32, ir.FloatType())


@intrinsic
def _multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c` of three float32, rounded once where the processor can."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.FloatType()
        kind = ir.FunctionType(number, [number] * 3)
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [number], kind), arguments)

    return types.float32(a, b, c), codegen


_f = np.float32
_i = np.int32
_SQRT_HALF_BITS = _i(0x3F3504F3)
_MANTISSA_BITS = _i(23)
_ROUNDER = _f(3 << 22)
_ROUNDER_BITS = _i(_ROUNDER.view(_i))
_SMALLEST = _f(np.finfo(np.float32).tiny)


def _log2_coefficients() -> Any:
    """log2(1 + u) / u for u in [sqrt(1/2) - 1, sqrt(2) - 1], as a polynomial of degree 9, lowest power first."""
    low, high = np.sqrt(0.5) - 1, np.sqrt(2) - 1
    fit = np.polynomial.Chebyshev.interpolate(
        lambda u: np.where(u == 0, 1, np.log1p(u) / np.where(u == 0, 1, u)) / np.log(2), 9, domain=[low, high]
    )
    return fit.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)


def _exp2_coefficients() -> Any:
    """2^u for u in [-1/2, 1/2], as a polynomial of degree 6, lowest power first."""
    fit = np.polynomial.Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5])
    return fit.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)


_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9 = _log2_coefficients()
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = _exp2_coefficients()


@inlined
def _log2(x):
    """log2(x) of a normal x > 0."""
    exponent = _i(_i(_bits(x) - _SQRT_HALF_BITS) >> _MANTISSA_BITS)
    u = _float(_i(_bits(x) - _i(exponent << _MANTISSA_BITS))) - _f(1)
    p = _L9
    p = _multiply_add(p, u, _L8)
    p = _multiply_add(p, u, _L7)
    p = _multiply_add(p, u, _L6)
    p = _multiply_add(p, u, _L5)
    p = _multiply_add(p, u, _L4)
    p = _multiply_add(p, u, _L3)
    p = _multiply_add(p, u, _L2)
    p = _multiply_add(p, u, _L1)
    p = _multiply_add(p, u, _L0)
    return _multiply_add(p, u, _f(exponent))


@inlined
def _exp2(y):
    """2^y for -126 <= y < 127."""
    shifted = y + _ROUNDER  # the sum's last bits are the nearest whole number
    u = y - (shifted - _ROUNDER)
    p = _E6
    p = _multiply_add(p, u, _E5)
    p = _multiply_add(p, u, _E4)
    p = _multiply_add(p, u, _E3)
    p = _multiply_add(p, u, _E2)
    p = _multiply_add(p, u, _E1)
    p = _multiply_add(p, u, _E0)
    return p * _float(_i(_i(_i(_bits(shifted) - _ROUNDER_BITS) + _i(127)) << _MANTISSA_BITS))


@inlined
def _power(x, exponent):
    """x^exponent of x >= 0, 0 for whatever is below the smallest normal number (and for a negative x)."""
    y = exponent * _log2(max(x, _SMALLEST))
    power = _exp2(min(max(y, _f(-126)), _f(126)))
    return power if x >= _SMALLEST else _f(0)


@compiled
def fill_frames(buffer, low, high, hop, weights, frames):
    """Cut the rows of `frames` (rows, N) from `buffer`, row r from place hop (r + 1) on, and weight them.

    Only places low ... high - 1 of `buffer` hold samples. `weights` have unit norm; in a row where some of them meet no
    sample those give 0 and the others are scaled to unit norm. Places of a row beyond the weights are left as they are.
    """
    for r in range(len(frames)):
        start = hop * (r + 1)
        first, stop = max(low - start, 0), min(high - start, len(weights))
        scale = 1.0
        if stop - first < len(weights):
            energy = 0.0
            for k in range(first, stop):
                energy += weights[k] * weights[k]
            scale = 1 / np.sqrt(energy) if energy > 0 else 0.0
            for k in range(len(weights)):
                frames[r, k] = 0
        for k in range(first, stop):
            frames[r, k] = buffer[start + k] * (weights[k] * scale)


@compiled
def magnitudes_to_power(spectra, exponent, powers):
    """powers = |spectra|^exponent; spectra (rows, 2 bins), float64: real and imaginary parts in turn."""
    half = _f(0.5) * exponent
    for r in range(len(powers)):
        for k in range(powers.shape[1]):
            real, imaginary = spectra[r, 2 * k], spectra[r, 2 * k + 1]
            powers[r, k] = real * real + imaginary * imaginary
        for k in range(powers.shape[1]):  # apart, for doubles would halve the width of the vector code
            powers[r, k] = _power(powers[r, k], half)


@compiled
def rectify_to_power(values, scale, cut, exponent, powers):
    """powers = max(scale * values, 0)^exponent, and 0 in the first `cut` places of each row."""
    # From 0 on, for numba only then sees that no index is negative, and makes vector code.
    for r in range(len(powers)):
        if exponent == _f(1):
            for k in range(powers.shape[1]):
                powers[r, k] = max(values[r, k] * scale, _f(0))
        else:
            for k in range(powers.shape[1]):
                powers[r, k] = _power(values[r, k] * scale, exponent)
        for k in range(cut):
            powers[r, k] = _f(0)


@compiled
def log_bands(values, firsts, offsets, weights, logs):
    """logs[r, b] = log(1 + sum over k of weights[offsets[b] + k] * values[r, firsts[b] + k]), as long as band b is.

    The number of rows is a multiple of 4: four sums go on at once, where one alone would wait for its own additions.
    """
    log_2 = _f(np.log(2))
    for r in range(0, len(logs), 4):
        for b in range(len(firsts)):
            start, first = offsets[b], firsts[b]
            total_0 = total_1 = total_2 = total_3 = _f(0)
            for k in range(offsets[b + 1] - start):
                weight = weights[start + k]
                total_0 = _multiply_add(weight, values[r, first + k], total_0)
                total_1 = _multiply_add(weight, values[r + 1, first + k], total_1)
                total_2 = _multiply_add(weight, values[r + 2, first + k], total_2)
                total_3 = _multiply_add(weight, values[r + 3, first + k], total_3)
            logs[r, b], logs[r + 1, b], logs[r + 2, b], logs[r + 3, b] = total_0, total_1, total_2, total_3
    for r in range(len(logs)):
        for b in range(len(firsts)):
            logs[r, b] = _log2(logs[r, b] + _f(1)) * log_2

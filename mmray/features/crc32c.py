"""CRC-32C (Castagnoli), compiled: the checksum of TFRecord files.

On x86 the SSE4.2 `crc32` instruction takes 8 bytes every cycle but needs three cycles for a result, so three
neighbouring blocks are summed at once and joined by a table (V. Gopal et al., "Fast CRC Computation for iSCSI
Polynomial Using CRC32 Instruction", Intel, 2011). Elsewhere eight tables take 8 bytes a step ("slicing by 8":
M. Kounavis and F. Berry, 2005). Both give the same number; which one runs is decided by the processor alone, which is
part of numba's cache key.

`buffer` is a uint8 array or a pointer into one.
"""
# mypy: disable-error-code="no-any-return, untyped-decorator"

from __future__ import annotations

import platform
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numba
import numpy as np
from llvmlite import ir
from numba.core import types

from mmray.features.native import compiled, inlined, intrinsic, load_u64

POLYNOMIAL = np.uint32(0x82F63B78)  # Castagnoli's, bits reversed
ALL_ONES = np.uint64(0xFFFFFFFF)
LOW_BYTE = np.uint64(0xFF)
BLOCK_BYTES = 256  # of each of the three sums that run at once: a multiple of 8


@intrinsic
def _instruction(typing_context: Any, crc: Any, word: Any) -> Any:
    """SSE4.2: the running sum (low 32 bits of a uint64) after 8 more bytes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word_type = ir.IntType(64)
        function = builder.module.declare_intrinsic(
            "llvm.x86.sse42.crc32.64.64", fnty=ir.FunctionType(word_type, [word_type, word_type])
        )
        return builder.call(function, arguments)

    return types.uint64(types.uint64, types.uint64), codegen


def _slicing_tables() -> np.ndarray:
    """uint32 (8, 256): `[k, v]` is the sum of byte v followed by k zero bytes."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, (first >> 1) ^ POLYNOMIAL, first >> 1)
    tables = [first]
    for _ in range(7):
        tables.append(first[tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return np.array(tables, dtype=np.uint32)


def _shift_tables(num_bytes: int) -> np.ndarray:
    """uint32 (4, 256): what becomes of a running sum when `num_bytes` (a power of two) zero bytes follow.

    The sum of the four entries `[k, k-th byte of the sum]` (exclusive or) is the new sum.
    """
    byte = np.arange(256, dtype=np.uint32)
    tables = np.stack([byte << np.uint32(8 * k) for k in range(4)])
    tables = _slicing_tables()[0][tables & 0xFF] ^ (tables >> 8)  # one zero byte
    while num_bytes > 1:
        tables = np.bitwise_xor.reduce([tables[k][(tables >> (8 * k)) & 0xFF] for k in range(4)])
        num_bytes //= 2
    return tables


# Wider than their content: arithmetic in compiled code stays uint64 throughout.
SLICING = _slicing_tables().astype(np.uint64)
SHIFT_1 = _shift_tables(BLOCK_BYTES).astype(np.uint64)
SHIFT_2 = _shift_tables(2 * BLOCK_BYTES).astype(np.uint64)


@inlined
def _shift(crc: np.uint64, tables: np.ndarray) -> np.uint64:
    low = tables[0, crc & LOW_BYTE] ^ tables[1, (crc >> np.uint64(8)) & LOW_BYTE]
    high = tables[2, (crc >> np.uint64(16)) & LOW_BYTE] ^ tables[3, (crc >> np.uint64(24)) & LOW_BYTE]
    return low ^ high


@inlined
def _finish(crc: np.uint64, buffer: np.ndarray, start: int, stop: int) -> np.uint64:
    for i in range(start, stop):
        crc = SLICING[0, (crc ^ buffer[i]) & LOW_BYTE] ^ (crc >> np.uint64(8))
    return crc ^ ALL_ONES


@compiled
def crc32c_sse42(buffer: np.ndarray, start: int, stop: int) -> np.uint64:
    """CRC-32C of `buffer[start:stop]` (uint8) by the SSE4.2 instruction; the caller has checked the bounds."""
    crc = ALL_ONES
    i = start
    while stop - i >= 3 * BLOCK_BYTES:
        second, third = np.uint64(0), np.uint64(0)
        for j in range(i, i + BLOCK_BYTES, 8):
            crc = _instruction(crc, load_u64(buffer, j))
            second = _instruction(second, load_u64(buffer, j + BLOCK_BYTES))
            third = _instruction(third, load_u64(buffer, j + 2 * BLOCK_BYTES))
        crc = _shift(crc, SHIFT_2) ^ _shift(second, SHIFT_1) ^ third
        i += 3 * BLOCK_BYTES
    while stop - i >= 8:
        crc = _instruction(crc, load_u64(buffer, i))
        i += 8
    return _finish(crc, buffer, i, stop)


@compiled
def crc32c_tables(buffer: np.ndarray, start: int, stop: int) -> np.uint64:
    """CRC-32C of `buffer[start:stop]` (uint8) on any processor; the caller has checked the bounds."""
    crc = ALL_ONES
    i = start
    while stop - i >= 8:
        word = load_u64(buffer, i) ^ crc
        crc = np.uint64(0)
        for k in range(8):
            crc ^= SLICING[7 - k, (word >> np.uint64(8 * k)) & LOW_BYTE]
        i += 8
    return _finish(crc, buffer, i, stop)


def has_sse42() -> bool:
    """Whether numba compiles for an x86-64 processor with SSE4.2 (NUMBA_CPU_NAME and NUMBA_CPU_FEATURES count)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    settings: Any = numba.config
    if settings.CPU_NAME is not None or settings.CPU_FEATURES is not None:
        return "+sse4.2" in (settings.CPU_FEATURES or "")
    return bool(llvmlite.binding.get_host_cpu_features().get("sse4.2", False))


crc32c = crc32c_sse42 if has_sse42() else crc32c_tables


@compiled
def masked_crc32c(buffer: np.ndarray, start: int, stop: int) -> np.uint64:
    """The sum as TFRecord stores it: rotated right by 15 bits, plus 0xA282EAD8 modulo 2^32."""
    crc = crc32c(buffer, start, stop)
    return ((crc >> np.uint64(15) | crc << np.uint64(17)) + np.uint64(0xA282EAD8)) & ALL_ONES

"""What compiled code needs and numba lacks: pointers, loads at any alignment, memcpy, a cache that may be missing.

None of these checks a bound: the caller has.

numba's cache watches only the file of the outermost function, and compiled callers carry this module, and each other
module's `inlined` functions, within them: after an edit of such code delete `mmray/features/__pycache__/*.nbi`.
"""
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numba.extending
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types

# Their types leave out the options and the second call used here.
njit: Any = numba.njit
intrinsic: Any = numba.extending.intrinsic


def called(function: Callable[..., Any]) -> Any:
    """Compile as a part of compiled callers: no cache of its own, and no way to call it from Python."""
    return njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile into each of its compiled callers, where a call would cost as much as the work."""
    return njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)(function)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls: no GIL, and kept on disk wherever a cache folder can be written."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no folder: every process compiles for itself
        return njit(nogil=True)(function)


def _address(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """The LLVM pointer to the first element of an array, or the pointer itself."""
    return context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value


@intrinsic
def pointer(typing_context: Any, array: Any) -> Any:
    """`p = pointer(array)`: p[i] is array[i] of a C-contiguous array that something else keeps alive.

    numba counts the references to each array at every call, and counts with locked instructions: passing a few arrays
    down costs more than parsing a record. Pointers are not counted.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _address(context, builder, signature.args[0], arguments[0])

    return types.CPointer(array.dtype)(array), codegen


def _load(number: Any) -> Any:
    """An intrinsic `load(buffer, i)`: the little-endian `number` at byte i of a uint8 array or pointer."""

    @intrinsic
    def load(typing_context: Any, buffer: Any, i: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address = builder.gep(_address(context, builder, signature.args[0], arguments[0]), [arguments[1]])
            return builder.load(builder.bitcast(address, ir.IntType(number.bitwidth).as_pointer()), align=1)

        return number(buffer, types.int64), codegen

    return load


load_u32 = _load(types.uint32)
load_u64 = _load(types.uint64)


@intrinsic
def copy_bytes(typing_context: Any, target: Any, at: Any, source: Any, start: Any, count: Any) -> Any:
    """`target[at : at + count] = source[start : start + count]` of uint8 memory that doesn't overlap."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, start_of = (_address(context, builder, signature.args[k], arguments[k]) for k in (0, 2))
        to, start_of = builder.gep(to, [arguments[1]]), builder.gep(start_of, [arguments[3]])
        cgutils.raw_memcpy(builder, to, start_of, arguments[4], itemsize=1)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, types.int64), codegen

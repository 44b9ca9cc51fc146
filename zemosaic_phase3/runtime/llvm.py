"""Vector instructions written by hand: numbers of lanes, types, and reading and writing of memory."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir

LANES: Final = 96  # pixels sorted at once; a multiple of 3 (colour) and of 16 (SIMD), sized for the L2 cache at N = 200
SIMD: Final = 16  # pixels per instruction; where the processor's registers are shorter the compiler splits them


def data_of(context: Any, builder: Any, signature: Any, args: Any, k: int) -> Any:
    """Address of the numbers of the array that is argument k of an intrinsic."""
    return context.make_array(signature.args[k])(context, builder, args[k]).data


I32, I64, F32, F64 = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
BITS = ir.IntType(SIMD)
NUMBERS, WIDE = ir.VectorType(F32, SIMD), ir.VectorType(F64, SIMD)
INF: Final = float("inf")


def all_lanes(kind: Any, value: float) -> Any:
    """Return a vector of one number in every lane."""
    return ir.Constant(kind, [value] * SIMD)


def load(builder: Any, data: Any, at: Any, kind: Any = WIDE) -> Any:
    """16 neighbouring numbers of an array."""
    return builder.load(builder.bitcast(builder.gep(data, [at]), kind.as_pointer()), align=4)


def store(builder: Any, value: Any, data: Any, at: Any) -> None:
    """Write neighbouring numbers of an array."""
    builder.store(value, builder.bitcast(builder.gep(data, [at]), value.type.as_pointer()), align=4)

"""The same memory as numbers of another type or in one row, inside kernels.

``values.view(np.uint32)`` and ``values.reshape(-1)`` do that too, but Numba compiles with them the making of messages
for shapes that do not fit, text and all: a tenth of the time in which all kernels of a first run are compiled.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

_PLAIN: Final = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined] # which Numba makes when it is loaded


def _reinterpreted(array: Any, result: Any) -> Any:
    """Return what an intrinsic returns, its signature and what writes the code, from Numba's types of two arrays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from numba.core import cgutils
        from numba.core.imputils import impl_ret_borrowed
        from numba.np.arrayobj import populate_array

        given = context.make_array(signature.args[0])(context, builder, args[0])
        made = context.make_array(signature.return_type)(context, builder)
        data = builder.bitcast(given.data, context.get_data_type(result.dtype).as_pointer())
        shape, strides = given.shape, given.strides
        if result.ndim != array.ndim:
            shape, strides = (cgutils.pack_array(builder, [size]) for size in (given.nitems, given.itemsize))
        populate_array(
            made, data=data, shape=shape, strides=strides, itemsize=given.itemsize, meminfo=given.meminfo,
            parent=given.parent,
        )  # fmt: skip
        return impl_ret_borrowed(context, builder, signature.return_type, made._getvalue())  # noqa: SLF001 - Numba's way

    return result(array), generate


def _bits32(_typing_context: Any, values: Any) -> Any:
    return _reinterpreted(values, values.copy(dtype=types.uint32))


def _bits64(_typing_context: Any, values: Any) -> Any:
    return _reinterpreted(values, values.copy(dtype=types.int64))


def _flat(_typing_context: Any, values: Any) -> Any:
    return _reinterpreted(values, values.copy(ndim=1)) if values.layout == "C" else None


def _bits32_plain(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


def _bits64_plain(values: np.ndarray) -> np.ndarray:
    return values.view(np.int64)


def _flat_plain(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1)


bits32: Final[Any] = _bits32_plain if _PLAIN else intrinsic(_bits32)
"""``bits32(values)``: an array of float32 as uint32, the same memory."""

bits64: Final[Any] = _bits64_plain if _PLAIN else intrinsic(_bits64)
"""``bits64(values)``: an array of float64 as int64, the same memory."""

flat: Final[Any] = _flat_plain if _PLAIN else intrinsic(_flat)
"""``flat(values)``: a contiguous array as one row of numbers, the same memory."""

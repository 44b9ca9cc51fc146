"""The bits of an array of floats as whole numbers, inside kernels.

``values.view(np.uint32)`` does that too, but Numba compiles with it the making of a message for views that do not fit,
text and all: half a second for each of dozens of kernels that sort.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

_PLAIN: Final = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined] # which Numba makes when it is loaded


def _reinterpret(kind: Any, array: Any) -> Any:
    """Return what an intrinsic returns: its signature, and what writes the code; ``array``: Numba's type of one."""
    result = array.copy(dtype=kind)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from numba.core.imputils import impl_ret_borrowed
        from numba.np.arrayobj import populate_array

        given = context.make_array(signature.args[0])(context, builder, args[0])
        made = context.make_array(signature.return_type)(context, builder)
        data = builder.bitcast(given.data, context.get_data_type(kind).as_pointer())
        populate_array(
            made, data=data, shape=given.shape, strides=given.strides, itemsize=given.itemsize, meminfo=given.meminfo,
            parent=given.parent,
        )  # fmt: skip
        return impl_ret_borrowed(context, builder, signature.return_type, made._getvalue())  # noqa: SLF001 - Numba's way

    return result(array), generate


def _bits32(_typing_context: Any, values: Any) -> Any:
    return _reinterpret(types.uint32, values)


def _bits64(_typing_context: Any, values: Any) -> Any:
    return _reinterpret(types.int64, values)


def _bits32_plain(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


def _bits64_plain(values: np.ndarray) -> np.ndarray:
    return values.view(np.int64)


bits32: Final[Any] = _bits32_plain if _PLAIN else intrinsic(_bits32)
"""``bits32(values)``: an array of float32 as uint32, the same memory."""

bits64: Final[Any] = _bits64_plain if _PLAIN else intrinsic(_bits64)
"""``bits64(values)``: an array of float64 as int64, the same memory."""

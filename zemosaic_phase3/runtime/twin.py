"""Hand-written vector code and its twin in plain Python: the decorator that makes the pair, and the list of all pairs.

::

    def _plain_sum(x: np.ndarray, n: int) -> int: ...

    @hand_written(_plain_sum)
    def _sum(emit: Emitter, x: Array, n: Int) -> Int: ...

Kernels call ``_sum``. Where nothing is compiled (NUMBA_DISABLE_JIT) that is the twin itself. The annotations are what
Numba converts numbers to, and from; an array may be of any type, its numbers one row behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Final, NamedTuple, get_args, get_type_hints

import numba
from numba.core import types
from numba.extending import intrinsic

from zemosaic_phase3.runtime.llvm import Array, Emitter, Value

_PLAIN: Final = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined] # which Numba makes when it is loaded
Int = Annotated[Value, types.int64]
Address = Annotated[Value, types.uint64]
Single = Annotated[Value, types.float32]
Flag = Annotated[Value, types.boolean]


class HandWritten(NamedTuple):
    """Vector code and what it must equal, to the bit."""

    compiled: Any  # for kernels to call
    twin: Callable[..., Any]


HAND_WRITTEN: Final[dict[str, HandWritten]] = {}
"""Every pair by its name, ``wing.file.function``; tests compare them all."""


def hand_written(twin: Callable[..., Any], *, name: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Make the decorated function, which writes instructions, one that kernels can call.

    Parameters
    ----------
    twin : callable
        The same function in plain Python, with NumPy arrays and numbers in place of what the decorated one takes.
    name : str
        Name of the pair in :data:`HAND_WRITTEN`, where several are made from one text.
    """

    def make(write: Callable[..., Any]) -> Any:
        hints = get_type_hints(write, include_extras=True)
        result = _numba_type(hints.pop("return"))
        parameters = [_numba_type(hint) for hint in hints.values()][1:]  # the emitter is none

        @wraps(write)  # Numba reads the names of the parameters
        def typed(_typing_context: Any, *given: Any) -> Any:
            found = [own or theirs for own, theirs in zip(parameters, given, strict=True)]
            return result(*found), generate

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = Emitter(context, builder)
            values = [_value(emit, kind, arg) for kind, arg in zip(signature.args, args, strict=True)]
            made = write(emit, *values)
            if made is None:
                return context.get_dummy_value()
            if isinstance(made, tuple):
                return context.make_tuple(builder, signature.return_type, [value.ir for value in made])
            return made.ir

        pair = HandWritten(intrinsic(typed), twin)
        HAND_WRITTEN[f"{write.__module__.partition('.')[2]}.{name or write.__name__}"] = pair
        return pair.twin if _PLAIN else pair.compiled

    return make


def _numba_type(hint: Any) -> Any:
    """Return Numba's type for an annotation; None for arrays, whose type is that of what is given."""
    if hint is type(None):
        return types.void
    if hint is Array:
        return None
    if hasattr(hint, "__metadata__"):
        return hint.__metadata__[0]
    return types.Tuple([_numba_type(part) for part in get_args(hint)])


def _value(emit: Emitter, kind: Any, arg: Any) -> Value | Array:
    """Return what a hand-written function works with for an argument of a Numba type."""
    if not isinstance(kind, types.Array):
        return Value(emit.builder, arg)
    array = emit.context.make_array(kind)(emit.context, emit.builder, arg)
    rows = emit.builder.extract_value(array.shape, 0)
    return Array(emit.builder, array.data, emit.context.get_data_type(kind.dtype), Value(emit.builder, rows))

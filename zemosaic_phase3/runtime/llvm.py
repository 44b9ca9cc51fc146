"""The vocabulary of hand-written vector code: numbers, arrays and loops of the code that is being compiled.

A hand-written function writes the LLVM instructions of its body while Numba compiles a caller. What it works with are
not numbers but names of numbers that the compiled code will hold: :class:`Value`, a number or a vector, with NumPy's
operators, and :class:`Array`, the memory of an array. :class:`Emitter` writes loops and branches. So the text of such a
function reads like the same function in plain Python, its twin, which stands beside it: :mod:`runtime.twin`.

When hand-written code is worth it, and how to write some: ``docs/vector_code.md``. What depends on the version of
llvmlite is in this file alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils

from zemosaic_phase3.runtime.lanes import SIMD

BOOL, I8, I32, I64 = (ir.IntType(width) for width in (1, 8, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
INF: Final = float("inf")
_ASKS_TYPES: Final = "typ" in inspect.signature(ir.IRBuilder.load).parameters  # llvmlite 0.44 and later


def _pointer(kind: Any) -> Any:
    return kind.as_pointer()  # to be ``ir.PointerType()`` once llvmlite has no typed pointers


def _told(name: str, kind: Any) -> dict[str, Any]:
    """Tell llvmlite the type of what a pointer points at, where it asks: a pointer of LLVM itself knows none."""
    return {name: kind} if _ASKS_TYPES else {}


def _bytes(kind: Any) -> int:
    return 4 if kind == F32 else 8 if kind == F64 else int(kind.width) // 8


def _many(kind: Any, lanes: int | None) -> Any:
    return kind if lanes is None else ir.VectorType(kind, lanes)


def _operator(whole: str, real: str, *, swapped: bool = False) -> Callable[[Value, Operand], Value]:
    """Return an operator that is one instruction, of one name for whole numbers and another for floating point."""

    def operator(self: Value, other: Operand) -> Value:
        a, b = _matched(other, self) if swapped else _matched(self, other)
        return Value(a.builder, getattr(a.builder, real if a.kind in (F32, F64) else whole)(a.ir, b.ir))

    return operator


def _comparison(sign: str) -> Callable[[Value, Operand], Value]:
    """Return a comparison. Any with NaN is false, but that NaN differs from everything."""

    def compare(self: Value, other: Operand) -> Value:
        a, b = _matched(self, other)
        real = a.builder.fcmp_unordered if sign == "!=" else a.builder.fcmp_ordered
        return Value(a.builder, (real if a.kind in (F32, F64) else a.builder.icmp_signed)(sign, a.ir, b.ir))

    return compare


class Value:
    """A number or a vector of numbers of the compiled code; whole numbers are signed.

    Operators and comparisons mean what they do in NumPy. A Python number beside a value takes its type, a single number
    beside a vector is repeated in all lanes; two values must otherwise be of one type.
    """

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("builder", "ir")

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.ir = builder, value

    @property
    def lanes(self) -> int | None:
        """How many numbers a vector has; None for a single number."""
        return getattr(self.ir.type, "count", None)

    @property
    def kind(self) -> Any:
        """LLVM's type of one number."""
        return self.ir.type if self.lanes is None else self.ir.type.element

    def spread(self, lanes: int | None) -> Value:
        """Repeat a single number in all lanes of a vector."""
        if lanes is None or self.lanes is not None:
            return self
        first = self.builder.insert_element(ir.Constant(_many(self.kind, lanes), ir.Undefined), self.ir, I32(0))
        return Value(self.builder, first).shuffle([0] * lanes)

    def shuffle(self, pattern: Sequence[int], other: Value | None = None) -> Value:
        """Take lanes by number; those of ``other`` are counted on from the last."""
        second = ir.Constant(self.ir.type, ir.Undefined) if other is None else other.ir
        order = ir.Constant(_many(I32, len(pattern)), list(pattern))
        return Value(self.builder, self.builder.shuffle_vector(self.ir, second, order))

    def lane(self, k: int) -> Value:
        """Take one number of a vector."""
        return Value(self.builder, self.builder.extract_element(self.ir, I32(k)))

    def view(self, kind: Any) -> Value:
        """Return the same bits as numbers of another type of the same size."""
        return Value(self.builder, self.builder.bitcast(self.ir, _many(kind, self.lanes)))

    def to(self, kind: Any) -> Value:
        """Convert as ``astype`` does: rounded to the nearest, True is 1; not from floating point to whole numbers."""
        if kind == self.kind:
            return self
        if self.kind in (F32, F64):
            name = "fpext" if kind == F64 else "fptrunc"
        elif kind in (F32, F64):
            name = "sitofp"
        elif kind.width < self.kind.width:
            name = "trunc"
        else:
            name = "zext" if self.kind.width == 1 else "sext"
        return Value(self.builder, getattr(self.builder, name)(self.ir, _many(kind, self.lanes)))

    __add__ = __radd__ = _operator("add", "fadd")
    __mul__ = __rmul__ = _operator("mul", "fmul")
    __sub__, __rsub__ = _operator("sub", "fsub"), _operator("sub", "fsub", swapped=True)
    __truediv__ = _operator("sdiv", "fdiv")
    __and__, __or__, __xor__ = _operator("and_", "and_"), _operator("or_", "or_"), _operator("xor", "xor")
    __lshift__, __rshift__ = _operator("shl", "shl"), _operator("ashr", "ashr")
    __lt__, __le__, __gt__, __ge__ = _comparison("<"), _comparison("<="), _comparison(">"), _comparison(">=")
    __eq__, __ne__ = _comparison("=="), _comparison("!=")  # type: ignore[assignment]

    def __invert__(self) -> Value:  # noqa: D105
        return Value(self.builder, self.builder.not_(self.ir))

    def __neg__(self) -> Value:  # noqa: D105
        return Value(self.builder, (self.builder.fneg if self.kind in (F32, F64) else self.builder.neg)(self.ir))

    def __bool__(self) -> bool:  # noqa: D105
        raise TypeError("what a value is, is not known before the code runs: use where() or Emitter.when()")


Operand = Value | float


def _matched(a: Operand, b: Operand) -> tuple[Value, Value]:
    """Give a number the type of the value beside it, and a single value the lanes of the vector beside it."""
    if not isinstance(a, Value):
        if not isinstance(b, Value):
            raise TypeError("two plain numbers have no type: make one of them with Emitter.constant")
        a = Value(b.builder, ir.Constant(b.kind, a))
    if not isinstance(b, Value):
        b = Value(a.builder, ir.Constant(a.kind, b))
    return a.spread(b.lanes), b.spread(a.lanes)


def where(mask: Value, a: Operand, b: Operand) -> Value:
    """Take ``a`` where the mask is true, else ``b``, as ``numpy.where``."""
    first, second = (value.spread(mask.lanes) for value in _matched(a, b))
    return Value(mask.builder, mask.builder.select(mask.ir, first.ir, second.ir))


def minimum(a: Value, b: Operand) -> Value:
    """Return ``a if a < b else b`` lane by lane: with NaN, or zeros of both signs, the second."""
    return where(a < b, a, b)


def maximum(a: Value, b: Operand) -> Value:
    """Return ``a if a > b else b`` lane by lane: with NaN, or zeros of both signs, the second."""
    return where(a > b, a, b)


def total(terms: Sequence[Value]) -> Value:
    """Add values in the order given."""
    return reduce(lambda added, term: added + term, terms)


def _library(name: str, x: Value) -> Value:
    """Call a function of LLVM's own on floating point numbers."""
    name = f"llvm.{name}.{'' if x.lanes is None else f'v{x.lanes}'}f{8 * _bytes(x.kind)}"
    function = x.builder.module.declare_intrinsic(name, (), ir.FunctionType(x.ir.type, [x.ir.type]))
    return Value(x.builder, x.builder.call(function, [x.ir]))


def absolute(x: Value) -> Value:
    """Return floating point numbers without their sign."""
    return _library("fabs", x)


def sqrt(x: Value) -> Value:
    """Return square roots, correctly rounded."""
    return _library("sqrt", x)


def _packed(mask: Value) -> Any:
    return mask.builder.bitcast(mask.ir, ir.IntType(mask.lanes))


def bit_mask(mask: Value) -> Value:
    """Return a vector of up to 63 truth values as an int64 whose bit k is lane k."""
    return Value(mask.builder, mask.builder.zext(_packed(mask), I64))


def any_of(mask: Value) -> Value:
    """Return whether one of a vector of truth values is true."""
    return Value(mask.builder, _packed(mask)) != 0


def count(mask: Value) -> Value:
    """Return how many of a vector of truth values are true, int64."""
    return Value(mask.builder, mask.builder.zext(mask.builder.ctpop(_packed(mask)), I64))


def first_of(mask: Value) -> Value:
    """Return the first lane that is true, int64; the number of lanes if none is."""
    return Value(mask.builder, mask.builder.zext(mask.builder.cttz(_packed(mask), BOOL(0)), I64))


def fold(vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """Combine all lanes, a power of two, to one number; halves at a time, so only where the order does not matter."""
    lanes = vector.lanes or 1
    step = lanes // 2
    while step:
        vector = combine(vector, vector.shuffle([(k + step) % lanes for k in range(lanes)]))
        step //= 2
    return vector.lane(0)


class Array:
    """The numbers of an array, one row behind the other, by their place in memory.

    ``rows``: the length of the first axis, a :class:`Value`.
    """

    def __init__(self, builder: Any, data: Any, kind: Any, rows: Any = None) -> None:
        self.builder, self.data, self.kind, self.rows = builder, data, kind, rows

    def _place(self, at: int | Value, kind: Any) -> Any:
        index = at.ir if isinstance(at, Value) else I64(at)
        place = self.builder.gep(self.data, [index], **_told("source_etype", self.kind))
        return self.builder.bitcast(place, _pointer(kind))

    def view(self, kind: Any) -> Array:
        """Return the same memory as numbers of another type."""
        return Array(self.builder, self._place(0, kind), kind)

    def behind(self, at: int | Value) -> Array:
        """Return the numbers from place ``at`` on."""
        return Array(self.builder, self._place(at, self.kind), self.kind)

    def load(self, at: int | Value, lanes: int | None = SIMD, *, align: int | None = None) -> Value:
        """Read neighbouring numbers, from place ``at`` on."""
        kind = _many(self.kind, lanes)
        align = align or _bytes(self.kind)
        return Value(self.builder, self.builder.load(self._place(at, kind), align=align, **_told("typ", kind)))

    def store(self, at: int | Value, value: Value, *, align: int | None = None, past_caches: bool = False) -> None:
        """Write a number or neighbouring ones; ``past_caches``: nobody will read them soon."""
        done = self.builder.store(value.ir, self._place(at, value.ir.type), align=align or _bytes(self.kind))
        if past_caches:
            done.set_metadata("nontemporal", self.builder.module.add_metadata([I32(1)]))

    def __getitem__(self, at: int | Value) -> Value:
        """Read one number."""
        return self.load(at, None)

    def __setitem__(self, at: int | Value, value: Value) -> None:
        """Write one number."""
        self.store(at, value)

    def prefetch(self, at: int | Value) -> None:
        """Ask for a number that will be read soon; past the end of the array it does no harm."""
        kind = ir.FunctionType(ir.VoidType(), [_pointer(I8), I32, I32, I32])
        ask = self.builder.module.declare_intrinsic("llvm.prefetch", [_pointer(I8)], kind)
        self.builder.call(ask, [self._place(at, I8), I32(0), I32(2), I32(1)])  # to read, into the second-level cache

    def load_atomic(self, at: int | Value) -> Value:
        """Read a number as it is now; what is read after it is not older."""
        place = self._place(at, self.kind)
        options = {"ordering": "acquire", "align": _bytes(self.kind), **_told("typ", self.kind)}
        return Value(self.builder, self.builder.load_atomic(place, **options))

    def fetch_add(self, at: int | Value, value: Value) -> Value:
        """Add to a number in one step and return what it was; nothing written before is seen after it."""
        self.builder.fence("seq_cst")  # stores past the caches are in no order of their own
        place = self._place(at, self.kind)
        return Value(self.builder, self.builder.atomic_rmw("add", place, value.ir, ordering="seq_cst"))


def chosen(condition: Value, a: Array, b: Array) -> Array:
    """Return one of two memories."""
    return Array(a.builder, a.builder.select(condition.ir, a.data, b.data), a.kind)


class Variable:
    """A value that changes in a loop or a branch; the compiler keeps it in a register."""

    def __init__(self, first: Value) -> None:
        self._builder = first.builder
        self._place = cgutils.alloca_once_value(first.builder, first.ir)

    @property
    def now(self) -> Value:
        """What it is at this point of the code."""
        return Value(self._builder, self._builder.load(self._place))

    @now.setter
    def now(self, new: Value) -> None:
        self._builder.store(new.ir, self._place)


class Emitter:
    """What writes the instructions of one hand-written function."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def constant(self, kind: Any, value: float, lanes: int | None = None) -> Value:
        """Return a number, or the same number in all lanes."""
        return Value(self.builder, ir.Constant(_many(kind, lanes), value if lanes is None else [value] * lanes))

    def constants(self, kind: Any, numbers: Sequence[float]) -> Value:
        """Return a vector of given numbers."""
        return Value(self.builder, ir.Constant(_many(kind, len(numbers)), list(numbers)))

    def table(self, kind: Any, numbers: Sequence[float]) -> Array:
        """Return an array of given numbers, which belongs to the code."""
        numbers_of_code = ir.Constant(ir.ArrayType(kind, len(numbers)), list(numbers))
        place = cgutils.global_constant(self.builder.module, "table", numbers_of_code)
        return Array(self.builder, self.builder.bitcast(place, _pointer(kind)), kind)

    def vector(self, numbers: Sequence[Value]) -> Value:
        """Put single numbers side by side."""
        made = ir.Constant(_many(numbers[0].kind, len(numbers)), ir.Undefined)
        for k, number in enumerate(numbers):
            made = self.builder.insert_element(made, number.ir, I32(k))
        return Value(self.builder, made)

    def memory(self, address: Value, kind: Any) -> Array:
        """Return the numbers at an address."""
        return Array(self.builder, self.builder.inttoptr(address.ir, _pointer(kind)), kind)

    def when(self, condition: Value, *, likely: bool | None = None) -> AbstractContextManager[Any]:
        """Write a branch: what is written inside the ``with`` is done where the condition is true."""
        branch: AbstractContextManager[Any] = self.builder.if_then(condition.ir, likely=likely)
        return branch

    @contextmanager
    def range(self, start: int | Value, stop: int | Value, step: int = 1) -> Iterator[Value]:
        """Write a loop: what is written inside the ``with`` is done for ``start, start + step ...`` below ``stop``."""
        first, end = (n.ir if isinstance(n, Value) else I64(n) for n in (start, stop))
        with cgutils.for_range_slice(self.builder, first, end, I64(step), I64) as (index, _):
            yield Value(self.builder, index)

    @contextmanager
    def loop(self) -> Iterator[Callable[[Value], None]]:
        """Write a loop without end; the function given leaves it there where its condition is false."""
        begin, end = (self.builder.append_basic_block(name) for name in ("begin", "end"))

        def leave_unless(condition: Value) -> None:
            rest = self.builder.append_basic_block("rest")
            self.builder.cbranch(condition.ir, rest, end)
            self.builder.position_at_end(rest)

        self.builder.branch(begin)
        self.builder.position_at_end(begin)
        yield leave_unless
        self.builder.branch(begin)
        self.builder.position_at_end(end)

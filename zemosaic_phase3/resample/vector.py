"""Demosaicing and interpolation of a run of pixels, as LLVM vector instructions (``numba.extending.intrinsic``).

Interpolation: a pixel of the result is a weighted sum of 6x6 pixels of the frame. The 6 pixels of a row lie one behind
the other, their channels interleaved: few registers hold all of them, and the sums down the columns are a handful of
instructions. Only the sum along the row has to take registers apart.

Demosaicing: what each pixel would be as either kind of sample is computed for 8 pixels at once, the right one is
chosen, and the colours are interleaved in registers.

Without compilation (NUMBA_DISABLE_JIT) the same runs in plain Python.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

TAPS: Final = 6  # pixels per axis that an interpolation may use
LANES: Final = 8  # numbers in a register; where the processor's are shorter the compiler splits them
AHEAD: Final = 8  # rows from the first of a block to one that a later row of the result will need
SPARE: Final = 4  # numbers behind a run of the result that are overwritten

FLOAT: Final = ir.FloatType()
DOUBLE: Final = ir.DoubleType()
I64: Final = ir.IntType(64)
I32: Final = ir.IntType(32)
VECTOR: Final = ir.VectorType(FLOAT, LANES)


class _Emitter:
    """The instructions for one pixel of 1 or 3 channels.

    The 6 pixels of a row are held in registers of ``together`` pixels each. A pixel taken out of them has
    ``width`` lanes: of four lanes for three channels nobody looks at the last.
    """

    def __init__(self, builder: Any, channels: int) -> None:
        self.builder, self.channels = builder, channels
        self.together = 2 if channels == 3 else TAPS
        self.width = 4 if channels == 3 else 1

    def shuffle(self, vector: Any, lanes: list[int]) -> Any:
        pattern = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
        return self.builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), pattern)

    def load(self, data: Any, at: Any, kind: Any) -> Any:
        return self.builder.load(self.builder.bitcast(self.builder.gep(data, [at]), kind.as_pointer()), align=4)

    def prefetch(self, data: Any, at: Any) -> None:
        """Ask for a number that will be read soon; past the end of its array it does no harm."""
        byte = ir.IntType(8).as_pointer()
        ask = self.builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        )
        place = self.builder.bitcast(self.builder.gep(data, [at]), byte)
        self.builder.call(ask, [place, I32(0), I32(2), I32(1)])  # to read, into the second-level cache

    def spread(self, value: Any, lanes: int) -> Any:
        """Return one number in every lane."""
        kind = ir.VectorType(FLOAT, lanes)
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
        return self.shuffle(single, [0] * lanes)

    def pixel(self, registers: list[Any], k: int) -> Any:
        """Take pixel k out of the registers of a row."""
        first = (k % self.together) * self.channels
        return self.shuffle(registers[k // self.together], [(first + c) % LANES for c in range(self.width)])

    def block(self, src: Any, at: Any, stride: Any) -> list[list[Any]]:
        """Load 6 rows."""
        starts = range(0, TAPS * self.channels, self.together * self.channels)
        rows = [self.builder.add(at, self.builder.mul(stride, I64(k))) for k in range(TAPS)]
        return [[self.load(src, self.builder.add(row, I64(start)), VECTOR) for start in starts] for row in rows]

    def down_weights(self, table: Any, phase: Any) -> list[Any]:
        first = self.builder.mul(phase, I64(TAPS))
        return [
            self.spread(self.builder.load(self.builder.gep(table, [self.builder.add(first, I64(k))])), LANES)
            for k in range(TAPS)
        ]

    def along_weights(self, table: Any, phase: Any) -> list[Any]:
        """Weights as the registers of a row hold the pixels; in two loads, because 8 would leave the table."""
        first = self.builder.mul(phase, I64(TAPS))
        four = ir.VectorType(FLOAT, 4)
        low = self.load(table, first, four)
        high = self.load(table, self.builder.add(first, I64(TAPS - 4)), four)
        registers = []
        for start in range(0, TAPS, self.together):
            taps = [min(start + lane // self.channels, TAPS - 1) for lane in range(LANES)]
            pattern = [tap if tap < 4 else tap - (TAPS - 4) + 4 for tap in taps]
            registers.append(self.builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, LANES), pattern)))
        return registers

    def channel_numbers(self, data: Any) -> Any:
        """Return a vector of one number per channel, float64."""
        numbers = ir.Constant(ir.VectorType(DOUBLE, self.width), [0.0] * self.width)
        for c in range(self.channels):
            number = self.builder.load(self.builder.gep(data, [I64(c)]))
            numbers = self.builder.insert_element(numbers, number, I32(c))
        return numbers

    def sum(self, factors: list[Any], terms: list[Any]) -> Any:
        products = [self.builder.fmul(factor, term) for factor, term in zip(factors, terms, strict=True)]
        return self.total(products)

    def total(self, terms: list[Any]) -> Any:
        """Add in the order given."""
        total = terms[0]
        for term in terms[1:]:
            total = self.builder.fadd(total, term)
        return total

    def pick(self, sign: str, *values: Any) -> Any:
        """Return the largest (``>``) or smallest (``<``), lane by lane."""
        best = values[0]
        for value in values[1:]:
            best = self.builder.select(self.builder.fcmp_ordered(sign, best, value), best, value)
        return best

    def value(self, block: list[list[Any]], down: list[Any], along: list[Any]) -> Any:
        """Sum down the columns, then along the row."""
        columns = [self.sum(down, [row[g] for row in block]) for g in range(len(along))]
        weighted = [self.builder.fmul(weight, column) for weight, column in zip(along, columns, strict=True)]
        return self.total([self.pixel(weighted, k) for k in range(TAPS)])

    def extremes(self, sign: str, block: list[list[Any]]) -> tuple[Any, Any]:
        """Return the largest or smallest of the inner 2x2 pixels, and of the ring around them."""
        if self.together == 2:  # pixels 2 and 3 share a register: put 4 and 1 into another
            lanes = ir.Constant(ir.VectorType(I32, LANES), [8, 9, 10, 3, 4, 5, 3, 4])
            sides = [self.builder.shuffle_vector(row[0], row[2], lanes) for row in block[1:5]]
            core = [self.pick(sign, block[2][1], block[3][1])]
            ring = [self.pick(sign, *sides, block[1][1], block[4][1])]
            return (
                self.pick(sign, self.pixel(core, 0), self.pixel(core, 1)),
                self.pick(sign, self.pixel(ring, 0), self.pixel(ring, 1)),
            )
        outer, inner = [self.pick(sign, block[1][0], block[4][0])], [self.pick(sign, block[2][0], block[3][0])]
        every = [self.pick(sign, outer[0], inner[0])]
        sides = [self.pixel(every, 1), self.pixel(outer, 2), self.pixel(outer, 3), self.pixel(every, 4)]
        return self.pick(sign, self.pixel(inner, 2), self.pixel(inner, 3)), self.pick(sign, *sides)

    def held(self, value: Any, block: list[list[Any]]) -> Any:
        """Clamp a value to the 4x4 pixels around it."""
        half = self.spread(FLOAT(0.5), self.width)
        for sign, apart in ((">", self.builder.fadd), ("<", self.builder.fsub)):
            core, ring = self.extremes(sign, block)
            high, low = (core, ring) if sign == ">" else (ring, core)
            beyond = apart(core, self.builder.fmul(half, self.builder.fsub(high, low)))
            bound = self.builder.select(self.builder.fcmp_ordered(sign, ring, core), ring, beyond)
            value = self.builder.select(self.builder.fcmp_ordered(sign, value, bound), bound, value)
        return value


def _interpolation(channels: int) -> Any:
    """Return the compiled interpolation of a run of pixels; see :func:`_plain_interpolation`."""

    @intrinsic
    def run(
        typingctx: Any, src: Any, row0: Any, stride: Any, xq: Any, yq: Any, count: Any,
        table: Any, clamp: Any, scale: Any, offset: Any, line: Any,
    ) -> Any:  # fmt: skip
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            emit = _Emitter(builder, channels)
            data = {
                k: context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 3, 4, 6, 8, 9, 10)
            }
            factors, terms = (emit.channel_numbers(data[k]) for k in (8, 9))
            many = ir.VectorType(FLOAT, emit.width)
            doubles = ir.VectorType(DOUBLE, emit.width)
            flags = ir.VectorType(I32, emit.width)
            invalid = cgutils.alloca_once_value(builder, ir.Constant(flags, [0] * emit.width))

            def one_pixel(i: Any, x: Any, y: Any) -> None:
                top = builder.sub(builder.ashr(y, I64(10)), builder.add(args[1], I64(2)))
                left = builder.mul(builder.sub(builder.ashr(x, I64(10)), I64(2)), I64(channels))
                block = emit.block(data[0], builder.add(builder.mul(top, args[2]), left), args[2])
                emit.prefetch(data[0], builder.add(builder.mul(builder.add(top, I64(AHEAD)), args[2]), left))
                down = emit.down_weights(data[6], builder.and_(y, I64(1023)))
                along = emit.along_weights(data[6], builder.and_(x, I64(1023)))
                held = cgutils.alloca_once_value(builder, emit.value(block, down, along))
                with builder.if_then(context.cast(builder, args[7], signature.args[7], types.boolean)):
                    builder.store(emit.held(builder.load(held), block), held)
                value = builder.load(held)
                nan = builder.sext(builder.fcmp_unordered("uno", value, value), flags)
                builder.store(builder.or_(builder.load(invalid), nan), invalid)
                wide = builder.fadd(builder.fmul(builder.fpext(value, doubles), factors), terms)
                place = builder.gep(data[10], [builder.mul(i, I64(channels))])
                builder.store(builder.fptrunc(wide, many), builder.bitcast(place, many.as_pointer()), align=4)

            with cgutils.for_range_slice(builder, I64(0), args[5], I64(1), I64) as (i, _):
                x, y = (builder.sext(builder.load(builder.gep(data[k], [i])), I64) for k in (3, 4))
                with builder.if_then(builder.icmp_signed(">=", x, I64(0)), likely=True):
                    one_pixel(i, x, y)
            found = builder.load(invalid)
            lanes = [builder.extract_element(found, I32(c)) for c in range(channels)]
            total = lanes[0]
            for lane in lanes[1:]:
                total = builder.or_(total, lane)
            return builder.icmp_signed("!=", total, I32(0))

        whole = types.int64
        kinds = (src, whole, whole, xq, yq, whole, table, types.boolean, scale, offset, line)
        return types.boolean(*kinds), generate

    return run


def _plain_interpolation(channels: int) -> Any:
    """Return the interpolation of a run of pixels in Python.

    ``run(src, row0, stride, xq, yq, count, table, clamp, scale, offset, line)`` writes the first ``count`` pixels of
    ``line``, which has :data:`SPARE` numbers more than it needs, and returns True if one of them is NaN. ``xq, yq (n,)
    int32`` are positions in the frame in units of 1/1024 pixel; the 6x6 pixels around each lie in ``src``, whose first
    row is row ``row0`` of the frame. Pixels whose ``xq`` is negative are left out, with anything in their place. Taps
    are summed down each column first, then along the row, float32; with ``clamp`` held to the range of the 4x4 pixels
    around it, as :func:`resample.warp.resample_rows` describes. ``scale, offset (C,) float64`` are applied in
    float64.
    """

    def one_pixel(src: np.ndarray, at: int, stride: int, table: np.ndarray, py: int, px: int, clamp: bool) -> Any:
        rows = [src[at + k * stride :][: TAPS * channels].reshape(TAPS, channels) for k in range(TAPS)]
        column = table[py, 0] * rows[0]
        for k in range(1, TAPS):
            column = column + table[py, k] * rows[k]
        value = table[px, 0] * column[0]
        for k in range(1, TAPS):
            value = value + table[px, k] * column[k]
        if clamp:
            block = np.stack([r[1:5] for r in rows[1:5]])
            core = block[1:3, 1:3].reshape(4, channels)
            edge = np.ones((4, 4), bool)
            edge[1:3, 1:3] = False
            ring = block[edge]
            top, low = core.max(axis=0), core.min(axis=0)
            half = np.float32(0.5)
            upper = np.where(ring.max(axis=0) > top, ring.max(axis=0), top + half * (top - ring.max(axis=0)))
            lower = np.where(ring.min(axis=0) < low, ring.min(axis=0), low - half * (ring.min(axis=0) - low))
            value = np.where(value > upper, upper, value)
            value = np.where(value < lower, lower, value)
        return value

    def run(
        src: np.ndarray, row0: int, stride: int, xq: np.ndarray, yq: np.ndarray, count: int,
        table: np.ndarray, clamp: bool, scale: np.ndarray, offset: np.ndarray, line: np.ndarray,
    ) -> bool:  # fmt: skip
        invalid = False
        for i in np.flatnonzero(xq[:count] >= 0).tolist():
            x, y = int(xq[i]), int(yq[i])
            at = ((y >> 10) - 2 - row0) * stride + ((x >> 10) - 2) * channels
            value = one_pixel(src, at, stride, table, y & 1023, x & 1023, clamp)
            invalid = invalid or bool(np.isnan(value).any())
            line[i * channels : (i + 1) * channels] = value * scale + offset
        return invalid

    return run


# The interpolation of a run of pixels of 1 or 3 channels.
interpolate_grey, interpolate_rgb = (
    (_plain_interpolation if numba.config.DISABLE_JIT else _interpolation)(channels) for channels in (1, 3)
)


@intrinsic
def _demosaic_run(
    typingctx: Any, raw: Any, row: Any, width: Any, start: Any, stop: Any, own_first: Any, on_red_row: Any,
    out: Any, place: Any,
) -> Any:  # fmt: skip
    """Demosaic a run of pixels; see :func:`_plain_demosaic_run`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        raw_data, out_data = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 7))
        row, width, start, stop = args[1:5]
        i1 = ir.IntType(1)
        bits = ir.VectorType(i1, LANES)
        even = ir.Constant(bits, [k % 2 == 0 for k in range(LANES)])
        odd = ir.Constant(bits, [k % 2 == 1 for k in range(LANES)])
        own_first = context.cast(builder, args[5], signature.args[5], types.boolean)
        red_row = context.cast(builder, args[6], signature.args[6], types.boolean)
        is_own = builder.select(own_first, even, odd)
        starts = {dy: builder.mul(builder.add(row, I64(dy)), width) for dy in range(-2, 3)}

        def constant(value: float) -> Any:
            return ir.Constant(VECTOR, [value] * LANES)

        def times(vector: Any, value: float) -> Any:
            return builder.fmul(vector, constant(value))

        with cgutils.for_range_slice(builder, start, stop, I64(LANES), I64) as (x, _):

            def at(dy: int, dx: int) -> Any:
                place = builder.gep(raw_data, [builder.add(builder.add(starts[dy], x), I64(dx))])
                return builder.load(builder.bitcast(place, VECTOR.as_pointer()), align=4)

            c = at(0, 0)
            vertical1, horizontal1 = builder.fadd(at(-1, 0), at(1, 0)), builder.fadd(at(0, -1), at(0, 1))
            vertical2, horizontal2 = builder.fadd(at(-2, 0), at(2, 0)), builder.fadd(at(0, -2), at(0, 2))
            diagonal = builder.fadd(builder.fadd(at(-1, -1), at(-1, 1)), builder.fadd(at(1, -1), at(1, 1)))
            crosswise2 = builder.fadd(vertical2, horizontal2)

            def along(near: Any, far: Any, beside: Any) -> Any:
                total = builder.fadd(times(c, 5.0), times(near, 4.0))
                total = builder.fsub(total, builder.fadd(far, diagonal))
                return times(builder.fadd(total, times(beside, 0.5)), 0.125)

            total = builder.fadd(times(c, 4.0), times(builder.fadd(vertical1, horizontal1), 2.0))
            green = times(builder.fsub(total, crosswise2), 0.125)
            total = builder.fadd(times(c, 6.0), times(diagonal, 2.0))
            other = times(builder.fsub(total, times(crosswise2, 1.5)), 0.125)
            own = builder.select(is_own, c, along(horizontal1, horizontal2, vertical2))
            green = builder.select(is_own, green, c)
            far = builder.select(is_own, other, along(vertical1, vertical2, horizontal2))
            red, blue = builder.select(red_row, own, far), builder.select(red_row, far, own)
            both = builder.shuffle_vector(
                red, green, ir.Constant(ir.VectorType(I32, 2 * LANES), list(range(2 * LANES)))
            )
            rest = builder.shuffle_vector(
                blue, blue, ir.Constant(ir.VectorType(I32, 2 * LANES), list(range(2 * LANES)))
            )
            for third in range(3):
                numbers = range(third * LANES, (third + 1) * LANES)
                order = [(n % 3) * LANES + n // 3 for n in numbers]  # place of channel n % 3 of pixel n // 3
                piece = builder.shuffle_vector(both, rest, ir.Constant(ir.VectorType(I32, LANES), order))
                offset = builder.add(builder.mul(builder.add(args[8], x), I64(3)), I64(third * LANES))
                builder.store(piece, builder.bitcast(builder.gep(out_data, [offset]), VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    whole = types.int64
    kinds = (raw, whole, whole, whole, whole, types.boolean, types.boolean, out, whole)
    return types.void(*kinds), generate


def _plain_demosaic_run(
    raw: np.ndarray, row: int, width: int, start: int, stop: int, own_first: bool, on_red_row: bool,
    out: np.ndarray, place: int,
) -> None:  # fmt: skip
    """Demosaic pixels ``start`` to ``stop - 1``, a multiple of :data:`LANES`, of a row of ``raw (rows, W) float32``.

    None of them may be within 2 pixels of an edge. ``own_first``: pixel ``start`` is not green; ``on_red_row``: the
    other colour of this row is red. Pixel x goes to elements ``3 (place + x) ...`` of ``out``. The sums are those of
    ``resample.demosaic.demosaic_rows``.
    """
    a, b, m, d, e = (raw[row + k] for k in range(-2, 3))
    x = np.arange(start, stop)
    c = m[x]
    vertical1, horizontal1 = b[x] + d[x], m[x - 1] + m[x + 1]
    vertical2, horizontal2 = a[x] + e[x], m[x - 2] + m[x + 2]
    diagonal = (b[x - 1] + b[x + 1]) + (d[x - 1] + d[x + 1])
    two, four, five, six = (np.float32(k) for k in (2, 4, 5, 6))
    half, eighth, three_halves = np.float32(0.5), np.float32(0.125), np.float32(1.5)
    green = (c * four + (vertical1 + horizontal1) * two - (vertical2 + horizontal2)) * eighth
    other = (c * six + diagonal * two - (vertical2 + horizontal2) * three_halves) * eighth
    across = (c * five + horizontal1 * four - (horizontal2 + diagonal) + vertical2 * half) * eighth
    along = (c * five + vertical1 * four - (vertical2 + diagonal) + horizontal2 * half) * eighth
    is_own = (x - start) % 2 == (0 if own_first else 1)
    own, far = np.where(is_own, c, across), np.where(is_own, other, along)
    colours = (own, np.where(is_own, green, c), far) if on_red_row else (far, np.where(is_own, green, c), own)
    out[3 * (place + start) : 3 * (place + stop)] = np.stack(colours, axis=1).reshape(-1)


demosaic_run = _plain_demosaic_run if numba.config.DISABLE_JIT else _demosaic_run

"""Demosaicing and interpolation of a run of pixels, in vector registers.

Interpolation: a pixel of the result is a weighted sum of 6x6 pixels of the frame. The 6 pixels of a row lie one behind
the other, their channels interleaved: few registers hold all of them, and the sums down the columns are a handful of
instructions. Only the sum along the row has to take registers apart.

Demosaicing: what each pixel would be as either kind of sample is computed for 8 pixels at once, the right one is
chosen, and the colours are interleaved in registers.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, Final

import numpy as np

from zemosaic_phase3.runtime.llvm import (
    F32,
    F64,
    I32,
    I64,
    Array,
    Emitter,
    Value,
    Variable,
    bit_mask,
    maximum,
    minimum,
    total,
    where,
)
from zemosaic_phase3.runtime.twin import Flag, Int, hand_written

TAPS: Final = 6  # pixels per axis that an interpolation may use
VECTOR_WIDTH: Final = 8  # numbers in a register; where the processor's are shorter the compiler splits them
AHEAD: Final = 8  # rows from the first of a block to one that a later row of the result will need
SPARE: Final = 4  # numbers behind a run of the result that are overwritten

Rows = list[list[Value]]
"""Rows of 6 pixels, each in registers of 2 pixels of 3 channels, or in one register."""


class _Pixels:
    """How the 6 pixels of a row, of 1 or 3 channels, lie in registers: ``together`` of them in each.

    A pixel taken out of them has ``width`` lanes: of four lanes for three channels nobody looks at the last.
    """

    def __init__(self, emit: Emitter, channels: int) -> None:
        self.emit, self.channels = emit, channels
        self.together = 2 if channels == 3 else TAPS
        self.width = 4 if channels == 3 else 1

    def rows(self, src: Array, at: Value, stride: Value) -> Rows:
        """Load 6 rows of 6 pixels."""
        starts = range(0, TAPS * self.channels, self.together * self.channels)
        return [[src.load(at + stride * k + start, VECTOR_WIDTH) for start in starts] for k in range(TAPS)]

    def one(self, registers: list[Value], k: int) -> Value:
        """Take pixel k out of the registers of a row."""
        first = (k % self.together) * self.channels
        return registers[k // self.together].shuffle([(first + c) % VECTOR_WIDTH for c in range(self.width)])

    def weights_along(self, table: Array, phase: Value) -> list[Value]:
        """Weights as the registers of a row hold the pixels; in two loads, because 8 would leave the table."""
        low, high = table.load(phase * TAPS, 4), table.load(phase * TAPS + (TAPS - 4), 4)
        registers = []
        for start in range(0, TAPS, self.together):
            taps = [min(start + lane // self.channels, TAPS - 1) for lane in range(VECTOR_WIDTH)]
            registers.append(low.shuffle([tap if tap < 4 else tap - (TAPS - 4) + 4 for tap in taps], high))
        return registers

    def numbers(self, array: Array) -> Value:
        """Return a vector of one number per channel, float64."""
        zero = self.emit.constant(F64, 0.0)
        return self.emit.vector([array[c] if c < self.channels else zero for c in range(self.width)])

    def value(self, rows: Rows, down: list[Value], along: list[Value]) -> Value:
        """Sum down the columns, then along the row."""
        columns = [total([w * row[g] for w, row in zip(down, rows, strict=True)]) for g in range(len(along))]
        weighted = [weight * column for weight, column in zip(along, columns, strict=True)]
        return total([self.one(weighted, k) for k in range(TAPS)])

    def extreme(self, larger: Any, rows: Rows) -> tuple[Value, Value]:
        """Return the largest or smallest of the inner 2x2 pixels, and of the ring around them."""
        if self.together == 2:  # pixels 2 and 3 share a register: put 4 and 1 into another
            sides = [row[0].shuffle([8, 9, 10, 3, 4, 5, 3, 4], row[2]) for row in rows[1:5]]
            core = [larger(rows[2][1], rows[3][1])]
            ring = [reduce(larger, [*sides, rows[1][1], rows[4][1]])]
            return larger(self.one(core, 0), self.one(core, 1)), larger(self.one(ring, 0), self.one(ring, 1))
        outer, inner = [larger(rows[1][0], rows[4][0])], [larger(rows[2][0], rows[3][0])]
        every = [larger(outer[0], inner[0])]
        ring = [self.one(every, 1), self.one(outer, 2), self.one(outer, 3), self.one(every, 4)]
        return larger(self.one(inner, 2), self.one(inner, 3)), reduce(larger, ring)

    def clamped(self, value: Value, rows: Rows) -> Value:
        """Hold a value to the range of the 4x4 pixels around it."""
        core, ring = self.extreme(maximum, rows)
        upper = where(ring > core, ring, core + 0.5 * (core - ring))
        value = where(value > upper, upper, value)
        core, ring = self.extreme(minimum, rows)
        lower = where(ring < core, ring, core - 0.5 * (ring - core))
        return where(value < lower, lower, value)


def _interpolation(name: str, channels: int) -> Any:
    """Return the interpolation of a run of pixels of 1 or 3 channels.

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

    def plain(
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

    @hand_written(plain, name=name)
    def run(
        emit: Emitter, src: Array, row0: Int, stride: Int, xq: Array, yq: Array, count: Int, table: Array, clamp: Flag,
        scale: Array, offset: Array, line: Array,
    ) -> Flag:  # fmt: skip
        pixels = _Pixels(emit, channels)
        factors, terms = pixels.numbers(scale), pixels.numbers(offset)
        invalid = Variable(emit.constant(I64, 0))

        def one_pixel(i: Value, x: Value, y: Value) -> None:
            top, left = (y >> 10) - (row0 + 2), ((x >> 10) - 2) * channels
            rows = pixels.rows(src, top * stride + left, stride)
            src.prefetch((top + AHEAD) * stride + left)
            down = [table[(y & 1023) * TAPS + k].spread(VECTOR_WIDTH) for k in range(TAPS)]
            value = Variable(pixels.value(rows, down, pixels.weights_along(table, x & 1023)))
            with emit.when(clamp):
                value.now = pixels.clamped(value.now, rows)
            found = value.now
            invalid.now |= bit_mask(found != found)
            line.store(i * channels, (found.to(F64) * factors + terms).to(F32))

        with emit.range(0, count) as i:
            x, y = xq[i].to(I64), yq[i].to(I64)
            with emit.when(x >= 0, likely=True):
                one_pixel(i, x, y)
        return (invalid.now & (2**channels - 1)) != 0  # the last of four lanes is no channel

    return run


interpolate_grey, interpolate_rgb = _interpolation("interpolate_grey", 1), _interpolation("interpolate_rgb", 3)


def _plain_demosaic_run(
    raw: np.ndarray, row: int, width: int, start: int, stop: int, own_first: bool, on_red_row: bool,
    out: np.ndarray, place: int,
) -> None:  # fmt: skip
    """Demosaic pixels ``start`` to ``stop - 1`` of a row of ``raw (rows, W) float32``.

    Their number is a multiple of :data:`VECTOR_WIDTH`, and none of them is within 2 pixels of an edge. ``own_first``:
    pixel ``start`` is not green; ``on_red_row``: the other colour of this row is red. Pixel x goes to elements ``3
    (place + x) ...`` of ``out``. The sums are those of ``resample.demosaic.demosaic_rows``.
    """
    a, b, m, d, e = (raw[row + k] for k in range(-2, 3))
    x = np.arange(start, stop)
    c = m[x]
    vertical1, horizontal1 = b[x] + d[x], m[x - 1] + m[x + 1]
    vertical2, horizontal2 = a[x] + e[x], m[x - 2] + m[x + 2]
    diagonal = (b[x - 1] + b[x + 1]) + (d[x - 1] + d[x + 1])
    green = (c * 4.0 + (vertical1 + horizontal1) * 2.0 - (vertical2 + horizontal2)) * 0.125
    other = (c * 4.0 + diagonal * 2.0 - (vertical2 + horizontal2)) * 0.125
    across = (c * 15.0 + horizontal1 * 16.0 - (horizontal2 + diagonal) * 3.0 + vertical2 * 1.5) * 0.03125
    along = (c * 15.0 + vertical1 * 16.0 - (vertical2 + diagonal) * 3.0 + horizontal2 * 1.5) * 0.03125
    is_own = (x - start) % 2 == (0 if own_first else 1)
    own, far = np.where(is_own, c, across), np.where(is_own, other, along)
    colours = (own, np.where(is_own, green, c), far) if on_red_row else (far, np.where(is_own, green, c), own)
    out[3 * (place + start) : 3 * (place + stop)] = np.stack(colours, axis=1).reshape(-1)


@hand_written(_plain_demosaic_run)
def demosaic_run(  # noqa: D103 - its twin says what it does
    emit: Emitter, raw: Array, row: Int, width: Int, start: Int, stop: Int, own_first: Flag, on_red_row: Flag,
    out: Array, place: Int,
) -> None:  # fmt: skip
    parity = emit.constants(I32, [k % 2 for k in range(VECTOR_WIDTH)])
    is_own = where(own_first, parity == 0, parity == 1)
    starts = {dy: (row + dy) * width for dy in range(-2, 3)}
    with emit.range(start, stop, VECTOR_WIDTH) as x:

        def at(dy: int, dx: int) -> Value:
            return raw.load(starts[dy] + x + dx, VECTOR_WIDTH)

        c = at(0, 0)
        vertical1, horizontal1 = at(-1, 0) + at(1, 0), at(0, -1) + at(0, 1)
        vertical2, horizontal2 = at(-2, 0) + at(2, 0), at(0, -2) + at(0, 2)
        diagonal = (at(-1, -1) + at(-1, 1)) + (at(1, -1) + at(1, 1))
        green = (c * 4.0 + (vertical1 + horizontal1) * 2.0 - (vertical2 + horizontal2)) * 0.125
        other = (c * 4.0 + diagonal * 2.0 - (vertical2 + horizontal2)) * 0.125
        across = (c * 15.0 + horizontal1 * 16.0 - (horizontal2 + diagonal) * 3.0 + vertical2 * 1.5) * 0.03125
        along = (c * 15.0 + vertical1 * 16.0 - (vertical2 + diagonal) * 3.0 + horizontal2 * 1.5) * 0.03125
        own, far, green = where(is_own, c, across), where(is_own, other, along), where(is_own, green, c)
        red, blue = where(on_red_row, own, far), where(on_red_row, far, own)
        both, rest = red.shuffle(range(2 * VECTOR_WIDTH), green), blue.shuffle(range(2 * VECTOR_WIDTH), blue)
        for third in range(3):
            numbers = range(third * VECTOR_WIDTH, (third + 1) * VECTOR_WIDTH)
            order = [(n % 3) * VECTOR_WIDTH + n // 3 for n in numbers]  # place of channel n % 3 of pixel n // 3
            out.store((place + x) * 3 + third * VECTOR_WIDTH, both.shuffle(order, rest))

"""Rows of many frames in memory, copied into one buffer by one compiled call.

The buffer is written once and then read by the bus alone, so the copy goes past the caches (non-temporal stores): an
ordinary store would first read the line it is about to overwrite, a third more traffic on the memory that limits all.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from zemosaic_kernels import kernel

_LINE = ir.VectorType(ir.IntType(64), 8)


@intrinsic
def _copy_line(typingctx: Any, target: Any, source: Any) -> Any:  # noqa: ARG001
    """Copy 64 bytes between addresses, past the caches; ``target`` is a multiple of 64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, start = (builder.inttoptr(address, _LINE.as_pointer()) for address in arguments)
        store = builder.store(builder.load(start, align=1), to, align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return numba.void(numba.uint64, numba.uint64), generate


@intrinsic
def _copy_byte(typingctx: Any, target: Any, source: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, start = (builder.inttoptr(address, cgutils.int8_t.as_pointer()) for address in arguments)
        builder.store(builder.load(start), to)
        return context.get_dummy_value()

    return numba.void(numba.uint64, numba.uint64), generate


@intrinsic
def _fence(typingctx: Any) -> Any:  # noqa: ARG001
    """Let no later store overtake the copies."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return numba.void(), generate


@kernel
def gather_rows(sources, targets, sizes) -> None:
    """Copy ``sizes`` bytes from the addresses ``sources`` to the addresses ``targets``, all ``(n,) uint64``."""
    step = numba.uint64(64)
    one = numba.uint64(1)
    for i in range(sources.size):
        source = sources[i]
        target = targets[i]
        end = target + sizes[i]
        while target < end and target % step != 0:
            _copy_byte(target, source)
            target += one
            source += one
        while target + step <= end:
            _copy_line(target, source)
            target += step
            source += step
        while target < end:
            _copy_byte(target, source)
            target += one
            source += one
    _fence()

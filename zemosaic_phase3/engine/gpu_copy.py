"""Rows of many frames, in memory or in files, into pinned buffers, by threads that do not meet the interpreter.

A tile is cut into hundreds of batches, and a bus that carries one in a third of a millisecond does not wait for
interpreter locks. So each thread enters compiled code once and takes *pieces* (the rows of one frame for one slab) from
a shared list, in order, until all are there. Counters in memory, changed atomically, say who is where; a thread that is
too far ahead sleeps where it is (on Windows, where it comes out for that).

The buffers are written once and then read by the bus alone, so a copy goes past the caches (non-temporal stores): an
ordinary store would first read the line it is about to overwrite, a third more traffic on the memory that limits all.

Files are read by ``open``, ``pread`` and ``close`` of the C library, which is why this needs a POSIX system for them.
"""

from __future__ import annotations

import ctypes
import os

import numba

from zemosaic_phase3.runtime.jit import kernel
from zemosaic_phase3.runtime.llvm import I8, I64, Emitter
from zemosaic_phase3.runtime.twin import Address, Int, hand_written

LINE = 8  # int64 that are copied at once, the 64 bytes of a line of the caches


def _plain_copy_line(target: int, source: int) -> None:
    """Copy 64 bytes between addresses, past the caches; ``target`` is a multiple of 64."""
    ctypes.memmove(target, source, 8 * LINE)


@hand_written(_plain_copy_line)
def _copy_line(emit: Emitter, target: Address, source: Address) -> None:
    line = emit.memory(source, I64).load(0, LINE, align=1)
    emit.memory(target, I64).store(0, line, align=64, past_caches=True)


def _plain_copy_byte(target: int, source: int) -> None:
    ctypes.memmove(target, source, 1)


@hand_written(_plain_copy_byte)
def _copy_byte(emit: Emitter, target: Address, source: Address) -> None:
    emit.memory(target, I8)[0] = emit.memory(source, I8)[0]


def _plain_fetch_add(address: int, value: int) -> int:
    """Add to the number at an address and return what it was; nothing written before it is seen after it."""
    number = ctypes.c_int64.from_address(address)
    before = number.value
    number.value += value
    return before


@hand_written(_plain_fetch_add)
def _fetch_add(emit: Emitter, address: Address, value: Int) -> Int:
    return emit.memory(address, I64).fetch_add(0, value)


def _plain_look(address: int) -> int:
    """Return the number at an address as it is now."""
    return ctypes.c_int64.from_address(address).value


@hand_written(_plain_look)
def _look(emit: Emitter, address: Address) -> Int:
    return emit.memory(address, I64).load_atomic(0)


@kernel
def _copy(source, target, size) -> None:
    end = target + size
    step = numba.uint64(64)
    one = numba.uint64(1)
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


# Called with a fixed number of arguments, as the C library's own callers without a mode do.
_open = numba.types.ExternalFunction("open", numba.int32(numba.uint64, numba.int32))
_pread = numba.types.ExternalFunction("pread", numba.int64(numba.int32, numba.uint64, numba.uint64, numba.int64))
_close = numba.types.ExternalFunction("close", numba.int32(numba.int32))


@kernel
def _read(path, flags, offset, target, size) -> bool:
    """Read ``size`` bytes at an offset of a file; False if they cannot be had."""
    file = _open(path, flags)
    if file < 0:
        return False
    done = numba.uint64(0)
    count = numba.int64(1)
    while done < size and count > 0:
        count = _pread(file, target + done, size - done, offset + numba.int64(done))
        if count > 0:
            done += numba.uint64(count)
    _close(file)
    return done == size


if os.name == "posix":
    _usleep = numba.types.ExternalFunction("usleep", numba.int32(numba.uint32))

    @kernel
    def _rest() -> None:
        """Sleep a moment without meeting the interpreter."""
        _usleep(numba.uint32(20))

else:

    @kernel
    def _rest() -> None:
        """Look again at once; whoever called sleeps when patience ends."""


@kernel
def _reaches(counters, index, count, patience) -> bool:
    """Look at ``counters[index]`` until it is ``count`` or more; False when patience ends first."""
    place = numba.uint64(counters.ctypes.data) + numba.uint64(8 * index)
    looks = 0
    while _look(place) < count:
        looks += 1
        if looks > 2000:  # some microseconds
            _rest()
        if looks > patience:
            return False
    return True


@kernel
def copy_pieces(sources, targets, sizes, batch_of, counters, piece, patience) -> int:
    """Copy pieces, in turns with other threads, until none is left or the next one's buffer stays taken.

    Parameters
    ----------
    sources, targets, sizes : ndarray (n,) uint64
        Addresses and bytes of every piece of a tile, in the order of their batches.
    batch_of : ndarray (n,) int64
        Batch of every piece.
    counters : ndarray (2 + batches,) int64
        Next piece to take; batches that may be filled; and for each batch the pieces that are in.
    piece : int
        One that this thread has taken already, -1 for none.
    patience : int
        Looks at a taken buffer before giving up.

    Returns
    -------
    int
        The piece whose buffer is taken, to be passed in again; -1 when all pieces have been copied or are others'.
    """
    base = numba.uint64(counters.ctypes.data)
    while True:
        if piece < 0:
            piece = _fetch_add(base, 1)
        if piece >= sources.size:
            return -1
        if not _reaches(counters, 1, batch_of[piece] + 1, patience):
            return piece
        _copy(sources[piece], targets[piece], sizes[piece])
        _fetch_add(base + numba.uint64(8 * (batch_of[piece] + 2)), 1)
        piece = -1


@kernel
def read_pieces(paths, offsets, flags, targets, sizes, batch_of, failed, counters, piece, patience) -> int:
    """Do the same with files: ``paths (n,) uint64`` are addresses of their names, ``offsets (n,) int64`` in bytes.

    ``failed (n,) uint8`` becomes 1 where a piece could not be read; it counts as being in.
    """
    base = numba.uint64(counters.ctypes.data)
    while True:
        if piece < 0:
            piece = _fetch_add(base, 1)
        if piece >= paths.size:
            return -1
        if not _reaches(counters, 1, batch_of[piece] + 1, patience):
            return piece
        if not _read(paths[piece], flags, offsets[piece], targets[piece], sizes[piece]):
            failed[piece] = 1
        _fetch_add(base + numba.uint64(8 * (batch_of[piece] + 2)), 1)
        piece = -1


@kernel
def await_count(counters, index, count, patience) -> bool:
    """Wait until ``counters[index]`` is ``count`` or more; False when patience ends first."""
    return _reaches(counters, index, count, patience)

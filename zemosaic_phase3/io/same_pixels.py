"""Files that hold the same exposure: told by their pixels, whatever they are called and whatever their headers say.

Copies made by a program that synchronises folders, and cameras that hand out one buffer twice, would count twice. A few
kilobytes of each file are compared; only files in which those agree are read whole.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.pixel_files import PixelFile, file_errors
from zemosaic_phase3.io.remote import opened

SAMPLE_PLACES: Final = 4  # of a file that are looked at
SAMPLE_BYTES: Final = 1024  # of each
CHUNK_BYTES: Final = 1 << 20
FIRST_ROWS: Final = 16  # of frames that are stored in different ways; of a .gz they cost least


def same_exposures(sources: Mapping[int, FrameSource], starts: Mapping[int, str]) -> list[list[int]]:
    """Return the sets of frames that hold the same pixels, each with two members at least, in the order given.

    Parameters
    ----------
    sources : mapping of int to FrameSource
        Opened; those that are not files are left aside, for a program that gives an array twice means it.
    starts : mapping of int to str
        When each was exposed, as its header has it: files that are stored in different ways (compressed and not) are
        only compared where this agrees.

    Notes
    -----
    Frames of one value throughout are no exposures, and not told here. A frame that cannot be read is left to whoever
    reads it next.
    """
    files = {i: source for i, source in sources.items() if isinstance(source, PixelFile)}
    leader = {i: i for i in files}  # of equal frames the first
    for members in _bins(files, lambda i: (files[i].storage, _sample(files[i]))):
        leader.update((i, same[0]) for same in _really_same(files, members, _whole) for i in same)
    # Copies in another format; of equal files one stands for all.
    lone = [i for i in files if leader[i] == i and starts.get(i)]
    for members in _bins(lone, lambda i: (starts[i], files[i].shape)):
        if len({files[i].storage for i in members}) > 1:
            near = _bins(members, lambda i: _digest(files[i].read_rows(0, min(FIRST_ROWS, files[i].height))))
            for few in near:
                leader.update((i, same[0]) for same in _really_same(files, few, _decoded) for i in same)
    return _bins(files, lambda i: leader[leader[i]])


def _bins(files: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Sort frames by a key; return the bins of two and more. A frame without a key (unreadable) is in none."""
    bins: dict[Hashable, list[int]] = defaultdict(list)
    for i in files:
        try:
            bins[key(i)].append(i)
        except (FrameError, ValueError):
            continue
    return [members for members in bins.values() if len(members) > 1]


def _really_same(
    files: Mapping[int, PixelFile], members: Sequence[int], whole: Callable[[PixelFile], bytes]
) -> list[list[int]]:
    """Sort out frames whose samples agree: one file under two names is not read, the others are, whole."""
    by_file = _bins(members, lambda i: (files[i].identity, files[i].place.unit, files[i].place.member))
    same_file = {i: bin_[0] for bin_ in by_file for i in bin_}
    readers = [i for i in members if same_file.get(i, i) == i]
    equal = _bins(readers, lambda i: whole(files[i])) if len(readers) > 1 else []
    leader = {i: bin_[0] for bin_ in equal for i in bin_}
    return _bins(members, lambda i: leader.get(same_file.get(i, i), same_file.get(i, i)))


def _sample(source: PixelFile) -> bytes:
    """Return a digest of a few blocks of the stored pixels; of what is deflated its checksum and length."""
    member = source.place.member
    if member is not None and not member.is_plain:
        return f"{member.crc} {member.size}".encode()
    with file_errors(source.name), opened(source.place.path, source.identity.size) as stream:
        if source.place.gzipped:
            stream.seek(0, 2)
            stream.seek((stream.tell() if member is None else member.start + member.packed) - 8)
            return stream.read(8)
        start, end = _span(source)
        digest = hashlib.blake2b(digest_size=16)
        for k in range(SAMPLE_PLACES):
            stream.seek(start + (2 * k + 1) * (end - start) // (2 * SAMPLE_PLACES))
            digest.update(stream.read(min(SAMPLE_BYTES, end - start)))
        return digest.digest()


def _span(source: PixelFile) -> tuple[int, int]:
    """Return where the stored pixels begin and end in the file; of a compressed image its end is that of the file."""
    member = source.place.member
    start = source.place.offset + (0 if member is None else member.start)
    if source.is_encoded:
        return start, source.identity.size if member is None else member.start + member.packed
    samples = source.height * source.width * (1 if source.cfa else source.channels)
    return start, start + samples * source.stored_type.itemsize


def _whole(source: PixelFile) -> bytes:
    """Return a digest of all stored pixels; raises ValueError for a frame of one value."""
    if source.place.is_packed:
        return _digest(source.read_rows(0, source.height))
    digest = hashlib.blake2b(digest_size=16)
    start, end = _span(source)
    is_compressed = source.is_encoded
    lows, highs = [], []
    with file_errors(source.name), opened(source.place.path, source.identity.size) as stream:
        stream.seek(start)
        left = end - start
        while left > 0 and (block := stream.read(min(CHUNK_BYTES, left))):
            digest.update(block)
            left -= len(block)
            if not is_compressed and not len(block) % source.stored_type.itemsize:
                numbers = np.frombuffer(block, source.stored_type)
                lows.append(numbers.min())
                highs.append(numbers.max())
    if lows and min(lows) == max(highs):
        raise ValueError("one value throughout")
    return digest.digest()


def _decoded(source: PixelFile) -> bytes:
    """Return a digest of all samples as they are read, whatever the format."""
    return _digest(source.read_rows(0, source.height))


def _digest(pixels: np.ndarray) -> bytes:
    """Return a digest of samples; raises ValueError for those of one value."""
    if pixels.size and pixels.min() == pixels.max():
        raise ValueError("one value throughout")
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()

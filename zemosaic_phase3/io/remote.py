"""Frames that lie elsewhere: object storage and whatever else fsspec reaches (``s3://``, ``gs://``, ``https://``).

A frame is read where it lies, by ranges: a slab asks for its rows and gets those bytes. Nothing is copied to a disk.
Only this file imports fsspec, and only when an address is opened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from io import BufferedIOBase, BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

import numpy as np

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.extras import install
from zemosaic_phase3.io.origin import Identity

Result = TypeVar("Result")

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: "c:" is a drive
BUFFER: Final = 1 << 16  # bytes fetched at once where headers are walked through; larger reads go past it
ATTEMPTS: Final = 2  # of a request, before the frame is left out; s3fs and its like try several times within each
WAIT_S: Final = 1.0  # between them


def is_remote(path: object) -> bool:
    """Tell whether a text is an address, such as ``s3://bucket/night/a.fits``, and no path."""
    return isinstance(path, str) and _ADDRESS.match(path) is not None


@functools.cache
def _file_system(protocol: str, process: int) -> Any:  # noqa: ARG001 - a forked process must not use its parent's
    try:
        import fsspec
    except ImportError as exc:
        raise FrameError(
            f"{protocol}://", "addresses are read with fsspec, which is not installed; "
            f"{install('remote')}",
        ) from exc  # fmt: skip
    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as exc:  # ValueError: nobody knows this protocol
        raise FrameError(f"{protocol}://", f"fsspec cannot reach it ({exc}); install what it names") from exc


def forget_connections() -> None:
    """Connect anew with the next address: credentials or the place of the storage are others now."""
    _file_system.cache_clear()


def file_system(address: str) -> Any:
    """Return what reaches an address, one for each kind of address and process.

    Raises
    ------
    FrameError
        fsspec, or its part for this kind of address, is not installed.
    """
    return _file_system(address.partition("://")[0].lower(), os.getpid())


def _persistently(name: str, work: Callable[[], Result]) -> Result:
    """Do something that a network may fail at, several times; what is missing or forbidden is so at once.

    Raises
    ------
    FileNotFoundError, PermissionError
        From the storage.
    OSError
        All attempts failed.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except (FileNotFoundError, PermissionError, FrameError, MemoryError):
            raise
        except Exception as exc:  # each storage has errors of its own
            if attempt == ATTEMPTS:
                raise OSError(f"{type(exc).__name__}: {exc}, {ATTEMPTS} times") from exc
        time.sleep(WAIT_S)
    raise OSError(name)  # not reached


def identity_of(address: str) -> Identity:
    """Return what tells a remote file from another one in its place: its size, and its tag or its time.

    Raises
    ------
    OSError
        There is none, or the storage does not answer.
    """
    system = file_system(address)

    def ask() -> dict[str, Any]:
        system.invalidate_cache(system._parent(address))  # noqa: SLF001 - lists are kept for ever otherwise
        return dict(system.info(address))

    info = _persistently(address, ask)
    if info.get("type") == "directory":
        raise IsADirectoryError(address)
    told = [info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "last_modified", "updated")]
    seal = int.from_bytes(hashlib.blake2b(repr(told).encode(), digest_size=7).digest())
    return Identity(int(info.get("size") or 0), seal, 0, 0)


class RangeReader(RawIOBase):
    """A remote file as a stream: each read is one request for a range of bytes."""

    def __init__(self, address: str, size: int) -> None:
        super().__init__()
        self._address, self._size, self._at = address, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position, bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; nothing is asked for."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from one range; 0 at the end of the file."""
        target = memoryview(buffer).cast("B")
        count = min(len(target), self._size - self._at)
        if count <= 0:
            return 0
        data = read_range(self._address, self._at, self._at + count)
        target[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_range(address: str, first: int, last: int) -> bytes:
    """Return bytes first .. last - 1 of a remote file, fewer at its end, by one request.

    Raises
    ------
    OSError
        The storage does not answer, or there is no such file.
    """
    system = file_system(address)
    return bytes(_persistently(address, lambda: system.cat_file(address, start=first, end=last)))


def open_remote(address: str, size: int) -> BufferedIOBase:
    """Open a remote file for reading by ranges; small reads share a request."""
    return BufferedReader(RangeReader(address, size), BUFFER)


def read_remote_at(address: str, pieces: list[tuple[int, np.ndarray]]) -> list[int]:
    """Read from places of a remote file into arrays of bytes; return how many bytes each got."""
    counts = []
    for offset, piece in pieces:
        data = read_range(address, offset, offset + piece.size)
        piece[: len(data)] = np.frombuffer(data, np.uint8)
        counts.append(len(data))
    return counts


def identity_at(path: str) -> Identity:
    """Return what tells a file from another one in its place, wherever it lies; raises OSError."""
    return identity_of(path) if is_remote(path) else Identity.of(os.stat(path))  # noqa: PTH116 - for every slab


@contextlib.contextmanager
def opened(path: str, size: int) -> Iterator[BinaryIO]:
    """Open an address, or a file of this machine."""
    if is_remote(path):
        with contextlib.closing(open_remote(path, size)) as stream:
            yield cast(BinaryIO, stream)
        return
    with Path(path).open("rb") as plain:
        yield plain


def expand_remote(address: str, is_wanted: Callable[[str], bool], *, recursive: bool = False) -> list[str]:
    """List the frames that an address stands for: itself, those of a folder, or those that match a pattern.

    Parameters
    ----------
    address : str
    is_wanted : callable
        Tells by its name whether a file of a folder is a frame.
    recursive : bool
        Take the folders below too.

    Raises
    ------
    FrameError
        The storage does not answer or refuses.
    """
    system = file_system(address)
    protocol = address.partition("://")[0]

    def look() -> list[str]:
        system.invalidate_cache()
        if any(mark in address for mark in "*?["):
            return list(system.glob(address))
        if system.isfile(address):
            return [address]
        found = system.find(address, maxdepth=None if recursive else 1)
        return [path for path in found if is_wanted(path.rpartition("/")[2])]

    try:
        found = _persistently(address, look)
    except OSError as exc:
        raise FrameError(address, f"cannot be listed ({exc}); check the address and the credentials") from exc
    return [path if is_remote(path) else f"{protocol}://{path}" for path in found]

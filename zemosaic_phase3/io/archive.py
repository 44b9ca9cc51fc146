"""Frames inside zip and tar archives, read where they lie: nothing is unpacked to the disk.

A member is named by a path through the archive, ``night1.zip/sub_0001.fit``. What is stored plainly is read by rows, by
threads and by the GPU like a file of its own; what is deflated is decompressed from its beginning on each call.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.origin import Identity

if TYPE_CHECKING:
    from zipfile import ZipInfo

ARCHIVE_SUFFIXES: Final = (".zip", ".tar")
_LOCAL_HEADER_BYTES: Final = 30  # of a zip member, before its name
_ENCRYPTED: Final = 1  # flag of a zip member


class Member(NamedTuple):
    """Where a member of an archive lies: its bytes in the archive, and how many come out of them.

    ``method``: 0 where it is stored plainly, else the number of its compression in zip files.
    """

    name: str
    start: int
    packed: int
    size: int
    method: int = 0
    crc: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether its bytes lie in the archive as they are."""
        return self.method == 0

    @contextlib.contextmanager
    def opened(self, plain: BinaryIO) -> Iterator[io.BufferedIOBase]:
        """Give the member as a stream that can be read from any place; ``plain``: the archive, open."""
        if self.is_plain:
            yield io.BufferedReader(_Section(plain, self.start, self.size))
            return
        import zipfile

        plain.seek(self.start)
        about = zipfile.ZipInfo(self.name)
        about.compress_type, about.compress_size = self.method, self.packed
        about.file_size, about.CRC = self.size, self.crc
        try:
            yield cast(io.BufferedIOBase, zipfile.ZipExtFile(plain, "r", about))
        except (zipfile.BadZipFile, NotImplementedError) as exc:
            raise EOFError(str(exc)) from exc


class _Section(io.RawIOBase):
    """A part of an open file."""

    def __init__(self, plain: BinaryIO, start: int, size: int) -> None:
        self._plain, self._start, self._size, self._at = plain, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        left = max(0, min(len(buffer), self._size - self._at))
        self._plain.seek(self._start + self._at)
        data = self._plain.read(left)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def split_member(path: str) -> tuple[str, str] | None:
    """Return the archive and the member that a path through an archive names; None where it leads through none."""
    for parent in Path(path).parents:
        if parent.name.lower().endswith(ARCHIVE_SUFFIXES) and parent.is_file():
            return str(parent), Path(path).relative_to(parent).as_posix()
    return None


def member_of(archive: str, name: str, label: str) -> Member:
    """Return where a member of an archive lies.

    Raises
    ------
    FrameError
        The archive is damaged, has no such member, or the member is encrypted.
    """
    members = members_of(archive, label)
    if name not in members:
        raise FrameError(label, f"{archive} has no member {name}; check the path")
    found = members[name]
    if found.start < 0:
        raise FrameError(label, "is encrypted in its archive; unpack it first")
    return found


def members_of(archive: str, label: str) -> dict[str, Member]:
    """Return the members of an archive by their names.

    Raises
    ------
    FrameError
        The archive cannot be read.
    """
    import tarfile
    import zipfile
    import zlib

    try:
        identity = Identity.of(os.stat(archive))  # noqa: PTH116 - the path is a text
        return _members(archive, identity)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, ValueError, OSError) as exc:
        raise FrameError(label, f"its archive cannot be read ({exc}); copy it again") from exc


@functools.lru_cache(maxsize=8)  # of the archives of a run; each is asked for once a member
def _members(archive: str, _identity: Identity) -> dict[str, Member]:
    with Path(archive).open("rb") as plain:
        if archive.lower().endswith(".tar"):
            import tarfile

            with tarfile.open(fileobj=plain, mode="r:") as tar:
                return {
                    info.name.removeprefix("./"): Member(info.name, info.offset_data, info.size, info.size)
                    for info in tar
                    if info.isreg()
                }
        import zipfile

        with zipfile.ZipFile(plain) as packed:
            return {info.filename: _zip_member(plain, info) for info in packed.infolist() if not info.is_dir()}


def _zip_member(plain: BinaryIO, info: ZipInfo) -> Member:
    plain.seek(info.header_offset)
    head = plain.read(_LOCAL_HEADER_BYTES)
    if len(head) < _LOCAL_HEADER_BYTES or not head.startswith(b"PK\3\4"):
        raise ValueError(f"the entry of {info.filename} is not where its directory says")
    skipped = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    start = -1 if info.flag_bits & _ENCRYPTED else info.header_offset + _LOCAL_HEADER_BYTES + skipped
    return Member(info.filename, start, info.compress_size, info.file_size, info.compress_type, info.CRC)

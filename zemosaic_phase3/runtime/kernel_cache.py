"""Compiled kernels on disk: read only where nobody else may write, checked before use, and never worth a stack.

A file that is damaged (a power cut, a full disk) is removed and its kernel compiled anew; where nothing can be written
there is no cache, and the stack goes on. The files are pickles, which run what their writer wrote: a folder that other
users may write is neither read nor written, unless they may write this library as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.runtime import rtsys

logger = logging.getLogger("zemosaic.kernels")

PACKAGE: Final = Path(__file__).resolve().parents[1]
DIGEST_BYTES: Final = 32
OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class DamagedFileError(Exception):
    """A file of compiled code is not what was written."""


def _sealed(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() + data


def _unsealed(data: bytes, path: str) -> bytes:
    seal, rest = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.blake2b(rest, digest_size=DIGEST_BYTES).digest() != seal:
        raise DamagedFileError(path)
    return rest


class SealedFiles(IndexDataCacheFile):
    """Numba's index and data files, each behind a digest of what follows, which is looked at before it is unpickled."""

    def _load_index(self) -> dict[Any, str]:
        try:
            data = Path(self._index_path).read_bytes()
        except FileNotFoundError:
            return {}
        try:
            version, stamp, overloads = pickle.loads(_unsealed(data, self._index_path))  # noqa: S301 - see is_trusted
        except DamagedFileError:
            self.remove()
            return {}
        return overloads if (version, stamp) == (self._version, self._source_stamp) else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        data = self._dump((self._version, self._source_stamp, overloads))
        with self._open_for_write(self._index_path) as stream:
            stream.write(_sealed(data))

    def _load_data(self, name: str) -> Any:
        path = self._data_path(name)
        return pickle.loads(_unsealed(Path(path).read_bytes(), path))  # noqa: S301 - see is_trusted

    def _save_data(self, name: str, data: Any) -> None:
        with self._open_for_write(self._data_path(name)) as stream:
            stream.write(_sealed(self._dump(data)))

    def remove(self) -> None:
        """Remove the files of this kernel: something in them is wrong."""
        logger.debug("compiled code is damaged and made anew: %s", self._index_path)
        stem = self._index_name.removesuffix(".nbi")
        for file in (Path(self._index_path), *Path(self._cache_path).glob(f"{stem}.*.nbc")):
            with contextlib.suppress(OSError):
                file.unlink()


class KernelCache(FunctionCache):
    """Numba's cache on disk, loaded without what only a compiler needs, and never in the way.

    Before it looks into its cache Numba registers how all of Python and NumPy is compiled: 0.3 s of imports at every
    start, SciPy among them. Code that is compiled already needs Numba's memory manager and nothing else. Where there is
    none to load, compiling registers the rest, as it does for a function without a cache.

    Parameters
    ----------
    function : callable
        What is compiled.
    saved : callable, optional
        Called with the folder after something was saved in it.
    """

    def __init__(self, function: Callable[..., Any], saved: Callable[[Path], None] | None = None) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._files = self._cache_file = SealedFiles(self._cache_path, self._impl.filename_base, stamp)
        self._saved = saved

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load the code compiled for a signature; None if there is none that can be used."""
        rtsys.initialize(target_context)
        if why_untrusted(Path(self.cache_path)):
            return None
        try:
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with a file, its kernel can be compiled anew
            logger.debug("compiled code cannot be loaded: %s: %s", type(exc).__name__, exc)
            self._files.remove()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save the code compiled for a signature; a full disk means no cache, and nothing else."""
        folder = Path(self.cache_path)
        try:
            self._impl.locator.ensure_cache_path()
            if why_untrusted(folder):
                return
            super().save_overload(sig, data)
        except OSError as exc:
            logger.debug("compiled code is not kept in %s: %s", folder, exc)
            return
        if self._saved is not None:
            self._saved(folder)


def why_untrusted(folder: Path) -> str:
    """Return why compiled code of a folder is not used, empty if it is; a folder that is not there is empty.

    Compiled code is as good as whoever may write it. This user and the system's may, and whoever may write the files of
    this library too, since those are run anyway.
    """
    if sys.platform == "win32":  # access lists tell, and folders of a user are that user's
        return ""
    try:
        found, code = folder.stat(), PACKAGE.stat()
    except OSError:
        return ""
    if found.st_uid not in (os.getuid(), 0, code.st_uid):
        return f"it belongs to another user (uid {found.st_uid})"
    writable = found.st_mode & OTHERS_MAY_WRITE
    if writable & stat.S_IWGRP and (_is_private_group(found.st_gid) or _same(found, code, stat.S_IWGRP)):
        writable &= ~stat.S_IWGRP
    if writable & stat.S_IWOTH and _same(found, code, stat.S_IWOTH):
        writable &= ~stat.S_IWOTH
    return f"others may write it (mode {stat.S_IMODE(found.st_mode):o}); run: chmod go-w '{folder}'" if writable else ""


def _same(found: os.stat_result, code: os.stat_result, bit: int) -> bool:
    """Return whether those who may write a folder by a bit of its mode may write the library by the same bit."""
    return bool(code.st_mode & bit) and (bit == stat.S_IWOTH or found.st_gid == code.st_gid)


def _is_private_group(gid: int) -> bool:
    """Return whether a group is this user's alone, as systems make one for every user."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return gid == user.pw_gid and set(group.gr_mem) <= {user.pw_name}


def cached_files(folders: Iterable[Path]) -> list[Path]:
    """List the files of our compiled kernels in some folders."""
    return [file for folder in folders for file in sorted(folder.glob(f"*{PACKAGE.name}.*.nb[ci]"))]

"""Writing that is atomic: a file is either there, complete and on the disk, or its old version (or nothing) is."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.fits_header import FITS_BLOCK, FITS_CARD

if TYPE_CHECKING:
    from astropy.io.fits import HDUList

logger = logging.getLogger("zemosaic.utils")


WRITE_OPTIONS: Final[dict[str, Any]] = {"checksum": True, "output_verify": "silentfix+ignore"}
TEMPORARY: Final = ".zemosaic-"  # how names of temporary files begin; the number of the process follows
STRAY_SECONDS: Final = 60.0  # since the last byte: whoever still writes is faster
FOREIGN_STRAY_SECONDS: Final = 3600.0  # of a machine that shares the folder, whose processes cannot be seen
TILE_SUFFIXES: Final = (".fits", ".fit", ".fts")
COMPRESSED_SUFFIXES: Final = (".gz", ".fz", ".bz2", ".zip", ".z")


def write_fits_atomically(hdus: HDUList, path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Write a FITS file so that its name never points at a part of it.

    The units get checksums and are written under a temporary name in the same folder, flushed to the disk, and then
    take the name in one step. Whatever goes wrong, Ctrl-C included, the temporary file is removed and the old file,
    if there was one, is untouched.

    Parameters
    ----------
    hdus : HDUList
        What to write. Cards of a camera that break the standard are mended where possible, else copied as they are.
    path : path
        Target; its folder must exist.
    overwrite : bool
        Without it a file that exists, even one that appeared meanwhile, is an error.

    Raises
    ------
    OutputError
        Nothing was written; names the path and the remedy.
    """
    target = Path(path)
    if target.name.lower().endswith(COMPRESSED_SUFFIXES):
        raise OutputError(f"{target}: tiles are written uncompressed; choose a name that ends in .fits")
    needed = sum(hdu.size + len(hdu.header) * FITS_CARD + 2 * FITS_BLOCK for hdu in hdus)
    with written_whole(target, needed, overwrite=overwrite) as stream:
        hdus.writeto(stream, **WRITE_OPTIONS)


@contextlib.contextmanager
def written_whole(target: Path, needed_bytes: int, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a stream whose bytes take a file's name in one step when the block ends, and only if it ends well.

    The bytes go under a random name in the same folder, which no link can stand in for, and reach the disk before they
    get their own name. Whatever goes wrong, Ctrl-C included, the temporary file is removed and the old file, if there
    was one, is untouched.

    Parameters
    ----------
    target : Path
        The file; its folder must exist. A link in its place is replaced, what it points to is untouched.
    needed_bytes : int
        Refused at once where the disk has less room.
    overwrite : bool
        Without it a file that exists, even one that appeared meanwhile, is an error.

    Raises
    ------
    OutputError
        Nothing was written; names the path and the remedy.
    """
    if not target.parent.is_dir():
        raise OutputError(f"{target}: folder {target.parent} does not exist; create it first")
    temporary = target.parent / f"{TEMPORARY}{os.getpid()}-{machine()}-{os.urandom(6).hex()}.tmp"
    try:
        with _output_errors(target):
            if not overwrite and (target.exists() or target.is_symlink()):
                raise FileExistsError(errno.EEXIST, "exists already")
            _refuse_if_too_large(needed_bytes, target)
            with open(temporary, "wb", opener=_new_file) as stream:  # noqa: PTH123 - pathlib takes no opener
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if overwrite:
                temporary.replace(target)
            else:
                _take_free_name(temporary, target)
            _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _new_file(path: str, flags: int) -> int:
    """Open a file that must not be there, not as a link either; astropy knows the mode "wb" and not "xb"."""
    return os.open(path, flags | os.O_EXCL, 0o666)


def remove_strays(folder: Path) -> list[Path]:
    """Remove temporary files that processes left behind which are no more (a kill, a power cut); returns them.

    Their names tell which process made them, and on which machine. What somebody has written to within a minute stays,
    and within an hour where another machine did that shares the folder.
    """
    import psutil

    gone = []
    for path in folder.glob(f"{TEMPORARY}*.tmp"):
        pid, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
        most = STRAY_SECONDS if rest.startswith(f"{machine()}-") else FOREIGN_STRAY_SECONDS
        with contextlib.suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > most
            if pid.isdecimal() and is_old and not psutil.pid_exists(int(pid)):
                path.unlink()
                gone.append(path)
    return gone


def machine() -> str:
    """Return a short text that stands for this machine in the names of temporary files."""
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()


def _refuse_if_too_large(needed: int, target: Path) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OutputError(f"{target}: {needed} bytes are needed and {free} are free; make room or choose another disk")


def _take_free_name(temporary: Path, target: Path) -> None:
    """Give the file its name unless somebody took it meanwhile (FileExistsError)."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError as exc:  # exFAT and some network folders have no hard links
        logger.debug("no hard link to %s (%s); reserving the name instead", target, exc)
    else:
        return
    target.touch(exist_ok=False)
    try:
        temporary.replace(target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can do that (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as exc:  # some network and FUSE folders refuse; the file itself is safe
        logger.debug("folder %s cannot be synchronised: %s", folder, exc)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _output_errors(target: Path) -> Iterator[None]:
    """Turn what the file system and astropy raise into one OutputError with the remedy."""
    from astropy.io.fits import VerifyError

    try:
        yield
    except FileExistsError as exc:
        raise OutputError(f"{target}: exists already; choose another name, or allow --overwrite") from exc
    except IsADirectoryError as exc:
        raise OutputError(f"{target}: is a folder; name a file in it") from exc
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"folder {target.parent} may not be written; choose another one"
        elif exc.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # None: numpy reports a short write so
            reason = f"no room left ({exc}); free space or choose another disk"
        else:
            reason = f"could not be written ({exc}); check the disk"
        raise OutputError(f"{target}: {reason}") from exc
    except (VerifyError, ValueError) as exc:
        raise OutputError(f"{target}: astropy cannot write it ({exc}); check the header") from exc

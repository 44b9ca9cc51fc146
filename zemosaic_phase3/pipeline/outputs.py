"""What is written and where: checks before the work, the table of frames, the file."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.atomic_write import COMPRESSED_SUFFIXES, TILE_SUFFIXES, write_fits_atomically
from zemosaic_phase3.io.moments import Exposure, iso
from zemosaic_phase3.io.tile_file import tile_hdus
from zemosaic_phase3.pipeline.group import FrameRow
from zemosaic_phase3.pipeline.run_facts import run_columns
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.records import Registration

FRAMES_UNITS: Final = {
    "EXPTIME": "s",
    "RMS_PX": "pixel",
    "FWHM": "pixel",
    "OFFSET": "adu",
    "SKY": "adu",
    "NOISE": "adu",
}
"""Units of columns as FITS knows them; it has none for the percent of REJECTED."""


def frames_columns(rows: Sequence[FrameRow]) -> dict[str, Any]:
    """Return the FRAMES table by column: one row per input."""
    channels = max((len(row.scale) for row in rows), default=1) or 1

    def per_channel(name: str) -> np.ndarray:
        return np.array([getattr(row, name) or [np.nan] * channels for row in rows], np.float64)

    stats = [row.scan.stats if row.scan is not None else None for row in rows]

    def of_stars(name: str) -> np.ndarray:
        return np.array([math.nan if found is None else getattr(found, name) for found in stats], np.float64)

    def measured(name: str) -> np.ndarray:
        unknown = np.full(channels, np.nan)
        levels = [unknown if found is None else getattr(found, name) for found in stats]
        return np.array([found if found.size == channels else unknown for found in levels], np.float64)

    exposures = [Exposure() if row.scan is None else row.scan.exposure for row in rows]
    registrations = [row.registration or Registration(ok=False) for row in rows]
    nowhere = np.full((3, 3), np.nan)
    return {
        "NAME": [row.name for row in rows],
        "USED": np.array([row.used for row in rows]),
        "REASON": [row.reason for row in rows],
        "DATE_OBS": ["" if start is None else iso(start) for start in (e.start for e in exposures)],
        "EXPTIME": np.array([e.seconds for e in exposures], np.float64),
        "METHOD": [r.method for r in registrations],
        "MODEL": [r.model for r in registrations],
        "TRANSFORM": np.stack([(r.transform if r.ok else nowhere).ravel() for r in registrations]),
        "DISTORT": np.array([0.0 if r.distortion is None else np.abs(r.distortion).max() for r in registrations]),
        "MATCHED": np.array([r.matched for r in registrations], np.int32),
        "RMS_PX": np.array([r.rms_px for r in registrations], np.float64),
        "SCALE": per_channel("scale"),
        "OFFSET": per_channel("offset"),
        "WEIGHT": per_channel("weight"),
        "FWHM": of_stars("fwhm"),
        "ECCENTR": of_stars("eccentricity"),
        "STARS": np.array([0 if row.scan is None else row.scan.n_stars for row in rows], np.int32),
        "SKY": measured("median"),
        "NOISE": np.sqrt(measured("variance")),
        "TRANSPAR": np.array([row.transparency for row in rows], np.float64),
        "REJECTED": np.array([row.rejected_percent for row in rows], np.float64),
    }


PREVIEW_SIDE_PX: Final = 1600  # longest side of a preview
HEADER_BYTES: Final = 1 << 17  # of all units of a tile, and of its table RUN; a camera's header has 8,000
FRAME_ROW_BYTES: Final = 1 << 10  # of the table of frames, and of its entry in a report, which is longer
REPORT_ROW_BYTES: Final = 1 << 11


@dataclass(frozen=True)
class Wanted:
    """The files that a run will write; None: not wanted."""

    tile: Path
    maps: bool = False
    preview: Path | None = None
    report: Path | None = None

    def sizes(self, shape: Sequence[int], n_frames: int) -> dict[Path, int]:
        """Return what each will take at most, bytes, for a tile of a shape (H, W) or (H, W, 3)."""
        height, width, channels = (*shape, 1)[:3]
        samples = height * width * channels
        tile = 4 * samples + height * width + HEADER_BYTES + n_frames * FRAME_ROW_BYTES
        if self.maps:
            counts = 2 if n_frames < 2**15 else 4  # COVERAGE, REJ_LOW, REJ_HIGH; WEIGHT and ERR are float32
            tile += (8 + 3 * counts) * samples
        sizes = {self.tile: tile}
        if self.preview is not None:
            sizes[self.preview] = min(height, PREVIEW_SIDE_PX) * (min(width, PREVIEW_SIDE_PX) * channels + 1) + 4096
        if self.report is not None:
            sizes[self.report] = n_frames * REPORT_ROW_BYTES + 4096
        return sizes


def check_room(sizes: Mapping[Path, int]) -> None:
    """Refuse before the work starts what the disks have no room for; files on the same disk count together.

    A file that will be replaced takes its room until the new one is whole.

    Raises
    ------
    OutputError
        Names the first file on the disk, what is needed and what is free, bytes.
    """
    on_disk: dict[int, list[Path]] = {}
    for path in sizes:
        on_disk.setdefault(path.parent.stat().st_dev, []).append(path)
    for paths in on_disk.values():
        needed, free = sum(sizes[path] for path in paths), shutil.disk_usage(paths[0].parent).free
        if needed > free:
            files = " and ".join(map(str, paths))
            raise OutputError(
                f"{files}: {needed} bytes are needed and {free} are free; make room or choose another disk"
            )


def check_output(output: str | os.PathLike[str], *, overwrite: bool, compressed: bool = False) -> None:
    """Refuse before the work starts what could not be written at its end.

    A symbolic link in the place of the file counts as a file: with ``overwrite`` it is replaced by one, and what it
    points to stays as it is. With ``compressed`` a name may ask for compression.

    Raises
    ------
    OutputError
        The file exists and ``overwrite`` is False, it is a folder, its folder does not exist or may not be written, its
        name is too long or asks for compression, or it is a link that leads back to itself.
    """
    path = Path(output)
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            length = len(os.fsencode(path.name))
            raise OutputError(f"{path}: the name is too long ({length} bytes); choose a shorter one") from exc
        if exc.errno == errno.ELOOP:
            raise OutputError(f"{path}: is a symbolic link that leads back to itself; remove it") from exc
    if path.name.lower().endswith(COMPRESSED_SUFFIXES) and not compressed:
        raise OutputError(f"{path}: tiles are written uncompressed; choose a name that ends in .fits")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: folder {path.parent} does not exist; create it first")
    try:
        if not os.access(path.parent, os.W_OK):
            raise PermissionError
        with tempfile.TemporaryFile(dir=path.parent):  # only that tells of a full or read-only disk, or of a share
            pass
    except OSError as exc:
        why = f" ({exc.strerror})" if exc.strerror else ""
        raise OutputError(f"{path}: folder {path.parent} may not be written{why}; choose another one") from exc
    if (path.exists() or path.is_symlink()) and not overwrite:  # a link to nothing would be replaced all the same
        raise OutputError(f"{path}: exists already; choose another name, or allow --overwrite")


def check_tile_name(output: str | os.PathLike[str]) -> None:
    """Refuse a name under which nobody looks for a FITS file.

    Raises
    ------
    OutputError
        It does not end in .fits, .fit or .fts, or asks for compression.
    """
    path = Path(output)
    if path.name.lower().endswith(COMPRESSED_SUFFIXES):
        raise OutputError(f"{path}: tiles are written uncompressed; choose a name that ends in .fits")
    if not path.name.lower().endswith(TILE_SUFFIXES):
        endings = f"{', '.join(TILE_SUFFIXES[:-1])} or {TILE_SUFFIXES[-1]}"
        raise OutputError(f"{path}: a tile is a FITS file; choose a name that ends in {endings}")


def write_tile(tile: Tile, output: str | os.PathLike[str], *, maps: bool = False, overwrite: bool = False) -> Path:
    """Write a tile as FITS, atomically, with the tables FRAMES and RUN; with ``maps`` also COVERAGE, WEIGHT and others.

    Raises
    ------
    OutputError
        The file exists and ``overwrite`` is False, or it cannot be written.
    """
    hdus = tile_hdus(
        tile.image,
        tile.header,
        alpha=tile.alpha,
        maps=tile.maps if maps else None,
        frames_table=frames_columns(tile.rows),
        frames_units=FRAMES_UNITS,
        run_table=run_columns(tile.report),
    )
    write_fits_atomically(hdus, output, overwrite=overwrite)
    return Path(output)

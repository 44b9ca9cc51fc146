"""Tiles out, and small helpers under the names that existing runs call.

Writing is atomic: a tile is either there, complete and on the disk, or its old version (or nothing) is.
The reading half lives in :mod:`zemosaic_frames`; its public names are re-exported here.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import cuda_utils
from zemosaic_frames import Frame, FrameSource, expand_inputs, open_source, real_paths
from zemosaic_headers import FITS_BLOCK, FITS_CARD, header_from_mapping
from zemosaic_spec import OutputError

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU, HDUList, Header

__all__ = [
    "Frame",
    "FrameSource",
    "compute_sky_statistics",
    "ensure_cupy_pool_initialized",
    "estimate_sky_affine_to_ref",
    "expand_inputs",
    "free_cupy_memory_pools",
    "gpu_is_available",
    "gpu_memory_sufficient",
    "make_radial_weight_map",
    "open_source",
    "real_paths",
    "save_fits_image",
    "tile_hdus",
    "write_fits_atomically",
]

logger = logging.getLogger("zemosaic.utils")

COMPRESSED_SUFFIXES: Final = (".gz", ".fz", ".bz2", ".zip", ".z")
# Cards of a frame that are not true of a tile made from it.
_STALE_CARDS: Final = frozenset({"BLANK", "CHECKSUM", "DATAMAX", "DATAMIN", "DATASUM", "EXTNAME", "EXTVER", "INHERIT"})
_MOSAIC_CARDS: Final = frozenset({"BAYERPAT", "COLORTYP", "CFA_PAT", "XBAYROFF", "YBAYROFF"})
_THIRD_AXIS_CARD: Final = re.compile(r"(CTYPE|CRPIX|CRVAL|CDELT|CUNIT|CROTA|CNAME)3$|(CD|PC)(3_\d|\d_3)$")
_FLAT_SPAN_ADU: Final = 1e-5  # a narrower sky span carries no scale; the same limit as in the linear_fit normalisation
_CORRELATED: Final = 0.9  # from here on a common structure outweighs the noise: the gain is then good to a few per cent
_FEWEST_PAIRS: Final = 16


# --------------------------------------------------------------------------- building a tile


def tile_hdus(
    image: np.ndarray,
    header: Header | Mapping[str, Any] | None,
    *,
    alpha: np.ndarray | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
    frames_table: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    frames_units: Mapping[str, str] | None = None,
) -> HDUList:
    """Lay out a tile as FITS units: the image, ALPHA, maps and the table of frames.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3), ADU
        Written as (3, H, W) when coloured. uint16 stays (BZERO 32768), everything else becomes float32 without
        BSCALE and BZERO.
    header : Header, mapping or None
        Cards of the tile, its WCS among them. Cards that describe the storage of another image, a third WCS axis, and
        in a coloured tile the mosaic keywords (``BAYERPAT`` ...) are left out; values of a mapping that FITS cannot
        hold are too. Not modified.
    alpha : ndarray (H, W), optional
        Opacity: bool, float in [0, 1], or uint8 in [0, 255]; written as extension ALPHA, uint8.
    maps : dict of str to ndarray (H, W) or (H, W, C), optional
        One image extension each (COVERAGE, WEIGHT, ...): int32 for integers, float32 else, channel first.
    frames_table : dict of str to sequence, optional
        Columns of equal length, one row per input frame, for the binary table FRAMES. Characters of texts that FITS
        cannot hold are written as backslash escapes.
    frames_units : dict of str to str, optional
        Unit of a column.

    Returns
    -------
    HDUList

    Raises
    ------
    ValueError
        A shape does not fit, or a column has another length than the first.
    """
    from astropy.io import fits

    pixels = _channels_first(image, np.dtype(np.uint16) if image.dtype == np.uint16 else np.dtype(">f4"))
    primary = fits.PrimaryHDU(pixels, _tile_header(header, is_colour=pixels.ndim == 3))
    if pixels.ndim == 3:
        primary.header["EXTNAME"] = ("RGB", "planes: red, green, blue")
    hdus = fits.HDUList([primary])
    if alpha is not None:
        hdus.append(fits.ImageHDU(_alpha_bytes(alpha, pixels.shape[-2:]), name="ALPHA"))
    for name, values in (maps or {}).items():
        is_whole = values.dtype.kind in "biu"
        hdus.append(fits.ImageHDU(_channels_first(values, np.dtype(">i4" if is_whole else ">f4")), name=name))
    if frames_table is not None:
        hdus.append(_table_hdu(frames_table, frames_units or {}))
    return hdus


def save_fits_image(
    image_data: np.ndarray,
    output_path: str | os.PathLike[str],
    header: Header | Mapping[str, Any] | None = None,
    overwrite: bool = True,
    save_as_float: bool = False,
    legacy_rgb_cube: bool = False,
    progress_callback: Callable[..., None] | None = None,
    axis_order: str = "HWC",
    alpha_mask: np.ndarray | None = None,
) -> None:
    """Write an image as FITS, atomically, with checksums.

    Parameters
    ----------
    image_data : ndarray (H, W), (H, W, 3) or, with ``axis_order="CHW"``, (3, H, W), ADU
        Values are never stretched or shifted. Not modified.
    output_path : path
        The folder must exist. A name that ends in ``.gz`` or the like is refused: tiles are not compressed.
    header : Header, mapping or None
        Cards to write, see :func:`tile_hdus`.
    overwrite : bool
        Without it an existing file is an error.
    save_as_float : bool
        True: float32, NaN = no data. False: unsigned 16 bit (BZERO 32768), rounded, clipped to 0..65535, NaN -> 0.
    legacy_rgb_cube : bool
        Accepted for existing calls. Both values give the layout it used to ask for: one (3, H, W) cube in the primary.
    progress_callback : callable, optional
        Accepted for existing calls; a failure is raised, and reported by the caller who knows the tile.
    axis_order : str
        "HWC" or "CHW": where the channels of ``image_data`` are.
    alpha_mask : ndarray (H, W), optional
        Written as extension ALPHA, see :func:`tile_hdus`.

    Raises
    ------
    OutputError
        The file could not be written; names the path and the remedy.
    ValueError
        Not an image, or an unknown ``axis_order``.
    """
    if axis_order not in ("HWC", "CHW"):
        raise ValueError(f"axis_order {axis_order!r} is unknown; use 'HWC' or 'CHW'")
    image = np.asarray(image_data)
    if axis_order == "CHW" and image.ndim == 3:
        image = np.moveaxis(image, 0, -1)
    if not save_as_float and image.dtype != np.uint16:
        image = np.clip(np.rint(np.nan_to_num(image, nan=0.0)), 0, 65535).astype(np.uint16)
    elif save_as_float:
        image = image.astype(np.float32, copy=False)
    write_fits_atomically(tile_hdus(image, header, alpha=alpha_mask), output_path, overwrite=overwrite)


def _channels_first(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return (H, W) or (3, H, W), already in the byte order of the file, so that writing makes no further copy."""
    if image.ndim == 3 and image.shape[-1] in (1, 3):
        image = image[..., 0] if image.shape[-1] == 1 else np.moveaxis(image, -1, 0)
    elif image.ndim != 2:
        raise ValueError(f"shape {image.shape} is no image; expected (H, W) or (H, W, 3)")
    if 0 in image.shape:
        raise ValueError(f"shape {image.shape} holds no pixels")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as everywhere
        return np.ascontiguousarray(image, dtype=dtype)


def _alpha_bytes(alpha: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    alpha = np.asarray(alpha)
    alpha = alpha[..., 0] if alpha.ndim == 3 and alpha.shape[-1] == 1 else alpha
    if alpha.shape != shape:
        raise ValueError(f"alpha of shape {alpha.shape} does not fit an image of {shape}")
    if alpha.dtype.kind in "ui":
        return np.clip(alpha, 0, 255).astype(np.uint8)
    opacity = np.clip(np.nan_to_num(alpha.astype(np.float64), nan=0.0), 0.0, 1.0)
    return np.rint(opacity * 255).astype(np.uint8)


def _tile_header(header: Header | Mapping[str, Any] | None, *, is_colour: bool) -> Header:
    """Return a copy of the header without what is not true of this tile, its WCS fitted to two or three axes."""
    from astropy.io import fits

    cards = header.copy() if isinstance(header, fits.Header) else header_from_mapping(header or {})
    cards.strip()
    stale = _STALE_CARDS | _MOSAIC_CARDS if is_colour else _STALE_CARDS
    for key in {*cards}:
        if key in stale or _THIRD_AXIS_CARD.match(key):
            cards.remove(key, remove_all=True)
    if "WCSAXES" in cards:
        cards["WCSAXES"] = 3 if is_colour else 2
    if is_colour:
        cards["CTYPE3"] = ("RGB", "colour: red, green, blue")
        if "CD1_1" in cards:  # with a CD matrix, a missing CD3_3 would mean 0 and make the matrix singular
            cards["CD3_3"] = 1.0
    return cards


def _table_hdu(columns: Mapping[str, Sequence[Any] | np.ndarray], units: Mapping[str, str]) -> BinTableHDU:
    from astropy.io import fits

    arrays: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        array = np.asarray(values)
        if array.dtype.kind in "UO":
            # FITS tables hold ASCII of a stated width, at least one character.
            texts = [str(text).encode("ascii", "backslashreplace") for text in array]
            array = np.array(texts, dtype=f"S{max(map(len, texts), default=0) or 1}")
        arrays[name] = array
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different lengths: {lengths}")
    rows = np.empty(next(iter(lengths.values()), 0), dtype=[(name, a.dtype, a.shape[1:]) for name, a in arrays.items()])
    for name, array in arrays.items():
        rows[name] = array
    table = fits.BinTableHDU(rows, name="FRAMES")
    for name, unit in units.items():
        table.columns[name].unit = unit
    return table


# --------------------------------------------------------------------------- writing


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
    if not target.parent.is_dir():
        raise OutputError(f"{target}: folder {target.parent} does not exist; create it first")
    temporary = target.parent / f".zemosaic-{os.getpid()}-{os.urandom(6).hex()}.tmp"
    try:
        with _output_errors(target):
            if not overwrite and (target.exists() or target.is_symlink()):
                raise FileExistsError(errno.EEXIST, "exists already")
            _refuse_if_too_large(hdus, target)
            _write_to_disk(hdus, temporary)
            if overwrite:
                temporary.replace(target)
            else:
                _take_free_name(temporary, target)
            _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_if_too_large(hdus: HDUList, target: Path) -> None:
    needed = sum(hdu.size + len(hdu.header) * FITS_CARD + 2 * FITS_BLOCK for hdu in hdus)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OutputError(f"{target}: {needed} bytes are needed and {free} are free; make room or choose another disk")


def _write_to_disk(hdus: HDUList, temporary: Path) -> None:
    with temporary.open("wb") as stream:
        hdus.writeto(stream, checksum=True, output_verify="silentfix+ignore")
        stream.flush()
        os.fsync(stream.fileno())


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


# --------------------------------------------------------------------------- weights and sky


def make_radial_weight_map(
    height: int,
    width: int,
    feather_fraction: float = 0.8,
    shape_power: float = 2.0,
    min_weight_floor: float = 0.05,
    progress_callback: Callable[..., None] | None = None,
) -> np.ndarray:
    """Return weights that fall from the centre of a frame to its corners.

    ``w = max(cos(pi/2 clip(d / feather, 0, 1)) ** power, floor)`` with d the distance from the centre
    ((H - 1)/2, (W - 1)/2), in units of half the diagonal, hypot(H, W)/2.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    feather_fraction : float
        Distance at which the weight reaches its floor; taken into [0.1, 1].
    shape_power : float
        Steepness; a negative one counts as 0 (no fall).
    min_weight_floor : float
        Least weight; taken into [0, 0.99].
    progress_callback : callable, optional
        Accepted for existing calls; nothing here takes long.

    Returns
    -------
    ndarray (height, width) float32, dimensionless, in [0, 1]

    Raises
    ------
    ValueError
        A side below 1 pixel, or a number that is not finite.

    Notes
    -----
    The limits on feather and floor are those of ZeMosaic's map, found from its recorded numbers.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a weight map of {height} x {width} pixels is impossible; both sides must be at least 1")
    if not np.all(np.isfinite([feather_fraction, shape_power, min_weight_floor])):
        given = (feather_fraction, shape_power, min_weight_floor)
        raise ValueError(f"feather, power, floor = {given} must be finite")
    feather = np.clip(feather_fraction, 0.1, 1.0)
    floor = np.clip(min_weight_floor, 0.0, 0.99)
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    distance = np.hypot(y, x) / (0.5 * np.hypot(height, width))
    weight = np.cos(np.pi / 2 * np.clip(distance / feather, 0.0, 1.0)) ** max(shape_power, 0.0)
    return np.maximum(weight, floor).astype(np.float32)


def compute_sky_statistics(
    image: np.ndarray | None, low_percentile: float, high_percentile: float
) -> dict[str, float] | None:
    """Return "median", "low" and "high" of the finite pixels of an image, ADU; None where there is none.

    Parameters
    ----------
    image : ndarray or None
        ADU.
    low_percentile, high_percentile : float
        Percentiles, linear-interpolated, between which the sky lies.

    Raises
    ------
    ValueError
        Percentiles outside 0 <= low < high <= 100.
    """
    if not 0 <= low_percentile < high_percentile <= 100:
        raise ValueError(f"percentiles {low_percentile}, {high_percentile} must satisfy 0 <= low < high <= 100")
    values = np.empty(0) if image is None else np.asarray(image, np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    median, low, high = (float(v) for v in np.percentile(values, (50.0, low_percentile, high_percentile)))
    return {"median": median, "low": low, "high": high}


def estimate_sky_affine_to_ref(
    samples_src: np.ndarray | None,
    samples_ref: np.ndarray | None,
    sky_low: float,
    sky_high: float,
    clip_sigma: float,
) -> tuple[float, float, int] | None:
    """Return gain and offset that bring the sky of one image to that of another, from the same places in both.

    The gain comes from the places whose mean level lies between two percentiles. It is the ratio of the standard
    deviations (reduced major axis): both sides carry noise, and a least-squares line of one on the other would always
    be too flat. It is 1 where the two correlate by less than 0.9, because what they do not share is noise, which has no
    scale. Five rounds drop what lies further from the line than ``clip_sigma`` standard deviations. The offset is the
    median of what is left between all places: between the percentiles the noisier side would have the lower level.

    Parameters
    ----------
    samples_src, samples_ref : ndarray (n,), ADU
        Pairs that are not finite do not count.
    sky_low, sky_high : float
        Percentiles.
    clip_sigma : float
        At least 1 is used.

    Returns
    -------
    gain : float
        ``gain * src + offset`` is on the scale of the reference.
    offset : float
        ADU.
    samples : int
        Pairs between the percentiles. None instead of all three where fewer than 16 pairs are finite, or the two
        arrays differ in size.
    """
    if samples_src is None or samples_ref is None or np.size(samples_src) != np.size(samples_ref):
        return None
    pairs = np.stack([np.ravel(samples_src), np.ravel(samples_ref)]).astype(np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < _FEWEST_PAIRS:
        return None
    low, high = np.percentile(pairs.mean(axis=0), (sky_low, sky_high))
    is_sky = (pairs.mean(axis=0) >= low) & (pairs.mean(axis=0) <= high)
    sky = pairs[:, is_sky] if is_sky.sum() >= _FEWEST_PAIRS else pairs
    samples = sky.shape[1]
    gain = 1.0
    for _ in range(5):
        gain = _common_scale(sky)
        residual = sky[1] - gain * sky[0]
        residual = np.abs(residual - np.median(residual))
        keep = residual <= max(clip_sigma, 1.0) * math.sqrt(float(np.mean(residual**2)))
        if keep.all() or keep.sum() < _FEWEST_PAIRS:
            break
        sky = sky[:, keep]
    return gain, float(np.median(pairs[1] - gain * pairs[0])), samples


def _common_scale(pairs: np.ndarray) -> float:
    """Gain of pairs ``(2, n)``, see :func:`estimate_sky_affine_to_ref`."""
    deviation = pairs - pairs.mean(axis=1, keepdims=True)
    xx, yy, xy = np.mean(deviation[0] ** 2), np.mean(deviation[1] ** 2), np.mean(deviation[0] * deviation[1])
    has_scale = min(xx, yy) > _FLAT_SPAN_ADU**2 and xy >= _CORRELATED * math.sqrt(xx * yy)
    return math.sqrt(yy / xx) if has_scale else 1.0


# --------------------------------------------------------------------------- the GPU, under inherited names


def gpu_is_available() -> bool:
    """Return True when a GPU can be used; see :func:`cuda_utils.gpu_supported`."""
    return cuda_utils.gpu_supported()


def ensure_cupy_pool_initialized() -> bool:
    """Prepare CuPy's memory pools; see :func:`cuda_utils.initialize_pools`."""
    return cuda_utils.initialize_pools()


def free_cupy_memory_pools() -> bool:
    """Give back what CuPy's memory pools hold unused; see :func:`cuda_utils.free_pools`."""
    return cuda_utils.free_pools()


def gpu_memory_sufficient(required_bytes: int, safety_fraction: float = 0.75) -> bool:
    """Return True when ``required_bytes`` fit into this fraction of the free GPU memory (False without a GPU)."""
    info = cuda_utils.memory_info()
    return info is not None and required_bytes <= info[0] * safety_fraction

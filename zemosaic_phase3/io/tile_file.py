"""A tile as FITS units: the image, ALPHA, maps, the table of frames, and what the run says of itself."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.io.atomic_write import WRITE_OPTIONS, write_fits_atomically
from zemosaic_phase3.io.fits_header import header_from_mapping, readable_cards, without_structure, without_warnings
from zemosaic_phase3.runtime.python_parser import PARSER

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU, HDUList, Header

# Cards of a frame that are not true of a tile made from it.
_STALE_CARDS: Final = frozenset({"BLANK", "CHECKSUM", "DATAMAX", "DATAMIN", "DATASUM", "EXTNAME", "EXTVER", "INHERIT"})
_MOSAIC_CARDS: Final = frozenset({"BAYERPAT", "COLORTYP", "CFA_PAT", "XBAYROFF", "YBAYROFF"})
CARD_TEXT: Final = 68  # characters of a text in one card
_THIRD_AXIS_CARD: Final = re.compile(r"(CTYPE|CRPIX|CRVAL|CDELT|CUNIT|CROTA|CNAME)3$|(CD|PC)(3_\d|\d_3)$")


def tile_hdus(
    image: np.ndarray,
    header: Header | Mapping[str, Any] | None,
    *,
    alpha: np.ndarray | None = None,
    maps: Mapping[str, np.ndarray] | None = None,
    frames_table: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    frames_units: Mapping[str, str] | None = None,
    run_table: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
) -> HDUList:
    """Lay out a tile as FITS units: the image, ALPHA, maps, the table of frames and what the run says of itself.

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
        One image extension each (COVERAGE, WEIGHT, ...), channel first: float32, whole numbers int16 where they fit
        and int32 else.
    frames_table : dict of str to sequence, optional
        Columns of equal length, one row per input frame, for the binary table FRAMES; texts as :func:`fits_text`
        writes them.
    frames_units : dict of str to str, optional
        Unit of a column.
    run_table : dict of str to sequence, optional
        Columns of the binary table RUN.

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
        hdus.append(fits.ImageHDU(_channels_first(values, map_type(values)), name=name))
    if frames_table is not None:
        hdus.append(_table_hdu("FRAMES", frames_table, frames_units or {}))
    if run_table is not None:
        hdus.append(_table_hdu("RUN", run_table, {}))
    return hdus


def map_type(values: np.ndarray) -> np.dtype:
    """Return the type in which a map is stored: the smallest that holds it, of float32, int32 and int16."""
    if values.dtype.kind not in "biu":
        return np.dtype(">f4")
    fits_in = values.size == 0 or (int(values.min()) >= -(2**15) and int(values.max()) < 2**15)
    return np.dtype(">i2" if fits_in else ">i4")


def fits_text(text: str) -> str:
    """Return a text as FITS can hold it: what is not printable ASCII becomes a backslash escape, as Python writes it.

    Names of files are written so wherever they stand (``ZMT_REF``, FRAMES.NAME), so that one finds the other.
    """
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in text)


def check_writable(header: Header, shape: tuple[int, ...]) -> None:
    """Write a small tile with these cards to memory and read them again; raises whatever astropy does.

    Parameters
    ----------
    header : Header
        Cards of a tile.
    shape : tuple of int
        (H, W) or (H, W, 3): a coloured tile has other cards.
    """
    from astropy.io import fits

    if not header:
        return
    stream = BytesIO()
    with without_warnings(Warning):  # of what is mended
        tile_hdus(np.zeros((1, 1, *shape[2:]), np.float32), header).writeto(stream, **WRITE_OPTIONS)
        for card in fits.Header.fromstring(stream.getvalue()).cards:
            _ = card.value, card.comment


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

    given = readable_cards(header) if isinstance(header, fits.Header) else header_from_mapping(header or {})
    cards = without_structure(given)
    stale = _STALE_CARDS | _MOSAIC_CARDS if is_colour else _STALE_CARDS
    for key in {*cards}:
        if key in stale or _THIRD_AXIS_CARD.match(key):
            cards.remove(key, remove_all=True)
    if "WCSAXES" in cards:
        cards["WCSAXES"] = 3 if is_colour else 2
    if is_colour:
        _describe_third_axis(cards)
    if any(isinstance(text := card.value, str) and len(text.replace("'", "''")) > CARD_TEXT for card in cards.cards):
        cards["LONGSTRN"] = ("OGIP 1.0", "texts may go on in CONTINUE cards")
    return cards


def _describe_third_axis(cards: Header) -> None:
    """Give the axis of colours the cards that the other two have, so that no program misses one of three."""
    cards["CTYPE3"] = ("RGB", "colour: red, green, blue")
    if "CTYPE1" not in cards:
        return
    cards["CRPIX3"] = (1.0, "first plane: red")
    cards["CRVAL3"] = (1.0, "number of the first plane")
    # A missing CD3_3 would mean 0 and make the matrix singular; with PC, or neither, it is CDELT that counts.
    cards["CD3_3" if "CD1_1" in cards else "CDELT3"] = (1.0, "one plane")


def _table_hdu(title: str, columns: Mapping[str, Sequence[Any] | np.ndarray], units: Mapping[str, str]) -> BinTableHDU:
    from astropy.io import fits

    arrays: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        array = np.asarray(values)
        if array.dtype.kind in "UO":
            # FITS tables hold ASCII of a stated width, at least one character.
            texts = [fits_text(str(text)).encode("ascii") for text in array]
            array = np.array(texts, dtype=f"S{max(map(len, texts), default=0) or 1}")
        arrays[name] = array
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of different lengths: {lengths}")
    rows = np.empty(next(iter(lengths.values()), 0), dtype=[(name, a.dtype, a.shape[1:]) for name, a in arrays.items()])
    for name, array in arrays.items():
        rows[name] = array
    with PARSER:
        table = fits.BinTableHDU(rows, name=title)
    for name, unit in units.items():
        table.columns[name].unit = unit
    return table

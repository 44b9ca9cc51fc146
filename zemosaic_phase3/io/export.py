"""A finished image in formats of other programs, each by the library of the format: a copy beside the FITS file.

Numbers of 32 bits are ADU / 65536, which is exact, so that they lie between 0 and 1 as these programs expect; those of
16 bits are whole ADU, cut off at 0 and 65535. Pixels without data become 0. Rows begin at the top of the picture.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.atomic_write import written_whole
from zemosaic_phase3.io.foreign_file import INSTALL, cards_without_sky

if TYPE_CHECKING:
    from astropy.io.fits import Header

EXPORT_SUFFIXES: Final = (".xisf", ".tif", ".tiff", ".png", ".fits.fz")
FULL_SCALE: Final = np.float32(65536.0)
_NEEDS: Final[Mapping[str, str]] = {".xisf": "xisf", ".tif": "tifffile", ".tiff": "tifffile", ".png": "imagecodecs"}


def check_export(path: Path) -> None:
    """Refuse before the work starts what could not be written at its end.

    Raises
    ------
    OutputError
        The name is of no format that is written, or its library is not installed.
    """
    from importlib.util import find_spec

    suffix = _suffix(path)
    if suffix in _NEEDS and find_spec(_NEEDS[suffix]) is None:
        raise OutputError(f"{path}: the package {_NEEDS[suffix]} is needed for it; {INSTALL}")


def _suffix(path: Path) -> str:
    found = next((suffix for suffix in EXPORT_SUFFIXES if path.name.lower().endswith(suffix)), None)
    if found is None:
        raise OutputError(f"{path}: must end in {', '.join(EXPORT_SUFFIXES)}")
    return found


def write_export(image: np.ndarray, header: Header, path: Path, *, bits: int = 32, overwrite: bool = False) -> None:
    """Write an image in the format that its name means, atomically.

    Parameters
    ----------
    image : ndarray (H, W) or (H, W, 3) float32
        ADU; NaN is no data.
    header : Header
        Its cards go along, where the format has a place for them.
    path : Path
        ``.xisf`` and ``.tif`` with 32 or 16 bits, ``.png`` with 16, ``.fits.fz`` without loss (GZIP_2) and as it is.
    bits : int
        Of a number: 32 or 16.
    overwrite : bool
        Replace a file that exists.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    check_export(path)
    suffix = _suffix(path)
    if suffix == ".fits.fz":
        data = _compressed_fits(image, header)
    else:
        pixels = image if str(header.get("ROWORDER", "")).strip().upper() == "TOP-DOWN" else image[::-1]
        pixels = np.ascontiguousarray(_whole(pixels) if bits == 16 or suffix == ".png" else _unit(pixels))
        data = {".xisf": _xisf, ".png": _png}.get(suffix, _tiff)(pixels, header)
    with written_whole(path, len(data), overwrite=overwrite) as stream:
        stream.write(data)


def _unit(image: np.ndarray) -> np.ndarray:
    return np.nan_to_num(image, nan=0.0) / FULL_SCALE


def _whole(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(np.nan_to_num(image, nan=0.0), 0.0, 65535.0)).astype(np.uint16)


def _tiff(pixels: np.ndarray, header: Header) -> bytes:
    import tifffile

    out = io.BytesIO()
    text = "".join(f"{card.image[:80].rstrip()}\n" for card in header.cards if len(card.keyword) <= 8)
    kind = "rgb" if pixels.ndim == 3 else "minisblack"
    text = text.encode("ascii", "replace").decode()
    tifffile.imwrite(out, pixels, photometric=kind, compression="zlib", predictor=True, description=text, metadata=None)
    return out.getvalue()


def _png(pixels: np.ndarray, _header: Header) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.png_encode(pixels))


def _xisf(pixels: np.ndarray, header: Header) -> bytes:
    import xisf

    known = {card.keyword: card.comment for card in header.cards}
    cards: dict[str, Any] = {key: header[key] for key in known if key not in ("", "HISTORY", "COMMENT")}
    keywords = {
        key: [{"value": f"'{value}'" if isinstance(value, str) else str(value), "comment": known.get(key, "")}]
        for key, value in cards_without_sky(cards).items()
    }
    planes = pixels if pixels.ndim == 3 else pixels[..., None]
    with tempfile.TemporaryDirectory() as folder:  # the library writes to a path
        file = os.path.join(folder, "image.xisf")  # noqa: PTH118 - it takes a text
        xisf.XISF.write(file, planes, "zemosaic-phase3", {"FITSKeywords": keywords}, codec="lz4hc", shuffle=True)
        return Path(file).read_bytes()


def _compressed_fits(image: np.ndarray, header: Header) -> bytes:
    from astropy.io import fits

    planes = np.moveaxis(image, 2, 0) if image.ndim == 3 else image
    unit = fits.CompImageHDU(np.ascontiguousarray(planes), header, compression_type="GZIP_2", quantize_level=0.0)
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(out, checksum=True, output_verify="silentfix+ignore")
    return out.getvalue()

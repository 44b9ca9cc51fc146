"""The WCS of a header that describes a plain tangent plane, as plate solvers write it, and nothing else parsed.

astropy takes 2 ms to read a header and its WCS, and lets no other thread work meanwhile; with the dozen numbers at hand
the same WCS takes a tenth of that. Whatever is not as plain as this is left to :mod:`io.wcs_cards` and astropy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3.io.fits_header import FITS_CARD, MOST_DEGREES, plain_value

if TYPE_CHECKING:
    from astropy.wcs import WCS

_NUMBERS: Final = ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CD1_1", "CD1_2", "CD2_1", "CD2_2")
_TEXTS: Final = ("CTYPE1", "CTYPE2")
_OPTIONAL: Final = ("CUNIT1", "CUNIT2", "RADESYS", "EQUINOX", "LONPOLE", "WCSAXES")
KEYS: Final = frozenset((*_NUMBERS, *_TEXTS, *_OPTIONAL))
# Cards that make it another WCS. Those of another description of the same image (CTYPE1A) are none.
_FURTHER: Final = re.compile(
    r"(CTYPE|CUNIT|CRPIX|CRVAL|CDELT|CROTA)[1-9]|(CD|PC)\d+_\d+|(CD|PC)\d{6}|P[VS]\d+_\d+|PROJP\d|LONPOLE|LATPOLE|WCSAXES"
    r"|EQUINOX|EPOCH|RADE(SYS|CSYS)|[AB]P?_(ORDER|DMAX|\d+_\d+)|(CPDIS|CQDIS|CPERR|CQERR|DP|DQ|D2IM)\w*|AXISCORR"
)
_FIRST: Final = frozenset("ABCDELPRW")


def plain_cards(raw: bytes) -> dict[str, Any] | None:
    """Return what a header says of a tangent plane.

    Parameters
    ----------
    raw : bytes
        A whole header.

    Returns
    -------
    dict or None
        Values by key of :data:`KEYS`; empty where the header speaks of no WCS; None where it takes astropy to tell.
    """
    found: dict[str, Any] = {}
    has_further = False
    text = raw.decode("latin-1")
    for start in range(0, len(text), FITS_CARD):
        if text[start] not in _FIRST:
            continue
        key = text[start : start + 8].rstrip()
        if key == "END":
            break
        if key in KEYS:
            value = plain_value(raw[start : start + FITS_CARD])
            if value is None or key in found:
                return None
            found[key] = value
        elif _FURTHER.fullmatch(key):
            has_further = True
    if "CTYPE1" not in found:
        return None if has_further or found else {}
    return found if not has_further and is_tangent_plane(found) else None


def is_tangent_plane(cards: Mapping[str, Any]) -> bool:
    """Return whether cards describe a tangent plane in ICRS or FK5 completely, with nothing unusual in them."""
    numbers = [cards.get(key) for key in _NUMBERS]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        return False
    _, _, ra, dec, a, b, c, d = map(float, numbers)  # type: ignore[arg-type]
    return (
        [cards.get(key) for key in _TEXTS] == ["RA---TAN", "DEC--TAN"]
        and all(cards.get(key, "deg") == "deg" for key in ("CUNIT1", "CUNIT2"))
        and cards.get("RADESYS", "ICRS") in ("ICRS", "FK5")
        and cards.get("EQUINOX", 2000.0) == 2000.0
        and cards.get("LONPOLE", 180.0) == 180.0
        and cards.get("WCSAXES", 2) == 2
        and abs(ra) <= MOST_DEGREES
        and abs(dec) <= 90.0
        and a * d - b * c != 0.0
    )


def tangent_plane(cards: Mapping[str, Any], pixel_shape: tuple[int, int]) -> WCS:
    """Return the WCS of cards that :func:`plain_cards` gave, for an image of so many pixels (width, height)."""
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    x, y, ra, dec, a, b, c, d = (float(cards[key]) for key in _NUMBERS)
    inner = wcs.wcs
    inner.ctype = [cards[key] for key in _TEXTS]
    inner.cunit = ["deg", "deg"]
    inner.crpix, inner.crval, inner.cd = [x, y], [ra, dec], [[a, b], [c, d]]
    if "RADESYS" in cards:
        inner.radesys = cards["RADESYS"]
    if "EQUINOX" in cards:
        inner.equinox = float(cards["EQUINOX"])
    inner.set()
    wcs.pixel_shape = pixel_shape
    return wcs

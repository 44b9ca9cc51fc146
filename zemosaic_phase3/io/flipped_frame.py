"""A frame whose rows are read in the other order: for frames that one program stored from the bottom up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from zemosaic_phase3.io.frame import FrameSource
from zemosaic_phase3.io.mosaic_cards import row_order
from zemosaic_phase3.io.wrapped_frame import WrappedSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from astropy.io.fits import Header
    from astropy.wcs import WCS


OTHER_ORDER: Final = {"TOP-DOWN": "BOTTOM-UP", "BOTTOM-UP": "TOP-DOWN"}


class FlippedSource(WrappedSource):
    """A frame with its last row first; its mosaic, its WCS and its ROWORDER follow.

    Parameters
    ----------
    source : FrameSource
        The frame as it is stored.
    """

    __slots__ = ()

    def __init__(self, source: FrameSource) -> None:
        super().__init__(source, source.dtype, "flipped")
        self.row_order = OTHER_ORDER.get(source.row_order, "")
        if source.cfa is not None and source.height % 2 == 0:
            self.cfa = source.cfa[2:] + source.cfa[:2]

    def deferred_header(self) -> Callable[[], Header]:
        """Read the header of the frame, and return what makes it; its WCS is that of the frame as stored."""
        made = self.inner.deferred_header()

        def header() -> Header:
            cards = made()
            order = row_order({"ROWORDER": cards.get("ROWORDER", "")})
            if order:
                cards["ROWORDER"] = OTHER_ORDER[order]
            return cards

        return header

    def wcs(self, header: Header | None = None) -> WCS | None:
        """Return the WCS of the frame as it is read."""
        found = self.inner.wcs(header)
        return None if found is None else flipped_wcs(found, self.height)

    def expect_rows(self, y0: int, y1: int) -> None:
        """Have the system fetch rows of the frame."""
        self.inner.expect_rows(self.height - y1, self.height - y0)

    def _read(self, y0: int, y1: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.ascontiguousarray(self.inner.read_rows(self.height - y1, self.height - y0)[::-1])


def flip(source: FrameSource) -> FrameSource:
    """Return a frame with its rows in the other order; twice is as stored."""
    return source.inner if isinstance(source, FlippedSource) else FlippedSource(source)


def is_turned(source: FrameSource) -> bool:
    """Return whether a frame, or the one inside it, is read in the other order: its sensor's places are turned over."""
    while isinstance(source, WrappedSource):
        if isinstance(source, FlippedSource):
            return True
        source = source.inner
    return False


def flipped_wcs(wcs: WCS, height: int) -> WCS:
    """Return the WCS of a frame of ``height`` rows after its last row became the first; distortion (SIP) included.

    With v = y - CRPIX2 of the frame as stored, v' = -v: the second column of the linear part changes its sign, as do
    the terms of SIP with an odd power of v, and those of the polynomials for v once more.
    """
    from astropy.wcs import Sip

    flipped = wcs.deepcopy()
    x, y = wcs.wcs.crpix
    flipped.wcs.crpix = [x, height + 1 - y]
    turn = np.diag([1.0, -1.0])
    if wcs.wcs.has_cd():
        flipped.wcs.cd = wcs.wcs.cd @ turn
    elif wcs.wcs.has_crota():
        flipped = _with_matrix(flipped, wcs.pixel_scale_matrix @ turn)
    else:
        flipped.wcs.pc = wcs.wcs.get_pc() @ turn
    if wcs.sip is not None:
        a, b, ap, bp = (
            None if terms is None else sign * terms * (-1.0) ** np.arange(terms.shape[1])
            for sign, terms in ((1.0, wcs.sip.a), (-1.0, wcs.sip.b), (1.0, wcs.sip.ap), (-1.0, wcs.sip.bp))
        )
        flipped.sip = Sip(a, b, ap, bp, flipped.wcs.crpix)
    flipped.wcs.set()
    return flipped


def _with_matrix(wcs: WCS, matrix: np.ndarray) -> WCS:
    """Return a WCS with another linear part, degrees a pixel; for the old CROTA, which knows no mirror images."""
    header = wcs.to_header(relax=True)
    for key in ("CROTA1", "CROTA2", "CDELT1", "CDELT2", "PC1_1", "PC1_2", "PC2_1", "PC2_2"):
        header.remove(key, ignore_missing=True)
    for row in (1, 2):
        for column in (1, 2):
            header[f"CD{row}_{column}"] = float(matrix[row - 1, column - 1])
    made = type(wcs)(header, naxis=2)
    made.pixel_shape = wcs.pixel_shape
    return made

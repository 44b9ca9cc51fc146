"""A WCS whose copies are its own: what a caller changes in a copy stays in the copy."""

from __future__ import annotations

import copy
from typing import Any

from astropy.wcs import WCS


class OwnWCS(WCS):
    """WCS of a tile that is handed to existing runs.

    ``WCS.copy()`` of astropy is shallow: the copy shares its numbers. ZeMosaic crops an image by shifting ``crpix`` of
    such a copy, and crops the same tile again in its second pass, which shifts the tile twice. Every copy of this class
    is a deep one. Pickled it is a plain WCS, so that a process which unpickles it needs nothing of this library.
    """

    def __copy__(self) -> OwnWCS:  # noqa: D105
        return copy.deepcopy(self)

    def __reduce__(self) -> tuple[Any, ...]:  # noqa: D105
        make, (_cls, *state) = super().__reduce__()
        return make, (WCS, *state)


def owned(wcs: WCS | None) -> OwnWCS | None:
    """Return a copy of a WCS that shares nothing with it and whose own copies share nothing with each other."""
    if wcs is None:
        return None
    mine = wcs.deepcopy()
    mine.__class__ = OwnWCS  # the same layout; astropy has no way to make a WCS from another one without its header
    return mine

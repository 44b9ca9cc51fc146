"""A frame whose samples are changed as they are read; everything else is that of the frame inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zemosaic_phase3.io.frame import FrameSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from astropy.io.fits import Header
    from astropy.wcs import WCS

    from zemosaic_phase3.io.origin import Origin


class WrappedSource(FrameSource):
    """A frame inside another one.

    Whoever derives from it overrides ``_read``, and gives any range of rows the bits that the whole has. Pixels as
    stored are not offered, so that both devices read them changed.

    Parameters
    ----------
    source : FrameSource
        The frame inside.
    dtype : numpy.dtype
        What ``read_rows`` gives: uint16 or float32.
    recipe : str
        Stands for what is done to the samples, in all its numbers; "" if a later run cannot know it again.
    """

    __slots__ = ("_recipe", "inner")

    def __init__(self, source: FrameSource, dtype: np.dtype, recipe: str = "") -> None:
        for name in ("name", "height", "width", "channels", "cfa", "row_order", "_codec", "_header", "_wcs"):
            setattr(self, name, getattr(source, name))
        self.dtype = dtype
        self.inner = source
        self._recipe = recipe

    def deferred_header(self) -> Callable[[], Header]:
        """Read the header of the frame, and return what makes it."""
        return self.inner.deferred_header()

    def card_values(self, *keys: str) -> list[Any]:
        """Return the values of a few cards of the frame, without astropy where they are plain."""
        return self.inner.card_values(*keys)

    def some_cards(self, keys: Collection[str]) -> dict[str, Any]:
        """Return the values of some cards of the frame."""
        return self.inner.some_cards(keys)

    def wcs(self, header: Header | None = None) -> WCS | None:
        """Return the WCS of the frame."""
        return self.inner.wcs(header)

    def require_unchanged(self) -> None:
        """Make sure that the frame's file is still the one that was opened."""
        self.inner.require_unchanged()

    def expect_rows(self, y0: int, y1: int) -> None:
        """Have the system fetch rows of the frame."""
        self.inner.expect_rows(y0, y1)

    def float_rows(self, y0: int, y1: int, read: Callable[[FrameSource, int, int], np.ndarray]) -> np.ndarray | None:
        """Return what ``read_rows`` gives as float32, made from a quicker reading of the frame inside.

        Parameters
        ----------
        y0, y1 : int
            A range inside the frame, not empty.
        read : callable
            ``read(source, y0, y1)`` returns rows of a frame, a mosaic's as stored, float32, owned by the caller.

        Returns
        -------
        ndarray float32 or None
            None: only ``read_rows`` can tell.
        """
        return None

    @property
    def origin(self) -> Origin | None:
        """Where the frame inside comes from, and what is done to it."""
        inner = self.inner.origin if self._recipe else None
        return None if inner is None else inner._replace(recipe=f"{inner.recipe} {self._recipe}")

    @property
    def held(self) -> list[np.ndarray]:
        """Arrays that this frame shares with others and keeps in memory."""
        return self.inner.held if isinstance(self.inner, WrappedSource) else []


def held_bytes(sources: list[FrameSource]) -> int:
    """Return the bytes of the arrays that frames keep in memory, each array once."""
    arrays = {id(a): a.nbytes for source in sources if isinstance(source, WrappedSource) for a in source.held}
    return sum(arrays.values())

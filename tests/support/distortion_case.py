"""What several tests share: made for the tests of ``distortion``."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS, Sip

from zemosaic_phase3.spec import RegisterSpec

SPEC = RegisterSpec()
SCALE = 2.4 / 3600  # degrees per pixel


def optics(shape: tuple[int, int], corner_px: float, shift: tuple[float, float] = (0.0, 0.0), turn: float = 0.0) -> WCS:
    """WCS of a telescope whose optics displace a star in the corner by ``corner_px``; pointed ``shift`` pixels away."""
    wcs = WCS(naxis=2)
    suffix = "-SIP" if corner_px else ""
    wcs.wcs.ctype = [f"RA---TAN{suffix}", f"DEC--TAN{suffix}"]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5, shape[0] / 2 + 0.5]
    wcs.wcs.crval = [150.0 + shift[0] * SCALE / np.cos(np.deg2rad(30.0)), 30.0 + shift[1] * SCALE]
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    wcs.wcs.cd = SCALE * np.array([[-c, s], [s, c]])
    if corner_px:
        strength = corner_px / np.hypot(shape[0] / 2, shape[1] / 2) ** 3
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[3, 0] = a[1, 2] = b[0, 3] = b[2, 1] = strength  # radial, cubic
        a[2, 0], b[1, 1] = 0.3 * strength * shape[1], -0.2 * strength * shape[1]
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def sky_of(wcs: WCS, shape: tuple[int, int], n: int, seed: int = 1) -> np.ndarray:
    """Stars (RA, Dec) in and around a field."""
    rng = np.random.default_rng(seed)
    margin = 150
    xy = rng.uniform((-margin, -margin), (shape[1] + margin, shape[0] + margin), (n, 2))
    return wcs.wcs_pix2world(xy, 0)


def seen(wcs: WCS, sky: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where a frame shows the stars, (n, 2) px, and which lie on it."""
    xy = wcs.all_world2pix(sky, 0)
    return xy, np.all((xy > 0) & (xy < (shape[1] - 1, shape[0] - 1)), axis=1)

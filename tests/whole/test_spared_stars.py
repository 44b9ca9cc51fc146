"""Stars of a session whose seeing changes, all the way from files to the tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.spec import StackSpec

HEIGHT, WIDTH = 200, 240
SHARP = (2, 9, 14)  # of 20 frames


def moffat(x: np.ndarray, y: np.ndarray, fwhm: float) -> np.ndarray:
    alpha = fwhm / 2 / np.sqrt(2 ** (1 / 3) - 1)
    return 2 / (np.pi * alpha**2) * (1 + (x * x + y * y) / alpha**2) ** -3.0


def test_bright_stars_keep_the_light_that_all_samples_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    grid = np.stack(np.meshgrid(np.arange(25, WIDTH, 38), np.arange(25, HEIGHT, 37)), axis=-1).reshape(-1, 2)
    stars = grid + rng.uniform(-6, 6, grid.shape)
    flux = 10 ** rng.uniform(4.7, 5.7, len(stars))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for k in range(20):
        fwhm = (2.5 if k in SHARP else 4.5) * rng.normal(1.0, 0.02)
        dx, dy = rng.uniform(-4, 4, 2) if k else (0.0, 0.0)
        light = np.sum(
            [f * moffat(x - a - dx, y - b - dy, fwhm) for (a, b), f in zip(stars, flux, strict=True)], axis=0
        )
        frame = 1000.0 + light + rng.standard_normal(light.shape) * np.sqrt(20.0**2 + light)
        fits.writeto(tmp_path / f"{k:02d}.fits", np.clip(np.rint(frame), 0, 65535).astype(np.uint16))

    def made(**options: object) -> Tile:
        chosen = StackSpec(**options)  # type: ignore[arg-type]
        tile = stack_files([tmp_path], stack=chosen, reference="00.fits", device="cpu", workers=2)
        assert tile.report.n_used == 20
        return tile

    everything, before, after = made(reject="none"), made(spare_stars=False), made()
    assert [tile.header["ZMT_SPAR"] for tile in (everything, before, after)] == [False, False, True]
    masks = [np.hypot(x - a, y - b) < 2.5 for a, b in stars]
    core = [np.array([(tile.image[m] - 1000.0).sum() for m in masks]) for tile in (everything, before, after)]
    assert np.median(core[1] / core[0]) < 0.95
    assert abs(np.median(core[2] / core[0]) - 1.0) < 0.003
    assert np.mean(after.image == before.image) > 0.5, "what is no star is as it was"

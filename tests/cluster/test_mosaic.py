"""Mosaics: levels are matched, no edge shows, light stays where and what it is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from mosaic_case import header_of

from zemosaic_phase3.cluster.levels import compare, match_levels
from zemosaic_phase3.cluster.mosaic import MosaicSpec, make_mosaic, seam_of
from zemosaic_phase3.errors import NoFramesError, OutputError

NOISE = 5.0
SIZE = (150, 200)


def light(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a sky with structure on all scales, ADU."""
    wide = 300.0 * np.exp(-((x / 160.0) ** 2 + (y / 120.0) ** 2))
    stars = np.zeros_like(wide)
    rng = np.random.default_rng(11)
    for sx, sy, flux in zip(
        rng.uniform(-250, 250, 90), rng.uniform(-200, 200, 90), rng.uniform(50, 2000, 90), strict=True
    ):
        stars += flux * np.exp(-((x - sx) ** 2 + (y - sy) ** 2) / (2 * 1.4**2))
    return wide + stars


def write_tile(
    path: Path, x0: float, y0: float, rng: np.random.Generator, *, gain: float = 1.0, sky: float = 0.0,
    slope: float = 0.0, channels: int = 1, band: str = "L",
) -> None:  # fmt: skip
    """Write what ``stack`` writes of a tile whose first pixel is at (x0, y0)."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]].astype(np.float64)
    image = gain * light(x + x0, y + y0) + sky + slope * x
    planes = image[None] * np.arange(1, channels + 1)[:, None, None] + rng.normal(0, NOISE, (channels, *SIZE))
    coverage = np.full((channels, *SIZE), 20, np.int16)
    coverage[:, :3], coverage[:, :, -4:] = 5, 0
    planes = np.where(coverage > 0, planes, np.nan).astype(np.float32)
    header = header_of(x0, y0, FILTER=band, EXPTOTAL=200.0, NCOMBINE=20, ZMT_REF="a.fits", ALPHAEXT=1)
    data = planes if channels > 1 else planes[0]
    units = [fits.PrimaryHDU(data, header), fits.ImageHDU(coverage if channels > 1 else coverage[0], name="COVERAGE")]
    fits.HDUList(units).writeto(path)


def corners() -> list[tuple[float, float]]:
    return [(x, y) for y in (-130.5, -20.25) for x in (-180.0, -30.75)]


def truth_on(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a mosaic and the light at its pixels."""
    with fits.open(path) as hdus:
        image, wcs = np.array(hdus[0].data, np.float64), WCS(hdus[0].header, naxis=2)
    y, x = np.mgrid[0 : image.shape[-2], 0 : image.shape[-1]]
    return image, light(*WCS(header_of(0.0, 0.0)).world_to_pixel_values(*wcs.pixel_to_world_values(x, y)))


@pytest.mark.parametrize("channels", [1, 3])
def test_no_seam_and_the_right_light(tmp_path: Path, rng: np.random.Generator, channels: int) -> None:
    gains, skies, slopes = (1.0, 0.85, 1.2, 0.95), (1000.0, 1300.0, 700.0, 1100.0), (0.02, -0.02, 0.0, 0.03)
    for k, (x0, y0) in enumerate(corners()):
        write_tile(
            tmp_path / f"t{k}.fits", x0, y0, rng, gain=gains[k], sky=skies[k], slope=slopes[k], channels=channels
        )
    found = make_mosaic(tmp_path, tmp_path / "out.fits")
    assert found.seam < 0.5
    assert max(abs(step) for *_, step in found.steps) < 0.6 * channels
    for c in range(channels):
        true = 1.0 / np.array(gains)
        assert np.array([tile.gain[c] for tile in found.tiles]) == pytest.approx(
            true / math.exp(np.log(true).mean()),
            rel=0.04,  # the slopes
        )
    image, right = truth_on(tmp_path / "out.fits")
    for c, plane in enumerate(np.atleast_3d(image) if channels == 1 else image):
        plane = image if channels == 1 else image[c]
        inner = np.isfinite(plane) & (right < 400)
        scale = (c + 1) / math.exp(np.log(1.0 / np.array(gains)).mean()) ** -1
        rest = (plane - scale * right)[inner]
        rest -= np.median(rest)
        assert np.abs(np.percentile(rest, [5, 95])).max() < 3.5 * NOISE  # slopes and noise
        if channels == 1:
            break
    with fits.open(tmp_path / "out.fits") as hdus:
        assert hdus["COVERAGE"].data.max() >= 60
        assert hdus[0].header["NCOMBINE"] == 80
        assert (hdus["ALPHA"].data > 0).sum() == np.isfinite(hdus[0].data if channels == 1 else hdus[0].data[0]).sum()


def test_without_levels_the_seams_are_seen(tmp_path: Path, rng: np.random.Generator) -> None:
    """The measure is able to fail, and weights that fall towards the edge are what hides a step."""
    y, x = np.mgrid[0:200, 0:300].astype(np.float64)
    image = light(x - 150, y - 100) + rng.normal(0, NOISE, x.shape)
    places = [(slice(0, 200), slice(0, 180)), (slice(0, 200), slice(120, 300))]
    assert seam_of(image.astype(np.float32), places, [NOISE]) < 0.5
    image[:, 180:] += 2 * NOISE
    assert seam_of(image.astype(np.float32), places, [NOISE]) == pytest.approx(2.0, abs=0.5)


def test_light_of_a_star_is_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    for k, (x0, y0) in enumerate(corners()):
        write_tile(tmp_path / f"t{k}.fits", x0, y0, rng)
    make_mosaic(tmp_path, tmp_path / "out.fits", MosaicSpec(levels="none"))
    image, right = truth_on(tmp_path / "out.fits")
    bright = np.isfinite(image) & (right > 500)
    assert bright.sum() > 100
    assert image[bright].sum() / right[bright].sum() == pytest.approx(1.0, abs=0.01)


def test_bands_do_not_show(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    for k, (x0, y0) in enumerate(corners()[:2]):
        write_tile(tmp_path / f"t{k}.fits", x0, y0, rng)
    make_mosaic(tmp_path, tmp_path / "whole.fits")
    (tmp_path / "parts").mkdir()
    monkeypatch.setattr("zemosaic_phase3.cluster.mosaic.BAND_PIXELS", 20_000)
    make_mosaic(tmp_path, tmp_path / "parts" / "out.fits")
    whole, parts = fits.getdata(tmp_path / "whole.fits"), fits.getdata(tmp_path / "parts" / "out.fits")
    np.testing.assert_allclose(parts, whole, atol=0.02 * NOISE)


def test_what_is_no_mosaic(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(NoFramesError, match="no FITS file"):
        make_mosaic(tmp_path, tmp_path / "out.fits")
    fits.writeto(tmp_path / "sub.fits", np.zeros((20, 20)))
    with pytest.raises(NoFramesError, match=r"sub\.fits: is no tile"):
        make_mosaic(tmp_path, tmp_path / "out.fits")
    write_tile(tmp_path / "a.fits", 0, 0, rng)
    write_tile(tmp_path / "b.fits", 50, 0, rng, band="Ha")
    with pytest.raises(NoFramesError, match=r"several filters \(L, Ha\)"):
        make_mosaic(tmp_path, tmp_path / "out.fits")
    found = make_mosaic(tmp_path, tmp_path / "out.fits", MosaicSpec(filter="ha"))
    assert [tile.name for tile in found.tiles] == ["b"]
    assert found.notes == ["sub.fits: is no tile"]
    with pytest.raises(OutputError, match="exists already"):
        make_mosaic(tmp_path, tmp_path / "out.fits", MosaicSpec(filter="ha"))


def test_a_gain_that_nothing_tells_stays_one(rng: np.random.Generator) -> None:
    a, b = rng.normal(100, 1, 4000), rng.normal(140, 1, 4000)
    pair = compare(0, 1, a, b, 1.0, 1.0)
    assert pair is not None
    levels = match_levels(2, [pair])
    assert levels.gain == pytest.approx([1.0, 1.0], abs=0.15)
    assert compare(0, 1, a[:5], b[:5], 1.0, 1.0) is None


def test_levels_of_a_chain_add_up(rng: np.random.Generator) -> None:
    shape, gains, skies = (
        rng.uniform(0, 500, (3, 600)),
        np.array([1.0, 0.9, 1.1, 1.05]),
        np.array([0.0, 50.0, -20.0, 9.0]),
    )
    pairs = []
    for k in range(3):
        a, b = (gains[i] * shape[k] + skies[i] + rng.normal(0, 1, 600) for i in (k, k + 1))
        b[:20] += 400.0  # a satellite
        pairs.append(compare(k, k + 1, a, b, 1.0, 1.0))
    levels = match_levels(4, [pair for pair in pairs if pair is not None])
    np.testing.assert_allclose(levels.gain * gains / (levels.gain[0] * gains[0]), 1.0, rtol=0.01)
    at = levels.gain * skies + levels.offset
    np.testing.assert_allclose(at, at[0], atol=1.0)

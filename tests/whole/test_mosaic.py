"""Nine overlapping tiles become one mosaic without holes and seams, whichever device made which tile."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from center_out_case import Run
from host_cupy import installed

import zemosaic_worker as worker

TILE = (96, 128)
STEP = (64, 88)  # a third of a tile is shared with each neighbour
FRAMES = 6
NOISE, SKY, FWHM = 12.0, 1000.0, 3.0
FIELD = (TILE[0] + 2 * STEP[0], TILE[1] + 2 * STEP[1])
CORNERS = [(row * STEP[0], column * STEP[1]) for row in range(3) for column in range(3)]
BLIND = np.s_[40:52, 60:75]  # of every reference frame: a hole that only the other frames can fill
DITHERS = np.random.default_rng(4).uniform(-4, 4, (FRAMES, 2))


def _wcs(x0: float, y0: float) -> WCS:
    """WCS of an image whose pixel (0, 0) is pixel (x0, y0) of the field."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.cdelt = [83.6, 22.0], [-6e-4, 6e-4]
    wcs.wcs.crpix = [FIELD[1] / 2 - x0, FIELD[0] / 2 - y0]
    wcs.wcs.set()
    return wcs


def _stars(shape: tuple[int, int], x0: float, y0: float) -> np.ndarray:
    """Stars of the field without noise in an image whose pixel (0, 0) is pixel (x0, y0) of the field, ADU."""
    rng = np.random.default_rng(11)
    count = FIELD[0] * FIELD[1] // 700
    x, y = rng.uniform(-9, FIELD[1] + 9, count) - x0, rng.uniform(-9, FIELD[0] + 9, count) - y0
    peak = 10 ** rng.uniform(2.3, 4.0, count)
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    width = 2 * (FWHM / 2.3548) ** 2
    across = np.exp(-((columns - x[:, None]) ** 2) / width)
    return np.einsum("n,ny,nx->yx", peak, np.exp(-((rows - y[:, None]) ** 2) / width), across, optimize=True)


def _group(folder: Path, tile: int, *, offset: float) -> list[dict[str, Any]]:
    """Group entries of one tile: dithered frames, the first on the tile's own grid."""
    rng = np.random.default_rng(100 + tile)
    entries = []
    for k in range(FRAMES):
        dx, dy = DITHERS[k] if k else (0.0, 0.0)
        x0, y0 = CORNERS[tile][1] + dx, CORNERS[tile][0] + dy
        clean = SKY + offset + _stars(TILE, x0, y0)
        data = (clean[..., None] + rng.normal(0, NOISE, (*TILE, 3))).astype(np.float32)
        if k == 0:
            data[BLIND] = np.nan
        elif k == 2:
            data[10, :] += 3000.0  # a satellite
        cache = folder / f"{tile}_{k}.npy"
        np.save(cache, data)
        entries.append(
            {"path_raw": f"{tile}_{k}.fit", "path_preprocessed_cache": str(cache), "wcs": _wcs(x0, y0), "header": {}}
        )
    return entries


@dataclass
class Mosaic:
    tiles: list[np.ndarray]  # (H, W, 3) each
    alphas: list[np.ndarray]
    wcs: list[WCS]
    devices: list[str]


def _make(folder: Path, groups: list[list[dict[str, Any]]], uses_gpu: Any, run: Run | None = None) -> Mosaic:
    def one(tile: int) -> str:
        (path, _), retry = worker.create_master_tile(
            groups[tile], tile, folder, "linear_fit", "noise_variance", "winsorized_sigma_clip", 3.0, 3.0, (0.05, 0.05),
            "mean", False, parallel_plan=SimpleNamespace(cpu_workers=1, use_gpu=uses_gpu(tile)),
            center_out_context=run, center_out_settings={"enabled": run is not None, "preview_size": 64},
        )  # fmt: skip
        assert retry == []
        return path

    order = sorted(range(9), key=lambda tile: abs(tile - 4))  # the anchor first, as runs order their tiles
    with ThreadPoolExecutor(3) as pool:
        paths = [path for _, path in sorted(zip(order, pool.map(one, order), strict=True))]
    mosaic = Mosaic([], [], [], [])
    for path in paths:
        with fits.open(path) as hdus:
            mosaic.tiles.append(np.moveaxis(hdus[0].data, 0, -1).astype(np.float32))
            mosaic.alphas.append(np.array(hdus["ALPHA"].data))
            mosaic.wcs.append(WCS(hdus[0].header, naxis=2))
            mosaic.devices.append(hdus[0].header["ZMT_DEV"])
    return mosaic


DEVICES = {"cpu": lambda tile: False, "gpu": lambda tile: True, "half and half": lambda tile: tile % 2 == 0}


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("frames")
    return [_group(folder, tile, offset=0.0) for tile in range(9)]


class Mosaics(dict[str, Mosaic]):
    """Mosaics by their devices, made when asked for; the GPU engine is the real one, its kernels built by g++."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        super().__init__()
        self.request = request

    def __missing__(self, name: str) -> Mosaic:
        groups = self.request.getfixturevalue("groups")
        folder = self.request.getfixturevalue("tmp_path_factory").mktemp("tiles")
        worker.reset_phase3_gpu_state()
        if name == "cpu":
            self[name] = _make(folder, groups, DEVICES[name])
            return self[name]
        host = self.request.getfixturevalue("host")  # without g++ the test is skipped here
        with pytest.MonkeyPatch.context() as monkeypatch, installed(host, monkeypatch) as cupy:
            self[name] = _make(folder, groups, DEVICES[name])
            assert cupy.launched.count("combine_block") >= self[name].devices.count("gpu")
        worker.reset_phase3_gpu_state()
        return self[name]


@pytest.fixture(scope="module")
def mosaics(request: pytest.FixtureRequest) -> Mosaics:
    return Mosaics(request)


def _bilinear(tile: np.ndarray, wcs: WCS, target: WCS) -> tuple[np.ndarray, np.ndarray]:
    """Our own resampling onto the field: pixels and footprint."""
    from scipy import ndimage

    y, x = np.mgrid[: FIELD[0], : FIELD[1]]
    at = wcs.wcs_world2pix(*target.wcs_pix2world(x, y, 0), 0)
    at = [np.round(axis, 6) for axis in at[::-1]]  # WCS rounding must not push the outermost row over the edge
    pixels = ndimage.map_coordinates(tile.astype(np.float64), at, order=1, cval=np.nan)
    return pixels, np.isfinite(pixels).astype(float)


def _coadd(mosaic: Mosaic, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Green channel of the mosaic on the grid of the field, and how many tiles lie behind each pixel."""
    target = _wcs(0.0, 0.0)
    green = [np.where(a == 255, t[..., 1], np.nan) for t, a in zip(mosaic.tiles, mosaic.alphas, strict=True)]
    if how == "reproject":
        from reproject import reproject_interp
        from reproject.mosaicking import reproject_and_coadd

        return reproject_and_coadd(
            list(zip(green, mosaic.wcs, strict=True)), target, shape_out=FIELD, reproject_function=reproject_interp
        )
    placed = [_bilinear(tile, wcs, target) for tile, wcs in zip(green, mosaic.wcs, strict=True)]
    count = np.sum([footprint for _, footprint in placed], axis=0)
    total = np.sum([np.nan_to_num(pixels) for pixels, _ in placed], axis=0)
    with np.errstate(invalid="ignore"):
        return total / count, count


def _same_sky(mosaic: Mosaic) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels of every two tiles in their overlap, side by side: the grids differ by whole pixels."""
    pairs = []
    for a, b in combinations(range(9), 2):
        (ya, xa), (yb, xb) = CORNERS[a], CORNERS[b]
        y0, x0, y1, x1 = max(ya, yb), max(xa, xb), min(ya, yb) + TILE[0], min(xa, xb) + TILE[1]
        if y1 - y0 > 8 and x1 - x0 > 8:
            pairs.append(
                (
                    mosaic.tiles[a][y0 - ya : y1 - ya, x0 - xa : x1 - xa],
                    mosaic.tiles[b][y0 - yb : y1 - yb, x0 - xb : x1 - xb],
                )
            )
    return pairs


def test_tiles_have_the_same_bits_whichever_device_made_them(mosaics: Mosaics) -> None:
    assert mosaics["cpu"].devices == ["cpu"] * 9
    assert mosaics["gpu"].devices == ["gpu"] * 9
    assert mosaics["half and half"].devices == ["gpu", "cpu"] * 4 + ["gpu"]
    for name in ("gpu", "half and half"):
        for made, expected in zip(mosaics[name].tiles, mosaics["cpu"].tiles, strict=True):
            np.testing.assert_array_equal(made, expected)


def test_two_tiles_of_the_same_sky_agree(mosaics: Mosaics) -> None:
    pairs = _same_sky(mosaics["half and half"])
    assert len(pairs) == 20
    for one, other in pairs:
        levels = np.nanmedian(one, axis=(0, 1)) / np.nanmedian(other, axis=(0, 1))
        np.testing.assert_allclose(levels, 1.0, atol=1e-3)
        bright = (one > SKY + 500) & (other > SKY + 500)
        if (
            bright.sum() > 50
        ):  # the scale too; linear_fit takes it from percentiles, good to a few per cent in so few pixels
            assert np.sum(one[bright] - SKY) == pytest.approx(np.sum(other[bright] - SKY), rel=0.05)


def test_no_hole_where_any_frame_had_data(mosaics: Mosaics) -> None:
    for tile, alpha in zip(mosaics["half and half"].tiles, mosaics["half and half"].alphas, strict=True):
        assert np.isfinite(tile).all()  # the blind patch of the reference too
        assert (alpha == 255).all()


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("how", ["own", "reproject"])
def test_mosaic_has_neither_hole_nor_seam(mosaics: Mosaics, name: str, how: str) -> None:
    if how == "reproject" and importlib.util.find_spec("reproject") is None:
        pytest.skip("reproject is not installed (it is a development dependency)")
    image, count = _coadd(mosaics[name], how)
    assert np.isfinite(image[1:-1, 1:-1]).all()  # the outermost rows depend on the rounding of the WCS
    assert count[1:-1, 1:-1].min() >= 1
    stars = _stars(FIELD, 0.0, 0.0)
    residual = np.where(stars < 3.0, image - SKY, np.nan)
    assert np.nanmedian(residual) == pytest.approx(0.0, abs=1.0)  # 0.1 % of the sky
    edges = [(0, row) for row in (64, 96, 128, 160)] + [(1, column) for column in (88, 128, 176, 216)]
    for axis, at in edges:
        lines = np.moveaxis(residual, axis, 0)
        before, after = lines[at - 6 : at], lines[at : at + 6]
        noise = np.nanstd(np.concatenate([before, after]))
        # In pieces of 24 pixels along the edge; each side is the mean of at least 60 pixels, good to 0.13 noise.
        for start in range(0, before.shape[1] - 24, 24):
            one, other = before[:, start : start + 24], after[:, start : start + 24]
            if min(np.isfinite(one).sum(), np.isfinite(other).sum()) >= 60:
                assert abs(np.nanmean(other) - np.nanmean(one)) < noise
        assert abs(np.nanmean(after) - np.nanmean(before)) < 0.3 * noise


def test_centre_out_brings_tiles_of_different_nights_together(tmp_path: Path) -> None:
    groups = [_group(tmp_path, tile, offset=30.0 * (tile - 4)) for tile in range(9)]
    plain, matched = (
        _make(tmp_path / how, groups, DEVICES["cpu"], run) for how, run in (("plain", None), ("matched", Run(4)))
    )
    worst = {
        how: max(np.abs(np.nanmedian(a) / np.nanmedian(b) - 1.0) for a, b in _same_sky(mosaic))
        for how, mosaic in (("plain", plain), ("matched", matched))
    }
    assert worst["plain"] > 0.02
    assert worst["matched"] < 1e-3

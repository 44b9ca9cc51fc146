"""A drizzle, all the way from the files of a colour camera to the tile: colours, light, WCS, holes, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_phase3.app.cli import main
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.spec import StackSpec

HEIGHT, WIDTH, SKY = 160, 200, 1000.0
FRAMES = 24
COLOUR = np.array([0.5, 1.0, 0.9])  # of all stars
CELL = np.array([[1, 0], [2, 1]])  # GRBG


def stars() -> tuple[np.ndarray, np.ndarray]:
    """Places (n, 2) in the first frame, and fluxes, ADU in green."""
    rng = np.random.default_rng(8)
    grid = np.stack(np.meshgrid(np.arange(25, WIDTH - 12, 30), np.arange(25, HEIGHT - 12, 28)), axis=-1).reshape(-1, 2)
    return grid + rng.uniform(-5, 5, grid.shape), 10 ** rng.uniform(4.7, 5.3, len(grid))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw frames, turned and dithered; the stars are 2.4 px wide, as seen by square pixels."""
    made = tmp_path_factory.mktemp("subs")
    rng = np.random.default_rng(3)
    at, flux = stars()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    photosite = CELL[y % 2, x % 2]
    header = fits.Header()
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 83.0, "CRVAL2": 22.0})
    header.update({"CRPIX1": 100.5, "CRPIX2": 80.5, "CD1_1": -6e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 6e-4})
    for k in range(FRAMES):
        turn = np.deg2rad(rng.uniform(-2, 2)) if k else 0.0
        shift = rng.uniform(-4, 4, 2) if k else np.zeros(2)
        centre = np.array([WIDTH / 2, HEIGHT / 2])
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        places = (at - centre) @ turned.T + centre + shift
        light = np.zeros((HEIGHT, WIDTH))
        for (px, py), f in zip(places, flux, strict=True):
            light += f / (2 * np.pi) * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 2.0)
        light *= COLOUR[photosite]
        frame = SKY + light + rng.standard_normal(light.shape) * np.sqrt(8.0**2 + light)
        cards = header if k == 0 else fits.Header()
        cards["BAYERPAT"], cards["XPIXSZ"], cards["FOCALLEN"] = "GRBG", 2.9, 250.0
        fits.writeto(made / f"{k:02d}.fits", np.clip(np.rint(frame), 0, 65535).astype(np.uint16), cards)
    return made


def drizzled(folder: Path, out: Path, *options: object) -> tuple[np.ndarray, fits.Header, dict]:
    """Image (H, W, 3), header and report."""
    report = out.with_suffix(".json")
    chosen = ("--reference", folder / "00.fits", "--device", "cpu", "--workers", 2, "--preview", "none", "--quiet")
    words = ["stack", folder, "-o", out, "--json", report, "--overwrite", "--no-resume", *chosen, *options]
    assert main([str(word) for word in words]) == 0
    with fits.open(out) as hdus:
        image = np.asarray(hdus[0].data, np.float64)
        return (
            np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image,
            hdus[0].header,
            json.loads(report.read_text()),
        )


def light_within(image: np.ndarray, scale: float, radius: float) -> np.ndarray:
    """Light of each star within some pixels of the reference, (n, 3), in units of its flux in green."""
    at, flux = stars()
    y, x = (a / scale + 0.5 / scale - 0.5 for a in np.mgrid[: image.shape[0], : image.shape[1]])
    sky = np.nanmedian(image, axis=(0, 1))
    within = [np.hypot(x - px, y - py) < radius for px, py in at]
    return np.array([np.nansum(image[m] - sky, axis=0) / f for m, f in zip(within, flux, strict=True)]) / scale**2


@pytest.mark.parametrize(("scale", "pixfrac"), [(1, 1.0), (2, 0.8)])
def test_stars_keep_their_light_and_their_cores_the_colour(
    folder: Path, tmp_path: Path, scale: int, pixfrac: float
) -> None:
    options = ("--drizzle", scale, "--pixfrac", pixfrac, "--reject", "none")
    image, header, report = drizzled(folder, tmp_path / "a.fits", *options)
    assert image.shape == (HEIGHT * scale, WIDTH * scale, 3)
    assert (header["ZMT_DRIZ"], header["ZMT_PIXF"], header["ZMT_INTP"]) == (scale, pixfrac, "drizzle")
    assert report["self_check"]["pixels"] > 0 and not report["self_check"]["note"]
    assert report["n_used"] == FRAMES
    assert header["XPIXSZ"] == pytest.approx(2.9 / scale), "so that programs know the scale"
    told = [note for note in report["warnings"] if note.startswith("drizzle:")]
    assert bool(told) == (scale == 2), f"dither leaves no holes: {told}"
    whole, core = (np.median(light_within(image, scale, r), axis=0) for r in (7.0, 1.5))
    np.testing.assert_allclose(whole, COLOUR, rtol=0.01)  # noise of the sky in 150 pixels, and its median
    np.testing.assert_allclose(core / core[1], COLOUR, rtol=0.02)
    pixel = np.sqrt(np.abs(np.linalg.det(WCS(header).celestial.pixel_scale_matrix)))
    assert pixel == pytest.approx(6e-4 / scale, rel=1e-3)


def test_rejection_and_holes(folder: Path, tmp_path: Path) -> None:
    with fits.open(folder / "05.fits", mode="update") as hdus:
        hdus[0].data[60:64, 20:180] = 20000
    image, _, report = drizzled(folder, tmp_path / "b.fits", "--drizzle", 1, "--reject", "sigma_clip")
    assert np.nanmedian(np.abs(image[55:70, 30:170] - SKY)) < 10.0, "the trail is gone"
    assert max(report["rejected_high_percent"]) > 0.1
    image, _, report = drizzled(folder, tmp_path / "c.fits", "--drizzle", 3, "--pixfrac", 0.3)
    told = [note for note in report["warnings"] if note.startswith("drizzle: nothing fell on some pixels")]
    assert len(told) == 1 and "in red" in told[0] and "--pixfrac" in told[0]
    assert np.isnan(image[100:-100, 100:-100]).any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"drizzle": 0.5}, "drizzle scale = 0.5 is outside 1 to 3"),
        ({"drizzle": 4}, "drizzle scale = 4 is outside 1 to 3"),
        ({"drizzle": 2, "pixfrac": 0}, "pixfrac = 0 is below 0.05"),
        ({"drizzle": 2, "pixfrac": 1.5}, "pixfrac = 1.5 is outside [0, 1]"),
        ({"drizzle": 2, "radial_weight": True}, "radial weights and drizzle exclude each other"),
    ],
)
def test_what_cannot_be_drizzled_is_an_error(options: dict, reason: str) -> None:
    with pytest.raises(SpecError) as caught:
        StackSpec(**options)
    assert reason in str(caught.value)


def test_pixfrac_alone_is_an_error_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["stack", str(folder), "-o", str(tmp_path / "d.fits"), "--pixfrac", "0.5"])
    assert "--pixfrac needs --drizzle" in capsys.readouterr().err

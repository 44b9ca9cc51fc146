"""Make the pictures of ``docs/`` again: the page of a stack, and the terminal, as a user sees them.

``make pictures``; needs Chromium and the extra ``report``. Frames are simulated, some of them spoiled.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from browser import Browser, open_browser
from PIL import Image
from scipy.ndimage import uniform_filter1d
from terminal import Played, Screen, play

from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SESSION = SimulationSpec(n_frames=60, height=720, width=1280, seed=11, wcs_error_px=1.0)
CLOUDY, TRAILED = (19, 20, 21, 22), (40, 41, 50)
START = [sys.executable, "-c", "from zemosaic_phase3.app.program import run_program; run_program()"]
STRONG = 70  # difference between the colours of a pixel
COLOURS = 256  # of a picture of a page; 32 of a terminal


def spoil(subs: Path) -> None:
    """Clouds, a mount that was pushed, a file that was not copied whole."""
    rng = np.random.default_rng(0)
    for k in (*CLOUDY, *TRAILED):
        path = subs / f"sub_{k:04d}.fits"
        with fits.open(path) as hdus:
            data, header = hdus[0].data.astype(np.float64), hdus[0].header
        if k in CLOUDY:
            data = rng.normal(2400.0, 50.0, data.shape)
        else:
            for y in (0, 1):
                for x in (0, 1):
                    data[y::2, x::2] = uniform_filter1d(data[y::2, x::2], 9, axis=1)
        fits.writeto(path, np.clip(data, 0, 65535).astype(np.uint16), header, overwrite=True)
    whole = (subs / "sub_0033.fits").read_bytes()
    (subs / "sub_0033.fits").write_bytes(whole[: len(whole) // 3])


def save(data: bytes, name: str, *, scale: float = 1.0, colours: int = COLOURS) -> None:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if scale != 1.0:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    few_colours(picture, colours).save(DOCS / name, optimize=True)
    print(f"docs/{name}: {picture.width} x {picture.height}, {(DOCS / name).stat().st_size // 1024} KB")  # noqa: T201


def few_colours(picture: Image.Image, colours: int) -> Image.Image:
    """Return a picture with a palette, a quarter of which is for its few pixels of strong colour."""
    pixels = np.asarray(picture).reshape(1, -1, 3)
    strong = np.ptp(pixels, axis=2)[0] > STRONG
    parts = ((strong, colours // 4), (~strong, colours - colours // 4))
    chosen = [
        np.asarray(Image.fromarray(np.ascontiguousarray(pixels[:, part])).quantize(n).getpalette()).reshape(-1, 3)[:n]
        for part, n in parts
        if part.any()
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(chosen).ravel().tolist())
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def screen_picture(browser: Browser, screen: Screen, name: str, folder: Path) -> None:
    page = folder / "screen.html"
    page.write_text(screen.as_page(), encoding="utf-8")
    browser.look(page, 1600)
    box = browser.value_of("(b => [b.width, b.height])(document.querySelector('pre').getBoundingClientRect())")
    browser.look(page, int(np.ceil(box[0])))
    save(browser.picture(height=int(np.ceil(box[1]))), name, colours=32)


def running(played: Played, *words: str) -> Screen:
    """The first screen whose last lines hold all these words."""
    return next(
        screen for screen in played.screens if all(any(word in line for line in screen.lines[-4:]) for word in words)
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as made, open_browser() as browser:
        folder = Path(made)
        simulate(SESSION, folder / "M31_sub")
        spoil(folder / "M31_sub")
        order = "stack M31_sub -o m31.fits --report pages --annotate --max-fwhm 5"
        caches = {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder / "kernels")}
        (folder / "kernels").mkdir()
        for columns in (80, 120):
            command = [*START, *order.split(), "--overwrite", "--fresh"]
            played = play(command, columns, cwd=folder, environment=caches, typed=f"zemosaic-phase3 {order}")
            if columns == 80:
                screen_picture(browser, running(played, "compiling, first run only: 4 s"), "terminal_first.png", folder)
            else:
                screen_picture(browser, running(played, "measure", "frames/s", "left"), "terminal_measure.png", folder)
            screen_picture(browser, played.last, f"terminal_{columns}.png", folder)
        page = folder / "pages" / "m31.html"
        browser.look(page, 1280)
        save(browser.picture(), "report_1280.png", scale=0.625)
        browser.look(page, 400, dark=True)
        save(browser.picture(height=2600), "report_400.png")
        save((folder / "m31.png").read_bytes(), "preview.png", scale=0.6)


if __name__ == "__main__":
    main()

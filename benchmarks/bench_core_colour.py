"""How far the colour of a star's core is from that of the star, and the noise of a pixel, after demosaicing.

Moffat stars (beta 3) at 64 places on the 2x2 cell are sampled through a colour mosaic and demosaiced by the kernel that
stacks are made with. Printed is what lies within 2 px of the centre against the truth, per cent: red and blue less
green. Noise: of a pixel, in units of that of a photosite.

Run ``python benchmarks/bench_core_colour.py``; a few seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zemosaic_phase3.resample.demosaic import demosaic_rows, red_position
from zemosaic_phase3.resample.interpolation import PAD

COLOURS = ((0.8, 0.65), (0.75, 0.75), (0.65, 0.65), (1.0, 0.5), (0.5, 1.0), (1.0, 1.0))  # red, blue; green is 1
WIDTHS_PX = (2.2, 3.0, 4.0)
SIDE = 40
PATTERN = "GRBG"


def demosaiced(raw: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) float32."""
    height, width = raw.shape
    out = np.zeros(raw.size * 3 + PAD, np.float32)
    columns = np.tile([0, width], (height, 1))
    demosaic_rows(raw, 0, height, width, 0, height, *red_position(PATTERN), columns, out)
    return out[: raw.size * 3].reshape(height, width, 3)


def mosaic(colour: np.ndarray) -> np.ndarray:
    """Sample (H, W, 3) through the mosaic."""
    raw = np.empty(colour.shape[:2], np.float32)
    for k, letter in enumerate(PATTERN):
        raw[k // 2 :: 2, k % 2 :: 2] = colour[k // 2 :: 2, k % 2 :: 2, "RGB".index(letter)]
    return raw


def core_flux(fwhm: float, red: float, blue: float) -> np.ndarray:
    """Return the flux within 2 px, by colour, as a fraction of the true one."""
    colours = np.array([red, 1.0, blue])
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    found, true = np.zeros(3), 0.0
    for sy, sx in np.ndindex(8, 8):
        r2 = (x - 19.0 - sx / 4.0) ** 2 + (y - 19.0 - sy / 4.0) ** 2
        star = 1e4 * (1.0 + r2 * 4.0 * (2.0 ** (1.0 / 3.0) - 1.0) / fwhm**2) ** -3.0
        inside = np.clip(2.5 - np.sqrt(r2), 0.0, 1.0)
        found += (demosaiced(mosaic(star[:, :, None] * colours)) * inside[:, :, None]).sum(axis=(0, 1), dtype=float)
        true += (star * inside).sum()
    return found / (true * colours)


def main() -> None:
    """Print the tables."""
    print("| FWHM, px | red, blue of the star (green 1) | red - green, % | blue - green, % |\n|---|---|---|---|")
    for fwhm in WIDTHS_PX:
        for red, blue in COLOURS:
            r, g, b = 100.0 * core_flux(fwhm, red, blue)
            print(f"| {fwhm} | {red}, {blue} | {r - g:+.1f} | {b - g:+.1f} |")
    noise = np.random.default_rng(1).normal(0.0, 1.0, (600, 600)).astype(np.float32)
    print("\nnoise of a pixel: red {:.3f}, green {:.3f}, blue {:.3f}".format(*demosaiced(noise).std(axis=(0, 1))))


if __name__ == "__main__":
    main()

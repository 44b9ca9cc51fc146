"""Our drizzle beside the package of the Space Telescope Science Institute: values, areas, light, time.

One frame of 600 x 800 pixels with stars, turned and scaled as real subs are, onto grids of several scales. Differences:
the largest of the values, relative, and of the areas, in drops, over pixels 3 px within the frame's edge (the package
leaves some out there) on which more than 2e-5 of a drop falls. Light: the sum of the frame's stars, by area, over what
it is. Time: of one thread, kernels warm.

Run ``pip install drizzle; python benchmarks/bench_drizzle.py``; half a minute.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drizzle.resample import Drizzle

from zemosaic_phase3.records import Canvas
from zemosaic_phase3.resample.drizzle import drizzle_rows
from zemosaic_phase3.resample.interpolation import PAD

HEIGHT, WIDTH = 600, 800
NO_FIELD = np.empty((0, 0, 2), np.float32)


def transform(angle_deg: float, size: float) -> np.ndarray:
    """About the middle of the frame, and a little aside."""
    c, s = size * np.cos(np.deg2rad(angle_deg)), size * np.sin(np.deg2rad(angle_deg))
    x, y = WIDTH / 2, HEIGHT / 2
    return np.array([[c, -s, x - c * x + s * y + 3.21], [s, c, y - s * x - c * y - 5.67], [0.0, 0.0, 1.0]])


def ours(frame: np.ndarray, matrix: np.ndarray, shape: tuple[int, int], pixfrac: float) -> tuple[np.ndarray, ...]:
    """Values and areas, and seconds."""
    block = np.concatenate([frame.reshape(-1), np.zeros(PAD, np.float32)])
    value, area = np.empty(shape, np.float32), np.empty(shape, np.float32)
    began = time.process_time()
    drizzle_rows(
        block, 0, HEIGHT, WIDTH, -1, -1, matrix, NO_FIELD, pixfrac, np.ones(1), np.zeros(1), 0, shape[0], shape[1],
        value.reshape(-1), area.reshape(-1),
    )  # fmt: skip
    return value, area, np.array(time.process_time() - began)


def theirs(frame: np.ndarray, matrix: np.ndarray, shape: tuple[int, int], pixfrac: float) -> tuple[np.ndarray, ...]:
    """The same of the package."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    there = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(matrix).T
    package = Drizzle(kernel="square", fillval="NaN", out_shape=shape, disable_ctx=True)
    places, ones = np.ascontiguousarray(there[..., :2]), np.ones_like(frame)
    began = time.process_time()
    package.add_image(frame, exptime=1.0, pixmap=places, pixfrac=pixfrac, weight_map=ones, in_units="cps")
    return package.out_img, package.out_wht, np.array(time.process_time() - began)


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    stars = np.zeros((HEIGHT, WIDTH))
    places = zip(rng.uniform(80, 720, 60), rng.uniform(80, 520, 60), 10 ** rng.uniform(4, 6, 60), strict=True)
    for px, py, flux in places:
        stars += flux / (2 * np.pi * 1.5) * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 3.0)
    frame = (1000.0 + stars + rng.normal(0.0, 30.0, stars.shape)).astype(np.float32)
    light = stars.astype(np.float32)
    ours(frame, np.eye(3), (8, 8), 1.0)
    print("| scale | pixfrac | turned, degrees; size | values, relative | areas | light, by area | sum of values | "
          "ours, ns a pixel | package |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for scale, pixfrac in ((1.0, 1.0), (1.0, 0.7), (2.0, 1.0), (2.0, 0.7), (3.0, 0.5)):
        for angle, size in ((0.0, 1.0), (5.3, 1.0), (-171.0, 1.04)):
            canvas = Canvas(int(HEIGHT * scale), int(WIDTH * scale), scale=scale)
            matrix = canvas.to_frame(transform(angle, size))
            a, b = (f(frame, matrix, canvas.shape, pixfrac) for f in (ours, theirs))
            gy, gx = np.mgrid[: canvas.height, : canvas.width].astype(float)
            here = (np.stack([gx, gy, np.ones_like(gx)], axis=-1) @ matrix.T)[..., :2]
            sure = ((here > 3) & (here < (WIDTH - 4, HEIGHT - 4))).all(axis=-1) & (b[1] > 2e-5)
            sure[:3] = sure[-3:] = sure[:, :3] = sure[:, -3:] = False
            values = np.abs(a[0][sure] / b[0][sure] - 1.0).max()
            areas = np.abs(a[1][sure] - b[1][sure]).max()
            value, area, _ = ours(light, matrix, canvas.shape, pixfrac)
            whole = light.sum(dtype=float)
            by_area = np.nansum(value.astype(float) * area) / whole
            plain = np.nansum(value, dtype=float) / (whole * scale**2) * size**2
            sums = f"{plain - 1:+.1e}" if pixfrac == 1.0 else "-"
            per = 1e9 / a[0].size
            times = f"{float(a[2]) * per:.0f} | {float(b[2]) * per:.0f}"
            case = f"{scale:g} | {pixfrac:g} | {angle:g}; {size:g}"
            print(f"| {case} | {values:.1e} | {areas:.1e} | {by_area - 1:+.1e} | {sums} | {times} |", flush=True)


if __name__ == "__main__":
    main()

"""Stack subs made of a real frame and compare with what is known of them: transforms, and noise against the ideal.

Run ``python benchmarks/bench_isaac.py FRAME.fits [--count 16] [--noise 3]``: the frame is cut into dithered and rotated
subs by a spline of order 5, noise several times its own is added, and the subs are stacked with the defaults of the
library. The numbers of a run repeat (seeded generator).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from astropy.io import fits
from real_sky import cut_subs

from zemosaic_phase3.finish.noise import measure_noise
from zemosaic_worker import stack_files

DITHER_PX, ANGLE_DEG = 12.0, 3.0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frame", type=Path, help="FITS file with one image")
    parser.add_argument("--count", type=int, default=16, help="subs")
    parser.add_argument("--noise", type=float, default=3.0, help="noise to add, units of the frame's own")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sky = fits.getdata(options.frame).astype(np.float64)
    own = measure_noise(sky)[0]
    side = min(sky.shape)
    size = int((side - 2 * DITHER_PX - 10) / (1 + np.sin(np.radians(ANGLE_DEG))))
    subs = cut_subs(
        sky, np.random.default_rng(options.seed), count=options.count, size=size, sigma=options.noise * own,
        dither_px=DITHER_PX, angle_deg=ANGLE_DEG,
    )  # fmt: skip
    start = time.perf_counter()
    tile = stack_files(list(subs.noisy))
    seconds = time.perf_counter() - start

    names = [row.name for row in tile.rows]
    reference = names.index(tile.report.reference)
    found = [k for k, row in enumerate(tile.rows) if row.used and k != reference]
    errors = [subs.rms_error(tile.rows[k].registration.transform, reference, k) for k in found]
    residuals = [tile.rows[k].registration.rms_px for k in found]
    pixels, blocks = subs.noise_ratios(tile.image, tile.maps["COVERAGE"], reference)
    print(f"{options.frame.name}: {sky.shape[1]} x {sky.shape[0]} px, noise {own:.2f} ADU")
    print(f"subs: {options.count} of {size} x {size} px, +- {DITHER_PX:g} px, +- {ANGLE_DEG:g} deg, ", end="")
    print(f"noise added {subs.sigma:.1f} ADU")
    print(f"frames used                        {tile.report.n_used} of {tile.report.n_input}")
    print(f"stars matched per frame            {min(tile.rows[k].registration.matched for k in found)} at least")
    print(
        f"transform against the truth, rms   {np.median(errors):.4f} px median, {max(errors):.4f} px worst (limit 0.1)"
    )
    print(f"stars after the fit, rms           {np.median(residuals):.3f} px median (centroid noise of single stars)")
    print(f"noise over the ideal, pixels       {pixels:.3f} (limit 1.1)")
    print(f"noise over the ideal, 8 px blocks  {blocks:.3f} (limit 1.1)")
    print(f"time                               {seconds:.2f} s, first call included")


if __name__ == "__main__":
    main()

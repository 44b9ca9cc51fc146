"""What several tests share: made for the tests of ``simulate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth

SMALL = SimulationSpec(n_frames=4, height=240, width=320, seed=7)
# no defects, so that every pixel must be the expected level plus the expected noise
CLEAN = replace(SMALL, hot_fraction=0.0, cold_fraction=0.0, cosmic_rays=0.0, trail_fraction=0.0, seeing_variation=0.0)


def frame(folder: Path, truth: SimulationTruth, k: int) -> np.ndarray:
    return fits.getdata(folder / truth.names[k])


def sky_of(truth: SimulationTruth, k: int) -> np.ndarray:
    """Expected sky of frame k, (H, W, C), from the formula in SimulationTruth."""
    y, x = np.mgrid[: truth.spec.height, : truth.spec.width].astype(float)
    xc, yc = truth.spec.centre
    plane = truth.gradient[k, 0] * (x - xc) + truth.gradient[k, 1] * (y - yc)
    return truth.sky[k] + plane[..., None]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Larger colour session with every pixel sampled in every channel, and more bright stars."""
    spec = SimulationSpec(n_frames=5, height=480, width=480, seed=3, bayer="rgb", trail_fraction=0.2, flux_min=2000.0)
    spec = replace(spec, hot_fraction=0.0, cold_fraction=0.0, cosmic_rays=0.0)
    folder = tmp_path_factory.mktemp("session")
    return folder, simulate(spec, folder)


def perfect(truth: SimulationTruth) -> np.ndarray:
    return (sky_of(truth, 0) + truth.gains[0] * truth.image).astype(np.float32)

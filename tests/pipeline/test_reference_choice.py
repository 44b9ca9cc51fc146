"""Which frame is the reference (``pipeline.reference_choice``): by figures, and in stacks of simulated frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zemosaic_phase3.pipeline.reference_choice import CLEAR, Figures, costs
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_worker import stack_files


def best(transparency=1.0, noise=1.0, width=3.0, off=0.0, n=5):
    columns = [np.broadcast_to(np.asarray(values, float), n).copy() for values in (transparency, noise, width, off)]
    return int(np.argmin(costs(Figures(*columns), CLEAR)))


def test_a_hazy_frame_is_none_however_sharp():
    assert best(transparency=[1.0, 0.6, 0.99, 0.98, 0.97], width=[3.2, 2.0, 3.1, 3.0, 3.1]) == 3


def test_a_frame_at_the_rim_is_none_and_a_central_one_is_better():
    assert best(width=[2.5, 3.0, 3.0, 3.0, 3.0], off=[0.5, 0.2, 0.1, 0.05, 0.0]) == 4
    assert best(width=[2.5, 3.0, 3.0, 3.0, 3.0], off=[0.1, 0.2, 0.1, 0.05, 0.0]) == 0
    assert best(off=[0.9, 0.8, 0.7, 0.6, 0.65]) == 3  # a session that wanders has no middle


def test_sky_light_counts_through_the_noise_and_elongation_through_the_width():
    assert best(noise=[2.0, 1.8, 1.0, 1.5, 1.1]) == 2
    assert best(width=[3.5, 3.1, 3.6, 3.4, 3.3]) == 1


def test_what_is_not_known_is_like_the_median():
    assert best(transparency=[np.nan] * 5, width=[3.0, 2.9, 3.0, 3.0, 3.0]) == 1
    assert best(off=[np.nan] * 5, noise=[np.nan] * 5, width=[3.0, 3.0, 2.9, 3.0, np.nan]) == 2


SKY = SimulationSpec(
    n_frames=3, height=300, width=400, n_stars=150, flux_min=2500.0, bayer="none", dither_px=5.0, nebula=0.0,
    trail_fraction=0.0, gain_range=(1.0, 1.0), seeing_variation=0.0, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def hazy_majority(tmp_path_factory):
    """Six frames in haze, the sharper ones, and three of the clear sky, which show more stars."""
    folder = tmp_path_factory.mktemp("haze")
    haze = simulate(replace(SKY, n_frames=6, gain_range=(0.55, 0.55), fwhm_px=2.7), folder / "haze")
    clear = simulate(replace(SKY, fwhm_px=3.0), folder / "clear")
    return [folder / "haze" / name for name in haze.names], [folder / "clear" / name for name in clear.names]


def test_the_scale_of_a_tile_is_that_of_the_clear_sky(hazy_majority):
    haze, clear = hazy_majority
    tile = stack_files([*haze, *clear], device="cpu")
    assert tile.report.reference in map(str, clear)
    assert tile.report.n_used == 9
    assert max(row.transparency for row in tile.rows) < 1.03


def test_a_reference_that_is_named_stays(hazy_majority):
    haze, clear = hazy_majority
    tile = stack_files([*haze, *clear], reference=str(haze[2]), device="cpu")
    assert tile.report.reference == str(haze[2])

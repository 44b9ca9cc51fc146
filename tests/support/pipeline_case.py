"""What several tests share: made for the tests of ``pipeline``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth

SKY = SimulationSpec(
    n_frames=5, height=144, width=192, n_stars=60, flux_min=3000.0, bayer="none", dither_px=5.0, saturated_stars=0,
    nebula=0.0, cosmic_rays=0.0, hot_fraction=0.0, cold_fraction=0.0, trail_fraction=0.0, gradient=10.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, SimulationTruth]]:
    """One simulated session for each way in which frames carry colour."""
    made = {}
    for bayer in ("none", "GRBG", "rgb"):
        folder = tmp_path_factory.mktemp("session") / bayer
        made[bayer] = (folder, simulate(replace(SKY, bayer=bayer), folder))
    return made


@pytest.fixture
def paths(sessions: dict[str, tuple[Path, SimulationTruth]]) -> list[Path]:
    folder, truth = sessions["none"]
    return [folder / name for name in truth.names]

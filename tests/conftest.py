"""Fixtures shared by the test files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tile_case import entries, make, session  # noqa: F401 - fixtures: the call of create_master_tile and its groups

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of recorded numbers and small real frames; see its README for provenance."""
    return DATA


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run and in any order of tests."""
    return np.random.default_rng(20251207)

"""Fixtures shared by the test files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkout_case import checkout, groups  # noqa: F401 - fixtures: a stand-in for a ZeMosaic checkout, frames for it
from host_cupy import HostCupy, installed
from places import DATA
from tile_case import entries, make, session  # noqa: F401 - fixtures: the call of create_master_tile and its groups


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of recorded numbers and small real frames; see its README for provenance."""
    return DATA


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run and in any order of tests."""
    return np.random.default_rng(20251207)


# --------------------------------------------------------------------------- the GPU engine without a GPU


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostCupy:
    """Kernels of the GPU, built by g++; see :mod:`host_cupy`."""
    return HostCupy(tmp_path_factory.mktemp("host_cupy"))


@pytest.fixture
def cupy(host: HostCupy, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostCupy]:
    """What the GPU engine takes for CuPy."""
    with installed(host, monkeypatch) as fake:
        yield fake


@pytest.fixture(params=["processor", pytest.param("device", marks=pytest.mark.gpu)])
def launched(request: pytest.FixtureRequest) -> list[str] | None:
    """Names of the kernels that the stand-in launched; None on a device, where nobody counts."""
    from zemosaic_phase3.engine import gpu_check as engine

    if request.param == "processor":
        return request.getfixturevalue("cupy").launched
    if not engine.usability().usable:
        pytest.skip(engine.usability().reason)
    return None

"""What tests of ``create_master_tile`` share: the call as existing runs make it, and groups of simulated frames."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import zemosaic_worker as worker
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

SHAPE = (96, 128)
SKY = SimulationSpec(
    n_frames=6, height=SHAPE[0], width=SHAPE[1], n_stars=40, flux_min=2500.0, bayer="rgb", dither_px=5.0,
    rotation_deg=2.0, saturated_stars=0, nebula=0.0, cosmic_rays=0.0, hot_fraction=0.0, cold_fraction=0.0,
    trail_fraction=0.0, gradient=10.0,
)  # fmt: skip

# The positional arguments in the order of existing calls, with the defaults of ZeMosaic's configuration.
POSITIONAL: dict[str, Any] = {
    "seestar_stack_group_info": None,
    "tile_id": 7,
    "output_temp_dir": None,
    "stack_norm_method": "linear_fit",
    "stack_weight_method": "noise_variance",
    "stack_reject_algo": "winsorized_sigma_clip",
    "stack_kappa_low": 3.0,
    "stack_kappa_high": 3.0,
    "parsed_winsor_limits": (0.05, 0.05),
    "stack_final_combine": "mean",
    "poststack_equalize_rgb": True,
    "apply_radial_weight": False,
    "radial_feather_fraction": 0.8,
    "radial_shape_power": 2.0,
    "min_radial_weight_floor": 0.05,
    "quality_crop_enabled": False,
    "quality_crop_band_px": 32,
    "quality_crop_k_sigma": 2.0,
    "quality_crop_margin_px": 8,
    "quality_crop_min_run": 2,
    "altaz_cleanup_enabled": False,
    "altaz_margin_percent": 5.0,
    "altaz_decay": 0.15,
    "altaz_nanize": True,
    "quality_gate_enabled": False,
    "quality_gate_threshold": 0.48,
    "quality_gate_edge_band_px": 64,
    "quality_gate_k_sigma": 2.5,
    "quality_gate_erode_px": 3,
    "quality_gate_move_rejects": True,
    "astap_exe_path_global": "",
    "astap_data_dir_global": "",
    "astap_search_radius_global": 0.0,
    "astap_downsample_global": 0,
    "astap_sensitivity_global": 0,
    "astap_timeout_seconds_global": 0,
    "winsor_pool_workers": 1,
    "winsor_max_frames_per_pass": 0,
    "progress_callback": None,
}
KEYWORDS = {
    "resource_strategy": None,
    "center_out_context": None,
    "center_out_settings": None,
    "center_out_rank": None,
    "parallel_plan": None,
}
PLAIN = {
    "stack_norm_method": "none",
    "stack_weight_method": "none",
    "stack_reject_algo": "none",
    "poststack_equalize_rgb": False,
}
"""No step that changes a level: one frame alone comes out as it went in."""


@dataclass
class Made:
    """What one call left behind."""

    path: str | None
    wcs: WCS | None
    retry: list[list[dict[str, Any]]]
    events: list[tuple[str, Any, str, dict[str, Any]]]
    steps: list[tuple[str, int, int]]
    folder: Path

    def told(self, level: str | None = None) -> list[str]:
        return [key for key, _, found, _ in self.events if level in (None, found)]

    def details(self, key: str) -> list[dict[str, Any]]:
        return [details for name, _, _, details in self.events if name == key]

    def files(self) -> list[str]:
        return sorted(p.name for p in self.folder.rglob("*") if p.is_file()) if self.folder.is_dir() else []

    def unit(self, name: str | int = 0) -> np.ndarray:
        """Pixels of an image, channel last."""
        assert self.path is not None
        with fits.open(self.path, checksum=True) as hdus:
            data = np.array(hdus[name].data)
        return np.moveaxis(data, 0, -1).astype(np.float32) if data.ndim == 3 else data

    @property
    def table(self) -> Table:
        """FRAMES, one row per input."""
        with fits.open(self.path) as hdus:
            return Table(hdus["FRAMES"].data, copy=True)

    @property
    def header(self) -> fits.Header:
        assert self.path is not None
        return fits.getheader(self.path)


Make = Callable[..., Made]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Call create_master_tile positionally and gather what happened; ``listen`` sees every call of the callback."""
    numbers = itertools.count()

    def call(entries: Any, *, listen: Callable[..., Any] | None = None, **changes: Any) -> Made:
        folder = Path(changes.get("output_temp_dir") or tmp_path / f"tiles{next(numbers)}")
        made = Made(None, None, [], [], [], folder)

        def progress(key: str, second: Any, third: Any, **details: Any) -> None:
            if isinstance(third, int):
                made.steps.append((key, second, third))
            else:
                made.events.append((key, second, third, details))
            if listen is not None:
                listen(key, second, third)

        given = {"seestar_stack_group_info": entries, "output_temp_dir": str(folder), "progress_callback": progress}
        keywords = KEYWORDS | {key: value for key, value in changes.items() if key not in POSITIONAL}
        positional = POSITIONAL | {key: value for key, value in changes.items() if key in POSITIONAL} | given
        (made.path, made.wcs), made.retry = worker.create_master_tile(*positional.values(), **keywords)
        return made

    return call


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Group entries of six dithered and rotated frames of one field, as Phase 1 hands them over."""
    folder = tmp_path_factory.mktemp("session")
    truth = simulate(SKY, folder / "raw")
    entries = []
    for k, name in enumerate(truth.names):
        raw = folder / "raw" / name
        data, header = fits.getdata(raw), fits.getheader(raw)
        cache = folder / f"cache_{k}.npy"
        np.save(cache, np.ascontiguousarray(np.moveaxis(data, 0, -1), dtype=np.float32))
        entries.append(
            {
                "path_raw": str(raw),
                "path_preprocessed_cache": str(cache),
                "wcs": WCS(header, naxis=2),
                "header": header if k % 2 == 0 else dict(header),
                "preprocessed_shape": (*SHAPE, 3),
            }
        )
    return entries


@pytest.fixture
def entries(session: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries that a test may change."""
    return [{**entry, "header": copy.deepcopy(entry["header"])} for entry in session]


def pixels(entry: dict[str, Any]) -> np.ndarray:
    return np.load(entry["path_preprocessed_cache"])


def cached(folder: Path, data: np.ndarray, entry: dict[str, Any]) -> dict[str, Any]:
    """Copy of an entry with other pixels."""
    path = folder / f"{len(list(folder.glob('*.npy')))}.npy"
    np.save(path, data)
    return {**entry, "path_preprocessed_cache": str(path)}


class FakeGpu:
    """A GPU engine as Mode C sees one: the CPU engine, counted. What a real one computes is tested in its own file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        from zemosaic_phase3.compat.stack_cpu import stack_descriptors

        self.calls = 0

        def stack(descriptors: Any, params: Any, **keywords: Any) -> Any:
            self.calls += 1
            if fails:
                raise worker._P3GPUStackingError("injected")
            return stack_descriptors(descriptors, params, **keywords)

        worker.reset_phase3_gpu_state()
        monkeypatch.setattr(worker, "_P3_GPU_HELPERS_AVAILABLE", True)
        monkeypatch.setattr(worker, "_p3_gpu_is_usable", lambda logger=None: True)
        monkeypatch.setattr(worker, "_p3_gpu_stack_from_paths", stack)

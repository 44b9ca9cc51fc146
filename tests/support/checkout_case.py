"""A stand-in for a ZeMosaic checkout, and frames for a run of it; shared by the tests of ``attach``."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

SHAPE = (96, 128)
TILES = 2
GIT = shutil.which("git") or ""

# Argument lists are what existing programs call; bodies only say that they ran. "{dot}" is "." in a package.
MODULES = {
    "zemosaic_config": """
        def load_config():
            return {"wsc_impl": "pixinsight", "extreme_group_threshold": 3}
    """,
    "zemosaic_utils": """
        APP = "the checkout's own"

        def save_fits_image(*args, **kwargs):
            raise RuntimeError("the checkout's own save_fits_image ran")

        def solve_global_affine(tiles):
            return len(tiles)
    """,
    "cuda_utils": 'CUPY_AVAILABLE = "theirs"\n',
    "parallel_utils": """
        class ParallelPlan:
            def __init__(self, cpu_workers):
                self.cpu_workers, self.use_gpu = cpu_workers, False
    """,
    "zemosaic_align_stack": """
        from {dot}zemosaic_utils import APP

        def stack_kappa_sigma_clip(frames, weight_method="none", zconfig=None, stack_metadata=None, parallel_plan=None,
                                   **kwargs):
            return "theirs", kwargs

        def stack_winsorized_sigma_clip(frames, weights=None, weight_method="none", zconfig=None, stack_metadata=None,
                                        parallel_plan=None, **kwargs):
            return "theirs", kwargs

        def align_images_in_group(image_data_list, reference_image_index=0, detection_sigma=3.0, min_area=5,
                                  propagate_mask=False, progress_callback=None, return_footprints=False):
            return "theirs"

        def equalize_rgb_medians_inplace(img):
            return "theirs"

        def _another_helper():
            return APP
    """,
    "zemosaic_align_stack_gpu": """
        class GPUStackingError(RuntimeError):
            pass

        def gpu_stack_from_paths(image_descriptors, stacking_params, *, array_loader=None, parallel_plan=None,
                                 logger=None, pcb_tile=None, tile_id=None, zconfig=None):
            raise GPUStackingError("theirs")
    """,
    "zemosaic_worker": """
        import multiprocessing
        import threading
        from concurrent.futures import ThreadPoolExecutor

        import {dot}zemosaic_config as zemosaic_config
        import {dot}zemosaic_align_stack as zemosaic_align_stack
        from {dot}parallel_utils import ParallelPlan
        from {dot}zemosaic_align_stack import equalize_rgb_medians_inplace, stack_kappa_sigma_clip
        from {dot}zemosaic_utils import solve_global_affine

        _PH3_CONCURRENCY_SEMAPHORE = threading.Semaphore(1)
        _P3_GPU_STATE = {"allowed": True, "of": "the checkout"}

        ALIGN_WARNING_COUNTS = {
            "aligngroup_warn_max_iter_error": 0, "aligngroup_warn_shape_mismatch_after_align": 0,
            "aligngroup_warn_register_returned_none": 0, "aligngroup_warn_value_error": 0,
        }
        LOG = []

        class Phase3TileAbortRequested(RuntimeError):
            pass

        def _log_and_callback(message_key_or_raw, progress_value=None, level="INFO", callback=None, **kwargs):
            if message_key_or_raw in ALIGN_WARNING_COUNTS:
                ALIGN_WARNING_COUNTS[message_key_or_raw] += 1
            LOG.append((message_key_or_raw, level, kwargs))
            if callback:
                try:
                    callback(message_key_or_raw, progress_value, level, **kwargs)
                except Exception:
                    pass

        def _stack_master_tile_auto(images, *, stack_reject_algo, stack_final_combine, parallel_plan=None):
            return "theirs"

        def create_master_tile(
            seestar_stack_group_info: list, tile_id: int, output_temp_dir: str, stack_norm_method: str,
            stack_weight_method: str, stack_reject_algo: str, stack_kappa_low: float, stack_kappa_high: float,
            parsed_winsor_limits: tuple, stack_final_combine: str, poststack_equalize_rgb: bool,
            apply_radial_weight: bool, radial_feather_fraction: float, radial_shape_power: float,
            min_radial_weight_floor: float, quality_crop_enabled: bool, quality_crop_band_px: int,
            quality_crop_k_sigma: float, quality_crop_margin_px: int, astap_exe_path_global: str,
            astap_data_dir_global: str, astap_search_radius_global: float, astap_downsample_global: int,
            astap_sensitivity_global: int, astap_timeout_seconds_global: int, winsor_pool_workers: int,
            winsor_max_frames_per_pass: int, progress_callback, resource_strategy=None, center_out_context=None,
            center_out_settings=None, center_out_rank=None, parallel_plan=None, abort_event=None,
            _internal_chunk_depth: int = 0,
        ):
            return (("the checkout's own tile", tile_id), [])

        def _phase3(groups, folder, told):
            def one(k):
                return create_master_tile(
                    groups[k], k, folder, "none", "none", "winsorized_sigma_clip", 3.0, 3.0, (0.05, 0.05), "mean",
                    False, False, 0.8, 2.0, 0.05, False, 32, 2.0, 8, "", "", 0.0, 0, 0, 0, 1, 0, told,
                    parallel_plan=ParallelPlan(1),
                )
            with ThreadPoolExecutor(4) as pool:
                return list(pool.map(one, range(len(groups))))

        def run_hierarchical_mosaic_process(queue, groups, folder):
            told = []
            made = _phase3(groups, folder, lambda key, *rest, **details: told.append(key))
            queue.put(([path for (path, wcs), retry in made], sorted(set(told)), solve_global_affine(made)))
    """,
}
RUN = """
    import json, multiprocessing, pickle, sys
    {imports}

    def main():
        with open(sys.argv[1], "rb") as stream:
            groups = pickle.load(stream)
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        child = context.Process(
            target=zemosaic_worker.run_hierarchical_mosaic_process, args=(queue, groups, sys.argv[2]), daemon=True
        )
        child.start()
        print(json.dumps(queue.get(timeout=120)))
        child.join(timeout=20)

    if __name__ == "__main__":
        main()
"""
LAYOUTS = {
    "flat": ("", "", "import zemosaic_worker"),
    # Started from its own folder, the program puts the folder above on the path and imports itself as a package.
    "package": (
        "", ".", "from pathlib import Path\n"
        "sys.path.insert(0, str(Path(__file__).resolve().parent.parent))\nfrom zemosaic import zemosaic_worker"
    ),
    "src": (
        "src/zemosaic", ".", "from pathlib import Path\n"
        "sys.path.insert(0, str(Path(__file__).resolve().parent / 'src'))\nfrom zemosaic import zemosaic_worker"
    ),
}  # fmt: skip


def build(root: Path, layout: str = "flat") -> Path:
    """Write a stand-in checkout under git; returns its root."""
    home, dot, imports = LAYOUTS[layout]
    checkout = root / "zemosaic"
    modules = checkout / home
    modules.mkdir(parents=True)
    for name, text in MODULES.items():
        text = textwrap.dedent(text)
        if dot:
            text = text.replace("import {dot}zemosaic_align_stack as", "from . import zemosaic_align_stack as")
            text = text.replace("import {dot}zemosaic_config as", "from . import zemosaic_config as")
        (modules / f"{name}.py").write_text(text.replace("{dot}", dot), encoding="utf-8-sig")
    if dot:
        (modules / "__init__.py").touch()
    (checkout / "run_zemosaic.py").write_text(textwrap.dedent(RUN).replace("{imports}", imports))
    (checkout / ".gitignore").write_text("__pycache__/\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as published"]):
        git(checkout, *command)
    return checkout


def git(checkout: Path, *command: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    return subprocess.check_output([GIT, *identity, *command], cwd=checkout, text=True)


def snapshot(checkout: Path) -> dict[str, str]:
    """Every file and folder but Python's caches and git's index, with its content."""
    paths = [p for p in sorted(checkout.rglob("*")) if "__pycache__" not in p.parts and p.name != "index"]
    return {
        str(p.relative_to(checkout)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths
    }


def python(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter in a checkout, with nothing of ours on its path."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ZEMOSAIC_WSC_IMPL")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=kept | environment, capture_output=True, text=True, timeout=200
    )


def ask(checkout: Path, code: str) -> Any:
    """Value that code in the checkout prints as JSON."""
    done = python(checkout, "-c", f"import json, zemosaic_worker as w\n{textwrap.dedent(code)}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return build(tmp_path)


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Groups of frames for two tiles, pickled as a run would hand them to its child."""
    folder = tmp_path_factory.mktemp("groups")
    spec = SimulationSpec(
        n_frames=4, height=SHAPE[0], width=SHAPE[1], n_stars=40, flux_min=2500.0, bayer="rgb", dither_px=3.0,
        rotation_deg=1.0, saturated_stars=0, nebula=0.0, trail_fraction=0.0,
    )  # fmt: skip
    entries = []
    for name in simulate(spec, folder / "raw").names:
        data, header = fits.getdata(folder / "raw" / name, header=True)
        cache = folder / f"{name}.npy"
        np.save(cache, np.ascontiguousarray(np.moveaxis(data, 0, -1), np.float32))
        entries.append(
            {
                "path_raw": name,
                "path_preprocessed_cache": str(cache),
                "wcs": WCS(header, naxis=2),
                "header": dict(header),
            }
        )
    path = folder / "groups.pickle"
    path.write_bytes(pickle.dumps([entries] * TILES))
    return path

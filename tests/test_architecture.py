"""The house stays as drawn in ``docs/architecture.md``: who imports whom, and what importing costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOTTOM = ["zemosaic_spec", "zemosaic_kernels", "cuda_utils", "zemosaic_attached"]  # import nothing of ours
# Room -> what it may import of ours, lowest room first; a door may open only to a room listed earlier.
ROOMS: dict[str, set[str]] = {
    **{room: set() for room in BOTTOM},
    "zemosaic_headers": {"zemosaic_spec"},
    "zemosaic_distortion": {"zemosaic_spec"},
    "zemosaic_frames": {"zemosaic_spec", "zemosaic_headers"},
    "zemosaic_sky": set(),
    "zemosaic_tile": {"zemosaic_spec", "zemosaic_sky"},
    "zemosaic_gate": {"zemosaic_tile"},
    "zemosaic_preview": {"zemosaic_spec"},
    "parallel_utils": {"zemosaic_spec", "cuda_utils"},
    "zemosaic_utils": {"zemosaic_spec", "cuda_utils", "zemosaic_headers", "zemosaic_frames"},
    "zemosaic_star_kernels": {"zemosaic_kernels"},
    "zemosaic_stars": {"zemosaic_spec", "zemosaic_sky", "zemosaic_star_kernels"},
    "zemosaic_photometry": {"zemosaic_spec", "zemosaic_distortion", "zemosaic_sky"},
    "zemosaic_register": {"zemosaic_spec", "zemosaic_stars"},
    "zemosaic_register_wcs": {"zemosaic_spec", "zemosaic_distortion", "zemosaic_stars", "zemosaic_register"},
    "zemosaic_simd": {"zemosaic_kernels"},
    "zemosaic_lines": set(),
    "zemosaic_sorting": {"zemosaic_kernels", "zemosaic_simd"},
    "zemosaic_resample": {"zemosaic_spec", "zemosaic_distortion", "zemosaic_kernels", "zemosaic_lines"},
    "zemosaic_samples": {"zemosaic_kernels", "zemosaic_frames"},
    "zemosaic_levels": {"zemosaic_spec"},
    "zemosaic_weights": {
        "zemosaic_spec",
        "zemosaic_levels",
        "zemosaic_sky",
        "zemosaic_stars",
        "zemosaic_photometry",
        "zemosaic_utils",
    },
    "zemosaic_sums": {"zemosaic_kernels", "zemosaic_simd"},
    "zemosaic_rounds": {"zemosaic_kernels", "zemosaic_simd"},
    "zemosaic_rejection": {"zemosaic_kernels", "zemosaic_simd", "zemosaic_sums", "zemosaic_rounds"},
    "zemosaic_linear_fit": {"zemosaic_kernels", "zemosaic_simd", "zemosaic_rejection"},
    "zemosaic_combine": {
        "zemosaic_kernels",
        "zemosaic_sorting",
        "zemosaic_sums",
        "zemosaic_rejection",
        "zemosaic_linear_fit",
    },
    # The CUDA text of rejection: strings, and numbers to launch it with.
    "zemosaic_sorting_cuda": set(),
    "zemosaic_rejection_cuda": set(),
    "zemosaic_combine_cuda": {"zemosaic_sorting_cuda", "zemosaic_rejection_cuda"},
    "zemosaic_simulate": {"zemosaic_spec"},
    "zemosaic_truth": {"zemosaic_simulate"},
    "zemosaic_flatten": {"zemosaic_spec", "zemosaic_photometry", "zemosaic_utils"},
    "zemosaic_stack": {
        "zemosaic_spec",
        "zemosaic_distortion",
        "zemosaic_utils",
        "zemosaic_levels",
        "zemosaic_weights",
        "zemosaic_flatten",
    },
    "zemosaic_recipe": {"zemosaic_spec", "zemosaic_stack"},
    "zemosaic_fill": {
        "zemosaic_spec",
        "zemosaic_distortion",
        "zemosaic_frames",
        "parallel_utils",
        "zemosaic_utils",
        "zemosaic_resample",
        "zemosaic_samples",
        "zemosaic_stack",
    },
    # The CPU engine: it neither knows where a transform came from nor what becomes of the image.
    "zemosaic_slabs": {
        "zemosaic_spec",
        "zemosaic_tile",
        "parallel_utils",
        "zemosaic_kernels",
        "zemosaic_simd",
        "zemosaic_sorting",
        "zemosaic_combine",
        "zemosaic_stack",
        "zemosaic_recipe",
        "zemosaic_fill",
    },
    "zemosaic_warmup": {
        "zemosaic_spec",
        "zemosaic_kernels",
        "parallel_utils",
        "zemosaic_utils",
        "zemosaic_stack",
        "zemosaic_slabs",
        "zemosaic_rejection",
    },
    # The GPU engine, the twin of zemosaic_slabs, which it does not know: text, kernels of the host, plan, card, engine.
    "zemosaic_resample_cuda": set(),
    "zemosaic_gather": {"zemosaic_kernels"},
    "zemosaic_gpu_plan": {
        "zemosaic_spec",
        "zemosaic_distortion",
        "parallel_utils",
        "zemosaic_utils",
        "zemosaic_resample",
        "zemosaic_resample_cuda",
        "zemosaic_stack",
    },
    "zemosaic_gpu_gather": {"parallel_utils", "zemosaic_stack", "zemosaic_gather", "zemosaic_gpu_plan"},
    "zemosaic_gpu_card": {
        "cuda_utils",
        "zemosaic_resample",
        "zemosaic_combine_cuda",
        "zemosaic_stack",
        "zemosaic_recipe",
        "zemosaic_resample_cuda",
        "zemosaic_gpu_plan",
    },
    "zemosaic_align_stack_gpu": {
        "zemosaic_spec",
        "cuda_utils",
        "parallel_utils",
        "zemosaic_tile",
        "zemosaic_rejection_cuda",
        "zemosaic_stack",
        "zemosaic_gpu_plan",
        "zemosaic_gpu_gather",
        "zemosaic_gpu_card",
    },
    # The frames before they are stacked: knows no engine.
    "zemosaic_group": {
        "zemosaic_spec",
        "parallel_utils",
        "zemosaic_utils",
        "zemosaic_stars",
        "zemosaic_register",
        "zemosaic_register_wcs",
        "zemosaic_levels",
        "zemosaic_weights",
        "zemosaic_stack",
    },
}
ROOMS["zemosaic_center_out"] = {"zemosaic_spec", "zemosaic_utils"}
ROOMS["zemosaic_select"] = {"zemosaic_spec", "zemosaic_group", "zemosaic_photometry"}
for upper in (
    "zemosaic_align_stack",
    "zemosaic_pipeline",
    "zemosaic_master_tile",
    "zemosaic_worker",
    "zemosaic_report",
    "zemosaic_demo",
    "zemosaic_bench",
    "zemosaic_attach",
    "zemosaic_cli",
):
    ROOMS[upper] = set(ROOMS)  # anything below
TRUTH = {"zemosaic_simulate", "zemosaic_truth"}  # real frames have none: only the demonstration may look
for real in ("zemosaic_align_stack", "zemosaic_pipeline", "zemosaic_master_tile", "zemosaic_worker", "zemosaic_report"):
    ROOMS[real] -= TRUTH
ROOMS["zemosaic_bench"] -= {*TRUTH, "zemosaic_demo"}  # its frames are noise alone
ROOMS["zemosaic_attach"] = {"zemosaic_spec", "zemosaic_attached"}  # the rooms it describes, it imports by name
ROOMS["zemosaic_align_stack"] -= {
    "zemosaic_warmup",
    "cuda_utils",
    *(room for room in ROOMS if "gpu" in room or "cuda" in room or "gather" in room),
    "zemosaic_preview",
    "zemosaic_gate",
    "zemosaic_group",
    "zemosaic_center_out",
    "zemosaic_select",
}  # stacks on the CPU
MODULES = sorted(path.stem for path in ROOT.glob("*.py"))
HEAVY = ("cupy", "dask", "cv2", "matplotlib", "numba", "astropy")


def imported_by(module: str) -> set[str]:
    """Top-level names imported anywhere in a module, inside functions and type-checking blocks too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names.update(str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))
    return {name.partition(".")[0] for name in names}


def test_every_room_is_drawn_and_packaged() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["py-modules"]
    assert sorted(ROOMS) == MODULES == sorted(packaged)


@pytest.mark.parametrize("module", MODULES)
def test_doors_open_downward_only(module: str) -> None:
    ours = imported_by(module) & set(MODULES)
    assert ours <= ROOMS[module], f"{module} may not import {sorted(ours - ROOMS[module])}"
    assert ROOMS[module] <= set(list(ROOMS)[: list(ROOMS).index(module)])
    assert "cupy" not in imported_by(module) or module == "cuda_utils"


def test_worker_import_is_light() -> None:
    code = (
        "import json, sys, time; t = time.perf_counter(); import zemosaic_worker; "
        f"print(json.dumps([time.perf_counter() - t, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    run = [subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) for _ in range(3)]
    results = [json.loads(text) for text in run]
    assert results[0][1] == [], f"import zemosaic_worker loads {results[0][1]}"
    best = min(seconds for seconds, _ in results)
    assert best < 1.0, f"import zemosaic_worker took {best:.2f} s, aim 0.5 s"  # twice the aim: busy machines


def test_stamp_of_compiled_code_knows_every_room_with_kernels() -> None:
    from zemosaic_kernels import ROOMS as stamped

    rooms = {m for m in MODULES if "from zemosaic_kernels import kernel\n" in (ROOT / f"{m}.py").read_text()}
    assert rooms - {"zemosaic_bench"} <= {f"zemosaic_{name}" for name in stamped}  # whose one kernel stands alone

"""Kernels compiled beside a first run: everything it will call, by a process that never outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest
from places import ROOT

from zemosaic_phase3.app.doctor import kernel_cache
from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.engine import warmup
from zemosaic_phase3.engine.cpu import stack
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.methods import RejectName
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.rejection.judge import compile_judge
from zemosaic_phase3.runtime import jit as kernels
from zemosaic_phase3.spec import StackSpec


@pytest.mark.parametrize("reject", get_args(RejectName))
def test_every_method_can_be_compiled_for(reject: str) -> None:
    spec = StackSpec(reject=reject, radial_weight=True)  # type: ignore[arg-type]
    compile_judge(spec.rejection)
    warmup.main([json.dumps(asdict(spec))])


@pytest.mark.parametrize("drizzle", [0.0, 1.0])
@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("weight", ["none", "noise_variance"])
def test_what_is_compiled_is_what_the_stack_calls(
    weight: str, spare: bool, drizzle: float, rng: np.random.Generator
) -> None:
    from zemosaic_phase3.combine.block import _block_kernel

    spec = StackSpec(normalize="none", weight=weight, spare_stars=spare, drizzle=drizzle)  # type: ignore[arg-type]
    _block_kernel.cache_clear()
    warmup.warm_up(spec)
    compiled = _block_kernel.cache_info().misses
    spread = np.arange(1.0, 13.0)[:, None, None]
    frames = as_frames(list((1000.0 + spread * rng.standard_normal((12, 16, 16))).astype(np.float32)))
    job = make_job(frames, spec)
    stack(replace(job, tolerance=np.ones(job.shape, np.float32) if spare else None), Resources())
    assert _block_kernel.cache_info().misses == compiled > 0


def test_the_names_of_cache_files_tell_what_they_were_compiled_from() -> None:
    warmup.warm_up(StackSpec())
    folder = kernel_cache()
    assert folder is None or not kernels.is_cold(folder)


def test_compiled_kernels_are_loaded_without_what_compiling_needs() -> None:
    if kernel_cache() is None:
        pytest.skip("nothing is compiled, or no folder for compiled code")
    code = (
        "import sys; import numpy as np; from zemosaic_phase3.engine import warmup; "
        "from zemosaic_phase3.detection.star_finder import find_stars; "
        "from zemosaic_phase3.spec import RegisterSpec, StackSpec; "
        "find_stars(np.random.default_rng(0).random((80, 80), np.float32), RegisterSpec()); "
        "warmup.warm_up_stars(); warmup.warm_up_resampling(StackSpec()); warmup.warm_up(StackSpec()); "
        "print(*(name in sys.modules for name in ('numba', 'numba.np.arraymath', 'scipy.linalg')))"
    )
    for _ in range(2):  # the first time it compiles what no test has called yet
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        if done.stdout.split() == ["True", "False", "False"]:
            break
    else:
        pytest.fail(f"loaded: numba, numba.np.arraymath, scipy.linalg: {done.stdout}")


def test_kernels_run_where_no_folder_can_be_written(tmp_path: Path) -> None:
    """As in a read-only installation without a home folder: neither beside the module nor anywhere else."""
    (tmp_path / "__pycache__").touch()  # a file where the folder would be: not even root can write into it
    (tmp_path / "doubling.py").write_text(
        "from zemosaic_phase3.runtime.jit import kernel\n\n\n@kernel\ndef double(x):\n    return x + x\n"
    )
    nowhere = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA", "IPYTHONDIR"), os.devnull)
    done = subprocess.run(
        [sys.executable, "-c", "import doubling; print(doubling.double(21), doubling.double.stats.cache_path)"],
        env={**os.environ, **nowhere, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["42", "None"]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX matter")
def test_a_killed_run_leaves_no_compiler_behind() -> None:
    helper = f"{warmup.ENDS_WITH_PARENT}import time; time.sleep(60)"
    code = (
        "import sys, time; from zemosaic_phase3.runtime import jit\n"
        f"with jit.compile_beside([sys.executable, '-c', {helper!r}]):\n"
        "    print(jit.running_compiler[0].pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)  # it may start in peace
        assert child.is_running()
        parent.send_signal(signal.SIGKILL)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE  # in a container nobody may reap it


def test_the_other_process_compiles_how_stars_are_measured_and_frames_registered_and_resampled() -> None:
    from zemosaic_phase3.detection.list_kernels import list_stars, measure_detections
    from zemosaic_phase3.registration.pair_kernels import fit_similarity, shrink_similarity
    from zemosaic_phase3.resample.demosaic import demosaic_rows
    from zemosaic_phase3.resample.warp import resample_rows

    kernels_called = (
        measure_detections, list_stars, shrink_similarity, fit_similarity, demosaic_rows, resample_rows
    )  # fmt: skip
    warmup.warm_up_stars()
    warmup.warm_up_resampling(StackSpec())
    before = [len(getattr(kernel, "signatures", ())) for kernel in kernels_called]
    y, x = np.mgrid[:96, :128]
    sky = np.full((96, 128), 1000.0)
    for u, v in np.random.default_rng(3).random((12, 2)) * [128, 96]:
        sky += 3000.0 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 5.0)
    noise = np.random.default_rng(4)
    frames = [(sky + noise.normal(0.0, 10.0, sky.shape)).astype(np.uint16) for _ in range(5)]
    tile = stack_files([{"data": frame, "name": str(k)} for k, frame in enumerate(frames)], bayer="GRBG", device="cpu")
    assert tile.report.n_used == 5
    assert [len(getattr(kernel, "signatures", ())) for kernel in kernels_called] == before

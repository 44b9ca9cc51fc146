"""Kernels compiled beside a first run: everything it will call, by a process that never outlives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from zemosaic_phase3.app.doctor import kernel_cache
from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.engine import warmup
from zemosaic_phase3.engine.cpu import stack
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.methods import RejectName
from zemosaic_phase3.runtime import jit as kernels
from zemosaic_phase3.spec import StackSpec

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("reject", get_args(RejectName))
def test_every_method_can_be_compiled_for(reject: str) -> None:
    warmup.main([json.dumps(asdict(StackSpec(reject=reject, radial_weight=True)))])


@pytest.mark.parametrize("weight", ["none", "noise_variance"])
def test_what_is_compiled_is_what_the_stack_calls(weight: str, rng: np.random.Generator) -> None:
    from zemosaic_phase3.combine.block import _block_kernel

    spec = StackSpec(normalize="none", weight=weight)
    _block_kernel.cache_clear()
    warmup.warm_up(spec)
    compiled = _block_kernel.cache_info().misses
    spread = np.arange(1.0, 13.0)[:, None, None]
    frames = as_frames(list((1000.0 + spread * rng.standard_normal((12, 16, 16))).astype(np.float32)))
    stack(make_job(frames, spec), Resources())
    assert _block_kernel.cache_info().misses == compiled > 0


def test_the_process_is_waited_for_and_ends_with_the_block(tmp_path: Path) -> None:
    kernels.wait_for_compiler()  # nothing to wait for
    done = tmp_path / "done"
    with kernels.compile_beside([sys.executable, "-c", f"open({str(done)!r}, 'w').close()"]):
        kernels.wait_for_compiler()
        assert done.exists()
    start = time.monotonic()
    with kernels.compile_beside([sys.executable, "-c", "import time; time.sleep(60)"]):
        process = kernels._compiler[0]
    assert process.poll() is not None
    assert time.monotonic() - start < 30
    kernels.wait_for_compiler()


def test_a_stack_begins_when_its_kernels_are_compiled(tmp_path: Path) -> None:
    done = tmp_path / "done"
    slow = f"import time; time.sleep(1); open({str(done)!r}, 'w').close()"
    with kernels.compile_beside([sys.executable, "-c", slow]):
        warmup.warm_up(StackSpec())
        assert done.exists()


def test_a_process_that_cannot_start_or_is_slow_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with kernels.compile_beside(["/no/such/program"]):
        kernels.wait_for_compiler()
    monkeypatch.setattr(kernels, "COMPILER_PATIENCE_S", 0.01)
    with kernels.compile_beside([sys.executable, "-c", "import time; time.sleep(60)"]):
        kernels.wait_for_compiler()


NOW, BEFORE = (f"x.zemosaic_phase3.x.f.{stamp}-1.py311.nbi" for stamp in (kernels._stamp(), "0123456789"))


@pytest.mark.parametrize(
    ("files", "cores", "started"), [([], 2, True), ([NOW, BEFORE], 2, False), ([BEFORE], 2, True), ([], 1, False)]
)
def test_only_a_first_run_with_a_core_to_spare_starts_one(
    tmp_path: Path, files: list[str], cores: int, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(warmup, "usable_cpus", lambda: cores)
    monkeypatch.setattr(kernels, "cache_folder", lambda _: tmp_path)
    with warmup.kernels_compiled_beside(StackSpec()):
        assert bool(kernels._compiler) == started
    monkeypatch.setattr(kernels, "cache_folder", lambda _: None)
    with warmup.kernels_compiled_beside(StackSpec()):
        assert not kernels._compiler


def test_the_names_of_cache_files_tell_what_they_were_compiled_from() -> None:
    warmup.warm_up(StackSpec())
    folder = kernel_cache()
    assert folder is None or not kernels.is_cold(folder)


def test_compiled_kernels_are_loaded_without_what_compiling_needs() -> None:
    if kernel_cache() is None:
        pytest.skip("nothing is compiled, or no folder for compiled code")
    warmup.warm_up(StackSpec())
    code = (
        "import sys; from zemosaic_phase3.spec import StackSpec; from zemosaic_phase3.engine.warmup import warm_up; "
        "warm_up(StackSpec()); "
        "print(*(name in sys.modules for name in ('numba', 'numba.np.arraymath', 'scipy.linalg')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]


def test_the_share_of_this_process_is_what_the_other_one_looks_for() -> None:
    from zemosaic_phase3.rejection.winsorized_huber import compile_huber_rounds, windows_pixinsight

    if kernel_cache() is None:
        pytest.skip("nothing is compiled, or no folder for compiled code")
    folder = kernels.cache_folder(windows_pixinsight)
    warmup.warm_up(StackSpec())
    compile_huber_rounds()
    files = folder.glob(f"winsorized_huber.*.windows_pixinsight.{kernels._stamp()}-*.nbc")
    assert len(list(files)) == 1, "one more has been compiled for arguments of other types"


def test_kernels_of_former_versions_are_removed(tmp_path: Path) -> None:
    theirs = "other.f.0123456789-1.py311.nbi"
    for name in (NOW, BEFORE, BEFORE.replace(".nbi", ".1.nbc"), theirs):
        (tmp_path / name).touch()
    (tmp_path / BEFORE.replace("-1", "-2")).mkdir()  # what cannot be removed is no error
    kernels._remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {NOW, theirs}


def test_the_process_takes_no_module_from_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "types.py").write_text("raise SystemExit('not the one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # where it is relative it means that folder
    monkeypatch.setattr(warmup, "usable_cpus", lambda: 2)
    monkeypatch.setattr(kernels, "cache_folder", lambda _: tmp_path)
    with warmup.kernels_compiled_beside(StackSpec()):
        process = kernels._compiler[0]
        kernels.wait_for_compiler()
    assert process.returncode == 0


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

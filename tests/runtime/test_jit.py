"""Tests of ``runtime.jit``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from zemosaic_phase3.app.doctor import kernel_cache
from zemosaic_phase3.engine import warmup
from zemosaic_phase3.runtime import jit as kernels
from zemosaic_phase3.runtime.array_views import bits32, bits64, flat
from zemosaic_phase3.spec import StackSpec


def test_the_process_is_waited_for_and_ends_with_the_block(tmp_path: Path) -> None:
    kernels.wait_for_compiler()  # nothing to wait for
    done = tmp_path / "done"
    with kernels.compile_beside([sys.executable, "-c", f"open({str(done)!r}, 'w').close()"]):
        kernels.wait_for_compiler()
        assert done.exists()
    start = time.monotonic()
    with kernels.compile_beside([sys.executable, "-c", "import time; time.sleep(60)"]):
        process = kernels.running_compiler[0]
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


NOW, BEFORE = (f"x.zemosaic_phase3.x.f.{stamp}-1.py311.nbi" for stamp in (kernels.stamp(), "0123456789"))


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
        assert bool(kernels.running_compiler) == started
    monkeypatch.setattr(kernels, "cache_folder", lambda _: None)
    with warmup.kernels_compiled_beside(StackSpec()):
        assert not kernels.running_compiler


def test_the_share_of_this_process_is_what_the_other_one_looks_for() -> None:
    from zemosaic_phase3.rejection.judge import compile_judge
    from zemosaic_phase3.rejection.winsorized_huber import judge_block

    if kernel_cache() is None:
        pytest.skip("nothing is compiled, or no folder for compiled code")
    folder = kernels.cache_folder(judge_block)
    warmup.warm_up(StackSpec())
    compile_judge(StackSpec().rejection)
    files = folder.glob(f"winsorized_huber.*.judge_block.{kernels.stamp()}-*.nbc")
    assert len(list(files)) == 1, "one more has been compiled for arguments of other types"


def test_kernels_of_former_versions_are_removed(tmp_path: Path) -> None:
    theirs = "other.f.0123456789-1.py311.nbi"
    for name in (NOW, BEFORE, BEFORE.replace(".nbi", ".1.nbc"), theirs):
        (tmp_path / name).touch()
    (tmp_path / BEFORE.replace("-1", "-2")).mkdir()  # what cannot be removed is no error
    kernels.remove_stale(tmp_path)
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
        process = kernels.running_compiler[0]
        kernels.wait_for_compiler()
    assert process.returncode == 0


@kernels.compiled_once
@kernels.kernel
def _add(values: np.ndarray, n: int) -> float:
    return values[0] + n


@kernels.kernel
def _call(values: np.ndarray) -> float:
    count = 0
    while _add(values, count) < 3.0:
        count += 1
    return _add(values, 7)


def test_a_kernel_is_compiled_once_for_all_whole_numbers() -> None:
    assert _call(np.ones(2)) == 8.0
    if hasattr(_add, "signatures"):  # a plain function when Numba is switched off
        anew = numba.njit(_call.py_func)  # what the cache has was compiled with its parts
        assert anew(np.ones(2)) == 8.0
        assert len(_add.signatures) == 1


@kernels.kernel
def _views(values: np.ndarray, singles: np.ndarray) -> int:
    row, whole, half = flat(values), bits64(flat(values)), bits32(singles)
    row[1] += 1.0
    return whole[1] ^ np.int64(half[2]) + whole.size


def test_views_are_the_same_memory() -> None:
    values, singles = np.arange(6.0).reshape(2, 3), np.array([1.0, 2.0, -3.0], np.float32)
    assert _views(values, singles) == np.float64(2.0).view(np.int64) ^ int(singles.view(np.uint32)[2]) + 6
    assert values[0, 1] == 2.0

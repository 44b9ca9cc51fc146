"""Tests of ``compat.parallel_plan``."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
from parallel_utils_case import CAPS

from zemosaic_phase3.compat import parallel_plan
from zemosaic_phase3.engine import resources

GPU_CAPS = dataclasses.replace(CAPS, gpu_available=True, gpu_vram_total_bytes=10**10, gpu_vram_free_bytes=8 * 10**9)


def test_auto_tune_with_a_gpu():
    plan = parallel_plan.auto_tune_parallel_plan("master_tile", (1080, 1920), 1000, 4, caps=GPU_CAPS)
    assert plan.use_gpu
    assert plan.gpu_max_chunk_bytes == int(0.8 * 8e9)
    assert plan.gpu_rows_per_chunk == plan.gpu_max_chunk_bytes // (2 * 1000 * 1920 * 4)
    small = parallel_plan.auto_tune_parallel_plan("master_tile", (10, 20), 3, 4, caps=GPU_CAPS)
    assert small.gpu_rows_per_chunk == small.rows_per_chunk == 10


def test_a_gpu_without_room_for_one_row_is_not_used():
    caps = dataclasses.replace(GPU_CAPS, gpu_vram_free_bytes=1000)
    assert not parallel_plan.auto_tune_parallel_plan("master_tile", (1080, 1920), 1000, 4, caps=caps).use_gpu


def test_bytes_per_pixel_is_at_least_what_float32_takes():
    honest = parallel_plan.auto_tune_parallel_plan("x", (100, 2000, 3), 5000, 12, caps=GPU_CAPS)
    assert parallel_plan.auto_tune_parallel_plan("x", (100, 2000, 3), 5000, 2, caps=GPU_CAPS) == honest


CONFIG = {
    "parallel_target_cpu_load": 0.5,
    "parallel_target_ram_fraction": "0.25",
    "parallel_gpu_vram_fraction": 0.1,
    "parallel_max_cpu_workers": 5,
}


@pytest.mark.parametrize("make", [dict, lambda c: types.SimpleNamespace(**c)])
def test_configuration_as_mapping_or_object(make):
    plan = parallel_plan.auto_tune_parallel_plan("x", (100, 100), 10, 4, make(CONFIG), GPU_CAPS)
    assert (plan.cpu_workers, plan.max_chunk_bytes, plan.gpu_max_chunk_bytes) == (5, 8 * 10**9, 8 * 10**8)


@pytest.mark.parametrize("bad", ["lots", None, float("nan"), [1]])
def test_unreadable_configuration_is_the_default(bad):
    config = dict.fromkeys([*CONFIG, "parallel_autotune_enabled"], bad)
    assert parallel_plan.auto_tune_parallel_plan(
        "x", (100, 100), 10, 4, config, GPU_CAPS
    ) == parallel_plan.auto_tune_parallel_plan("x", (100, 100), 10, 4, None, GPU_CAPS)


def test_configuration_is_clamped():
    plan = parallel_plan.auto_tune_parallel_plan(
        "x", (100, 100), 10, 4, {"parallel_target_cpu_load": 7, "parallel_target_ram_fraction": -3}, CAPS
    )
    assert plan.cpu_workers == 16
    assert plan.max_chunk_bytes == int(0.05 * 32e9)


def test_without_autotune_there_are_no_size_hints():
    plan = parallel_plan.auto_tune_parallel_plan("x", (100, 100), 10, 4, {"parallel_autotune_enabled": "no"}, GPU_CAPS)
    assert plan == parallel_plan.ParallelPlan(16, False, 0, use_gpu=True)


@pytest.mark.parametrize(("shape", "n"), [((100,), 3), ((0, 5), 3), ((5, 5), 0), ((5, 5, 3, 1), 2)])
def test_auto_tune_refuses_what_is_no_stack(shape, n):
    with pytest.raises(ValueError, match="not a stack"):
        parallel_plan.auto_tune_parallel_plan("x", shape, n, 4, caps=CAPS)


def test_hints_that_are_no_numbers_above_zero_are_none():
    plan = types.SimpleNamespace(a="x", b=float("nan"), c=-1, d=float("inf"), e=None, f=np.int64(5), g="7", h=2.5)
    assert [parallel_plan.plan_hint(plan, name) for name in "abcdefghi"] == [
        None,
        None,
        None,
        None,
        None,
        5,
        7,
        2,
        None,
    ]
    half = parallel_plan.tighter(
        types.SimpleNamespace(cpu_workers="all", rows_per_chunk=float("nan"), gpu_max_chunk_bytes="1000")
    )
    assert (half.cpu_workers, half.rows_per_chunk, half.gpu_max_chunk_bytes) == (0, None, 500)


def test_tighter_halves_the_gpu_hints_of_a_copy():
    plan = parallel_plan.ParallelPlan(
        4, True, 1000, rows_per_chunk=9, use_gpu=True, gpu_rows_per_chunk=7, gpu_max_chunk_bytes=801
    )
    before = dataclasses.replace(plan)
    half = parallel_plan.tighter(plan)
    assert half == dataclasses.replace(plan, gpu_rows_per_chunk=3, gpu_max_chunk_bytes=400)
    assert plan == before
    for _ in range(20):
        half = parallel_plan.tighter(half)
    assert (half.gpu_rows_per_chunk, half.gpu_max_chunk_bytes) == (1, 1)


@pytest.mark.parametrize(
    ("hints", "rows", "size"),
    [
        ({}, None, resources.GPU_BYTES // 2),
        ({"rows_per_chunk": 10}, 5, resources.GPU_BYTES // 2),
        ({"max_chunk_bytes": 4000, "gpu_rows_per_chunk": -1}, None, 2000),
        ({"max_chunk_bytes": 10**12}, None, resources.GPU_BYTES // 2),
        ({"gpu_max_chunk_bytes": 0, "gpu_rows_per_chunk": 1}, 1, resources.GPU_BYTES // 2),
    ],
)
@pytest.mark.parametrize("duck", [False, True])
def test_tighter_derives_absent_hints(hints, rows, size, duck):
    values = {"cpu_workers": 2, "use_memmap": False, "max_chunk_bytes": 0, "use_gpu": True, **hints}
    plan = types.SimpleNamespace(**values) if duck else parallel_plan.ParallelPlan(**values)
    half = parallel_plan.tighter(plan)
    assert isinstance(half, parallel_plan.ParallelPlan)
    assert (half.gpu_rows_per_chunk, half.gpu_max_chunk_bytes) == (rows, size)
    assert (half.cpu_workers, half.use_gpu, half.max_chunk_bytes) == (2, True, values["max_chunk_bytes"])

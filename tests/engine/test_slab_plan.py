"""Tests of ``engine.slab_plan``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_utils_case import CAPS

from zemosaic_phase3.compat import parallel_plan
from zemosaic_phase3.engine import slab_plan
from zemosaic_phase3.errors import PlanError

STACK = {"n_frames": 50, "width": 40, "channels": 3}


@given(height=st.integers(0, 3000), rows=st.integers(1, 4000))
def test_slabs_cover_each_row_exactly_once_in_order(height, rows):
    slabs = list(slab_plan.row_slabs(height, rows))
    covered = np.concatenate([np.arange(height)[s] for s in slabs]) if slabs else np.empty(0, int)
    np.testing.assert_array_equal(covered, np.arange(height))
    assert all(s.stop - s.start == rows for s in slabs[:-1])
    assert all(0 < s.stop - s.start <= rows and s.stop <= height for s in slabs)


@pytest.mark.parametrize(("height", "rows"), [(10, 0), (10, -1), (-1, 5)])
def test_slabs_without_rows_are_refused(height, rows):
    with pytest.raises(ValueError, match=f"{height} rows into slabs of {rows}"):
        list(slab_plan.row_slabs(height, rows))


@settings(max_examples=200)
@given(
    height=st.integers(1, 3000),
    n_frames=st.integers(1, 20000),
    width=st.integers(1, 5000),
    channels=st.sampled_from([1, 3]),
    workers=st.integers(1, 64),
    weights_per_pixel=st.sampled_from([0, 1, 3]),
    stored_bytes=st.sampled_from([0, 2, 4]),
    field_bytes=st.sampled_from([0, 10**7]),
    source_margin=st.integers(0, 500),
    raw_bytes=st.sampled_from([2, 4, 12]),
    share=st.floats(0.0, 1.5),
    max_rows=st.none() | st.integers(-1, 4000),
)
def test_a_plan_is_the_best_that_fits(height, share, max_rows, workers, **stack):
    def bytes_of(rows, n_workers=workers):
        return slab_plan.stack_bytes(rows, height=height, workers=n_workers, **stack)

    allowed = int(bytes_of(1) + share * (bytes_of(height) - bytes_of(1)))
    plan = slab_plan.plan_slabs(height, allowed_bytes=allowed, max_rows=max_rows, workers=workers, **stack)
    assert plan.allowed_bytes == allowed
    assert plan.needed_bytes == bytes_of(plan.rows_per_slab, plan.workers) <= allowed
    few = min(slab_plan.FEW_ROWS, height)
    if plan.workers < workers:  # one more would have made do with low slabs
        assert bytes_of(few, plan.workers + 1) > allowed >= bytes_of(few, plan.workers)
    assert plan.n_slabs == len(list(slab_plan.row_slabs(height, plan.rows_per_slab)))
    if max_rows is not None and max_rows > 0:
        assert plan.rows_per_slab <= max_rows
    else:  # fewer slabs do not fit
        higher = -(-height // (plan.n_slabs - 1)) if plan.n_slabs > 1 else None
        assert higher is None or bytes_of(higher, plan.workers) > allowed


def test_rows_beyond_the_tile_cost_nothing():
    assert slab_plan.stack_bytes(10**6, height=100, source_margin=50, **STACK) == slab_plan.stack_bytes(
        100, height=100, **STACK
    )


def test_maps_that_are_not_written_are_not_copied():
    some = {"height": 1000, **STACK, "n_frames": 2}
    whole, image = (slab_plan.stack_bytes(1, copied_maps=n, **some) for n in (5, 1))
    one_map = 4 * 1000 * 40 * 3
    assert whole == 10 * one_map
    assert image < 7 * one_map


def test_a_stack_that_cannot_fit_is_refused_with_the_numbers():
    needed = slab_plan.stack_bytes(1, height=30, workers=1, **STACK)
    with pytest.raises(PlanError) as caught:
        slab_plan.plan_slabs(30, allowed_bytes=needed - 1, workers=2, **STACK)
    text = str(caught.value)
    assert str(needed) in text
    assert str(needed - 1) in text
    assert "--memory" in text
    plan = slab_plan.plan_slabs(30, allowed_bytes=needed, workers=2, **STACK)
    assert (plan.rows_per_slab, plan.workers) == (1, 1)


def test_fewer_workers_come_before_low_slabs():
    rows, blocks = slab_plan.FEW_ROWS, {"source_margin": 1000, **STACK}
    allowed = slab_plan.stack_bytes(rows, height=1000, workers=3, **blocks)
    plan = slab_plan.plan_slabs(1000, allowed_bytes=allowed, workers=8, **blocks)
    assert (plan.rows_per_slab, plan.workers) == (rows, 3)
    assert slab_plan.plan_slabs(1000, allowed_bytes=10 * allowed, workers=8, **blocks).workers == 8


def test_a_tile_without_rows_is_refused():
    with pytest.raises(PlanError, match="0 rows"):
        slab_plan.plan_slabs(0, allowed_bytes=10**9, **STACK)


def test_a_slab_plan_prints_as_one_line():
    plan = slab_plan.SlabPlan(90, 12, 4, 1_234_567_890, 4_000_000_000)
    assert str(plan) == "12 slab(s) of 90 rows, 4 worker(s), 1.23 GB of 4.00 GB"


def test_auto_tune_on_the_cpu():
    plan = parallel_plan.auto_tune_parallel_plan("master_tile", (1080, 1920, 3), 2000, 12, caps=CAPS)
    assert plan.cpu_workers == 15
    assert plan.max_chunk_bytes == int(0.9 * 32e9)
    assert plan.use_memmap, "50 GB of frames do not fit into 32"
    stack = {"n_frames": 2000, "height": 1080, "width": 1920, "channels": 3, "workers": 15, "raw_bytes": 12}
    assert slab_plan.stack_bytes(plan.rows_per_chunk, **stack) <= plan.max_chunk_bytes
    assert slab_plan.stack_bytes(plan.rows_per_chunk + 1, **stack) > plan.max_chunk_bytes
    assert (plan.use_gpu, plan.gpu_rows_per_chunk, plan.gpu_max_chunk_bytes) == (False, None, None)

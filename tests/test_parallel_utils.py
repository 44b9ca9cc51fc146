"""Plans are arithmetic: every row once, never more bytes than allowed, container limits before host totals."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
import types

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.compat import parallel_plan
from zemosaic_phase3.engine import slab_plan
from zemosaic_phase3.errors import PlanError, SpecError
from zemosaic_phase3.runtime import limits as limits_module
from zemosaic_phase3.runtime import threads as threads_module

STACK = {"n_frames": 50, "width": 40, "channels": 3}
CAPS = parallel_plan.ParallelCapabilities(8, 16, 64 * 10**9, 32 * 10**9)
GPU_CAPS = dataclasses.replace(CAPS, gpu_available=True, gpu_vram_total_bytes=10**10, gpu_vram_free_bytes=8 * 10**9)


# --------------------------------------------------------------------------- slabs


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
def test_a_plan_is_the_best_that_fits(height, share, max_rows, **stack):
    def bytes_of(rows):
        return slab_plan.stack_bytes(rows, height=height, **stack)

    allowed = int(bytes_of(1) + share * (bytes_of(height) - bytes_of(1)))
    plan = slab_plan.plan_slabs(height, allowed_bytes=allowed, max_rows=max_rows, **stack)
    assert plan.allowed_bytes == allowed
    assert plan.needed_bytes == bytes_of(plan.rows_per_slab) <= allowed
    assert plan.n_slabs == len(list(slab_plan.row_slabs(height, plan.rows_per_slab)))
    if max_rows is not None and max_rows > 0:
        assert plan.rows_per_slab <= max_rows
    else:  # fewer slabs do not fit
        higher = -(-height // (plan.n_slabs - 1)) if plan.n_slabs > 1 else None
        assert higher is None or bytes_of(higher) > allowed


def test_rows_beyond_the_tile_cost_nothing():
    assert slab_plan.stack_bytes(10**6, height=100, source_margin=50, **STACK) == slab_plan.stack_bytes(
        100, height=100, **STACK
    )


def test_a_stack_that_cannot_fit_is_refused_with_the_numbers():
    needed = slab_plan.stack_bytes(1, height=30, workers=2, **STACK)
    with pytest.raises(PlanError) as caught:
        slab_plan.plan_slabs(30, allowed_bytes=needed - 1, workers=2, **STACK)
    text = str(caught.value)
    assert str(needed) in text
    assert str(needed - 1) in text
    assert "--memory" in text
    assert slab_plan.plan_slabs(30, allowed_bytes=needed, workers=2, **STACK).rows_per_slab == 1


def test_a_tile_without_rows_is_refused():
    with pytest.raises(PlanError, match="0 rows"):
        slab_plan.plan_slabs(0, allowed_bytes=10**9, **STACK)


def test_a_slab_plan_prints_as_one_line():
    assert str(slab_plan.SlabPlan(90, 12, 1_234_567_890, 4_000_000_000)) == "12 slab(s) of 90 rows, 1.23 GB of 4.00 GB"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.50 KB"), (2 * 10**6, "2.00 MB")]
)
def test_memory_text(size, text):
    assert limits_module.memory_text(size) == text


# --------------------------------------------------------------------------- amounts of memory


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("4GB", 4 * 10**9),
        ("4 gib", 4 * 2**30),
        ("4G", 4 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5KB", 1500),
        (".5TB", 5 * 10**11),
        ("50%", 500),
        ("100 %", 1000),
    ],
)
def test_parse_memory(value, size):
    assert limits_module.parse_memory(value, available=1000) == size


@pytest.mark.parametrize("value", ["", "much", "-1GB", "4XB", "0", 0, -5, "101%", "0%", "4GB5", True, "nan", "1e9"])
def test_parse_memory_refuses_and_shows_the_value(value):
    with pytest.raises(SpecError, match="memory") as caught:
        limits_module.parse_memory(value, available=1000)
    assert repr(value) in str(caught.value)


def test_a_percentage_is_of_the_available_memory():
    assert 0 < limits_module.parse_memory("1%") < limits_module.available_memory()


# --------------------------------------------------------------------------- containers


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def limits_of(tmp_path, groups, files):
    (tmp_path / "groups").write_text(groups)
    tree(tmp_path / "fs", files)
    return limits_module.container_limits(tmp_path / "groups", tmp_path / "fs")


def test_version_2_limits_and_reclaimable_cache(tmp_path):
    found = limits_of(
        tmp_path,
        "0::/app/run\n",
        {
            "app/run/memory.max": 1000,
            "app/run/memory.current": 700,
            "app/run/memory.stat": "anon 300\ninactive_file 250\nactive_file 150",
            "app/run/cpu.max": "150000 100000",
            "app/memory.max": "max",
            "app/cpu.max": "max 100000",
        },
    )
    assert found == limits_module.ContainerLimits(memory_limit=1000, memory_available=700, cpus=1.5)


def test_version_2_tightest_ancestor_binds(tmp_path):
    found = limits_of(
        tmp_path,
        "0::/app/run\n",
        {
            "app/run/memory.max": 1000,
            "app/run/memory.current": 100,
            "app/memory.max": 2000,
            "app/memory.current": 1900,  # other members of the parent group took it
            "cpu.max": "50000 100000",
        },
    )
    assert found == limits_module.ContainerLimits(memory_limit=1000, memory_available=100, cpus=0.5)


def test_a_host_path_inside_a_container_falls_back_to_the_mount(tmp_path):
    found = limits_of(
        tmp_path, "0::/docker/0123abc\n", {"memory.max": 4096, "memory.current": 96, "cpu.max": "200000 100000"}
    )
    assert found == limits_module.ContainerLimits(memory_limit=4096, memory_available=4000, cpus=2.0)


def test_version_1_limits(tmp_path):
    found = limits_of(
        tmp_path,
        "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/x\n0::/\n",
        {
            "memory/job/memory.limit_in_bytes": 5000,
            "memory/job/memory.usage_in_bytes": 4000,
            "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 1000\ntotal_active_file 500",
            "memory/memory.limit_in_bytes": 9223372036854771712,
            "cpu,cpuacct/job/cpu.cfs_quota_us": 300000,
            "cpu,cpuacct/job/cpu.cfs_period_us": 100000,
            "cpu,cpuacct/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/cpu.cfs_period_us": 100000,
        },
    )
    assert found == limits_module.ContainerLimits(memory_limit=5000, memory_available=2500, cpus=3.0)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max", "cpu.max": "max 100000"},
        {"memory.max": "nonsense", "cpu.max": ""},
        {"memory.max": "0", "cpu.max": "0 0"},
    ],
)
def test_no_limit_is_none(tmp_path, files):
    assert limits_of(tmp_path, "0::/\n", files) == limits_module.ContainerLimits()


def test_a_system_without_control_groups_has_no_limits(tmp_path):
    assert limits_module.container_limits(tmp_path / "none", tmp_path) == limits_module.ContainerLimits()


def test_more_used_than_allowed_leaves_nothing(tmp_path):
    found = limits_of(tmp_path, "0::/\n", {"memory.max": 100, "memory.current": 120})
    assert found.memory_available == 0


@pytest.mark.parametrize(("cpus", "cores"), [(0.2, 1), (1.0, 1), (1e9, None)])
def test_quota_and_affinity_bound_the_cores(cpus, cores):
    everything = limits_module.usable_cpus(limits_module.ContainerLimits())
    assert limits_module.usable_cpus(limits_module.ContainerLimits(cpus=cpus)) == (cores or everything)
    assert limits_module.usable_cpus(limits_module.ContainerLimits(cpus=1.2)) == min(2, everything), (
        "a part of a core is one more"
    )


def test_container_limits_count_not_the_hosts_totals(monkeypatch):
    limits = limits_module.ContainerLimits(memory_limit=10**6, memory_available=10**5, cpus=0.5)
    monkeypatch.setattr(limits_module, "container_limits", lambda: limits)
    caps = parallel_plan.detect_parallel_capabilities()
    assert (caps.ram_total_bytes, caps.ram_available_bytes) == (10**6, 10**5)
    assert (caps.cpu_cores, caps.cpu_logical_cores) == (1, 1)
    assert limits_module.available_memory() == 10**5


def test_without_limits_the_host_counts(monkeypatch):
    monkeypatch.setattr(limits_module, "container_limits", limits_module.ContainerLimits)
    caps = parallel_plan.detect_parallel_capabilities()
    assert caps.ram_total_bytes == psutil.virtual_memory().total
    assert 0 < caps.ram_available_bytes <= caps.ram_total_bytes
    assert 1 <= caps.cpu_cores <= caps.cpu_logical_cores


def test_peak_memory_counts_what_was_touched_once():
    before = limits_module.peak_rss_bytes()
    current = psutil.Process().memory_info().rss
    assert before >= 0.9 * current, "a unit too small would show here"
    assert before < 1000 * current, "a unit too large here"
    size = before - current + 64 * 2**20
    block = np.ones(size, np.uint8)
    assert limits_module.peak_rss_bytes() >= before + 32 * 2**20
    del block
    assert limits_module.peak_rss_bytes() >= before + 32 * 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there a child begins with its parent's peak")
def test_peak_memory_is_that_of_the_process_alone():
    ballast = np.ones(400 * 2**20, np.uint8)
    code = "from zemosaic_phase3.runtime import limits as pu; print(pu.peak_rss_bytes())"
    peak = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert peak < ballast.nbytes / 2


# --------------------------------------------------------------------------- plans


def test_auto_tune_on_the_cpu():
    plan = parallel_plan.auto_tune_parallel_plan("master_tile", (1080, 1920, 3), 2000, 12, caps=CAPS)
    assert plan.cpu_workers == 15
    assert plan.max_chunk_bytes == int(0.9 * 32e9)
    assert plan.use_memmap, "50 GB of frames do not fit into 32"
    stack = {"n_frames": 2000, "height": 1080, "width": 1920, "channels": 3, "workers": 15, "raw_bytes": 12}
    assert slab_plan.stack_bytes(plan.rows_per_chunk, **stack) <= plan.max_chunk_bytes
    assert slab_plan.stack_bytes(plan.rows_per_chunk + 1, **stack) > plan.max_chunk_bytes
    assert (plan.use_gpu, plan.gpu_rows_per_chunk, plan.gpu_max_chunk_bytes) == (False, None, None)


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
        ({}, None, parallel_plan.FALLBACK_GPU_CHUNK_BYTES // 2),
        ({"rows_per_chunk": 10}, 5, parallel_plan.FALLBACK_GPU_CHUNK_BYTES // 2),
        ({"max_chunk_bytes": 4000, "gpu_rows_per_chunk": -1}, None, 2000),
        ({"max_chunk_bytes": 10**12}, None, parallel_plan.FALLBACK_GPU_CHUNK_BYTES // 2),
        ({"gpu_max_chunk_bytes": 0, "gpu_rows_per_chunk": 1}, 1, parallel_plan.FALLBACK_GPU_CHUNK_BYTES // 2),
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


# --------------------------------------------------------------------------- threads


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_the_order_of_the_items(workers):
    def slow_at_first(n):
        time.sleep(0.02 if n == 0 else 0)
        return n * n

    assert threads_module.parallel_map(slow_at_first, iter(range(20)), workers) == [n * n for n in range(20)]
    assert threads_module.parallel_map(slow_at_first, [], workers) == []


def test_items_run_at_the_same_time():
    meeting = threading.Barrier(3, timeout=10)
    assert sorted(threads_module.parallel_map(lambda _: meeting.wait(), range(3), 3)) == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_exception_cancels_the_rest_and_propagates(error, workers):
    started = []

    def fails(n):
        started.append(n)
        if n == 1:
            raise error("stop")
        time.sleep(0.01)

    with pytest.raises(error, match="stop"):
        threads_module.parallel_map(fails, range(1000), workers)
    assert len(started) < 100
    assert not [t for t in threading.enumerate() if t.name.startswith("zemosaic")], "no thread is left behind"


def test_a_crew_stays_for_the_next_caller_and_serves_one_at_a_time():
    threads_module.Crew.forget_idle()
    with threads_module.Crew(3) as first:
        threads = {first.submit(threading.get_ident).result() for _ in range(20)}
        with threads_module.Crew(3) as second:
            assert second.submit(threading.get_ident).result() not in threads
    with threads_module.Crew(3) as again, threads_module.Crew(3) as once_more:
        assert {again._pool, once_more._pool} == {first._pool, second._pool}


def test_leaving_a_crew_waits_for_what_has_begun_and_cancels_the_rest():
    begun, done = threading.Event(), []

    def work(n):
        begun.set()
        time.sleep(0.05)
        done.append(n)

    with pytest.raises(ValueError, match="stop"), threads_module.Crew(1) as crew:
        futures = [crew.submit(work, n) for n in range(50)]
        begun.wait()
        raise ValueError("stop")
    assert done == [0]
    assert [future.cancelled() for future in futures] == [False] + [True] * 49
    with threads_module.Crew(1) as crew:
        assert crew.submit(len, "abc").result() == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_has_crews_of_its_own():
    with threads_module.Crew(2) as crew:
        crew.submit(len, "").result()
    child = os.fork()
    if child == 0:
        with threads_module.Crew(2) as crew:
            os._exit(crew.submit(len, "abc").result(timeout=10))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_capabilities_do_not_load_cupy_where_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    limits_module.runtime.cuda._first_probe.cache_clear()
    try:
        caps = parallel_plan.detect_parallel_capabilities()
    finally:
        limits_module.runtime.cuda._first_probe.cache_clear()
    assert (caps.gpu_available, caps.gpu_name, caps.gpu_vram_total_bytes) == (False, None, None)

"""Plans are arithmetic: every row once, never more bytes than allowed, container limits before host totals."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import psutil
import pytest

from zemosaic_phase3.compat import parallel_plan
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.runtime import cuda
from zemosaic_phase3.runtime import limits as limits_module


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.50 KB"), (2 * 10**6, "2.00 MB")]
)
def test_memory_text(size, text):
    assert limits_module.memory_text(size) == text


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
    for module in (limits_module, parallel_plan):
        monkeypatch.setattr(module, "container_limits", lambda: limits)
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


def test_capabilities_do_not_load_cupy_where_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    cuda.first_probe.cache_clear()
    try:
        caps = parallel_plan.detect_parallel_capabilities()
    finally:
        cuda.first_probe.cache_clear()
    assert (caps.gpu_available, caps.gpu_name, caps.gpu_vram_total_bytes) == (False, None, None)


@pytest.mark.parametrize(
    ("available", "expected"), [(32e9, 16e9), (4e9, 2e9), (1.5e9, 1e9), (1e9, 0.8e9), (0.5e9, 0.4e9)]
)
def test_default_limit_is_half_but_for_small_containers(available, expected, monkeypatch):
    monkeypatch.setattr(limits_module, "available_memory", lambda: int(available) - 100_000_000)
    monkeypatch.setattr(limits_module, "current_rss_bytes", lambda: 100_000_000)
    assert limits_module.default_limit() == int(expected)

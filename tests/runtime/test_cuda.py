"""The GPU's door: failures are classified without CuPy, and a sticky error ends every CuPy call."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import types

import pytest
from cuda_utils_case import CUDARuntimeError, install_fake_cupy
from places import ROOT

from zemosaic_phase3.runtime import cuda, cuda_failure


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(cuda_failure, "_POISONED", threading.Event())
    cuda.first_probe.cache_clear()
    yield
    cuda.first_probe.cache_clear()


def test_probe_of_a_working_gpu(monkeypatch):
    fake, device, _ = install_fake_cupy(monkeypatch)
    found = cuda.probe()
    assert found.usable_hint
    assert (found.name, found.vram_total, found.vram_free) == ("NVIDIA Test", 10, 7), "free in the pool is free"
    assert (found.driver_version, found.runtime_version, found.cupy_version) == (12040, 12020, "13.4.0")
    assert found.reason == found.remedy == ""
    assert cuda.gpu_supported()
    assert cuda.memory_info() == (7, 10)
    device.free = 3
    assert cuda.probe().vram_free == 9, "memory is read anew, the rest is not"


@pytest.mark.parametrize(
    ("parts", "reason", "remedy"),
    [
        ({"driver": 0}, "no NVIDIA driver", "install the NVIDIA driver"),
        ({"driver": 11080}, "too old: it knows CUDA 11.8, CuPy needs 12.2", "CUDA 11"),
        ({"count": 0}, "no CUDA device", "CPU"),
        ({"failure": CUDARuntimeError(46, "busy")}, "CUDARuntimeError: busy", "nvidia-smi"),
    ],
)
def test_probe_names_the_reason(monkeypatch, parts, reason, remedy):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install_fake_cupy(monkeypatch, **parts)
    found = cuda.probe()
    assert not found.usable_hint
    assert reason in found.reason
    assert remedy in found.remedy
    assert cuda.memory_info() is None
    assert not cuda.initialize_pools()


def test_an_older_driver_of_the_same_major_version_is_enough(monkeypatch):
    install_fake_cupy(monkeypatch, driver=12000, runtime=12090)
    assert cuda.probe().usable_hint


def test_probe_without_cupy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    found = cuda.probe()
    assert not found.usable_hint
    assert found.reason == "CuPy is not installed"
    assert found.remedy == "pip install cupy-cuda12x (or cupy-cuda13x, to match the driver)"
    assert not cuda.gpu_supported()
    assert cuda.memory_info() is None
    assert not cuda.initialize_pools()
    assert not cuda.free_pools()


def test_a_broken_cupy_is_imported_once_and_reported(tmp_path):
    package = tmp_path / "cupy"
    package.mkdir()
    (package / "__init__.py").write_text(
        f"open({str(tmp_path / 'touched')!r}, 'a').write('x')\nraise AttributeError('numpy has no attribute float')\n"
    )
    code = """
        import zemosaic_worker
        from zemosaic_phase3.compat import parallel_plan
        from zemosaic_phase3.runtime import cuda
        assert cuda.CUPY_AVAILABLE
        for _ in range(3):
            found = cuda.probe()
            assert "AttributeError: numpy has no attribute float" in found.reason, found
            assert not found.usable_hint and "pip install cupy-cuda12x" in found.remedy
        assert not parallel_plan.detect_parallel_capabilities().gpu_available
        assert not cuda.free_pools()
    """
    path = f"{tmp_path}:{ROOT}" if not cuda.IS_WINDOWS else f"{tmp_path};{ROOT}"
    subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (tmp_path / "touched").read_text() == "x"


def test_pools_are_freed_and_limited(monkeypatch):
    _, device, pinned = install_fake_cupy(monkeypatch)
    assert cuda.initialize_pools(limit_bytes=5)
    assert device.limit == 5
    assert cuda.free_pools()
    assert (device.freed, pinned.freed) == (1, 1)


class Tripwire(types.ModuleType):
    """A CuPy that must not be touched."""

    def __getattr__(self, name):
        raise AssertionError(f"cupy.{name} was used after a sticky error")


def test_after_a_sticky_error_no_cupy_call_is_made(monkeypatch):
    install_fake_cupy(monkeypatch)
    assert cuda.probe().usable_hint
    monkeypatch.setitem(sys.modules, "cupy", Tripwire("cupy"))
    with pytest.raises(AssertionError, match="sticky"):
        cuda.free_pools()
    cuda_failure.mark_sticky()
    assert cuda_failure.is_poisoned()
    assert not cuda.free_pools()
    assert cuda.memory_info() is None
    assert not cuda.initialize_pools()
    found = cuda.probe()
    assert not found.usable_hint
    assert "cannot be undone" in found.reason
    assert not cuda.gpu_supported()


def test_memory_that_cannot_be_read_any_more_is_none(monkeypatch, caplog):
    fake, _, _ = install_fake_cupy(monkeypatch)
    assert cuda.probe().usable_hint

    def fail():
        raise CUDARuntimeError(719, "launch failure")

    fake.cuda.runtime.memGetInfo = fail
    assert cuda.memory_info() is None
    assert cuda_failure.is_poisoned()
    assert "launch failure" in caplog.text


@pytest.mark.skipif(cuda.IS_WINDOWS, reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(("answer", "index"), [("3\n5\n", "3"), ("No devices were found\n", None), ("", None)])
def test_enforce_takes_the_first_index_of_nvidia_smi(monkeypatch, tmp_path, answer, index):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    # Set before deleting, so that what the function sets is undone too.
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert cuda.enforce_nvidia_gpu() == (index is not None)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == index
    assert os.environ.get("CUDA_DEVICE_ORDER") == (index and "PCI_BUS_ID")


def test_enforce_respects_the_users_choice_and_a_machine_without_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert cuda.enforce_nvidia_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert not cuda.enforce_nvidia_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_nvidia_smi_that_fails_is_no_gpu(monkeypatch, tmp_path):
    if cuda.IS_WINDOWS:
        pytest.skip("the stand-in for nvidia-smi is a shell script")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not cuda.enforce_nvidia_gpu()


@pytest.mark.gpu
def test_probe_of_the_device_of_this_machine():
    pytest.importorskip("cupy", reason="needs CuPy")
    found = cuda.probe()
    if not found.usable_hint:
        pytest.skip(found.reason)
    assert found.name
    assert 0 < found.vram_free <= found.vram_total
    assert cuda.initialize_pools()
    assert cuda.free_pools()

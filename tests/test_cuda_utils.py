"""The GPU's door: failures are classified without CuPy, and a sticky error ends every CuPy call."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import pytest

from zemosaic_phase3.runtime import cuda, cuda_failure

ROOT = Path(__file__).parents[1]


class CUDARuntimeError(RuntimeError):
    """As CuPy's: the class is known by its name, the error by its status."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or f"status {status}")
        self.status = status


class CUDADriverError(CUDARuntimeError):
    pass


class NVRTCError(RuntimeError):
    status = 2  # NVRTC_ERROR_PROGRAM_CREATION_FAILURE, not "out of memory"


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(cuda_failure, "_POISONED", threading.Event())
    cuda._first_probe.cache_clear()
    yield
    cuda._first_probe.cache_clear()


class Pool:
    def __init__(self, free: int = 0) -> None:
        self.free, self.freed, self.limit = free, 0, None

    def free_bytes(self) -> int:
        return self.free

    def free_all_blocks(self) -> None:
        self.freed += 1

    def set_limit(self, *, size: int) -> None:
        self.limit = size


def install_fake_cupy(monkeypatch, *, driver=12040, runtime=12020, count=1, memory=(6, 10), failure=None):
    """A module that answers as CuPy does, or raises ``failure`` when asked for the memory."""

    def mem_get_info():
        if failure is not None:
            raise failure
        return memory

    def device_count():
        if count == 0:
            raise CUDARuntimeError(100, "cudaErrorNoDevice: no CUDA-capable device is detected")
        return count

    fake = types.ModuleType("cupy")
    fake.__version__ = "13.4.0"
    device, pinned = Pool(free=1), Pool()
    fake.get_default_memory_pool = lambda: device
    fake.get_default_pinned_memory_pool = lambda: pinned
    fake.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: runtime,
            getDeviceCount=device_count,
            getDevice=lambda: 0,
            getDeviceProperties=lambda index: {"name": b"NVIDIA Test"},
            memGetInfo=mem_get_info,
        )
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake, device, pinned


STICKY = (214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719)


@pytest.mark.parametrize("cls", [CUDARuntimeError, CUDADriverError])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(2, "out_of_memory"), (1, "other"), (701, "other")]
    + [(s, "sticky") for s in STICKY]
    + [(s, "unavailable") for s in (3, 34, 35, 46, 100, 101, 209, 222, 803)],
)
def test_cuda_status_decides(cls, status, kind):
    assert cuda_failure.classify_failure(cls(status)) == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfMemoryError("Out of memory allocating 512 bytes"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (ModuleNotFoundError("No module named 'cupy'", name="cupy"), "unavailable"),
        (ImportError("CuPy is not correctly installed."), "unavailable"),
        (ImportError("No module named 'sep'", name="sep"), "other"),
        (RuntimeError("CuPy failed to load libnvrtc.so.12"), "unavailable"),
        (RuntimeError("cudaErrorMemoryAllocation: out of memory"), "out_of_memory"),
        (RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"), "sticky"),
        (RuntimeError("cudaErrorLaunchFailure: unspecified launch failure"), "sticky"),
        (RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"), "unavailable"),
        (NVRTCError("compilation failed"), "other"),
        (ValueError("operands could not be broadcast"), "other"),
        # The status is evidence, the text hearsay.
        (CUDARuntimeError(2, "after an illegal address elsewhere"), "out_of_memory"),
        (CUDARuntimeError(700, "out of memory"), "sticky"),
    ],
)
def test_class_before_text(error, kind):
    assert cuda_failure.classify_failure(error) == kind
    assert cuda_failure.is_oom_error(error) == (kind == "out_of_memory")


def raised(error: BaseException, *, cause: BaseException | None, handled: BaseException | None) -> BaseException:
    try:
        try:
            if handled is not None:
                raise handled
        finally:
            raise error from cause
    except type(error) as exc:
        return exc


def test_cause_context_and_groups_are_looked_through():
    sticky, memory = CUDARuntimeError(719), OutOfMemoryError("full")
    assert cuda_failure.classify_failure(raised(ValueError("x"), cause=memory, handled=None)) == "out_of_memory"
    assert cuda_failure.classify_failure(raised(ValueError("x"), cause=None, handled=memory)) == "out_of_memory"
    both = raised(ValueError("x"), cause=memory, handled=sticky)
    assert cuda_failure.classify_failure(both) == "sticky", "the gravest of a chain wins"
    group = ExceptionGroup("workers", [ValueError("x"), ExceptionGroup("inner", [memory])])
    assert cuda_failure.classify_failure(group) == "out_of_memory"


def test_a_cycle_of_causes_ends():
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    assert list(cuda_failure.exception_chain(first)) == [first, second]
    assert cuda_failure.classify_failure(first) == "other"


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
    assert 'pip install "zemosaic-phase3[cuda12]"' in found.remedy
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
            assert not found.usable_hint and "zemosaic-phase3[cuda12]" in found.remedy
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


def test_a_sticky_error_seen_while_probing_is_remembered(monkeypatch):
    install_fake_cupy(monkeypatch, failure=CUDARuntimeError(700, "illegal address"))
    assert not cuda.probe().usable_hint
    assert cuda_failure.is_poisoned()


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

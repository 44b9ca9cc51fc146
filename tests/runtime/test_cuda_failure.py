"""Tests of ``runtime.cuda_failure``."""

from __future__ import annotations

import pytest
from cuda_utils_case import CUDARuntimeError, install_fake_cupy

from zemosaic_phase3.runtime import cuda, cuda_failure


class CUDADriverError(CUDARuntimeError):
    pass


class NVRTCError(RuntimeError):
    status = 2  # NVRTC_ERROR_PROGRAM_CREATION_FAILURE, not "out of memory"


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


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


def test_a_sticky_error_seen_while_probing_is_remembered(monkeypatch):
    install_fake_cupy(monkeypatch, failure=CUDARuntimeError(700, "illegal address"))
    assert not cuda.probe().usable_hint
    assert cuda_failure.is_poisoned()

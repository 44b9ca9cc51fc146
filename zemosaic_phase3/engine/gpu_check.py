"""Whether the GPU can be used: a small tile of known answer is stacked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zemosaic_phase3.engine.gpu import stack
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.runtime import cuda, cuda_failure
from zemosaic_phase3.runtime.limits import memory_text
from zemosaic_phase3.spec import StackSpec

LOGGER = logging.getLogger("ZeMosaicWorker")

PROBE_BYTES: Final = 256 << 20  # a card with less free memory is left to whoever uses it


@dataclass(frozen=True)
class Usability:
    """Whether the GPU gives right answers here; if not, why, and what helps."""

    usable: bool
    reason: str = ""
    remedy: str = ""


_CHECKING = threading.Lock()
_KNOWN: dict[int, Usability] = {}  # by card

NVRTC_REMEDY: Final = (
    'pip install "cupy-cuda12x[ctk]" (or cupy-cuda13x[ctk]), which brings the compiler of CUDA kernels, '
    "or install the CUDA toolkit"
)


def usability() -> Usability:
    """Return whether a kernel can be compiled, run and trusted on the card that this thread works for.

    Looked into once per process and card: a small tile with an outlier and an invalid sample is stacked, and every
    value compared with the known answer. Later calls only look whether CUDA has been lost since.
    """
    if cuda_failure.is_poisoned():
        lost = cuda.probe()
        return Usability(False, lost.reason, lost.remedy)
    card = cuda_failure.card_of_thread()
    with _CHECKING:
        if card not in _KNOWN:
            _KNOWN[card] = _look_into_it()
        return _KNOWN[card]


def why_unusable() -> str:
    """Return the reason of :func:`usability` and what helps, in one line; empty if the GPU can be used."""
    found = usability()
    return "" if found.usable else f"{found.reason}; {found.remedy}"


def _look_into_it() -> Usability:
    seen = cuda.probe()
    if not seen.usable_hint:
        return Usability(False, seen.reason, seen.remedy)
    if seen.vram_free < PROBE_BYTES:
        free, needed = memory_text(seen.vram_free), memory_text(PROBE_BYTES)
        return Usability(False, f"the GPU has {free} of free memory, {needed} are needed", "close what else uses it")
    try:
        fault = _known_answer_fault()
    except Exception as exc:  # noqa: BLE001 - the check is a GPU attempt: whatever it raises means no
        return _failed_check(exc)
    if fault:
        return Usability(False, f"the GPU computes wrongly: {fault}", "update the NVIDIA driver and CuPy")
    return Usability(True)


def _failed_check(exc: Exception) -> Usability:
    if cuda_failure.classify_failure(exc) == "sticky":
        cuda_failure.mark_sticky()
    text = f"{type(exc).__name__}: {exc}"
    if "nvrtc" in text.lower():
        return Usability(False, f"CUDA kernels cannot be compiled ({text})", NVRTC_REMEDY)
    return Usability(False, f"a test kernel failed ({text})", "check that nvidia-smi works, update the driver and CuPy")


def _known_answer_fault() -> str:
    """Stack a tile whose answer is known; returns what is wrong with the result, or nothing.

    Ten samples a pixel: seven about the mean, two on it, one far out; one of them NaN at every third pixel. Two rounds
    of clipping at two deviations leave samples that are symmetric about a whole number.
    """
    level = np.arange(24 * 32, dtype=np.float32).reshape(24, 32)
    steps = (0, 1, -1, 0, 2, -2, 1, -1, 5000, 0)
    frames = [level + np.float32(step) for step in steps]
    frames[-1].reshape(-1)[::3] = np.nan
    spec = StackSpec(normalize="none", weight="none", reject="sigma_clip", kappa_low=2.5, kappa_high=2.5)
    result = stack(make_job(frames_of(frames), spec), Resources())
    coverage = np.full(level.shape, 10)
    coverage.reshape(-1)[::3] = 9
    for name, found, expected in (
        ("mean", result.image, level),
        ("coverage", result.coverage, coverage),
        ("rejected high", result.rejected_high, np.ones(level.shape)),
        ("rejected low", result.rejected_low, np.zeros(level.shape)),
    ):
        wrong = int((found != expected).sum())
        if wrong:
            return f"{name} differs at {wrong} of {level.size} pixels"
    return ""


def frames_of(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Return arrays as frames that lie on the reference grid."""
    return [Frame(open_source(array)) for array in arrays]


def gpu_is_usable(logger: logging.Logger | None = None) -> bool:
    """Return True if a kernel was compiled and run here, and gave the right answer; looked into once per process.

    Parameters
    ----------
    logger : logging.Logger, optional
        Told why not, and what helps.
    """
    reason = why_unusable()
    if reason:
        (logger or LOGGER).info("[P3][GPU] no GPU is used: %s", reason)
    return not reason

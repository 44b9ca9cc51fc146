"""What a job asks of rejection and combination, as kernels take it: decided once, taken by both engines.

Kernels know the options of a rejection by position. Which numbers a specification means is said here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from zemosaic_phase3.methods import KAPPA_SIGMA_CLIPPED
from zemosaic_phase3.spec import StackSpec

NO_TABLE: Final = np.empty(0)
NO_TABLE.flags.writeable = False  # like the table of GESD, so that no kernel is compiled twice for the difference


@dataclass(frozen=True)
class KernelArguments:
    """What the kernels of rejection and combination are built and called with.

    Attributes
    ----------
    method : str
        Name of the rejection's files, a key of :data:`methods.KERNELS`.
    combine : str
        A key of :data:`methods.COMBINATIONS`.
    rewinsor : bool
        Replace rejected samples by their clipped values instead of leaving them out; for methods that have such values.
    uniform : bool
        All weights are 1, those of frames and those of samples.
    parameters : ndarray (6,) float64
        From :func:`method_parameters`.
    critical : ndarray (N + 1,) float64
        From :func:`gesd_table`; empty for other methods.
    weights : ndarray (N, C) float64
        Of the frames, contiguous.
    """

    method: str
    combine: str
    rewinsor: bool
    uniform: bool
    parameters: np.ndarray
    critical: np.ndarray
    weights: np.ndarray

    @property
    def may_spare(self) -> bool:
        """True where a tolerance of the pixels can have an effect: samples are rejected, and left out."""
        return self.method != "none" and not self.rewinsor


def kernel_arguments(
    spec: StackSpec, weights: np.ndarray, *, sample_weights: bool, clipped_kappa: bool = False
) -> KernelArguments:
    """Return what a specification means to the kernels.

    Parameters
    ----------
    spec : StackSpec
        What is asked for.
    weights : ndarray (N, C) float64
        Of the frames.
    sample_weights : bool
        Samples have weights of their own.
    clipped_kappa : bool
        ``kappa_sigma`` takes its limits from sigma-clipped statistics, as ``stack_aligned_images`` does.
    """
    weights = np.ascontiguousarray(weights, np.float64)
    rejection = KAPPA_SIGMA_CLIPPED if clipped_kappa else spec.rejection
    return KernelArguments(
        method=rejection.kernel,
        combine=spec.combine,
        rewinsor=rejection.replaces and spec.apply_rewinsor,
        uniform=not sample_weights and bool((weights == 1.0).all()),
        parameters=method_parameters(spec),
        critical=gesd_table(len(weights), spec.gesd_alpha) if "critical" in rejection.needs else NO_TABLE,
        weights=weights,
    )


def method_parameters(spec: StackSpec) -> np.ndarray:
    """Return the numbers of a rejection as the kernels take them, ``(6,) float64``.

    kappa low and high (for ``percentile_clip`` the fractions), winsorizing limit low and high, GESD fraction and alpha.
    """
    return np.array([*spec.kappas, *spec.winsor_limits, spec.gesd_fraction, spec.gesd_alpha], np.float64)


@lru_cache(maxsize=8)
def gesd_table(n_frames: int, alpha: float) -> np.ndarray:
    """Return Rosner's critical values by the number of samples that remain after a step, ``(n_frames + 1,) float64``.

    ``lambda = m t / sqrt((m - 1 + t^2)(m + 1))`` with m samples remaining and t the quantile ``1 - alpha / (2 (m +
    1))`` of Student's distribution with m - 1 degrees of freedom; infinite for m < 2.
    """
    from scipy.stats import t as student_t

    left = np.arange(n_frames + 1, dtype=np.float64)
    table = np.full(n_frames + 1, np.inf)
    m = left[2:]
    t = student_t.ppf(1.0 - alpha / (2.0 * (m + 1.0)), m - 1.0)
    table[2:] = m * t / np.sqrt((m - 1.0 + t * t) * (m + 1.0))
    table.flags.writeable = False
    return table

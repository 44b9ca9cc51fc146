"""What a job asks of rejection and combination, as numbers: decided once, taken by both engines.

The kernels of the CPU and the CUDA text know methods by number and options by position. Which numbers a specification
means is said here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from zemosaic_phase3.spec import StackSpec

# Numbers the kernels use for the methods. They are written out in the kernels, because a compiled cache does not
# notice a changed global.
METHOD_CODES: Final = {
    "none": 0,
    "kappa_sigma": 1,
    "kappa_sigma_clipped": 2,
    "legacy_quantile": 3,
    "pixinsight": 4,
    "sigma_clip": 5,
    "averaged_sigma": 6,
    "percentile_clip": 7,
    "gesd": 8,
    "linear_fit_ols": 9,
    "linear_fit_lad": 10,
}
COMBINE_CODES: Final = {"mean": 0, "median": 1, "min": 2, "max": 3}

NO_TABLE: Final = np.empty(0)
NO_TABLE.flags.writeable = False  # like the table of GESD, so that no kernel is compiled twice for the difference


@dataclass(frozen=True)
class KernelArguments:
    """What the rejection kernels are built and called with.

    Attributes
    ----------
    method, combine : int
        From ``METHOD_CODES`` and ``COMBINE_CODES``.
    rewinsor : bool
        Replace rejected samples by their clipped values (legacy winsorizing only) instead of dropping them.
    uniform : bool
        All weights are 1, those of frames and those of samples.
    parameters : ndarray (6,) float64
        From :func:`method_parameters`.
    critical : ndarray (N + 1,) float64
        From :func:`gesd_table`; empty for other methods.
    weights : ndarray (N, C) float64
        Of the frames, contiguous.
    """

    method: int
    combine: int
    rewinsor: bool
    uniform: bool
    parameters: np.ndarray
    critical: np.ndarray
    weights: np.ndarray


def kernel_arguments(
    spec: StackSpec, weights: np.ndarray, *, sample_weights: bool, clipped_kappa: bool = False
) -> KernelArguments:
    """Return the numbers of a job's rejection and combination.

    Parameters
    ----------
    spec : StackSpec
        What is asked for.
    weights : ndarray (N, C) float64
        Of the frames.
    sample_weights : bool
        Samples have weights of their own.
    clipped_kappa : bool
        See :func:`method_code`.
    """
    weights = np.ascontiguousarray(weights, np.float64)
    return KernelArguments(
        method=method_code(spec, clipped_kappa=clipped_kappa),
        combine=COMBINE_CODES[spec.combine],
        rewinsor=spec.is_legacy_winsor and spec.apply_rewinsor,
        uniform=not sample_weights and bool((weights == 1.0).all()),
        parameters=method_parameters(spec),
        critical=gesd_table(len(weights), spec.gesd_alpha) if spec.reject == "gesd" else NO_TABLE,
        weights=weights,
    )


def method_code(spec: StackSpec, *, clipped_kappa: bool = False) -> int:
    """Return the kernels' number for the rejection that ``spec`` asks for.

    Parameters
    ----------
    spec : StackSpec
        What is asked for.
    clipped_kappa : bool
        ``kappa_sigma`` takes its bounds from sigma-clipped statistics, as ``stack_aligned_images`` does.
    """
    if clipped_kappa:
        return METHOD_CODES["kappa_sigma_clipped"]
    names = {"winsorized_sigma_clip": spec.wsc_impl, "linear_fit_clip": f"linear_fit_{spec.line_fit}"}
    return METHOD_CODES[names.get(spec.reject, spec.reject)]


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

"""Whether a pixel of a result is what its samples make by definition: one rule without false alarms.

The engines reject and combine in another order of float operations than the definitions, and resample in float32. So
values may differ by their rounding, which is bounded, and a sample that lies on a limit of a rejection may fall on
either side of it. A pixel is right if it agrees with the definition for its samples, or for samples and limits that
differ from them by no more than rounding does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zemosaic_phase3.check.definitions import Pixel, combine_pixel, sides, spared
from zemosaic_phase3.check.samples import Samples
from zemosaic_phase3.engine.job import Job

NUDGES: Final = (1e-12, 1e-9, 1e-7, 1e-6, 1e-5)  # relative, of limits; float32 is 6e-8
TRIES: Final = 64  # of samples moved at random within their errors
LIMIT_NAMES: Final = {"percentile_clip": ("low", "high"), "gesd": ("alpha",), "none": ()}


@dataclass(frozen=True)
class Definition:
    """A rejection and a combination, as :mod:`check.definitions` calls them."""

    method: str
    limits: dict[str, Any]
    combine: str
    tolerance: float = 0.0  # ADU: samples so near the median are kept

    def of(self, x: np.ndarray, w: np.ndarray) -> Pixel:
        """Return what samples with weights make."""
        return combine_pixel(x, w, self.method, self.combine, self.tolerance, **self.limits)

    def nudged(self) -> Iterator[Definition]:
        """Yield the same with limits that differ in their last digits, either way, both or one."""
        names = LIMIT_NAMES.get(self.method, ("kappa_low", "kappa_high"))
        for by in NUDGES if names else ():
            for low, high in ((1, 1), (-1, -1), (1, -1), (-1, 1), (1, 0), (-1, 0), (0, 1), (0, -1)):
                moved = {name: self.limits[name] * (1.0 + k * by) for name, k in zip(names, (low, high), strict=False)}
                tolerance = self.tolerance * (1.0 + low * by)
                yield Definition(self.method, {**self.limits, **moved}, self.combine, tolerance)


def definition_of(job: Job) -> Definition:
    """Return what a job asks for."""
    spec = job.spec
    low, high = spec.kappas
    kappas = {"kappa_low": low, "kappa_high": high}
    by_kernel: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("none", {}),
        "winsorized_huber": ("winsorized_pixinsight", kappas),
        "winsorized_quantile": (
            "winsorized_legacy", {**kappas, "limits": spec.winsor_limits, "apply_rewinsor": spec.apply_rewinsor},
        ),
        "percentile_clip": ("percentile_clip", {"low": low, "high": high}),
        "gesd": ("gesd", {"alpha": spec.gesd_alpha, "fraction": spec.gesd_fraction}),
        "least_absolute_line": ("linear_fit_clip", {**kappas, "fit": "lad"}),
        "least_squares_line": ("linear_fit_clip", {**kappas, "fit": "ols"}),
    }  # fmt: skip
    kernel = spec.rejection.kernel
    method, limits = by_kernel.get(kernel, (kernel, kappas))
    if job.clipped_kappa:
        limits = {**limits, "clipped_statistics": True}
    return Definition(method, limits, spec.combine)


@dataclass(frozen=True)
class Judged:
    """One channel of a pixel: what was found and expected, ADU, and whether that is the same."""

    agrees: bool
    found: Pixel
    expected: Pixel
    tolerance: float

    @property
    def difference(self) -> float:
        """Distance of the values, ADU; 0 where neither is a number, infinite where one is."""
        a, b = self.found.value, self.expected.value
        return 0.0 if np.isnan(a) and np.isnan(b) else float(abs(a - b)) if np.isfinite(a - b) else float("inf")


def judge_pixel(definition: Definition, found: Pixel, samples: Samples, p: int, c: int, gain: float = 1.0) -> Judged:
    """Compare channel ``c`` of pixel ``p`` with the definition.

    ``found``: of the result. ``gain``: what the result was multiplied by afterwards.
    """
    x, error, w = samples.value[:, p, c], samples.error[:, p, c], samples.weight[:, p, c]
    first = _judge(definition, found, x, error, w, gain)
    if first.agrees or first.found.coverage != first.expected.coverage:
        return first
    for other in definition.nudged():
        judged = _judge(other, found, x, error, w, gain)
        if judged.agrees:
            return judged
    rng = np.random.default_rng(20251207)
    near = [definition, *definition.nudged()]
    _, place = np.unique(x, return_inverse=True)
    for k in range(TRIES):
        by = rng.uniform(-1.0, 1.0, place.max(initial=0) + 1)[place]  # equal samples stay equal
        moved = x + np.maximum(error, 1e-9 * np.abs(x)) * by
        judged = _judge(near[k % len(near)], found, moved, error, w, gain)
        if judged.agrees:
            return judged
    return first


def _judge(
    definition: Definition, found: Pixel, x: np.ndarray, error: np.ndarray, w: np.ndarray, gain: float
) -> Judged:
    made = definition.of(x, w)
    expected = made._replace(value=made.value * gain)
    tolerance = abs(gain) * _tolerance(definition, expected.value / gain if gain else 0.0, x, error, w)
    a, b = found.value, expected.value
    values = bool(np.isnan(a) and np.isnan(b)) or bool(abs(a - b) <= tolerance)
    none_kept = made.n_low + made.n_high == made.coverage
    sides_agree = found[3:] == made[3:] or (none_kept and found.n_low + found.n_high == made.coverage)
    counts = found.coverage == made.coverage and sides_agree
    same = abs(found.weight_sum - expected.weight_sum) <= 1e-6 * abs(expected.weight_sum) + 1e-30
    # What is not a mean has no weights, and neither has the median that stands where all were rejected.
    weights = definition.combine != "mean" or none_kept or same
    return Judged(values and counts and weights, found, expected, tolerance)


def _tolerance(definition: Definition, value: float, x: np.ndarray, error: np.ndarray, w: np.ndarray) -> float:
    """Return how far rounding alone can move a value, ADU."""
    valid = np.isfinite(x)
    if not valid.any() or not np.isfinite(value):
        return 0.0
    x, error = x[valid], error[valid]
    limits = {name: limit for name, limit in definition.limits.items() if name != "apply_rewinsor"}
    kept = spared(x, sides(definition.method, x, **limits), definition.tolerance) == 0
    some = kept if kept.any() and definition.method != "winsorized_legacy" else np.ones(x.size, bool)
    of_weights = 4e-7 * float(np.abs(x[some] - value).max()) if np.unique(w).size > 1 else 0.0
    own = 2.0 * float(np.spacing(np.float32(np.abs(value)))) + 1e-12 * float(np.abs(x).max())
    return own + 1.05 * float(error[some].max()) + of_weights

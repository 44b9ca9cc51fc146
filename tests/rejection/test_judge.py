"""A method's form for all lanes together finds the windows that its definition finds for one pixel after the other."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from sorting_case import sorted_into

from zemosaic_phase3.combine.kernel_arguments import gesd_table
from zemosaic_phase3.combine.sorting import new_table
from zemosaic_phase3.methods import KERNELS, Rejection
from zemosaic_phase3.rejection.judge import Samples, new_limits, new_samples, new_scratch
from zemosaic_phase3.rejection.prefix_sums import prefix_sums
from zemosaic_phase3.runtime.lanes import LANES

METHODS = {name: import_module(f"zemosaic_phase3.rejection.{name}") for name in KERNELS if name != "none"}
TOGETHER = [name for name, method in METHODS.items() if hasattr(method, "judge") and hasattr(method, "judge_block")]


def block_to_judge(n: int, kind: str, seed: int, needs: tuple[str, ...] = ("squares",)) -> Samples:
    """Sorted samples of ``LANES`` pixels, all kept as yet, with medians and sums from the definition."""
    rng = np.random.default_rng([n, seed])
    cube = 1000.0 + 30.0 * rng.standard_normal((n, LANES))
    hit = rng.random(cube.shape) < {"few": 0.01, "many": 0.4}.get(kind, 0.1)
    cube[hit] += rng.choice([-1.0, 1.0], hit.sum()) * rng.exponential(2000.0, hit.sum())
    if kind == "ties":
        cube = np.round(cube / 40.0) * 40.0
        cube[:, ::5] = 7.25
    if kind == "holes":
        cube[rng.random(cube.shape) < rng.random(LANES)] = np.nan
    table = new_table(n)
    sorted_into(table, cube.astype(np.float32))
    samples = new_samples(table, n)
    samples.n_valid[:] = np.count_nonzero(np.isfinite(cube), axis=0)
    samples.last[:] = samples.n_valid
    for j, count in enumerate(samples.n_valid.tolist()):
        samples.centre[j] = np.median(table[:count, j].astype(float)) if count else 0.0
    valid = np.arange(n)[:, None] < samples.n_valid
    d = np.where(valid, table[:n].astype(float) - samples.centre, 0.0)
    second = d * d if "squares" in needs else np.arange(n)[:, None] * d
    for sums, terms in ((samples.sum1, d), (samples.sum2, second)):
        sums[n // 2] = 0.0
        for i in range(n // 2, n):
            sums[i + 1] = sums[i] + terms[i]
        for i in range(n // 2 - 1, -1, -1):
            sums[i] = sums[i + 1] - terms[i]
    return samples


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 50, 64])
def test_prefix_sums_in_registers_are_those_of_the_definition(n: int) -> None:
    samples = block_to_judge(n, "few", 1)
    for depth in (0, 1, n // 4, n // 2, n // 2 + 1, n):
        sums = np.full((n + 1, LANES), np.nan), np.full((n + 1, LANES), np.nan)
        prefix_sums(samples.table, n, samples.centre, *sums, depth)
        rows = [row for row in range(n + 1) if row <= depth or row >= n - depth]
        for found, wanted in zip(sums, (samples.sum1, samples.sum2), strict=True):
            assert found[rows].tobytes() == wanted[rows].tobytes()


@pytest.mark.parametrize("kind", ["few", "many", "ties", "holes"])
@pytest.mark.parametrize("n", [3, 5, 12, 50, 200])
@pytest.mark.parametrize("name", TOGETHER)
def test_lanes_together_keep_what_each_keeps_alone(name: str, n: int, kind: str) -> None:
    rejection: Rejection = KERNELS[name]
    method = METHODS[name]
    for seed, (low, high) in enumerate([(4.0, 3.0), (1.5, 2.0), (0.5, 0.3)]):
        samples = block_to_judge(n, kind, seed, rejection.needs)
        limits = new_limits(np.array([low, high, 0.05, 0.05, 0.3, 0.05]), gesd_table(n, 0.05))
        expected = [
            method.judge(samples, limits, j) if samples.n_valid[j] >= rejection.fewest else (0, samples.n_valid[j])
            for j in range(LANES)
        ]
        depths = {n} if kind == "holes" or "squares" not in rejection.needs else {0, n // 4, n}
        for depth in depths:  # the sums are filled as far as they are needed
            near = samples._replace(sum1=np.full((n + 1, LANES), np.nan), sum2=np.full((n + 1, LANES), np.nan))
            rows = [row for row in range(n + 1) if row <= depth or row >= n - depth]
            near.sum1[rows], near.sum2[rows] = samples.sum1[rows], samples.sum2[rows]
            near.first[:], near.last[:] = 0, samples.n_valid
            method.judge_block(near, limits, new_scratch(n, columns="columns" in rejection.needs), np.int64(depth))
            assert list(zip(near.first.tolist(), near.last.tolist(), strict=True)) == expected

"""Tests of ``combine.sorting``."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.combine import block
from zemosaic_phase3.combine.sorting import BIG, new_table, sort_block
from zemosaic_phase3.rejection import sigma_clip, winsorized_huber
from zemosaic_phase3.rejection.prefix_sums import prefix_sums
from zemosaic_phase3.runtime.llvm import LANES


def block_of(n, seed=0, *, ties=True):
    """A block of n frames, of numbers on either side of 0, whose row in memory is longer than it."""
    cube = 30.0 * np.random.default_rng([n, seed]).standard_normal((n, 3 * LANES)).astype(np.float32)
    return np.round(cube) if ties else cube


def sorted_into(table, cube, p0=0, *, by_middle=False):
    low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    full, found = sort_block(cube, p0, table, by_middle, low, high)
    return (full, low, high) if found else (full, found)


@pytest.mark.parametrize("n", [*range(1, 68), 127, 128, 129, 200, 257, 513, 1000, 2049])
@pytest.mark.parametrize("ties", [False, True])
def test_network_sorts(n, ties):
    cube = block_of(n, ties=ties)
    table = new_table(n)
    assert sorted_into(table, cube, LANES) == (True, False)
    expected = np.sort(cube[:, LANES : 2 * LANES] + np.float32(0), axis=0)
    assert table[:n].tobytes() == expected.tobytes()  # -0 has become 0
    assert (table[n:] == np.float32(BIG)).all()


@pytest.mark.parametrize("n", [33, 50, 63, 64, 65, 127, 128, 199, 200, 256, 257, 1000])
def test_middle_samples_are_found_without_sorting_to_the_end(n):
    cube = block_of(n)
    for p0 in (0, LANES):
        full, low, high = sorted_into(new_table(n), cube, p0, by_middle=True)
        assert full
        ordered = np.sort(cube[:, p0 : p0 + LANES], axis=0) + np.float32(0)
        assert low.tobytes() == ordered[(n - 1) // 2].tobytes()
        assert high.tobytes() == ordered[n // 2].tobytes()


@pytest.mark.parametrize("invalid", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [3, 20, 50, 200])
def test_what_is_not_valid_is_sorted_behind_the_rest(n, invalid):
    cube = block_of(n)
    cube[n // 2, 17] = cube[0, 95] = cube[n - 1, 40] = invalid
    expected = np.sort(np.where(np.isfinite(cube), cube + np.float32(0), np.float32(BIG))[:, :LANES], axis=0)
    for by_middle in (False, True):
        table = new_table(n)
        assert sorted_into(table, cube, by_middle=by_middle) == (False, False)
        assert table[:n].tobytes() == expected.tobytes()


def block_to_judge(n, kind, seed):
    """A sorted block of ``LANES`` pixels, how many of its samples are valid, their medians, and the running sums."""
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
    n_valid = np.count_nonzero(np.isfinite(cube), axis=0)
    centre, sum1, sum2 = np.empty(LANES), np.empty((n + 1, LANES)), np.empty((n + 1, LANES))
    block._centre(table, n, False, n_valid, centre)
    block._running_sums(table, n, n_valid, centre, sum1, sum2)
    return table, n_valid, centre, sum1, sum2


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 50, 64])
def test_running_sums_in_registers_are_those_of_the_definition(n):
    table, _, centre, *expected = block_to_judge(n, "few", 1)
    for edge in (0, 1, n // 4, n // 2, n // 2 + 1, n):
        sums = np.full((n + 1, LANES), np.nan), np.full((n + 1, LANES), np.nan)
        prefix_sums(table, n, centre, *sums, edge)
        rows = [row for row in range(n + 1) if row <= edge or row >= n - edge]
        for found, wanted in zip(sums, expected, strict=True):
            assert found[rows].tobytes() == wanted[rows].tobytes()


@pytest.mark.parametrize("kind", ["few", "many", "ties", "holes"])
@pytest.mark.parametrize("n", [3, 5, 12, 50, 200])
def test_windows_found_together_are_those_found_one_by_one(n, kind):
    for seed, (k_low, k_high) in enumerate([(4.0, 3.0), (1.5, 2.0), (0.5, 0.3)]):
        table, n_valid, centre, sum1, sum2 = block_to_judge(n, kind, seed)
        for lone, together, own in (
            (winsorized_huber._window_pixinsight, winsorized_huber.windows_pixinsight, (centre,)),
            (sigma_clip._window_sigma_clip, sigma_clip.windows_sigma_clip, ()),
        ):
            windows = [
                lone(table, sum1, sum2, *own, j, 0, n_valid[j], k_low, k_high) if n_valid[j] >= 3 else (0, n_valid[j])
                for j in range(LANES)
            ]
            for edge in {n} if kind == "holes" else {0, n // 4, n}:  # the sums are filled as far as they are needed
                near = np.full((n + 1, LANES), np.nan), np.full((n + 1, LANES), np.nan)
                rows = [row for row in range(n + 1) if row <= edge or row >= n - edge]
                near[0][rows], near[1][rows] = sum1[rows], sum2[rows]
                first, last = np.zeros(LANES, np.int64), n_valid.astype(np.int64)
                limits = np.repeat(np.float32([-np.inf, np.inf, -np.inf, np.inf]), LANES)
                together(
                    table, n, *near, edge, centre, first, last, k_low, k_high, np.empty(12 * LANES),
                    np.zeros(4 * LANES, np.int64), limits, np.zeros(4 * LANES, np.int32),
                )  # fmt: skip
                assert list(zip(first.tolist(), last.tolist(), strict=True)) == windows

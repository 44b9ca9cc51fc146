"""The rejection kernels against the oracle, against reference values, and block by block against the whole."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import lru_cache

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rejection_case import printed_with_and_without_compiler, run, what_the_oracle_calls

from zemosaic_phase3 import methods
from zemosaic_phase3.combine import block
from zemosaic_phase3.combine.frame_sums import sums_of_kept, weighted_sums_of_kept
from zemosaic_phase3.rejection.lockstep import count_outside
from zemosaic_phase3.runtime.lanes import LANES
from zemosaic_phase3.runtime.vector import nearest_inside

METHODS = [row.kernel for row in methods.REJECTIONS]
NAMES = list(methods.KERNELS)
SET_A = (145, 125, 190, 135, 220, 130, 210, 3, 165, 165, 150, 350, 170, 180, 195, 440, 215, 135, 410, 40, 140, 175)


def sample_stack(n, pixels, seed, *, holes=0.05, ties=False):
    """Noise with outliers on either side, holes, and values on a coarse grid when ``ties``."""
    rng = np.random.default_rng(seed)
    cube = 1000.0 + 30.0 * rng.standard_normal((n, pixels))
    hit = rng.random((n, pixels)) < 0.03
    cube[hit] += rng.choice([-1.0, 1.0], hit.sum()) * rng.exponential(2000.0, hit.sum())
    if ties:
        cube = np.round(cube / 20.0) * 20.0
    cube[rng.random((n, pixels)) < holes] = np.nan
    return cube.astype(np.float32)


def test_reference_values_of_set_a():
    cube = np.array(SET_A, np.float32)[:, None]
    wide = run(cube, "winsorized_huber", par=(4, 3, 0, 0))
    assert wide["image"][0] == pytest.approx(160.277778, rel=1e-7)
    assert sorted(cube[wide["hits"][:, :2].sum(axis=1) > 0, 0]) == [3, 350, 410, 440]
    narrow = run(cube, "winsorized_huber", par=(3, 3, 0, 0))
    assert narrow["image"][0] == pytest.approx(167.352941, rel=1e-7)
    assert (narrow["low"][0], narrow["high"][0]) == (2, 3)


def rejected_of_set_a(method, par):
    cube = np.array(SET_A, np.float32)[:, None]
    out = run(cube, method, par=par)
    return sorted(cube[out["hits"][:, :2].sum(axis=1) > 0, 0]), out["image"][0]


def test_reference_values_of_linear_fit_and_gesd():
    assert rejected_of_set_a("least_absolute_line", (5, 2.5, 0, 0)) == ([350, 410, 440], pytest.approx(152.0, rel=1e-7))
    fraction = run(np.array(SET_A, np.float32)[:, None], "gesd")  # 0.3 of 22 samples: 6 steps
    assert fraction["low"][0] + fraction["high"][0] == 5
    assert rejected_of_set_a("gesd", (3, 3, 0, 0))[0] == [3, 40, 350, 410, 440]


@pytest.mark.parametrize(("n", "percent"), [(5, 1.9), (10, 1.05), (20, 0.68), (50, 0.42), (200, 0.30)])
def test_false_rejection_of_pure_noise(n, percent):
    pixels = 400_000 // n
    cube = np.random.default_rng(n).standard_normal((n, pixels)).astype(np.float32)
    out = run(cube, "winsorized_huber")
    rejected = 100.0 * (out["low"].sum() + out["high"].sum()) / cube.size
    # The recorded table lies 4 to 14 % below what the definition gives with the oracle and the kernel alike.
    assert 0.95 * percent < rejected < 1.17 * percent


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 64])
def test_equals_the_oracle(method, ties, n):
    slow = method == "least_absolute_line"  # the oracle tries all pairs of samples
    few = slow or (method == "winsorized_huber" and ties and n < 10)  # where its inner rounds hardly end
    cube = sample_stack(n, 40 if few else 210, seed=n + 100 * ties, ties=ties)
    weights = np.linspace(0.2, 1.0, n)
    par = (2.0, 2.5, 0.05, 0.1)
    name, limits = what_the_oracle_calls(method, par)
    for combine in ("mean", "median", "min", "max"):
        expected = oracle.stack(cube.astype(float), weights if combine == "mean" else None, name, combine, **limits)
        got = run(cube, method, combine, par, weights if combine == "mean" else None)
        np.testing.assert_array_equal(got["coverage"], expected.coverage)
        # A limit computed in another order may fall on the other side of a sample that equals it.
        same = got["low"] + got["high"] == expected.n_low + expected.n_high
        # Among equal samples several lines can be equally good, and equal samples share one fate here.
        assert same.mean() >= (0.9 if slow else 0.99)
        if method != "percentile_clip":  # whose sides change places with the sign of the median
            same &= got["low"] == expected.n_low
        np.testing.assert_allclose(
            got["image"][same], expected.value[same].astype(np.float32), rtol=3e-7, equal_nan=True
        )
        if combine == "mean":
            some = same & (got["low"] + got["high"] < got["coverage"])
            np.testing.assert_allclose(got["weight"][some], expected.weight_sum[some], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [2, 9, 24])
def test_what_is_spared_equals_the_oracle(method, n):
    line = method.endswith("_line")  # there are several through equal samples, and none of limit 0 but by rounding
    cube = sample_stack(n, 60, seed=n, ties=not line)
    tolerance = np.random.default_rng(n).choice([0.0, 10.0, 60.0, 500.0, 5000.0], 60)
    for par in ((2.0, 2.5, 0.05, 0.1), (0.0, 0.0, 0.05, 0.1))[: 1 if line else 2]:
        name, limits = what_the_oracle_calls(method, par)
        weights = np.linspace(0.5, 1.0, n)
        expected = oracle.stack(cube.astype(float), weights, name, tolerance=tolerance, **limits)
        got = run(cube, method, par=par, weights=weights, tolerance=tolerance)
        # As above: limits that fall on a sample, lines that are equally good.
        same = (got["low"] == expected.n_low) & (got["high"] == expected.n_high)
        assert same.mean() >= (0.9 if method == "percentile_clip" else 0.95)
        np.testing.assert_allclose(
            got["image"][same], expected.value[same].astype(np.float32), rtol=3e-7, equal_nan=True
        )


@pytest.mark.parametrize("n", [1000])
def test_many_frames_equal_the_oracle(n):
    cube = sample_stack(n, 24, seed=7)
    for method in ("kappa_sigma", "winsorized_huber", "winsorized_quantile"):
        name, limits = what_the_oracle_calls(method, (3, 3, 0.05, 0.05))
        expected = oracle.stack(cube.astype(float), None, name, **limits)
        got = run(cube, method)
        np.testing.assert_array_equal(got["low"], expected.n_low)
        np.testing.assert_array_equal(got["high"], expected.n_high)
        assert np.abs(got["image"] - expected.value).max() <= 2 * np.spacing(np.float32(1000.0))


@pytest.mark.parametrize("combine", ["mean", "median", "min", "max"])
def test_rewinsorised_samples_keep_their_clipped_value(combine):
    cube = sample_stack(20, 210, seed=3)
    par = (2.0, 2.0, 0.05, 0.05)
    expected = oracle.stack(
        cube.astype(float), None, "winsorized_legacy", combine,
        kappa_low=2.0, kappa_high=2.0, limits=(0.05, 0.05), apply_rewinsor=True,
    )  # fmt: skip
    got = run(cube, "winsorized_quantile", combine, par, rewinsor=True)
    np.testing.assert_allclose(got["image"], expected.value.astype(np.float32), rtol=3e-7, equal_nan=True)
    np.testing.assert_allclose(got["weight"], expected.weight_sum, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 5, 95, 97])
def test_pixels_whose_only_frame_weighs_nothing(n):
    cube = sample_stack(n, 210, seed=n, holes=0.0)
    cube[1:, 100:] = np.nan
    weights = np.ones(n)
    weights[0] = 0.0
    for rewinsor in (False, True):
        got = run(cube, "winsorized_quantile", "mean", weights=weights, rewinsor=rewinsor)
        np.testing.assert_array_equal(got["image"][100:], cube[0, 100:])


def test_infinite_samples_are_invalid_not_rejected():
    cube = sample_stack(20, 200, seed=8, holes=0.0)
    cube[3, :50], cube[4, :50] = np.inf, -np.inf
    out = run(cube, "sigma_clip")
    assert (out["coverage"][:50] == 18).all()
    assert out["hits"][3:5, 2].tolist() == [150, 150]
    np.testing.assert_array_equal(out["hits"].sum(axis=0), [out["low"].sum(), out["high"].sum(), cube.size - 100])


@pytest.mark.parametrize("method", NAMES)
def test_constant_stack_returns_the_constant_exactly(method):
    for value in (np.float32(1234.567), np.float32(-3.3e-5), np.float32(0.0), np.float32(6e4)):
        out = run(np.full((9, 5), value, np.float32), method, weights=np.linspace(0.1, 0.7, 9))
        assert (out["image"] == value).all()
        assert out["low"].sum() == out["high"].sum() == 0


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("combine", methods.COMBINATIONS)
def test_no_valid_sample_gives_nan_and_nothing_else(method, combine):
    cube = np.full((6, 3), np.nan, np.float32)
    cube[:, 1] = 1000 + np.arange(6)
    out = run(cube, method, combine)
    np.testing.assert_array_equal(np.isnan(out["image"]), [True, False, True])
    np.testing.assert_array_equal(out["coverage"], [0, 6, 0])
    assert out["weight"][0] == 0.0
    assert out["lost"] == 0


def test_zero_and_negative_samples_are_data():
    cube = np.array([[0.0, -5.0], [0.0, -7.0], [0.0, -6.0], [0.0, -6.0]], np.float32)
    out = run(cube, "winsorized_huber")
    np.testing.assert_array_equal(out["image"], np.float32([0.0, -6.0]))
    np.testing.assert_array_equal(out["coverage"], [4, 4])


def test_everything_rejected_gives_the_median_and_is_counted():
    cube = np.array([[0.0], [0.0], [10.0], [10.0]], np.float32)
    out = run(cube, "kappa_sigma", par=(0.5, 0.5, 0, 0))
    assert out["image"][0] == 5.0
    assert out["lost"] == 1
    assert out["low"][0] + out["high"][0] == 4
    assert out["hits"][:, :2].sum() == 4
    np.testing.assert_array_equal(out["hits"][:, 2], 1)


def test_all_weights_zero_give_the_plain_mean():
    out = run(np.array([[1.0], [2.0], [6.0]], np.float32), weights=np.zeros(3))
    assert out["image"][0] == 3.0


def test_weights_do_not_change_what_is_rejected():
    cube = sample_stack(30, 300, seed=11)
    plain, weighted = (run(cube, "winsorized_huber", weights=w) for w in (None, np.linspace(0.01, 1.0, 30)))
    np.testing.assert_array_equal(plain["low"], weighted["low"])
    np.testing.assert_array_equal(plain["high"], weighted["high"])


def test_rejected_samples_are_counted_per_frame():
    cube = np.full((12, 200), 100.0, np.float32) + np.random.default_rng(0).normal(0, 1, (12, 200)).astype(np.float32)
    cube[4, :50] = 900.0
    cube[7, 10:20] = -900.0
    out = run(cube, "winsorized_huber", par=(5, 5, 0, 0))
    assert out["hits"][4, 1] >= 50
    assert out["hits"][7, 0] >= 10
    np.testing.assert_array_equal(out["hits"].sum(axis=0), [out["low"].sum(), out["high"].sum(), cube.size])


def test_a_huge_outlier_does_not_disturb_the_sums():
    rng = np.random.default_rng(5)
    cube = (1000 + 30 * rng.standard_normal((50, 400))).astype(np.float32)
    spoiled = cube.copy()
    spoiled[-1] = 3e37
    clean = run(cube[:-1], "winsorized_huber")
    dirty = run(spoiled, "winsorized_huber")
    agree = (dirty["high"] - 1 == clean["high"]) & (dirty["low"] == clean["low"])
    assert agree.mean() > 0.95
    np.testing.assert_allclose(dirty["image"][agree], clean["image"][agree], rtol=2e-7)


@settings(max_examples=25, deadline=None)
@given(
    n=st.sampled_from([1, 2, 3, 5, 17, 64]),
    blocks=st.integers(1, 5),
    cut=st.integers(1, 4),
    method=st.sampled_from(NAMES),
    combine=st.sampled_from(list(methods.COMBINATIONS)),
    seed=st.integers(0, 2**31),
)
def test_any_split_equals_the_whole(n, blocks, cut, method, combine, seed):
    cube = sample_stack(n, blocks * LANES - 13, seed, ties=seed % 2 == 0)
    whole = run(cube, method, combine)
    edge = min(cut * LANES, cube.shape[1])
    first = run(cube, method, combine, stop=edge)
    second = run(cube, method, combine, start=edge) if edge < cube.shape[1] else first
    for key in ("image", "coverage", "weight", "low", "high"):
        joined = np.concatenate([first[key][:edge], second[key][edge:]])
        np.testing.assert_array_equal(joined, whole[key])


def test_a_pixel_does_not_depend_on_its_neighbours():
    cube = sample_stack(40, 300, seed=9)
    whole = run(cube, "winsorized_huber")["image"]
    for p in (0, 1, 95, 96, 199, 299):
        np.testing.assert_array_equal(run(cube[:, p : p + 1], "winsorized_huber")["image"], whole[p : p + 1])


def test_limits_are_rounded_to_numbers_no_sample_can_tell_apart():
    rng = np.random.default_rng(3)
    odd = [0.0, -0.0, 1e-46, -1e-46, 1e300, -1e300, np.inf, -np.inf, np.nan, 3.5e38, -3.5e38, 1.0, -1.0]
    limit = np.concatenate([odd, rng.standard_normal(LANES - len(odd))])
    found = np.empty(2 * LANES, np.float32)
    nearest_inside(limit, limit, found)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # of numbers that float32 does not have
        near = limit.astype(np.float32)
        samples = np.concatenate([near, *(np.nextafter(near, np.float32(end)) for end in (-np.inf, np.inf))])[:, None]
    np.testing.assert_array_equal(samples < found[:LANES], samples.astype(float) < limit)
    np.testing.assert_array_equal(samples > found[LANES:], samples.astype(float) > limit)


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (3, 41), (7, 7)])
def test_samples_outside_are_counted_from_the_ends(start, stop):
    rng = np.random.default_rng(start)
    table = np.sort(rng.integers(-9, 10, (64, LANES)).astype(np.float32), axis=0)
    limits = np.concatenate([rng.integers(-12, 3, LANES), rng.integers(-3, 12, LANES)]).astype(np.float32)
    ranks = np.empty(2 * LANES, np.int32)
    below, above = count_outside(table, start, stop, limits, ranks)
    rows = table[start:stop]
    np.testing.assert_array_equal(ranks[:LANES], start + (rows < limits[:LANES]).sum(axis=0))
    np.testing.assert_array_equal(ranks[LANES:], stop - (rows > limits[LANES:]).sum(axis=0))
    assert ranks[:LANES].max() <= below <= stop
    assert start <= above <= ranks[LANES:].min()


@pytest.mark.parametrize("n", [1, 8, 33])
def test_sums_over_the_frames_leave_out_and_count_what_is_rejected(n):
    rng = np.random.default_rng(n)
    cube = rng.standard_normal((n, 2 * LANES)).astype(np.float32)
    for odd in (np.nan, np.inf, -np.inf, 0.0, -0.0):
        cube[rng.random(cube.shape) < 0.05] = odd
    low, high = np.full(LANES, -1.0, np.float32), np.full(LANES, 1.5, np.float32)
    low[3], high[3] = 0.2, -np.inf  # crossed: all is rejected, on either side
    low[4], high[4] = np.inf, -np.inf  # there is no sample
    cube[:, LANES + 4] = np.nan
    weights = rng.random((n, LANES))
    samples = cube[:, LANES:]
    keep = (samples >= low) & (samples <= high)
    total, weight, plain = np.zeros(LANES), np.zeros(LANES), np.zeros(LANES)
    for x, w, k in zip(samples.astype(float), weights, keep, strict=True):
        plain[k] += x[k]
        total[k] += w[k] * x[k]
        weight[k] += w[k]
    below = np.isfinite(samples) & (samples < low)
    above = np.isfinite(samples) & (samples > high) & ~below
    for counting in (False, True):
        hits = np.ones((2, n, 3), np.int64)
        found = np.full((3, LANES), np.nan)
        sums_of_kept(cube, LANES, low, high, found[0], hits[0], counting)
        weighted_sums_of_kept(cube, LANES, weights, low, high, found[1], found[2], hits[1], counting)
        assert found.tobytes() == np.stack([plain, total, weight]).tobytes()
        counts = np.stack([below.sum(axis=1), above.sum(axis=1), np.zeros(n)], axis=1) if counting else 0
        np.testing.assert_array_equal(hits, np.broadcast_to(1 + counts, hits.shape))


def test_compiled_kernels_equal_their_uncompiled_text():
    """The same Python text, run by the interpreter, gives the same bits."""
    program = (
        "import sys; sys.path[:0] = ['tests/support', 'tests/rejection']\n"
        "import numpy as np, test_rejection as t\n"
        "c = t.sample_stack(7, 40, 1)\n"
        "for m in t.NAMES:\n"
        "    with np.errstate(all='ignore'):\n"
        "        o = t.run(c, m, weights=np.linspace(.1, 1, 7))\n"
        "    print(m, o['image'].tobytes().hex(), o['low'].sum(), o['high'].sum())\n"
    )
    texts = printed_with_and_without_compiler(program)
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == len(NAMES)


@pytest.mark.parametrize("method", ["winsorized_huber", "least_squares_line", "none"])
def test_limits_mark_the_same_samples(method):
    cube = sample_stack(25, 150, seed=2)
    out = run(cube, method, limits=True)
    np.testing.assert_array_equal((cube < out["kept_low"]).sum(axis=0), out["low"])
    np.testing.assert_array_equal((cube > out["kept_high"]).sum(axis=0), out["high"])


def test_no_kernel_reads_or_writes_beyond_its_arrays():
    """Numba does not check bounds; compiled with checks, odd sizes run through every method and every average."""
    program = (
        "import sys; sys.path[:0] = ['tests/support', 'tests/rejection']\n"
        "import numpy as np, test_rejection as t\n"
        "for n in (1, 2, 5, 11, 97):\n"
        "    c = t.sample_stack(n, 101, n, holes=0.2)\n"
        "    c[:, 7] = np.nan\n"
        "    for m in t.NAMES:\n"
        "        t.run(c, m, 'mean', (0.3, 0.3, 0.1, 0.1), np.zeros(n), rewinsor=m == 'winsorized_quantile')\n"
        "    for m in ('none', 'winsorized_quantile', 'mad_clip'):  # and every average, after a few of them\n"
        "        for combine in t.methods.COMBINATIONS:\n"
        "            t.run(c, m, combine, (0.3, 0.3, 0.1, 0.1), rewinsor=m == 'winsorized_quantile')\n"
        "print('within')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": os.devnull},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "within", done.stderr[-2000:]


def test_threads_that_need_a_kernel_at_once_build_one(monkeypatch):
    built = []

    def build(*choice):
        built.append(choice)
        time.sleep(0.05)  # while the other asks
        return lambda *arguments: 0

    monkeypatch.setattr(block, "_block_kernel", lru_cache(build))
    threads = [threading.Thread(target=run, args=(np.ones((3, 5)), "gesd")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1

"""Errors of pixels: by their definition, with the same bits from the CUDA text, and true of what is simulated."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_host
import numpy as np
import pytest
from astropy.io import fits
from gpu_engine_case import stack_of
from hypothesis import given, settings
from hypothesis import strategies as st

import zemosaic_phase3 as zp
from zemosaic_phase3.combine import cuda
from zemosaic_phase3.combine.spread import spread_block
from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.engine import cpu, gpu
from zemosaic_phase3.engine.job import make_job, with_errors
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.runtime.lanes import LANES
from zemosaic_phase3.spec import StackSpec

MEDIANS = {2: 0.5, 3: 0.4487, 4: 0.2982, 5: 0.2868, 6: 0.2147, 7: 0.2104, 8: 0.1682, 9: 0.1661, 10: 0.1383}
"""Variance of the median of so many normal numbers of variance 1 (tables of order statistics)."""


def columns(n, p, seed):
    rng = np.random.default_rng(seed)
    cube = rng.normal(1000.0, 30.0, (n, p)).astype(np.float32)
    cube[rng.random((n, p)) < 0.05] = np.nan
    cube[rng.random((n, p)) < 0.02] = np.inf
    low = rng.choice([-1e38, 940.0, 990.0], p).astype(np.float32)
    high = rng.choice([1e38, 1060.0, 1001.0, -np.inf], p).astype(np.float32)
    return cube, low, high


def on_numba(cube, low, high, weight, sample, step, by_mean):
    error = np.full(cube.shape[1], -7, np.float32)
    lanes = np.ascontiguousarray(np.tile(weight, (1, LANES // weight.shape[1])))
    spread_block(cube, 0, cube.shape[1], lanes, sample, step, by_mean, low, high, error)
    return error


def by_definition(cube, low, high, weight, sample, step, by_mean):
    wide = cube.astype(np.float64)
    keep = (cube >= low) & (cube <= high)
    w = np.tile(weight, (1, -(-cube.shape[1] // weight.shape[1])))[:, : cube.shape[1]]
    if sample.size:
        w = w * np.repeat(sample.astype(np.float64), step, axis=1)[:, : cube.shape[1]]
    if not by_mean:
        w = np.ones_like(wide)
    w = np.where(keep, w, 0.0)
    x = np.where(keep, wide, 0.0)
    with np.errstate(all="ignore"):
        mean = (w * x).sum(0) / w.sum(0)
        free = w.sum(0) ** 2 - (w**2).sum(0)
        variance = (w**2 * (x - mean) ** 2).sum(0) / free
        if not by_mean:
            n = keep.sum(0)
            variance = variance * n * np.pi / (2 * n + np.where(n % 2 == 1, 1.0, 2.6))
    return np.where((free > 0) & (keep.sum(0) > 1), np.sqrt(variance), np.nan)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40), pixels=st.integers(1, 80), channels=st.sampled_from([1, 3]), seed=st.integers(0, 2**20),
    by_mean=st.booleans(), weighs=st.booleans(),
)  # fmt: skip
def test_definition_and_cuda_text(n, pixels, channels, seed, by_mean, weighs):
    p = pixels * channels
    cube, low, high = columns(n, p, seed)
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.2, 1.0, (n, channels))
    sample = rng.uniform(0.0, 1.0, (n, pixels)).astype(np.float32) if weighs else np.empty((0, 0), np.float32)
    if weighs:
        sample[:, :1] = 0.0  # all samples of a pixel weigh nothing
    found = on_numba(cube, low, high, weight, sample, channels, by_mean)
    expected = by_definition(cube, low, high, weight, sample, channels, by_mean)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-5)
    library = cuda_host.spread_library(cuda.spread_source("mean" if by_mean else "median"))
    twin, at = np.full(p, -7, np.float32), cuda_host.address
    library.set_grid(0, 0, 0, 1, 1, 1)
    library.spread_block(
        at(cube), ctypes.c_longlong(p), n, ctypes.c_longlong(p), channels, at(weight), at(sample if weighs else None),
        ctypes.c_longlong(pixels), channels, at(low), at(high), at(twin),
    )  # fmt: skip
    np.testing.assert_array_equal(twin.view(np.uint32) & 0x7FFFFFFF, found.view(np.uint32) & 0x7FFFFFFF)


@pytest.mark.parametrize(("n", "exact"), MEDIANS.items())
def test_medians_of_few(n, exact):
    rng = np.random.default_rng(n)
    cube = rng.normal(0.0, 1.0, (n, 40_000)).astype(np.float32)
    all_of = np.full(40_000, 1e38, np.float32)
    error = on_numba(cube, -all_of, all_of, np.ones((n, 1)), np.empty((0, 0), np.float32), 1, False)
    assert np.mean(error.astype(np.float64) ** 2) == pytest.approx(exact, rel=0.06 if n == 2 else 0.03)


def result_of(frames, errors=True, device=cpu, **spec):
    job = make_job(as_frames(frames), StackSpec(normalize="none", weight="none", **spec))
    return device.stack(with_errors(job) if errors else job, Resources(workers=2, rows=5, gpu_rows=4))


@pytest.mark.parametrize("combine", ["mean", "median"])
@pytest.mark.parametrize("reject", ["none", "winsorized_sigma_clip", "sigma_clip"])
@pytest.mark.parametrize("radial", [False, True])
def test_gpu_engine_has_the_bits_of_the_cpu(cupy, combine, reject, radial):
    frames = stack_of(n=9, shape=(14, 17, 3))
    spec = {"combine": combine, "reject": reject, "radial_weight": radial}
    ours, theirs = result_of(frames, **spec), result_of(frames, device=gpu, **spec)
    np.testing.assert_array_equal(theirs.error.view(np.uint32), ours.error.view(np.uint32))
    plain = result_of(frames, errors=False, **spec)
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name))
    assert plain.error is None
    assert np.isfinite(ours.error).mean() > 0.9
    assert cupy.used == 0


@pytest.mark.parametrize(
    ("n", "spec", "within"),
    [
        (40, {"reject": "none"}, 0.02),
        (40, {"reject": "none", "combine": "median"}, 0.02),
        (40, {"reject": "winsorized_sigma_clip", "kappa_low": 4.0, "kappa_high": 3.0}, 0.05),
        (12, {"reject": "winsorized_sigma_clip", "kappa_low": 4.0, "kappa_high": 3.0}, 0.05),
        (40, {"reject": "sigma_clip", "kappa_low": 3.0, "kappa_high": 3.0}, 0.05),
        (15, {"reject": "sigma_clip", "kappa_low": 3.0, "kappa_high": 3.0}, 0.05),
        (60, {"reject": "gesd"}, 0.05),
        (40, {"reject": "winsorized_sigma_clip", "combine": "median"}, 0.05),
    ],
)
def test_errors_are_those_of_what_is_simulated(n, spec, within):
    """Frames of unlike noise about a known level, a few samples hit: the errors against how far the result is off."""
    rng = np.random.default_rng(3)
    noise = rng.uniform(15.0, 40.0, n) if spec.get("combine") != "median" else np.full(n, 25.0)
    frames = rng.normal(1000.0, noise[:, None, None], (n, 150, 200)).astype(np.float32)
    hit = rng.random(frames.shape) < (0.002 if spec["reject"] != "none" else 0.0)
    frames[hit] += 4000.0
    fair = hit.sum(axis=0) < 2  # two hits in a dozen samples are nobody's outliers
    job = with_errors(make_job(as_frames(list(frames)), StackSpec(normalize="none", weight="none", **spec)))
    if spec.get("combine") != "median":
        job = replace(job, table=replace(job.table, weight=(1.0 / noise**2 * 100.0)[:, None]))
    result = cpu.stack(job, Resources(workers=2))
    off = result.image[fair].astype(np.float64) - 1000.0
    true = np.sqrt(np.mean((off - off.mean()) ** 2))
    said = np.sqrt(np.mean(result.error[fair].astype(np.float64) ** 2))
    assert said / true == pytest.approx(1.0, abs=within)


def test_who_keeps_less_than_two_samples_has_no_error():
    frames = stack_of(n=3, shape=(14, 17))
    for frame in frames[1:]:
        frame[:4] = np.nan
    error = result_of(frames, reject="none").error
    assert np.isnan(error[:4]).all()
    assert np.isfinite(error[8:]).any()


def test_maximum_has_none_and_says_so():
    job = make_job(as_frames(stack_of(n=4)), StackSpec(normalize="none", weight="none", combine="max"))
    job = with_errors(job)
    assert not job.errors
    assert any("no errors of pixels (ERR) are found for combine = max" in note for note in job.table.notes)


def test_file_has_errors_scaled_as_the_image(tmp_path):
    rng = np.random.default_rng(5)
    frames = [rng.normal((900.0, 1200.0, 700.0), 20.0, (40, 50, 3)).astype(np.float32) for _ in range(16)]
    how = {"register": "none", "normalize": "none", "weight": "none", "maps": True}
    plain = zp.stack(frames, tmp_path / "plain.fits", **how)
    scaled = zp.stack(frames, tmp_path / "scaled.fits", equalize_rgb=True, **how)
    with fits.open(tmp_path / "plain.fits") as file:
        assert file["ERR"].data.shape == (3, 40, 50)
        np.testing.assert_array_equal(file["ERR"].data, np.moveaxis(plain.maps["ERR"], 2, 0))
        assert np.sqrt((file["ERR"].data ** 2).mean()) == pytest.approx(20.0 / 4.0, rel=0.05)
    np.testing.assert_allclose(scaled.maps["ERR"] / plain.maps["ERR"], scaled.image / plain.image, rtol=1e-5)
    assert "ERR" not in zp.stack(frames, **{**how, "maps": False}).maps

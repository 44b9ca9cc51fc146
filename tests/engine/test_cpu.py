"""Tests of ``engine.cpu``."""

from __future__ import annotations

from typing import get_args

import numpy as np
import oracle
import pytest
from align_stack_case import cube
from hypothesis import given, settings
from hypothesis import strategies as st
from rejection_case import what_the_oracle_calls

from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import PlanError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.methods import RejectName, rejection_row
from zemosaic_phase3.spec import StackSpec


def tilted(frames, angle=1.5):
    """The same frames as registered ones, each with its own small rotation and shift."""
    out = []
    for k, frame in enumerate(frames):
        a = np.deg2rad(angle * (k - 2))
        matrix = np.array([[np.cos(a), -np.sin(a), 0.3 * k], [np.sin(a), np.cos(a), -0.7 * k], [0, 0, 1.0]])
        out.append(Frame(open_source(frame), matrix))
    return out


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    workers=st.integers(1, 3),
    reject=st.sampled_from(get_args(RejectName)),
    channels=st.sampled_from([1, 3]),
    radial=st.booleans(),
    combine=st.sampled_from(["mean", "median"]),
)
def test_slabs_and_workers_never_show(rows, workers, reject, channels, radial, combine):
    spec = StackSpec(reject=reject, radial_weight=radial, combine=combine)
    job = make_job(tilted(cube(channels=channels)), spec)
    whole = cpu.stack(job, Resources(memory=1 << 30))
    parts = cpu.stack(job, Resources(memory=1 << 30, rows=rows, workers=workers))
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    assert parts.rows_per_slab <= rows


@pytest.mark.parametrize("failures", [1, 3])
def test_memory_that_is_not_there_makes_slabs_smaller(failures, monkeypatch, caplog):
    job = make_job(tilted(cube()), StackSpec())
    whole = cpu.stack(job, Resources(memory=1 << 30))
    left = iter(range(failures))
    make = cpu.slab_for

    def scarce(*arguments):
        if next(left, None) is not None:
            raise MemoryError
        return make(*arguments)

    monkeypatch.setattr(cpu, "slab_for", scarce)
    with caplog.at_level("WARNING"):
        smaller = cpu.stack(job, Resources(memory=1 << 30, workers=3))
    assert sum("not enough memory" in text for text in caplog.messages) == failures
    assert smaller.rows_per_slab < whole.rows_per_slab
    np.testing.assert_array_equal(smaller.image, whole.image)


def test_memory_for_not_even_one_row_is_an_error(monkeypatch):
    def none(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(cpu, "slab_for", none)
    with pytest.raises(MemoryError, match="no room"):
        cpu.stack(make_job(tilted(cube()), StackSpec()), Resources(workers=4))


TEN_THOUSAND = [name for name in get_args(RejectName) if name != "gesd"]  # whose oracle takes a sample a step


@pytest.mark.parametrize(("reject", "weighted"), [("sigma_clip", False), *((name, True) for name in TEN_THOUSAND)])
def test_ten_thousand_frames_are_good_to_two_ulp(reject, weighted, rng):
    """Sky of 0.5, 1000 and 60,000 ADU, noise 0.1 to 30 ADU, one sample in fifty hit; float64 NumPy is the measure."""
    n = 10_000
    level = np.array([[0.5, 1000.0, 60_000.0], [1000.0, 1000.0, 60_000.0]])
    noise = np.array([[0.1, 30.0, 30.0], [0.1, 1.0, 5.0]])
    frames = (level + noise * rng.standard_normal((n, 2, 3))).astype(np.float32)
    hit = rng.random(frames.shape) < 0.02
    frames[hit] += rng.uniform(100.0, 5000.0, hit.sum()).astype(np.float32)
    frames[rng.random(frames.shape) < 0.01] = np.nan
    if reject == "averaged_sigma":
        frames = np.abs(frames)  # it is for counts
    spec = StackSpec(normalize="none", weight="none", reject=reject, line_fit="ols")
    job = make_job(as_frames(list(frames)), spec)
    weights = rng.uniform(0.2, 1.0, n) if weighted else None
    if weighted:
        job.table.weight[:] = weights[:, None]
    row = rejection_row(reject, spec)
    scale = 100.0 if row.unit == "fraction" else 1.0
    method, limits = what_the_oracle_calls(row.kernel, [scale * kappa for kappa in spec.kappas] + [0.0, 0.0])
    expected = oracle.stack(frames.astype(np.float64), weights, method, **limits)
    result = cpu.stack(job, Resources(workers=2))
    np.testing.assert_array_equal(result.coverage, expected.coverage)
    np.testing.assert_array_equal(result.rejected_low, expected.n_low)
    np.testing.assert_array_equal(result.rejected_high, expected.n_high)
    ulp = np.spacing(np.abs(expected.value).astype(np.float32)).astype(np.float64)
    assert (np.abs(result.image - expected.value) / ulp).max() <= 2.0


def test_order_of_frames_matters_only_by_rounding():
    frames = cube(20)
    spec = StackSpec(normalize="none", weight="none")
    first = cpu.stack(make_job(as_frames(list(frames)), spec), Resources()).image
    other = cpu.stack(make_job(as_frames(list(frames[::-1])), spec), Resources()).image
    np.testing.assert_allclose(first, other, rtol=2.4e-7, equal_nan=True)


def test_a_plan_that_cannot_fit_says_needed_and_allowed_bytes_before_reading(tmp_path):
    path = tmp_path / "f.npy"
    np.save(path, cube(1)[0])
    job = make_job(as_frames([path, path]), StackSpec(normalize="none", weight="none"))
    path.unlink()  # reading would raise a FrameError
    with pytest.raises(PlanError, match=r"needs \d+ bytes.*allowed are 1000"):
        cpu.stack(job, Resources(memory=1000))


def test_a_frame_that_vanishes_while_stacking_is_left_out(tmp_path):
    frames = cube(5)
    paths = []
    for k, frame in enumerate(frames):
        paths.append(tmp_path / f"f{k}.npy")
        np.save(paths[-1], frame)
    job = make_job(as_frames(paths), StackSpec(normalize="none", weight="none", reject="none"))
    paths[2].unlink()
    result = cpu.stack(job, Resources())
    assert len(result.job.sources) == 4
    assert result.job.dropped[0][0].endswith("f2.npy")
    np.testing.assert_allclose(result.image, np.nanmean(np.delete(frames, 2, axis=0), axis=0), rtol=1e-6)

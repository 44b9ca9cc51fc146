"""The CPU engine: slabs never show, memory is what the plan says, and the inherited functions keep their promises."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.compat import align_arrays, stack_arrays, stack_cpu
from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.compat.parallel_plan import ParallelPlan
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import NoFramesError, PlanError, SpecError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.methods import RejectName
from zemosaic_phase3.spec import StackSpec


def cube(n=7, height=24, width=31, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    frames = 1000 + 30 * rng.standard_normal((n, height, width, channels))
    frames[rng.random(frames.shape) < 0.02] += 3000
    frames[rng.random(frames.shape) < 0.02] = np.nan
    frames = frames.astype(np.float32)
    return frames if channels == 3 else frames[..., 0]


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


LIMITS = {"percentile_clip": ("low", "high")}  # what the oracle calls them
TEN_THOUSAND = {
    "none": ("none", {}),
    "kappa_sigma": ("kappa_sigma", {}),
    "sigma_clip": ("sigma_clip", {}),
    "winsorized_sigma_clip": ("winsorized_pixinsight", {}),
    "linear_fit_clip": ("linear_fit_clip", {"fit": "ols"}),
    "averaged_sigma": ("averaged_sigma", {}),
    "percentile_clip": ("percentile_clip", {}),
}


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
    method, more = TEN_THOUSAND[reject]
    limits = (
        {} if reject == "none" else dict(zip(LIMITS.get(reject, ("kappa_low", "kappa_high")), spec.kappas, strict=True))
    )
    expected = oracle.stack(frames.astype(np.float64), weights, method, **limits, **more)
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


def test_a_single_frame_is_itself_even_with_radial_weights():
    frame = cube(1)[0]
    image = stack_arrays.stack_aligned_images([frame], apply_radial_weight=True, zconfig=_no_equalising())
    np.testing.assert_array_equal(image, frame)


def _no_equalising():
    from types import SimpleNamespace

    return SimpleNamespace(poststack_equalize_rgb=False)


def test_inputs_are_never_modified():
    frames = cube()
    before = frames.copy()
    stack_arrays.stack_aligned_images(list(frames), "linear_fit", "noise_variance", "winsorized_sigma_clip")
    stack_arrays.stack_winsorized_sigma_clip(frames)
    stack_arrays.stack_kappa_sigma_clip(list(frames), weight_method="noise_variance")
    stack_arrays._reject_outliers_winsorized_sigma_clip(frames, (0.05, 0.05), 3.0, 3.0)
    stack_arrays._normalize_images_sky_mean(list(frames))
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize("shape", [(7,), (7, 1, 1), (7, 1, 1, 1), (7, 1, 1, 3), (7, 24, 31, 3)])
def test_weights_of_every_shape(shape):
    frames = cube()
    weights = np.random.default_rng(1).uniform(0.1, 1.0, shape)
    image, _ = stack_arrays.stack_kappa_sigma_clip(list(frames), weights=weights, zconfig=_no_equalising())
    expected = oracle.stack(frames, weights, "kappa_sigma", kappa_low=3.0, kappa_high=3.0)
    np.testing.assert_allclose(image, expected.value.astype(np.float32), rtol=3e-7, equal_nan=True)


def test_rejected_percent_is_counted():
    frames = np.full((20, 10, 10), 100.0, np.float32) + np.random.default_rng(0).normal(0, 1, (20, 10, 10)).astype(
        np.float32
    )
    frames[3] = 5000.0
    metadata: dict = {}
    _, rejected = stack_arrays.stack_kappa_sigma_clip(list(frames), stack_metadata=metadata)
    assert rejected == pytest.approx(5.0, abs=0.2)
    assert metadata["frame_rejected_percent"][3] == pytest.approx(100.0)
    assert metadata["rejected_high_percent"][0] == pytest.approx(5.0, abs=0.2)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda f: stack_arrays.stack_kappa_sigma_clip(None), "no frames"),
        (lambda f: stack_arrays.stack_kappa_sigma_clip([]), "no frames"),
        (lambda f: stack_arrays.stack_kappa_sigma_clip([np.zeros(5)]), "neither"),
        (lambda f: stack_arrays.stack_kappa_sigma_clip(f, weights=[1.0]), "length 1"),
        (lambda f: stack_arrays.stack_winsorized_sigma_clip(f, winsor_limits=(0.6, 0.1)), "0.6"),
        (lambda f: stack_arrays.stack_winsorized_sigma_clip(f, winsor_limits=(-0.1, 0.1)), "-0.1"),
        (lambda f: stack_arrays.stack_aligned_images(f, rejection_algorithm="nonsense"), "nonsense"),
        (lambda f: stack_arrays.stack_aligned_images(f, final_combine_method="sum"), "sum"),
    ],
)
def test_bad_input_is_a_value_error_that_names_it(call, names):
    with pytest.raises(ValueError, match=names):
        call(list(cube()))


def test_limits_of_none_mean_the_default():
    frames = list(cube())
    assert np.array_equal(
        stack_arrays.stack_winsorized_sigma_clip(frames, winsor_limits=None)[0],
        stack_arrays.stack_winsorized_sigma_clip(frames)[0],
        equal_nan=True,
    )


def test_frames_of_another_shape_are_left_out_with_a_warning(caplog):
    frames = [*cube(), np.zeros((5, 5, 3), np.float32)]
    image, _ = stack_arrays.stack_kappa_sigma_clip(frames)
    assert image.shape == (24, 31, 3)
    assert "left out" in caplog.text
    with pytest.raises(SpecError, match=r"\(5, 5, 3\)"):
        stack_cpu.stack_descriptors(frames, {})


def test_hints_of_old_configurations_change_no_value():
    frames = list(cube())
    plain, _ = stack_arrays.stack_winsorized_sigma_clip(frames)
    hinted, _ = stack_arrays.stack_winsorized_sigma_clip(
        frames, winsor_max_frames_per_pass=2, winsor_max_workers=3,
        parallel_plan=ParallelPlan(cpu_workers=2, use_memmap=False, max_chunk_bytes=1, rows_per_chunk=3),
    )  # fmt: skip
    np.testing.assert_array_equal(plain, hinted)


def test_minimum_signal_lifts_the_image():
    frames = list(cube(channels=1) - 5000)
    plain = stack_arrays.stack_aligned_images(frames)
    lifted = stack_arrays.stack_aligned_images(frames, minimum_signal_adu_target=12.0)
    assert np.nanmin(lifted) == pytest.approx(12.0, abs=1e-3)
    np.testing.assert_allclose(lifted - plain, np.nanmedian(lifted - plain), atol=2e-3)


def test_none_entries_are_skipped():
    frames = list(cube())
    with_none = stack_arrays.stack_aligned_images([None, *frames, None])
    np.testing.assert_array_equal(with_none, stack_arrays.stack_aligned_images(frames))
    assert stack_arrays.stack_aligned_images([None, None]) is None
    assert stack_arrays.stack_aligned_images([]) is None


@pytest.mark.parametrize("combine", ["min", "max"])
def test_min_and_max_give_an_image(combine):
    frames = cube()
    image = stack_arrays.stack_aligned_images(
        list(frames), rejection_algorithm="none", final_combine_method=combine, zconfig=_no_equalising()
    )
    np.testing.assert_array_equal(image, getattr(np, f"nan{combine}")(frames, axis=0))


def test_one_nan_does_not_switch_winsorizing_off():
    frames = np.full((12, 4, 4), 100.0, np.float32) + np.random.default_rng(0).normal(0, 1, (12, 4, 4)).astype(
        np.float32
    )
    frames[5] = 10_000.0
    frames[6, 2, 2] = np.nan
    from types import SimpleNamespace

    image, rejected = stack_arrays.stack_winsorized_sigma_clip(
        list(frames), zconfig=SimpleNamespace(wsc_impl="pixinsight")
    )
    assert np.abs(image - 100.0).max() < 2.0
    assert rejected > 7.0


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


def test_descriptors_of_every_kind_give_the_same(tmp_path):
    frames = cube(4)
    path = tmp_path / "a.npy"
    np.save(path, frames[0])
    kinds = [path, {"data": frames[1]}, Frame(open_source(frames[2])), frames[3]]
    image, metadata = stack_cpu.stack_descriptors(kinds, {"poststack_equalize_rgb": False})
    plain, _ = stack_cpu.stack_descriptors(list(frames), {"poststack_equalize_rgb": False})
    np.testing.assert_array_equal(image, plain)
    assert metadata["frames_used"] == 4


def test_nothing_to_stack_is_an_error():
    for empty in (None, [], np.empty((0, 4, 4), np.float32)):
        with pytest.raises(NoFramesError):
            stack_cpu.stack_descriptors(empty, {})


def test_alignment_finds_shifts_and_fails_the_unrelated():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:160, :200]

    def field(dx, dy, seed):
        places = np.random.default_rng(seed)
        sky = 1000 + 10 * rng.standard_normal((160, 200))
        for cx, cy, f in zip(
            places.uniform(0, 200, 40), places.uniform(0, 160, 40), places.uniform(300, 5000, 40), strict=True
        ):
            sky += f * np.exp(-((x - cx - dx) ** 2 + (y - cy - dy) ** 2) / 3.2)
        return sky.astype(np.float32)

    reference = field(0, 0, 1)
    aligned, failed = align_arrays.align_images_in_group([reference, field(6.3, -4.6, 1), field(0, 0, 99), None])
    assert failed == [2, 3]
    assert aligned[0] is not reference
    inside = aligned[1][20:-20, 20:-20] - reference[20:-20, 20:-20]
    assert np.nanstd(inside) < 25  # two noises of 10, and the rest of the stars' slopes
    assert np.isnan(aligned[1]).any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a stretch of a run is read from /proc")
def test_peak_memory_stays_within_the_plan(tmp_path):
    """150 mosaics of 540 x 960, 224 MB on disk as float32: the process stays far below that."""
    program = f"""
import numpy as np, sys
from pathlib import Path
from zemosaic_phase3.runtime.limits import current_rss_bytes
from zemosaic_phase3.engine.cpu import stack
from zemosaic_phase3.spec import StackSpec
from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
import zemosaic_phase3.rejection.window, zemosaic_phase3.resample.warp
path = r"{tmp_path}/f.npy"
np.save(path, np.random.default_rng(0).integers(900, 1100, (540, 960)).astype(np.float32))
spec = StackSpec(normalize="none", weight="none")
job = make_job(as_frames([path] * 150), spec)
stack(make_job(as_frames([path] * 2), spec), Resources(rows=4))   # compiles
before = current_rss_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: compiling took more than the stack will
allowed = 60_000_000
stack(job, Resources(memory=allowed, workers=2))
peak = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before, allowed)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    grown, allowed = map(int, done.stdout.split())
    assert grown < allowed + 16_000_000  # what the allocator keeps per thread


def test_rejected_percent_of_a_frame_is_of_its_own_samples():
    frames = np.full((8, 40, 40), 100.0, np.float32) + np.random.default_rng(0).normal(0, 1, (8, 40, 40)).astype("f4")
    frames[0] = np.nan
    frames[0, :4] = 9999.0
    _, metadata = stack_cpu.stack_descriptors(
        list(frames), {"stack_reject_algo": "winsorized_sigma_clip", "wsc_impl": "pixinsight"}
    )
    assert metadata["frame_rejected_percent"][0] == pytest.approx(100.0)
    assert max(metadata["frame_rejected_percent"][1:]) < 10.0


def test_linear_fit_clip_by_its_inherited_name() -> None:
    """The same stack as by the method's name, and a limit on both sides."""
    frames = list(np.random.default_rng(5).normal(1000.0, 5.0, (20, 12, 16, 3)).astype(np.float32))
    frames[3][2, 2] = 9000.0
    frames[7][4, 4] = -9000.0
    weights = np.linspace(0.5, 2.0, 20)
    metadata: dict = {}
    image, percent = stack_arrays.stack_linear_fit_clip(
        frames, zconfig=_no_equalising(), stack_metadata=metadata, sigma=3.0, weights=weights
    )
    assert metadata["rejection_method"] == "linear_fit_clip"
    assert percent > 100.0 * 2 / (20 * 12 * 16) - 0.01
    assert np.abs(image[[2, 4], [2, 4]] - 1000.0).max() < 10.0
    named = stack_arrays.stack_aligned_images(
        frames, rejection_algorithm="linear_fit_clip", sigma_clip_low=3.0, sigma_clip_high=3.0, zconfig=_no_equalising()
    )
    unweighted, _ = stack_arrays.stack_linear_fit_clip(frames, zconfig=_no_equalising())
    np.testing.assert_array_equal(unweighted, named)
    assert not np.array_equal(image, unweighted)
    assert stack_arrays.stack_linear_fit_clip([f[..., 0] for f in frames], "noise_variance")[0].shape == (12, 16)

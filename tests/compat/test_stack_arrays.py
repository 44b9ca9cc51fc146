"""The CPU engine: slabs never show, memory is what the plan says, and the inherited functions keep their promises."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import oracle
import pytest
from align_stack_case import cube

from zemosaic_phase3.compat import stack_arrays, stack_cpu
from zemosaic_phase3.compat.parallel_plan import ParallelPlan
from zemosaic_phase3.errors import SpecError


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

"""The GPU engine, run on the processor by a stand-in for CuPy: every result has the bits of the CPU engine."""

from __future__ import annotations

import dataclasses
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from astropy.io import fits
from gpu_engine_case import CUDARuntimeError, stack_of
from host_cupy import Kernel, OutOfMemoryError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resample_case import some_field

import zemosaic_worker as worker
from zemosaic_phase3 import methods
from zemosaic_phase3.calibrate.calibrated import CalibratedSource, relative_flat
from zemosaic_phase3.calibrate.cosmetic import CosmeticSource, DefectMap
from zemosaic_phase3.compat import stack_cpu, stack_gpu
from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.compat.parallel_plan import ParallelPlan
from zemosaic_phase3.compat.parameters import params_from_stack_spec
from zemosaic_phase3.engine import cpu, gpu
from zemosaic_phase3.engine.gpu_card import launch_plan
from zemosaic_phase3.engine.gpu_plan import device_bytes, route_of
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import FrameError, NoFramesError, SpecError, StackCancelled, ZeMosaicError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.methods import KERNELS, RejectName
from zemosaic_phase3.pipeline import device_policy
from zemosaic_phase3.records import Canvas
from zemosaic_phase3.runtime import cuda, cuda_failure
from zemosaic_phase3.runtime.threads import Crew
from zemosaic_phase3.spec import StackSpec

MAPS = ("coverage", "weight_map", "rejected_low", "rejected_high")
LIMITS = {  # that reject much
    "sigma": {"kappa_low": 1.7, "kappa_high": 1.5},
    "MAD": {"kappa_low": 2.5, "kappa_high": 2.2},
    "fraction": {"kappa_low": 0.02, "kappa_high": 0.02},
    "none": {},
}
REJECTIONS = {
    row.kernel: {"reject": row.name, **dict([row.choice] if row.choice else []), **LIMITS[row.unit]}
    for row in methods.REJECTIONS
}


def turned(degrees, dx, dy):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, dx], [s, c, dy], [0.0, 0.0, 1.0]])


def assert_same(ours, theirs):
    """Image and all maps to the bit, and everything the metadata says but the height of slabs."""
    image, metadata = ours
    expected, facts = theirs
    np.testing.assert_array_equal(image.view(np.uint32), expected.view(np.uint32))
    assert image.dtype == np.float32
    for name in MAPS:
        assert metadata[name].dtype == facts[name].dtype
        np.testing.assert_array_equal(metadata[name], facts[name], err_msg=name)
    for key in facts.keys() - {*MAPS, "rows_per_slab", "frame_table"}:
        np.testing.assert_equal(metadata[key], facts[key], err_msg=key)
    assert metadata.keys() == facts.keys()


def both(descriptors, spec, rows=None, **keywords):
    params = {**params_from_stack_spec(spec), **keywords.pop("extra", {})}
    plan = ParallelPlan(2, False, 0, use_gpu=True, gpu_rows_per_chunk=rows)
    ours = stack_gpu.gpu_stack_from_paths(descriptors, params, parallel_plan=plan, **keywords)
    assert_same(ours, stack_cpu.stack_descriptors(descriptors, params))
    return ours


@pytest.mark.parametrize("rejection", REJECTIONS)
@pytest.mark.parametrize("combine", ["mean", "median", "min", "max"])
def test_every_rejection_and_combination(launched, rejection, combine):
    spec = StackSpec(normalize="none", weight="noise_variance", combine=combine, **REJECTIONS[rejection])
    both(stack_of(), spec, rows=5)
    assert launched is None or set(launched) == {"combine_block"}, "such frames go straight to rejection"


@pytest.mark.parametrize("normalize", ["linear_fit", "sky_mean", "additive", "multiplicative", "additive_scaling"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16, np.float64, ">f4"])
def test_every_normalisation_and_type(launched, normalize, dtype):
    spec = StackSpec(normalize=normalize, weight="none", **REJECTIONS["sigma_clip"])
    both(stack_of(dtype=dtype), spec, rows=4)
    assert launched is None or set(launched) == {"open_rows", "combine_block"}


@pytest.mark.parametrize("interpolation", ["lanczos3", "bicubic", "bilinear", "smooth", "nearest"])
@pytest.mark.parametrize("radial", [False, True])
def test_registered_frames(launched, interpolation, radial):
    arrays = stack_of(shape=(24, 31, 3))
    frames = [Frame(open_source(a), turned(0.4 * i, 0.7 * i - 3, 1.1 * i)) for i, a in enumerate(arrays)]
    spec = StackSpec(
        normalize="additive", weight="noise_variance", radial_weight=radial, interpolation=interpolation,
        **REJECTIONS["winsorized_huber"],
    )  # fmt: skip
    both(frames, spec, rows=6)


@pytest.mark.parametrize("kind", ["GRBG", "rgb", "grey", "mixed"])
@pytest.mark.parametrize(("scale", "pixfrac"), [(1.0, 1.0), (2.0, 0.6)])
def test_drizzled_frames(launched, kind, scale, pixfrac):
    """Samples with areas as weights: as the CPU makes them, whatever the rows of a slab."""
    rng = np.random.default_rng(7)
    shape, (height, width) = (24, 31), (int(24 * scale), int(31 * scale))
    grid = Canvas(height, width, scale=scale)
    frames = []
    for i in range(9):
        is_mosaic = kind == "GRBG" or (kind == "mixed" and i % 2)
        pixels = rng.normal(1000.0, 30.0, shape if is_mosaic or kind == "grey" else (*shape, 3))
        pixels[rng.random(pixels.shape) < 0.02] += 900.0
        stored = pixels.astype(np.uint16 if is_mosaic else np.float32)
        if not is_mosaic:
            stored[rng.random(pixels.shape) < 0.02] = np.nan
        matrix = turned(0.4 * i, 0.7 * i - 3, 1.1 * i)
        matrix[2, 0] = 1e-4 * (i == 4)
        field = some_field(height, width, 1.0, i) if i == 5 else None
        source = open_source({"data": stored, "name": f"f{i}"}, bayer="GRBG" if is_mosaic else "none")
        frames.append(Frame(source, grid.to_frame(matrix), distortion=field))
    spec = StackSpec(
        normalize="additive", weight="noise_variance", drizzle=scale, pixfrac=pixfrac, grid=grid.shape,
        **REJECTIONS["sigma_clip"],
    )  # fmt: skip
    job = make_job(frames, spec)
    ours, other = gpu.stack(job, Resources(workers=2, gpu_rows=5)), cpu.stack(job, Resources(workers=2, rows=7))
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        ours_bits, others = getattr(ours, name), getattr(other, name)
        np.testing.assert_array_equal(ours_bits.view(np.uint32), others.view(np.uint32), err_msg=name)
    assert ours.rejected_high.sum() > 0
    assert launched is None or set(launched) == {"open_rows", "drizzle_rows", "combine_block"}


@pytest.mark.parametrize("gaps", [False, True])
def test_calibrated_frames_without_their_defects(launched, gaps):
    """Mosaics that are calibrated and mended as they are read, whatever the rows of a slab."""
    rng = np.random.default_rng(4)
    shape = (24, 30)
    defect = rng.random(shape) < 0.03
    defect[:, 11] = True
    if gaps:
        defect[4:12, 4:12] = True
    defects = DefectMap(defect, 2)
    dark = rng.normal(500, 20, shape).astype(np.float32)
    flat = relative_flat(rng.uniform(0.7, 1.0, shape).astype(np.float32), "GRBG")
    flat[20, 5] = np.nan
    frames = []
    for i in range(9):
        light = open_source({"data": rng.integers(900, 1500, shape, np.uint16), "name": str(i)}, bayer="GRBG")
        source = CosmeticSource(CalibratedSource(light, dark, flat) if gaps else light, defects)
        frames.append(Frame(source, turned(0.3 * i, 0.4 * i, -0.2 * i)))
    spec = StackSpec(normalize="additive", weight="noise_variance", **REJECTIONS["sigma_clip"])
    image, _ = both(frames, spec, rows=5)
    other, _ = both(frames, spec, rows=24)
    np.testing.assert_array_equal(image.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("rows", [None, 13])
def test_distorted_frames(launched, radial, rows):
    arrays = stack_of(n=7, shape=(70, 81, 3), dtype=np.uint16)
    bends = [None if i in (0, 4) else some_field(70, 81, 2.0, i) for i in range(7)]
    frames = [
        Frame(open_source(a), np.eye(3) if i < 2 else turned(0.4 * i, 0.7 * i - 3, 1.1 * i), distortion=bend)
        for i, (a, bend) in enumerate(zip(arrays, bends, strict=True))
    ]
    spec = StackSpec(normalize="additive", weight="noise_variance", radial_weight=radial, **REJECTIONS["sigma_clip"])
    bent, _ = both(frames, spec, rows=rows)
    straight, _ = both([replace(frame, distortion=None) for frame in frames], spec, rows=rows)
    assert not np.array_equal(bent, straight, equal_nan=True)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 30), rows=st.integers(1, 30),
    rejection=st.sampled_from(sorted(REJECTIONS)), colour=st.booleans(), apart=st.booleans(),
)  # fmt: skip
def test_slabs_never_change_a_value(launched, seed, n, rows, rejection, colour, apart):
    shape = (int(8 + seed % 13), 11, 3) if colour else (int(8 + seed % 13), 11)
    frames = [
        Frame(open_source(a), turned(1.0 * i, -0.3 * i, 0.0) if apart else np.eye(3))
        for i, a in enumerate(stack_of(seed, n, shape, [np.float32, np.uint16][seed % 2]))
    ]
    both(frames, StackSpec(normalize="none", weight="none", **REJECTIONS[rejection]), rows=rows)


def test_files_and_mosaics(launched, tmp_path):
    names = []
    for i, frame in enumerate(stack_of(n=6, shape=(28, 34), dtype=np.uint16)):
        names.append(tmp_path / f"{i}.fits")
        fits.writeto(names[-1], frame, fits.Header({"BAYERPAT": "GRBG"}))
    spec = StackSpec(normalize="additive_scaling", weight="noise_variance", **REJECTIONS["sigma_clip"])
    events = []
    moved = [Frame(open_source(name), turned(0.5 * i, i, -i)) for i, name in enumerate(names)]
    both(moved, spec, rows=9, pcb_tile=lambda *a, **k: events.append((a, k)), tile_id=5)
    ((arguments, figures),) = events
    assert arguments == ("phase3_gpu_chunk_summary", None, "INFO_DETAIL")
    assert figures["chunks"] == 4
    assert (figures["rows_per_chunk"], figures["total_rows"], figures["frames"]) == (7, 28, 6)
    assert figures["tile_id"] == 5
    mosaic, margins = 6 * 28 * 34 * 2, 6 * 4 * 34 * 2 * 20
    assert mosaic < figures["bytes_h2d"] < mosaic + margins, "the mosaic travels as it is stored"
    both(names, spec, rows=28)


def test_weights_of_every_sample(launched):
    arrays = np.stack(stack_of())
    spec = StackSpec(normalize="none", weight="none", **REJECTIONS["kappa_sigma"])
    job = make_job(as_frames(arrays), spec)
    rng = np.random.default_rng(3)
    job = type(job)(**{**job.__dict__, "sample_weight": rng.uniform(0, 2, arrays.shape), "clipped_kappa": True})
    job.sample_weight[:, 2] = 0.0
    result = gpu.stack(job, Resources(workers=2, gpu_rows=3))
    expected = cpu.stack(job, Resources())
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)
    assert result.all_rejected == expected.all_rejected


@pytest.mark.parametrize("rejection", ["sigma_clip", "winsorized_huber", "gesd", "winsorized_quantile"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("colour", [False, True])
def test_what_is_spared(launched, rejection, apart, colour):
    shape = (19, 13, 3) if colour else (19, 13)
    arrays = stack_of(4, 14, shape, np.uint16 if apart else np.float32)
    frames = [
        Frame(open_source(a), turned(0.5 * i, -0.3 * i, 0.1) if apart else np.eye(3)) for i, a in enumerate(arrays)
    ]
    job = make_job(frames, StackSpec(normalize="none", weight="noise_variance", **REJECTIONS[rejection]))
    rng = np.random.default_rng(3)
    spared = replace(job, tolerance=rng.choice([0.0, 30.0, 300.0, 3000.0], job.shape).astype(np.float32))
    result = gpu.stack(spared, Resources(workers=2, gpu_rows=4))
    expected, plain = cpu.stack(spared, Resources(workers=2, rows=5)), cpu.stack(job, Resources())
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)
    replaces = rejection == "winsorized_quantile"
    assert (expected.rejected_high.sum() < plain.rejected_high.sum()) != replaces
    untouched = spared.tolerance == 0.0
    np.testing.assert_array_equal(expected.image[untouched], plain.image[untouched])


def test_a_summary_goes_to_the_log_when_nobody_listens(cupy, caplog):
    caplog.set_level(logging.INFO, logger="ZeMosaicWorker")
    stack_gpu.gpu_stack_from_arrays(stack_of(n=3), {}, tile_id=9)
    (line,) = [r.getMessage() for r in caplog.records if "phase3_gpu_chunk_summary" in r.getMessage()]
    assert "frames=3" in line
    assert "tile_id=9" in line


def test_progress_and_cancelling(cupy):
    told = []
    plan = ParallelPlan(2, False, 0, gpu_rows_per_chunk=3)
    stack_gpu.gpu_stack_from_paths(stack_of(n=4), {}, parallel_plan=plan, progress_callback=lambda *a: told.append(a))
    assert told == [("stack", k, 5) for k in range(1, 6)]

    def cancel(*_):
        raise StackCancelled("enough")

    with pytest.raises(StackCancelled):
        stack_gpu.gpu_stack_from_paths(stack_of(n=4), {}, parallel_plan=plan, progress_callback=cancel)
    assert not Crew.at_work()


def test_a_loader_is_used_for_paths_only(cupy, tmp_path):
    arrays = stack_of(n=3)
    np.save(tmp_path / "a.npy", arrays[0])
    asked = []
    mixed = [tmp_path / "a.npy", *arrays[1:]]
    ours = stack_gpu.gpu_stack_from_paths(mixed, {}, array_loader=lambda path: asked.append(path) or np.load(path))
    assert asked == [tmp_path / "a.npy"]
    assert_same(ours, stack_cpu.stack_descriptors(arrays, {}))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
def test_device_memory_is_what_the_plan_says(cupy, share):
    arrays = stack_of(n=20, shape=(60, 40, 3), dtype=np.uint16)
    frames = [
        Frame(open_source(a), turned(0.2 * i, 0.5, 0.2 * i), distortion=some_field(60, 40, 1.0, i))
        for i, a in enumerate(arrays)
    ]
    job = make_job(frames, StackSpec(normalize="none", weight="none", radial_weight=True, reject="sigma_clip"))
    job = replace(job, tolerance=np.ones(job.shape, np.float32))
    route = route_of(job)
    least, most = device_bytes(route, 1, 0), device_bytes(route, 60, 0)
    allowed = int(least + share * (most - least))
    figures = gpu.stack(job, Resources(workers=2, gpu_memory=allowed)).gpu
    tables = 4 * 6144 + 8 * 4098 + 4096
    assert cupy.peak <= figures.bytes_held + tables <= allowed + tables
    assert cupy.used == 0, "all of it is given back"
    assert (figures.slabs > 1) == (share < 1.0)


def test_columns_too_long_for_shared_memory(cupy):
    cupy.shared_limit = 4 << 10
    both(stack_of(n=40, shape=(8, 9)), StackSpec(normalize="none", weight="none", **REJECTIONS["sigma_clip"]), rows=3)


def test_too_small_a_card_is_said_so(cupy):
    cupy.total = 1000
    with pytest.raises(MemoryError, match="the tile needs") as caught:
        stack_gpu.gpu_stack_from_arrays(stack_of(), {})
    assert cuda_failure.classify_failure(caught.value) == "out_of_memory"


def test_frames_bent_in_perspective(launched):
    """Rows of a slab lie close together at one end of a frame and far apart at the other."""
    frames = []
    for i, array in enumerate(stack_of(n=5, shape=(40, 23, 3), dtype=np.uint16)):
        bend = turned(11.0 * i, 2.0 - i, 3.0)
        bend[2, :2] = -0.004 * i, 0.018 * i - 0.03  # across the tile the scale changes by a factor of 4
        frames.append(Frame(open_source(array), bend))
    spec = StackSpec(normalize="none", weight="none", **REJECTIONS["sigma_clip"])
    for rows in (1, 3, 40):
        both(frames, spec, rows=rows)


def test_more_frames_than_lad_can_count_go_to_the_cpu(cupy, monkeypatch, caplog):
    most = KERNELS["least_absolute_line"].most_on_gpu
    assert most * (most - 1) // 2 < 2**31 <= (most + 1) * most // 2
    fewer = property(lambda spec: dataclasses.replace(KERNELS["least_absolute_line"], most_on_gpu=10))
    monkeypatch.setattr(StackSpec, "rejection", fewer)
    worker.reset_phase3_gpu_state()
    plan = ParallelPlan(2, False, 0, use_gpu=True)
    lad = params_from_stack_spec(StackSpec(normalize="none", weight="none", **REJECTIONS["least_absolute_line"]))
    arrays = stack_of()
    for _ in range(2):
        image, metadata, used_gpu = worker._stack_master_tile_auto(arrays, lad, plan)
        assert not used_gpu
        assert_same((image, {k: metadata[k] for k in metadata if not k.startswith("phase3_")}),
                    stack_cpu.stack_descriptors(arrays, lad))  # fmt: skip
        assert metadata["phase3_gpu_attempts"] == 1, "nothing is tried again that cannot go"
        reason = metadata["phase3_device_reason"]
        assert "the GPU does not take this tile" in reason
        assert "at most 10 frames on the GPU, these are 11" in reason
    assert "the GPU stays on" in caplog.text
    assert "disabled" not in caplog.text
    *_, used_gpu = worker._stack_master_tile_auto(arrays[:10], lad, plan)
    assert used_gpu
    with pytest.raises(ZeMosaicError, match="GPU is required, but the GPU does not take this tile.*at most 10"):
        worker._stack_master_tile_auto(arrays, {**lad, "require_gpu": True}, plan)
    worker.reset_phase3_gpu_state()


def test_a_hint_that_no_row_fits_into_is_no_fault_of_the_card(cupy):
    worker.reset_phase3_gpu_state()
    params, small = params_from_stack_spec(StackSpec(normalize="none", weight="none")), 1000
    plan = ParallelPlan(2, False, 0, use_gpu=True, gpu_max_chunk_bytes=small)
    assert worker._stack_master_tile_auto(stack_of(), params, plan)[2], "one row is always tried if the card has room"
    assert worker._stack_master_tile_auto(stack_of(), params, ParallelPlan(2, False, 0, use_gpu=True))[2]
    worker.reset_phase3_gpu_state()


def test_out_of_memory_leaves_nothing_behind(cupy):
    cupy.failures["combine_block"] = OutOfMemoryError("Out of memory allocating 5 bytes")
    with pytest.raises(OutOfMemoryError) as caught:
        stack_gpu.gpu_stack_from_arrays(stack_of(), {})
    device_policy.forget_frames(caught.value)  # as Mode C does before it tries again
    assert cupy.used == 0
    assert not cuda.RESERVED
    assert not Crew.at_work()


def test_tiles_in_threads_share_one_card(cupy):
    arrays = stack_of(n=20, shape=(60, 40, 3))
    job = make_job(as_frames(arrays), StackSpec(normalize="none", weight="none", reject="sigma_clip"))
    expected = cpu.stack(job, Resources())
    cupy.limit = 4 << 20  # a whole tile takes 6.2 MB
    held, lock = [], threading.Lock()

    def stack(_):
        result = gpu.stack(job, Resources(workers=2))
        with lock:
            held.append(result.gpu.bytes_held)
        return result

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(stack, range(8)))
    for result in results:
        np.testing.assert_array_equal(result.image, expected.image)
        np.testing.assert_array_equal(result.frame_counts, expected.frame_counts)
    assert cupy.peak <= 4 << 20
    assert cupy.used == 0


def test_a_frame_that_goes_is_dropped(cupy, tmp_path, caplog):
    arrays = stack_of(n=6)
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    frames = [Frame(open_source(tmp_path / f"{i}.npy")) for i in range(6)]
    whole = (tmp_path / "4.npy").read_bytes()
    (tmp_path / "4.npy").write_bytes(whole[: len(whole) // 2])
    image, metadata = stack_gpu.gpu_stack_from_paths(frames, {})
    assert metadata["frames_used"] == 5
    ((name, reason),) = metadata["frames_dropped"]
    assert name == str(tmp_path / "4.npy")
    assert "written or replaced" in reason
    expected, _ = stack_cpu.stack_descriptors([*arrays[:4], arrays[5]], {})
    np.testing.assert_array_equal(image, expected)
    with pytest.raises(FrameError):
        stack_gpu.gpu_stack_from_paths([frames[4]], {})


def test_bad_input_is_the_same_error_as_on_the_cpu(cupy):
    with pytest.raises(NoFramesError):
        stack_gpu.gpu_stack_from_arrays([], {})
    with pytest.raises(SpecError, match="unknown rejection"):
        stack_gpu.gpu_stack_from_arrays(stack_of(), {"stack_reject_algo": "nonsense"})
    with pytest.raises(SpecError, match="one shape"):
        stack_gpu.gpu_stack_from_arrays([np.zeros((8, 8), np.float32), np.zeros((9, 8), np.float32)], {})
    assert cupy.launched == []


def test_buffers_are_left_alone_when_cuda_is_lost_among_them(cupy, monkeypatch):
    def lost(count, dtype):
        raise CUDARuntimeError(700)

    monkeypatch.setattr(cupy, "zeros", lost)
    with pytest.raises(CUDARuntimeError):
        stack_gpu.gpu_stack_from_arrays(stack_of(), {})
    assert cuda_failure.is_poisoned()
    assert cupy.used > 0, "not even a destructor may run"


def test_a_tile_stops_when_another_one_loses_cuda(cupy):
    launched = []

    def other_tile_fails(stage, done, total):
        if not launched:
            cuda_failure.mark_sticky()
            launched.extend(cupy.launched)

    plan = ParallelPlan(2, False, 0, use_gpu=True, gpu_rows_per_chunk=1)
    with pytest.raises(RuntimeError, match="cannot be undone"):
        stack_gpu.gpu_stack_from_arrays(stack_of(), {}, parallel_plan=plan, progress_callback=other_tile_fails)
    assert cupy.launched == launched


@pytest.mark.parametrize("more", [0, 1 << 16, 1 << 18])
def test_a_tile_that_just_fits_is_stacked(cupy, more):
    """Columns that lie in global memory leave room for one row, however much there is for more columns at once."""
    frames = stack_of(n=600, shape=(6, 133, 3))
    spec = StackSpec(normalize="none", weight="none", reject="kappa_sigma")
    route = route_of(make_job(as_frames(frames), spec))
    least = device_bytes(route, 1, launch_plan(route.n_frames, route.row_elements, 0).scratch_bytes)
    plan = ParallelPlan(2, False, 0, use_gpu=True, gpu_max_chunk_bytes=least + more)
    params = params_from_stack_spec(spec)
    ours = stack_gpu.gpu_stack_from_arrays(frames, params, parallel_plan=plan)
    assert_same(ours, stack_cpu.stack_descriptors(frames, params))
    assert cupy.peak <= least + more + (1 << 16)  # the tables of interpolation are not counted


def test_tiles_of_few_and_many_frames_share_a_kernel(cupy, monkeypatch):
    """One that needs less shared memory comes between the other's preparation and its launch."""
    cupy.shared_limit = 227 << 10
    many, few = stack_of(n=560, shape=(6, 7)), stack_of(n=380, shape=(6, 7))
    params = params_from_stack_spec(StackSpec(normalize="none", weight="none", reject="kappa_sigma"))
    launch, waiting = Kernel.__call__, [few]

    def interrupted(self, grid, block, arguments, *, shared_mem=0):
        if waiting:
            stack_gpu.gpu_stack_from_arrays(waiting.pop(), params)
        launch(self, grid, block, arguments, shared_mem=shared_mem)

    monkeypatch.setattr(Kernel, "__call__", interrupted)
    assert_same(stack_gpu.gpu_stack_from_arrays(many, params), stack_cpu.stack_descriptors(many, params))
    assert not waiting


def test_reservations_wait_for_each_other(cupy):
    cupy.total = 1000
    order = []
    with cuda.reserve_vram(100, 10_000) as first:
        assert first == int(1000 * cuda.VRAM_SHARE)
        thread = threading.Thread(target=lambda: _reserve(order))
        thread.start()
        thread.join(0.05)
        assert order == [], "the first tile has it all"
    thread.join(5)
    assert order == [500]
    assert not cuda.RESERVED


def _reserve(order):
    with cuda.reserve_vram(100, 500) as granted:
        order.append(granted)


def test_all_rejections_are_named_here():
    assert {options["reject"] for options in REJECTIONS.values()} == set(get_args(RejectName))

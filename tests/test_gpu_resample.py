"""The CUDA text of reading, demosaicing and resampling, built by g++, gives the bits of the host's own code."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from astropy.io import fits
from cuda_host import CONTRACTED, STRICT, address, build, has_fma
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resample import some_field

from zemosaic_phase3.engine import gpu_plan
from zemosaic_phase3.engine.gpu_plan import cut, device_bytes, plan_gpu, route_of, source_spans
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.slab import fill_samples
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.resample import cuda, footprint, warp
from zemosaic_phase3.resample import interpolation as interpolation_module
from zemosaic_phase3.spec import StackSpec

INTERPOLATIONS = ("lanczos3", "bicubic", "bilinear", "nearest")
UNTOUCHED = np.float32(-77.0)


@pytest.fixture(scope="session")
def strict(tmp_path_factory):
    return build(cuda.source(), "resample", tmp_path_factory.mktemp("cuda"), STRICT)


def similarity(angle_deg, dx, dy, tilt=0.0):
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return np.array([[c, -s, dx], [s, c, dy], [tilt, -tilt / 2, 1.0]])


def launch(kernel, n_frames, *arguments):
    """Run a kernel as the engine launches it: one row of blocks per frame of the batch, here one block a row."""
    library, function = kernel
    for i in range(n_frames):
        library.set_grid(0, i, 0, 1, n_frames, 1)
        function(*arguments)


def on_the_card(library, job, plan, route):
    """Do what the engine does on the card with every slab of a job; yields rows, samples (N, P), radial (N, P / C)."""
    spec, n = job.spec, len(job.sources)
    height, width = job.shape[:2]
    i64, i32 = ctypes.c_longlong, ctypes.c_int
    fields = np.concatenate([f.reshape(-1) for f in job.table.distortion]) if job.table.distortion else None
    columns = max((f.shape[1] for f in job.table.distortion), default=0)
    for slab in cut(job, route, plan):
        rows = slab.rows.stop - slab.rows.start
        size = rows * width * job.channels
        cube = np.full((n, size), UNTOUCHED, np.float32)
        radial = np.full((n, rows * width), UNTOUCHED, np.float32) if route.has_radial else None
        table = interpolation_module.weight_table(spec.interpolation)
        radial_table = warp.radial_weight_table(spec.radial_feather, spec.radial_power, spec.radial_floor)
        for batch in slab.batches:
            staged = np.zeros(plan.batch_bytes, np.uint8)
            blocks = np.full(plan.block_bytes // 4 + 1, UNTOUCHED, np.float32)
            for i in range(batch.first, batch.last):
                row = slab.frames[i]
                part = staged[row["raw_at"] : row["raw_at"] + slab.sizes[i]]
                top, bottom = int(row["raw_first"]), int(row["raw_first"] + row["raw_rows"])
                if part.size and route.wires[i].is_raw:
                    job.sources[i].read_raw(top, bottom, part)
                elif part.size:
                    part[:] = job.sources[i].read_rows(top, bottom).reshape(-1).view(np.uint8)
            common = (address(slab.frames), i32(batch.first), i32(height), i32(width), i32(job.channels))
            launch(
                (library, library.open_rows), batch.last - batch.first,
                address(staged), *common, address(blocks), address(cube), i64(size),
            )  # fmt: skip
            launch(
                (library, library.resample_rows), batch.last - batch.first,
                address(blocks), *common, address(fields), i32(columns), address(table),
                i32(interpolation_module.needs_clamp(spec.interpolation)),
                i32(slab.rows.start), i32(rows), i32(width), address(cube), i64(size),
                address(radial), i64(rows * width), address(radial_table), i32(radial_table.size - 2),
            )  # fmt: skip
        yield slab.rows, cube, radial


def compare(library, job, max_rows):
    """Number of samples and radial weights that differ from the CPU engine's, over all slabs."""
    route = route_of(job)
    plan = plan_gpu(route, allowed_bytes=1 << 40, max_rows=max_rows)
    differing = done = 0
    for rows, cube, radial in on_the_card(library, job, plan, route):
        for i in range(len(job.sources)):
            expected = np.empty(cube.shape[1], np.float32)
            weight = np.empty(0 if radial is None else radial.shape[1], np.float32)
            fill_samples(job, i, rows, expected, weight)
            pairs = [(cube[i], expected)] if radial is None else [(cube[i], expected), (radial[i], weight)]
            for ours, theirs in pairs:
                # Which NaN it is, and the sign of a zero, mean nothing to the rejection that reads them.
                same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
                differing += int((~same).sum())
        done += rows.stop - rows.start
    assert done == job.shape[0]
    return differing


def job_of(descriptors, transforms, distortion=None, **spec):
    bends = distortion or [None] * len(descriptors)
    frames = [
        Frame(open_source(d), t, distortion=bend) for d, t, bend in zip(descriptors, transforms, bends, strict=True)
    ]
    spec = {"normalize": "none", "weight": "none", **spec}
    return make_job(frames, StackSpec(**spec))


def fields(rng, n, shape, dtype):
    frames = rng.normal(3000.0, 400.0, (n, *shape))
    frames[rng.random(frames.shape) < 0.002] += 20000.0
    if np.dtype(dtype).kind == "f":
        frames[rng.random(frames.shape) < 0.01] = np.nan
        frames[rng.random(frames.shape) < 0.002] = np.inf
    return list(frames.astype(dtype))


def some_transforms(rng, n):
    picks = [
        np.eye(3), similarity(rng.uniform(-4, 4), *rng.uniform(-6, 6, 2)), similarity(90.0, 60.0, 1.0),
        similarity(1.0, 2.5, -3.25, 1e-4), similarity(0.0, 3.0, -2.0), similarity(0.0, 500.0, 0.0),
    ]  # fmt: skip
    return [picks[k % len(picks)] for k in range(n)]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(40, 53), (37, 44, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_samples_have_the_bits_of_the_cpu(strict, interpolation, shape, dtype):
    rng = np.random.default_rng(5)
    job = job_of(fields(rng, 6, shape, dtype), some_transforms(rng, 6), interpolation=interpolation, radial_weight=True)
    assert compare(strict, job, None) == 0
    job = job_of(fields(rng, 6, shape, dtype), some_transforms(rng, 6), interpolation=interpolation)
    assert compare(strict, job, 7) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), max_rows=st.integers(1, 50), interpolation=st.sampled_from(INTERPOLATIONS))
def test_any_frames_and_any_slabs(strict, seed, max_rows, interpolation):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(12, 40)), int(rng.integers(12, 40)), *([3] if seed % 2 else []))
    frames = fields(rng, 5, shape, [np.float32, np.uint16, np.int16, ">f4", np.float64][seed % 5])
    job = job_of(frames, some_transforms(rng, 5), interpolation=interpolation, normalize="additive_scaling")
    assert compare(strict, job, max_rows) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), max_rows=st.integers(1, 100), strength=st.floats(0.1, 8.0))
def test_distorted_frames(strict, seed, max_rows, strength):
    """Some frames have a field and some have none, one has a field and no other transform."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(60, 140)), int(rng.integers(60, 140)), *([3] if seed % 2 else []))
    bends = [some_field(*shape[:2], strength, seed + i) if i != 3 else None for i in range(6)]
    job = job_of(
        fields(rng, 6, shape, np.uint16), some_transforms(rng, 6), bends, interpolation="lanczos3",
        radial_weight=bool(seed % 3 == 0),
    )  # fmt: skip
    assert not job.table.in_place.any()
    assert compare(strict, job, max_rows) == 0
    plain = job_of(fields(rng, 6, shape, np.uint16), some_transforms(rng, 6))
    assert plain.table.in_place[0]
    assert route_of(plain).field_elements == 0 < route_of(job).field_elements


@pytest.mark.parametrize("pattern", ["RGGB", "GRBG", "GBRG", "BGGR"])
@pytest.mark.parametrize("stored", ["fits", "float", "npy"])
def test_raw_mosaics_are_opened_on_the_card(strict, tmp_path, pattern, stored):
    rng = np.random.default_rng(8)
    names = []
    for i, frame in enumerate(fields(rng, 4, (38, 46), np.float32 if stored == "float" else np.uint16)):
        names.append(tmp_path / (f"{i}.npy" if stored == "npy" else f"{i}.fits"))
        np.save(names[-1], frame) if stored == "npy" else fits.writeto(names[-1], frame)
    transforms = [np.eye(3), similarity(2.0, 1.5, -1.0), similarity(0.0, 0.5, 0.5), similarity(-1.0, 0.0, 30.0)]
    frames = [Frame(open_source(name, bayer=pattern), t) for name, t in zip(names, transforms, strict=True)]
    job = make_job(frames, StackSpec(normalize="none", weight="none"))
    route = route_of(job)
    assert all(wire.is_raw for wire in route.wires)
    assert {wire.row_bytes for wire in route.wires} == {46 * (4 if stored == "float" else 2)}, "the mosaic travels raw"
    for max_rows in (None, 1, 9):
        assert compare(strict, job, max_rows) == 0


@pytest.mark.parametrize("bitpix", [8, 16, 32, -32, -64, "u16", "i16-blank", "scaled"])
@pytest.mark.parametrize("planes", [1, 3])
def test_every_kind_of_fits_file(strict, tmp_path, bitpix, planes):
    rng = np.random.default_rng(3)
    shape = (30, 41) if planes == 1 else (3, 30, 41)
    values = rng.integers(0, 250, shape)
    dtype = {8: "u1", 16: "i2", 32: "i4", -32: "f4", -64: "f8", "u16": "u2", "i16-blank": "i2", "scaled": "i2"}[bitpix]
    hdu = fits.PrimaryHDU(values.astype(dtype))
    if bitpix == "i16-blank":
        hdu.header["BLANK"] = 7
    if bitpix == "scaled":
        hdu.header["BSCALE"], hdu.header["BZERO"] = 0.5, 10.0
    hdu.writeto(tmp_path / "a.fits")
    job = job_of([tmp_path / "a.fits"] * 2, [np.eye(3), similarity(3.0, 1.0, 2.0)])
    assert route_of(job).wires[0].is_raw == (bitpix in (16, -32, "u16"))
    assert compare(strict, job, 11) == 0


def test_contraction_would_change_the_bits(tmp_path):
    if not has_fma():
        pytest.skip("this processor, or its compiler flag, has no fused multiply-add")
    contracted = build(cuda.source(), "contracted", tmp_path, CONTRACTED)
    rng = np.random.default_rng(5)
    job = job_of(fields(rng, 6, (40, 53), np.float32), some_transforms(rng, 6))
    assert compare(contracted, job, None) > 0, "a test of equal bits must be able to fail"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_spans_of_many_frames_are_those_of_each(seed):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(10, 200)), int(rng.integers(10, 200))
    matrices = np.array([*some_transforms(rng, 6), similarity(*rng.uniform(-200, 200, 3), rng.uniform(-0.02, 0.02))])
    far = rng.choice([0.0, 0.3, 7.0], len(matrices))
    starts = np.sort(rng.integers(0, height, 4))
    stops = np.minimum(starts + rng.integers(1, 40, 4), height)
    first, last = source_spans(matrices, starts, stops, width, height, far)
    for s in range(4):
        for i, matrix in enumerate(matrices):
            expected = footprint.source_rows(matrix, int(starts[s]), int(stops[s]), width, height, far[i])
            assert (first[s, i], last[s, i]) == expected


@pytest.mark.parametrize("allowed", [1 << 22, 1 << 24, 1 << 28, 1 << 34])
def test_a_plan_keeps_to_its_bytes(allowed):
    rng = np.random.default_rng(2)
    for descriptors, transforms in (
        (fields(rng, 20, (60, 50, 3), np.float32), [np.eye(3)] * 20),
        (fields(rng, 20, (60, 50, 3), np.uint16), some_transforms(rng, 20)),
    ):
        job = job_of(descriptors, transforms, radial_weight=True)
        route = route_of(job)
        plan = plan_gpu(route, allowed_bytes=allowed, scratch_bytes=1000, workers=4)
        assert plan.needed_bytes == device_bytes(route, plan.rows_per_slab, 1000) <= allowed
        slabs = list(cut(job, route, plan))
        assert [slab.rows.start for slab in slabs] == list(range(0, 60, plan.rows_per_slab))
        for slab in slabs:
            assert [b.first for b in slab.batches] == [0, *(b.last for b in slab.batches[:-1])]
            assert slab.batches[-1].last == 20
            assert max(b.size for b in slab.batches) <= plan.batch_bytes


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(3, 100))
@settings(max_examples=60, deadline=None)
def test_the_rows_of_a_turned_frame_fit_wherever_it_lies(seed, rows):
    """Frames larger than a batch, so that a buffer holds the rows of one and not one more."""
    rng = np.random.default_rng(seed)
    transforms = []
    for _ in range(4):
        turn, scale = np.deg2rad(rng.uniform(-25.0, 25.0)), rng.normal(1.0, 0.005)
        c, s = scale * np.cos(turn), scale * np.sin(turn)
        bend = rng.normal(0.0, 1e-5, 2) if rng.random() < 0.3 else (0.0, 0.0)
        transforms.append(np.array([[c, -s, rng.normal(0, 50)], [s, c, rng.normal(0, 150)], [*bend, 1.0]]))
    bends = [some_field(211, 300, rng.uniform(0.5, 15.0), seed + i) if rng.random() < 0.5 else None for i in range(4)]
    job = job_of([np.zeros((211, 300), np.float32)] * 4, transforms, bends)
    route = route_of(job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_plan, "BATCH_BYTES", 1 << 12)
        patch.setattr(gpu_plan, "BLOCK_BYTES", 1 << 12)
        plan = plan_gpu(route, allowed_bytes=1 << 40, max_rows=rows)
        assert sum(1 for _ in cut(job, route, plan)) == plan.n_slabs


def test_the_text_steps_as_fields_do():
    from zemosaic_phase3.registration.distortion import STEP

    assert f"constexpr int FIELD_STEP = {STEP};" in cuda.source()
    assert STEP & (STEP - 1) == 0, "a power of two"

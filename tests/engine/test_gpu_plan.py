"""Tests of ``engine.gpu_plan``."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from cuda_host import STRICT, build
from gpu_resample_case import compare, fields, job_of, similarity, some_transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from resample_case import some_field

from zemosaic_phase3.engine import gpu_plan
from zemosaic_phase3.engine.gpu_plan import cut, device_bytes, plan_gpu, route_of, source_spans
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.resample import cuda, footprint
from zemosaic_phase3.spec import StackSpec

INTERPOLATIONS = ("lanczos3", "bicubic", "bilinear", "smooth", "nearest")


@pytest.fixture(scope="session")
def strict(tmp_path_factory):
    return build(cuda.source(), "resample", tmp_path_factory.mktemp("cuda"), STRICT)


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

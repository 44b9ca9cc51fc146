"""What several tests share: made for the tests of ``gpu_resample``."""

from __future__ import annotations

import ctypes

import numpy as np
from cuda_host import address

from zemosaic_phase3.engine.gpu_plan import cut, plan_gpu, route_of
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.engine.slab import fill_samples
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.resample import interpolation as interpolation_module
from zemosaic_phase3.resample import warp
from zemosaic_phase3.spec import StackSpec

UNTOUCHED = np.float32(-77.0)


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

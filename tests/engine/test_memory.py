"""What a stack takes is what its plan says: the real arrays, the real kernels, a real process."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.compat.descriptors import as_frames
from zemosaic_phase3.engine import slab_plan as slab_plan_module
from zemosaic_phase3.engine.cpu import slab_plan
from zemosaic_phase3.engine.job import Job, empty_result, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab import (
    SampleSlab,
    fill_samples,
    frame_block,
    slab_for,
    source_pixel_bytes,
    source_reach,
)
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.runtime import limits
from zemosaic_phase3.spec import StackSpec

HEIGHT, WIDTH, N, WORKERS = 60, 48, 7, 3
PLAIN = StackSpec(normalize="none", weight="none")
linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the peak of a stretch of a run is read from /proc"
)


def job_of(channels: int, spec: StackSpec = PLAIN, dtype: type = np.uint16) -> Job:
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    return make_job(as_frames(list(np.full((N, *shape), 100, dtype))), spec)


def shared_bytes(job: Job) -> int:
    """Bytes of the arrays that exist once: the maps of the result, and what is counted for each frame."""
    result = empty_result(job, slab_plan(job, Resources(WORKERS, memory=1 << 40)))
    maps = (result.image, result.coverage, result.weight, result.rejected_low, result.rejected_high)
    return sum(a.nbytes for a in maps) + slab_plan_module.FRAME_BYTES * N


def scratch_bytes() -> int:
    return WORKERS * slab_plan_module.KERNEL_PIXELS * slab_plan_module.KERNEL_SAMPLE_BYTES * N


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weights", ["none", "radial", "full", "drizzle"])
def test_a_plan_counts_the_arrays_of_a_slab_of_samples(channels: int, weights: str) -> None:
    rows = 9
    spec = StackSpec(normalize="none", weight="none", radial_weight=weights == "radial", drizzle=weights == "drizzle")
    job = job_of(channels, spec, np.float64)
    job.table.transform[:, 1, 2] = 0.25  # every frame must be resampled
    if weights == "full":
        job = Job(job.sources, job.table, job.spec, job.shape, sample_weight=np.ones((N, *job.shape), np.float32))
    tolerance = np.zeros(job.shape, np.float32)
    job = replace(job, tolerance=tolerance if weights == "none" else None)
    slab = slab_for(job, rows)
    assert isinstance(slab, SampleSlab)
    slab.take(slice(0, rows))
    per_sample = slab.weights()[0]
    plan = slab_plan(job, Resources(WORKERS, memory=1 << 40, rows=rows))
    margin = 2 * WIDTH  # any: the block below is read with as much
    block = frame_block(job.sources[0], 0, min(rows + margin, HEIGHT))
    raw = job.sources[0].read_rows(0, min(rows + margin, HEIGHT))
    real = slab.cube.nbytes + per_sample.nbytes + WORKERS * (block.nbytes + raw.nbytes)
    counted = slab_plan_module.stack_bytes(
        rows, n_frames=N, height=HEIGHT, width=WIDTH, channels=channels, workers=WORKERS, source_margin=margin,
        weights_per_pixel={"none": 0, "radial": 1}.get(weights, channels), raw_bytes=4 * channels,
        own_maps=int(weights == "none"),
    )  # fmt: skip
    real += tolerance.nbytes if weights == "none" else 0
    assert counted == pytest.approx(real + shared_bytes(job) + scratch_bytes(), abs=WORKERS * 200)  # the block's pad
    assert plan.needed_bytes <= counted, "the plan itself knows the margin, which is less here"


def bent(angle: float, scale: float, bends: list[float], shift: list[float]) -> np.ndarray:
    """A homography (3, 3): turned by ``angle`` rad about the middle, scaled, shifted, and bent by ``bends`` at the far
    edges (relative change of the scale)."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    middle = np.array([[1, 0, WIDTH / 2], [0, 1, HEIGHT / 2], [0, 0, 1.0]])
    turned = np.array([[c, -s, shift[0]], [s, c, shift[1]], [bends[0] / WIDTH, bends[1] / HEIGHT, 1.0]])
    return middle @ turned @ np.linalg.inv(middle)


HOMOGRAPHIES = st.builds(
    bent,
    st.floats(-math.pi, math.pi),
    st.floats(0.9, 1.1),
    st.lists(st.floats(-1.2, 1.2), min_size=2, max_size=2),  # beyond 1 some points are behind the camera
    st.lists(st.floats(-40.0, 40.0), min_size=2, max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(matrices=st.lists(HOMOGRAPHIES, min_size=1, max_size=3))
def test_no_slab_needs_more_rows_of_a_frame_than_its_plan_says(matrices: list[np.ndarray]) -> None:
    from zemosaic_phase3.resample.footprint import slab_reach, source_rows

    margin, stretch = slab_reach(np.array(matrices), WIDTH, HEIGHT)
    for rows in (1, 2, 7, 31, HEIGHT):
        allowed = min(math.ceil(rows * stretch) + margin, HEIGHT)
        for matrix in matrices:
            for y in range(HEIGHT - rows + 1):
                first, last = source_rows(matrix, y, y + rows, WIDTH, HEIGHT)
                assert last - first <= allowed


def test_the_rows_planned_for_a_turned_frame_are_those_it_needs() -> None:
    """Not more than a few rows too many either: memory that is never used is rows that a slab does not get."""
    from zemosaic_phase3.resample.footprint import slab_reach, source_rows

    matrix = bent(0.1, 1.02, [0.02, -0.03], [3.0, 2.0])
    margin, stretch = slab_reach(matrix[None], WIDTH, HEIGHT)
    spans = [np.subtract(*source_rows(matrix, y, y + 9, WIDTH, 10**6)[::-1]) for y in range(HEIGHT - 8)]
    assert max(spans) <= math.ceil(9 * stretch) + margin <= max(spans) + 4


def mosaic_or_not(kind: str) -> Job:
    shape, dtype = ((HEIGHT, WIDTH, 3), np.uint16) if kind == "colour" else ((HEIGHT, WIDTH), np.uint16)
    if kind == "float":
        dtype = np.float32
    frames = [open_source(np.full(shape, 100, dtype), bayer="GRBG" if kind == "mosaic" else None) for _ in range(N)]
    return make_job([Frame(frame) for frame in frames], PLAIN)


@settings(max_examples=15, deadline=None)
@given(matrix=HOMOGRAPHIES, rows=st.integers(1, 20))
@pytest.mark.parametrize("kind", ["mosaic", "colour", "grey", "float"])
def test_a_plan_counts_what_filling_takes(kind: str, matrix: np.ndarray, rows: int) -> None:
    job = mosaic_or_not(kind)
    job.table.transform[0] = matrix
    samples, radial = np.empty(rows * WIDTH * job.channels, np.float32), np.empty(0, np.float32)
    fill_samples(job, 0, slice(0, rows), samples, radial)  # compiles
    margin, stretch = source_reach(job)
    source_rows = min(math.ceil(rows * stretch) + margin, HEIGHT)
    counted = source_rows * WIDTH * (source_pixel_bytes(job.sources[0]) + 4 * job.channels)
    for y in range(0, HEIGHT - rows + 1, 8):
        tracemalloc.start()
        fill_samples(job, 0, slice(y, y + rows), samples, radial)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taken <= counted + 8192, "the Python objects of a call, and the block's pad"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_plan_counts_the_arrays_of_a_stored_slab(channels: int, dtype: type) -> None:
    rows, job = 9, job_of(channels, dtype=dtype)
    slab = slab_for(job, rows)
    slab.take(slice(0, rows))
    for i in range(N):
        slab.fill(i)
    size = rows * WIDTH * channels
    tile = next(iter(slab.pieces(0, size))).cube
    plan = slab_plan(job, Resources(WORKERS, memory=1 << 40, rows=rows))
    real = slab.stored.nbytes + shared_bytes(job) + scratch_bytes()
    assert tile.nbytes <= 4 * N * slab_plan_module.tile_elements(N)
    assert plan.needed_bytes == real + WORKERS * 4 * N * slab_plan_module.tile_elements(N)
    assert slab.stored.nbytes == np.dtype(dtype).itemsize * N * size


def test_a_tile_and_its_copy_for_the_file_are_counted() -> None:
    tile = 4 * slab_plan_module.OUTPUT_MAPS * 1000 * 1000 * 3
    assert slab_plan_module.stack_bytes(1, n_frames=2, height=1000, width=1000, channels=3) == 2 * tile


def measured(program: str, *arguments: Path) -> list[int]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


PEAK = """
from pathlib import Path
def peak_of(work):
    from zemosaic_phase3.runtime.limits import current_rss_bytes
    before = current_rss_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    work()
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 - before
"""


@linux_only
@pytest.mark.parametrize("reject", ["winsorized_sigma_clip", "linear_fit_clip"])
def test_kernels_take_no_more_than_is_counted_for_them(reject: str) -> None:
    """20,000 frames of 96 pixels: beside the samples themselves only the kernel's own memory shows."""
    program = f"""{PEAK}
import numpy as np
import zemosaic_phase3.app.bench as bench
from zemosaic_phase3.spec import StackSpec
spec = StackSpec(normalize="none", weight="none", reject="{reject}", line_fit="ols")
def combine_of(n):
    cube = np.random.default_rng(0).normal(1000.0, 30.0, (n, 8, 12)).astype(np.float32)
    return bench.combiner(bench.array_job(cube, spec), cube, 1)
combine_of(5)()  # compiles
work = combine_of(20_000)
print(peak_of(work))
"""
    (grown,) = measured(program)
    counted = 20_000 * (
        slab_plan_module.KERNEL_PIXELS * slab_plan_module.KERNEL_SAMPLE_BYTES + slab_plan_module.FRAME_BYTES
    )
    assert grown < counted + (8 << 20)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give freed memory back, or cannot")
def test_freed_memory_goes_back() -> None:
    blocks = [np.ones(100_000, np.uint8) for _ in range(2000)]
    kept = blocks[::100]  # between the others, so that the C library keeps those when they are freed
    del blocks
    before = limits.current_rss_bytes()
    limits.give_back_freed_memory()
    assert limits.current_rss_bytes() < before - 100_000_000
    assert all(block[0] == 1 for block in kept)


@linux_only
def test_the_process_keeps_to_its_memory(tmp_path: Path) -> None:
    """80 frames of 500 x 800 x 3, 192 MB as 16 bit: nothing but the limit keeps a slab from taking them all."""
    frame = np.random.default_rng(0).integers(900, 1100, (500, 800, 3)).astype(np.uint16)
    np.save(tmp_path / "f.npy", frame)
    for i in range(79):
        (tmp_path / f"f{i}.npy").hardlink_to(tmp_path / "f.npy")  # a link to follow would be the same file
    limit = limits.PROCESS_BYTES + 60_000_000
    options = "--register none --normalize none --weight none --reject none --preview none --maps --quiet --workers 2"
    command = ["-o", str(tmp_path / "o.fits"), *options.split(), "--overwrite", "--memory"]
    program = f"""
import sys
from zemosaic_phase3.app import cli
from zemosaic_phase3.engine import cpu
from zemosaic_phase3.runtime import limits
cpu.SLAB_BYTES = 1 << 40
status = cli.main(["stack", sys.argv[1], *{command!r}, "{limit}"])
print(status, limits.peak_rss_bytes())
"""
    measured(program, tmp_path)  # compiles what is not in the cache yet
    status, peak = measured(program, tmp_path)
    assert status == 0
    assert peak < limit

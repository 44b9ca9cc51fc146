"""Rows into buffers: whatever the frames are, however many threads and buffers, each byte is where it belongs."""

from __future__ import annotations

import os
import time
from functools import partial

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.engine import gpu_gather
from zemosaic_phase3.engine.gpu_plan import cut, plan_gpu, route_of
from zemosaic_phase3.engine.job import make_job
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.runtime.threads import Crew
from zemosaic_phase3.spec import StackSpec


def job_of(descriptors):
    return make_job([Frame(open_source(d)) for d in descriptors], StackSpec(normalize="none", weight="none"))


def arrays(n=7, shape=(23, 19, 3), dtype=np.float32, seed=0):
    return list(np.random.default_rng(seed).integers(0, 4000, (n, *shape)).astype(dtype))


def check(job, kind, *, rows=5, buffers=3, workers=2, slow=False):
    """Gather a job and compare every row in every buffer with what ``read_rows`` gives."""
    route = route_of(job)
    plan = plan_gpu(route, allowed_bytes=1 << 40, max_rows=rows)
    memory = [np.zeros(plan.batch_bytes + 64, np.uint8)[1 : 1 + plan.batch_bytes] for _ in range(buffers)]
    seen, released = 0, 0
    with gpu_gather.gatherer_of(job, route, partial(cut, job, route, plan), memory, workers) as gatherer:
        assert type(gatherer) is kind
        for number, slab, batch in gatherer.filled():
            for i in range(batch.first, batch.last):
                row, size = slab.frames[i], slab.sizes[i]
                top, height = row["raw_first"], row["raw_rows"]
                found = memory[number % buffers][row["raw_at"] : row["raw_at"] + size]
                source = job.sources[i]
                expected = np.empty(size, np.uint8)
                if route.wires[i].is_raw:
                    source.read_raw(int(top), int(top + height), expected)
                else:
                    expected[:] = source.read_rows(int(top), int(top + height)).reshape(-1).view(np.uint8)
                np.testing.assert_array_equal(found, expected)
                seen += int(height)
            if slow:
                time.sleep(0.01)
            if number - released == buffers - 1:  # hold them as long as may be
                gatherer.release()
                released += 1
    assert seen == job.shape[0] * len(job.sources)
    assert not Crew.at_work()


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("workers", [1, 5])
def test_arrays(workers, slow):
    check(job_of(arrays()), gpu_gather.MemoryGatherer, workers=workers, slow=slow)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 9), rows=st.integers(1, 30), buffers=st.integers(2, 5), workers=st.integers(1, 4))
def test_any_number_of_everything(n, rows, buffers, workers):
    frames = arrays(n, (17, 13), np.uint16)
    check(job_of(frames), gpu_gather.MemoryGatherer, rows=rows, buffers=buffers, workers=workers)


def test_arrays_that_are_not_contiguous_are_gathered_frame_by_frame():
    frames = [a[::2, 1:-1] for a in arrays(shape=(40, 21, 3))]
    check(job_of(frames), gpu_gather.FileGatherer)


@pytest.fixture
def files(tmp_path):
    """Frames of one shape as plain ``.npy``, as FITS planes, and as FITS that has to be decoded."""
    made: dict[str, list] = {"npy": [], "planes": [], "scaled": []}
    for i, frame in enumerate(arrays(5, dtype=np.int16)):
        np.save(tmp_path / f"{i}.npy", frame.astype(np.float32))
        fits.writeto(tmp_path / f"{i}.fits", np.moveaxis(frame, 2, 0))
        header = fits.Header({"BLANK": 5})
        fits.writeto(tmp_path / f"scaled{i}.fits", np.moveaxis(frame, 2, 0), header)
        made["npy"].append(tmp_path / f"{i}.npy")
        made["planes"].append(tmp_path / f"{i}.fits")
        made["scaled"].append(tmp_path / f"scaled{i}.fits")
    return made


POSIX = pytest.mark.skipif(not hasattr(os, "preadv"), reason="files are read so on POSIX systems only")


@POSIX
@pytest.mark.parametrize("kind", ["npy", "planes"])
def test_plain_files(files, kind):
    check(job_of(files[kind]), gpu_gather.PosixGatherer, workers=3)


def test_other_files_and_mixtures(files):
    check(job_of(files["scaled"]), gpu_gather.FileGatherer)
    check(job_of([*files["npy"], *files["scaled"], *arrays(2)]), gpu_gather.FileGatherer)


def test_plain_files_where_there_is_no_preadv(files, monkeypatch):
    monkeypatch.delattr(os, "preadv", raising=False)
    check(job_of(files["planes"]), gpu_gather.FileGatherer)


@pytest.mark.parametrize("end", ["cut", "other", "gone"])
def test_a_file_that_goes_names_itself(files, end):
    job = job_of(files["npy"])
    victim = files["npy"][3]
    if end == "cut":
        victim.write_bytes(victim.read_bytes()[:2000])
    elif end == "other":  # a whole file of the same size
        victim.write_bytes(files["npy"][4].read_bytes())
    else:
        victim.unlink()
    with pytest.raises(FrameError, match="no such file" if end == "gone" else "written or replaced") as caught:
        check(job, gpu_gather.PosixGatherer if hasattr(os, "preadv") else gpu_gather.FileGatherer)
    assert caught.value.name == str(victim)
    assert not Crew.at_work()


def test_leaving_early_ends_the_threads():
    job = job_of(arrays(30))
    route = route_of(job)
    plan = plan_gpu(route, allowed_bytes=1 << 40, max_rows=1)
    memory = [np.zeros(plan.batch_bytes, np.uint8) for _ in range(2)]
    slabs = partial(cut, job, route, plan)
    with pytest.raises(KeyboardInterrupt), gpu_gather.gatherer_of(job, route, slabs, memory, 3) as gatherer:
        for _ in gatherer.filled():
            raise KeyboardInterrupt
    assert not Crew.at_work()

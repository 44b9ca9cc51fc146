"""Stored pixels become samples: every layout against its plain meaning, tile by tile against the whole."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.cpu import stack
from zemosaic_phase3.engine.job import Job, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.engine.slab import (
    SampleSlab,
    StoredSlab,
    expect_slab,
    fill_samples,
    frame_block,
    slab_for,
    stored_layout,
)
from zemosaic_phase3.engine.slab_plan import tile_elements
from zemosaic_phase3.io.codec import RawLayout
from zemosaic_phase3.io.frame import Frame, FrameSource
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.resample import decode
from zemosaic_phase3.spec import StackSpec

HEIGHT, WIDTH, N = 13, 40, 5
PLAIN = StackSpec(normalize="none", weight="none", reject="none")
LAYOUTS = [
    RawLayout(np.dtype(code), flipped, planar)
    for (code, flipped), planar in itertools.product(
        [("<u2", False), (">u2", False), ("<i2", False), (">i2", False), (">i2", True), ("<f4", False), (">f4", False)],
        [False, True],
    )
]


def meaning(raw: np.ndarray, layout: RawLayout, channels: int) -> np.ndarray:
    """Samples (N, pixels, C) float64 that stored numbers (N, pixels * C) stand for; not finite is NaN."""
    values = raw.astype(np.float64) + (32768.0 if layout.flipped else 0.0)
    if layout.planar:
        values = np.moveaxis(values.reshape(len(raw), channels, -1), 1, -1)
    values = values.reshape(len(raw), -1, channels)
    return np.where(np.isfinite(values), values, np.nan)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_stored_numbers_mean_what_the_file_says(
    layout: RawLayout, channels: int, compiled: bool, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    if not compiled:
        for name in ("open_words", "open_floats", "_number", "_swap_bytes", "_finite"):
            monkeypatch.setattr(decode, name, getattr(getattr(decode, name), "py_func", getattr(decode, name)))
    pixels = 7
    if layout.dtype.kind == "f":
        raw = rng.normal(1000.0, 300.0, (3, pixels * channels)).astype(layout.dtype)
        raw[0, 1], raw[1, 2], raw[2, 3] = np.nan, np.inf, -np.inf
    else:
        limits = np.iinfo(layout.dtype)
        raw = rng.integers(limits.min, limits.max, (3, pixels * channels), endpoint=True).astype(layout.dtype)
        raw[0, :2] = limits.min, limits.max
    scale, offset = rng.uniform(0.5, 2.0, (3, channels)), rng.uniform(-50.0, 50.0, (3, channels))
    scale[2], offset[2] = 1.0, 0.0
    whole = meaning(raw, layout, channels)
    expected = (whole * scale[:, None] + offset[:, None]).astype(np.float32)
    np.testing.assert_array_equal(expected[2], whole[2].astype(np.float32))
    for first, stop in ((0, pixels), (0, 3), (3, 5), (5, 6), (6, pixels)):
        # what is opened is used up, so every part starts from a copy
        stored = np.ascontiguousarray(raw).view(np.uint8).copy()
        out = np.empty((3, (stop - first) * channels), np.float32)
        with np.errstate(invalid="ignore"):  # infinity less infinity, in Python
            decode.open_raw(stored, layout, first, scale, offset, out)
        np.testing.assert_array_equal(out.reshape(3, -1, channels), expected[:, first:stop])


def save(folder: Path, kind: str, i: int, pixels: np.ndarray) -> object:
    """One frame (H, W) or (H, W, 3) as the kind says."""
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) if pixels.ndim == 3 else pixels
    path = folder / f"{kind.replace(' ', '_')}_{i}{'.npy' if 'npy' in kind else '.fits'}"
    counts = np.clip(np.rint(np.nan_to_num(planes, nan=0.0)), 0, 60000)
    if kind == "array":
        return pixels.astype(np.float32)
    if kind == "array of counts":
        return np.rint(np.nan_to_num(pixels)).astype(np.uint16)
    if kind == "npy":
        np.save(path, pixels.astype(np.float32))
    elif kind == "npy columns":
        np.save(path, np.asfortranarray(pixels.astype(np.float32)))
    elif kind == "fits f32":
        fits.PrimaryHDU(planes.astype(np.float32)).writeto(path)
    elif kind == "fits u16":
        fits.PrimaryHDU(counts.astype(np.uint16)).writeto(path)
    elif kind == "fits i16":
        fits.PrimaryHDU(np.minimum(counts, 32767).astype(np.int16)).writeto(path)
    elif kind == "fits i32":
        fits.PrimaryHDU(counts.astype(np.int32)).writeto(path)
    return path


KINDS = {
    "array": True, "array of counts": True, "npy": True, "npy columns": False, "fits f32": True, "fits u16": True,
    "fits i16": True, "fits i32": False,
}  # fmt: skip


def frames_of(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    frames = rng.normal(1000.0, 30.0, (N, *shape)).astype(np.float32)
    frames[1, 2, 3] = np.nan
    frames[2, 4, 5] = 9000.0
    return frames


def job_of(sources: list[FrameSource], spec: StackSpec = PLAIN) -> Job:
    job = make_job([Frame(source) for source in sources], spec)
    rng = np.random.default_rng(5)
    job.table.scale[:] = rng.uniform(0.9, 1.1, job.table.scale.shape)
    job.table.offset[:] = rng.uniform(-5.0, 5.0, job.table.offset.shape)
    return job


def same(a: object, b: object) -> None:
    for name in ("image", "coverage", "weight", "rejected_low", "rejected_high", "frame_counts"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reject", ["none", "sigma_clip", "linear_fit_clip"])
def test_frames_stored_in_any_way_give_the_same_stack(
    tmp_path: Path, kind: str, shape: tuple[int, ...], reject: str, rng: np.random.Generator
) -> None:
    spec = StackSpec(normalize="none", weight="none", reject=reject)
    sources = [open_source(save(tmp_path, kind, i, frame)) for i, frame in enumerate(frames_of(shape, rng))]
    job = job_of(sources, spec)
    assert (stored_layout(job) is not None) == KINDS[kind]
    # float64 arrays are no layout of ours, so these go by way of samples
    plain = job_of([open_source(s.read_rows(0, HEIGHT).astype(np.float64)) for s in sources], spec)
    assert stored_layout(plain) is None
    expected = stack(plain, Resources(memory=1 << 30))
    for workers, max_rows in ((1, None), (2, 1), (3, 5)):
        same(stack(job, Resources(workers=workers, rows=max_rows, memory=1 << 30)), expected)


def test_frames_that_must_be_resampled_or_differ_do_not_stay_stored(tmp_path: Path, rng: np.random.Generator) -> None:
    frames = frames_of((HEIGHT, WIDTH), rng)
    counts = [open_source(save(tmp_path, "fits u16", i, frame)) for i, frame in enumerate(frames)]
    floats = [open_source(save(tmp_path, "fits f32", i, frame)) for i, frame in enumerate(frames)]
    assert isinstance(slab_for(job_of(counts), 3), StoredSlab)
    assert isinstance(slab_for(job_of([*counts[:-1], floats[-1]]), 3), SampleSlab)
    assert stored_layout(job_of(counts, StackSpec(normalize="none", weight="none", radial_weight=True))) is None
    mosaics = [open_source(save(tmp_path, "fits i16", i, frame), bayer="RGGB") for i, frame in enumerate(frames)]
    assert stored_layout(job_of(mosaics)) is None
    shifted = job_of(counts)
    shifted.table.transform[1, 0, 2] = 0.5
    assert stored_layout(shifted) is None


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, HEIGHT * WIDTH - 1), stop=st.integers(1, HEIGHT * WIDTH), data=st.data())
def test_pieces_hold_every_element_once(start: int, stop: int, data: st.DataObject) -> None:
    start, stop = min(start, stop - 1), max(start + 1, stop)
    frames = np.arange(N * HEIGHT * WIDTH, dtype=np.uint16).reshape(N, HEIGHT, WIDTH)
    job = make_job([Frame(open_source(frame)) for frame in frames], PLAIN)
    slab = slab_for(job, HEIGHT)
    for i in range(N):
        slab.fill(i)
    seen = []
    for piece in slab.pieces(start, stop):
        assert piece.cube.flags.c_contiguous
        seen.append(piece.cube[:, piece.start : piece.stop].copy())
        assert piece.offset + piece.start == start + sum(s.shape[1] for s in seen[:-1])
    np.testing.assert_array_equal(np.concatenate(seen, axis=1), frames.reshape(N, -1)[:, start:stop])


@pytest.mark.parametrize("n_frames", [1, 7, 200, 10_000, 1_000_000])
def test_a_tile_is_whole_blocks_of_the_kernel_and_fits_the_caches(n_frames: int) -> None:
    assert tile_elements(n_frames) % 96 == 0
    assert 4 * n_frames * tile_elements(n_frames) <= max(4 << 20, 4 * n_frames * 96)


def test_a_mosaic_in_place_is_normalised_after_it_is_demosaiced(rng: np.random.Generator) -> None:
    mosaic = rng.integers(900, 1100, (HEIGHT, WIDTH)).astype(np.uint16)
    job = job_of([open_source(mosaic, bayer="GRBG")])
    out = np.empty(3 * HEIGHT * WIDTH, np.float32)
    fill_samples(job, 0, slice(0, HEIGHT), out, np.empty(0, np.float32))
    block = frame_block(job.sources[0], 0, HEIGHT)[: out.size].reshape(-1, 3)
    expected = (block * job.table.scale[0] + job.table.offset[0]).astype(np.float32)
    np.testing.assert_array_equal(out.reshape(-1, 3), expected)


def test_smooth_interpolation_smooths_a_frame_in_place_too(rng: np.random.Generator) -> None:
    pixels = rng.normal(1000.0, 30.0, (HEIGHT, WIDTH)).astype(np.float32)
    job = job_of([open_source(pixels)], replace(PLAIN, interpolation="smooth"))
    assert not job.table.in_place.any() and stored_layout(job) is None
    out = np.empty(HEIGHT * WIDTH, np.float32)
    fill_samples(job, 0, slice(0, HEIGHT), out, np.empty(0, np.float32))
    taps = (0.1, 0.8, 0.1)  # B / 6 on both sides of 1 - B / 3, B = 3/5
    padded = np.pad(pixels.astype(np.float64), 1, mode="edge")
    down = sum(t * padded[k : k + HEIGHT] for k, t in enumerate(taps))
    expected = sum(t * down[:, k : k + WIDTH] for k, t in enumerate(taps))
    expected = expected * job.table.scale[0, 0] + job.table.offset[0, 0]
    np.testing.assert_allclose(out.reshape(HEIGHT, WIDTH), expected, rtol=1e-6)


def _planar_files(folder: Path, rng: np.random.Generator) -> list[Path]:
    paths = [folder / f"f{i}.fits" for i in range(3)]
    for path in paths:
        fits.writeto(path, rng.integers(0, 60000, (3, HEIGHT, WIDTH)).astype(np.uint16))
    return paths


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such hint")
def test_the_rows_of_the_next_slab_are_asked_for_plane_by_plane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: asked.append((start, size)))
    paths = _planar_files(tmp_path, rng)
    down = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 4.0], [0.0, 0.0, 1.0]])
    frames = [Frame(open_source(paths[0])), Frame(open_source(paths[1]), down), Frame(open_source(paths[2]))]
    job = make_job(frames, PLAIN)
    paths[2].unlink()  # a hint cannot fail
    expect_slab(job, slice(5, 7))
    place = job.sources[0].raw_file
    assert place is not None
    starts = [place.offset + plane * place.plane_bytes for plane in range(3)]
    assert asked[:3] == [(start + 5 * place.row_bytes, 2 * place.row_bytes) for start in starts]
    assert len(asked) == 6
    for (start, size), plane in zip(asked[3:], starts, strict=True):
        assert start <= plane + 9 * place.row_bytes
        assert start + size >= plane + 11 * place.row_bytes


@pytest.mark.parametrize("share", [0.0, 2.0])  # never, and after every slab but the last
def test_reading_ahead_changes_nothing(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    expected: list[slice] = []
    monkeypatch.setattr(cpu, "WAITING_SHARE", share)
    monkeypatch.setattr(cpu, "expect_slab", lambda _, rows: expected.append(rows))
    paths = _planar_files(tmp_path, rng)
    result = stack(make_job([Frame(open_source(path)) for path in paths], PLAIN), Resources(workers=2, rows=5))
    mean = np.mean([fits.getdata(path).astype(np.float64) for path in paths], axis=0)
    np.testing.assert_array_equal(result.image, np.moveaxis(mean, 0, -1).astype(np.float32))
    assert expected == ([slice(5, 10), slice(10, 13)] if share else [])

"""Clipped samples where other frames are not clipped (``photometry.clipped``)."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.photometry.clipped import UnclippedSource, clipping, saturation_level, unclipped_sources
from zemosaic_phase3.photometry.levels import measure_levels
from zemosaic_phase3.pipeline.samples import clip_levels, look_over
from zemosaic_phase3.records import FrameStats, FrameTable


def levels_that_clip(image: np.ndarray, saturate: object = None, cfa: str | None = None) -> np.ndarray:
    return clip_levels(look_over(image.astype(np.float32), cfa), saturate, cfa)


def frame(gain: float, seed: int, shape: tuple[int, int] = (60, 80), top: float = 65535.0) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = 500.0 + 90_000.0 * np.exp(-0.5 * ((x - 30) ** 2 + (y - 25) ** 2) / 4.0)
    noise = np.random.default_rng(seed).normal(0.0, 10.0, shape)
    return np.clip(np.round(gain * image + noise), 0, top).astype(np.uint16)


def prepared(gains: list[float], top: float = 65535.0) -> tuple[list, list[FrameStats], FrameTable]:
    from dataclasses import replace

    images = [frame(gain, k, top=top) for k, gain in enumerate(gains)]
    stats = [
        replace(measure_levels(image[:, :, None].astype(np.float32)), clip=levels_that_clip(image)) for image in images
    ]
    n = len(gains)
    table = FrameTable(
        [f"{k}" for k in range(n)], np.stack([np.eye(3)] * n), np.array([[1.0 / gain] for gain in gains]),
        np.zeros((n, 1)), np.ones((n, 1)),
    )  # fmt: skip
    return [open_source(image) for image in images], stats, table


@pytest.mark.parametrize("top", [65535.0, 65520.0, 60000.0])
def test_frames_that_clip_lower_leave_the_place_to_the_others(top: float) -> None:
    sources, stats, table = prepared([1.0, 0.3, 1.0, 0.3], top)
    assert [s.clip[0] for s in stats] == [top, np.inf, top, np.inf]
    found, notes = unclipped_sources(sources, stats, table)
    assert [isinstance(source, UnclippedSource) for source in found] == [True, False, True, False]
    assert "2 of 4 frames" in notes[0]
    whole = found[0].read_rows(0, 60)
    clipped = sources[0].read_rows(0, 60) == top
    assert np.isnan(whole[clipped]).all()
    assert np.count_nonzero(np.isnan(whole)) < 4 * clipped.sum()
    np.testing.assert_array_equal(whole[np.isfinite(whole)], sources[0].read_rows(0, 60)[np.isfinite(whole)])
    for y0, y1 in ((0, 21), (21, 24), (24, 25), (25, 60)):
        np.testing.assert_array_equal(found[0].read_rows(y0, y1), whole[y0:y1])
    assert saturation_level(found, stats, table) == np.inf


def test_frames_of_one_exposure_stay_as_they_are() -> None:
    """Air that is clearer by a quarter is no reason to leave stars to the hazy frames."""
    sources, stats, table = prepared([1.0, 0.8, 1.1])
    found, notes = unclipped_sources(sources, stats, table)
    assert found is sources
    assert notes == []
    assert saturation_level(found, stats, table) == pytest.approx(65535.0 / 1.1)


def test_a_place_that_no_other_frame_shows_keeps_its_samples() -> None:
    sources, stats, table = prepared([1.0, 0.3])
    table.transform[1] = np.array([[1.0, 0.0, -40.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # its left border is at x = 40
    found, _ = unclipped_sources(sources, stats, table)
    np.testing.assert_array_equal(found[0].read_rows(0, 60), sources[0].read_rows(0, 60))


def test_a_level_that_clips_is_repeated_by_neighbours() -> None:
    image = frame(0.3, 0)
    assert levels_that_clip(image)[0] == np.inf
    rng = np.random.default_rng(5)
    image[rng.integers(0, 60, 30), rng.integers(0, 80, 30)] = 40_000  # single hot pixels, alike
    assert levels_that_clip(image)[0] == np.inf
    assert levels_that_clip(image, 26_000.0)[0] == 26_000.0  # the header says so, and pixels reach it
    assert levels_that_clip(image, "no number")[0] == np.inf
    assert levels_that_clip(frame(1.0, 0), None, "RGGB").tolist() == [65535.0] * 3
    colour = np.stack([frame(1.0, 0), frame(0.3, 0), frame(1.0, 0) // 2], axis=2).astype(np.float32)
    colour[0, 0] = np.nan
    assert levels_that_clip(colour).tolist() == [65535.0, np.inf, 32767.0]


def test_a_frame_without_clipped_samples_would_clip_where_the_others_do() -> None:
    _, stats, table = prepared([1.0, 0.3, 0.7])
    assert clipping(stats, table).headroom == pytest.approx(65535.0 / np.array([1.0, 0.3, 0.7]))
    table.scale[1] = 65535.0  # of another unit
    assert clipping(stats, table).headroom[1] == 0.0

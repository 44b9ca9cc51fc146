"""What becomes of a stack whose frames hold filler, clipped, wrapped, cut off or too large numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from pipeline_case import paths, sessions  # noqa: F401 - fixtures: simulated sessions and the files of the grey one

from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, StackSpec
from zemosaic_worker import stack_files

PLAIN = StackSpec(reject="none")


def images_of(files: list[Path]) -> list[np.ndarray]:
    return [fits.getdata(path) for path in files]


def stacked(images: list[np.ndarray], folder: Path | None = None, **keywords: Any) -> Tile:
    frames: list[Any] = [{"data": image, "name": f"{k}.fits"} for k, image in enumerate(images)]
    if folder is not None:
        folder.mkdir(exist_ok=True)
        for k, image in enumerate(images):
            fits.PrimaryHDU(image).writeto(folder / f"{k}.fits", overwrite=True)
        frames = [folder / f"{k}.fits" for k in range(len(images))]
    return stack_files(frames, **{"device": "cpu", "workers": 1, "stack": PLAIN, **keywords})


def note(tile: Tile, beginning: str) -> str:
    return next((text for text in tile.report.warnings if text.startswith(beginning)), "")


@pytest.mark.parametrize("value", [0, 65535])
def test_filler_is_no_data_whatever_is_stacked(paths: list[Path], tmp_path: Path, value: int) -> None:  # noqa: F811
    images = images_of(paths)
    true = stacked(images, reference="0.fits")
    for k, image in enumerate(images):
        if k:
            image[:, : 10 * k] = value
    tile = stacked(images, tmp_path / "in", reference="0.fits")
    assert tile.report.n_used == 5
    assert "4 of the frames have areas of one exact number" in note(tile, "filler")
    weights = [[row.weight[0] for row in found.rows] for found in (tile, true)]
    np.testing.assert_allclose(weights[0], weights[1], rtol=0.05)
    left, whole = tile.image[8:-8, 5:15], true.image[8:-8, 5:15]
    assert np.nanmedian(left) == pytest.approx(np.nanmedian(whole), abs=5.0)
    assert tile.maps["COVERAGE"][40:-40, 3:20].max() <= 3
    again = stacked(images, tmp_path / "in", reference="0.fits", workers=2, memory="2GB")
    np.testing.assert_array_equal(again.image, tile.image)


def test_filler_of_frames_that_are_registered_and_matched_already(paths: list[Path]) -> None:  # noqa: F811
    images = [images_of(paths)[0].copy() for _ in range(3)]
    images[1][:, :60] = images[2][100:] = 0
    stack = StackSpec(reject="none", normalize="none", weight="none")
    tile = stacked(images, stack=stack, register=RegisterSpec(mode="none"))
    np.testing.assert_allclose(tile.image, images[0], rtol=1e-6)
    assert tile.maps["COVERAGE"][120, 30] == 1


def test_shorter_exposures_decide_where_longer_ones_are_clipped(paths: list[Path]) -> None:  # noqa: F811
    true = [image.astype(np.float64) - 400.0 for image in images_of(paths)]
    brightest = np.sort(true[0].ravel())[-40]
    gain = 65135.0 / brightest
    scale = [gain if k % 2 else gain / 3.0 for k in range(5)]
    images = [
        np.clip(np.round(g * image + 400.0), 0, 65535).astype(np.uint16) for g, image in zip(scale, true, strict=True)
    ]
    reference = "1.fits"
    tile, whole = stacked(images, reference=reference), stacked([(gain * t + 400.0).astype(np.float32) for t in true],
                                                               reference=reference)  # fmt: skip
    clipped = images[1] == 65535
    assert clipped.sum() > 20
    assert "2 of 5 frames count as no data" in note(tile, "clipped")
    ratio = (tile.image[clipped] - 400.0) / (whole.image[clipped] - 400.0)
    assert np.abs(np.median(ratio) - 1.0) < 0.02
    # What is clipped in the short ones too is so at three times the level.
    assert tile.header.get("SATURATE", 3.0 * 65135.0) == pytest.approx(3.0 * 65135.0, rel=0.1)
    alone = stacked(images[1::2])
    assert alone.header["SATURATE"] == pytest.approx(65535.0, rel=0.03)
    assert alone.report.saturated_pixels > 5
    assert note(alone, "clipped") == ""


def test_wrapped_numbers_are_unwrapped_and_said(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811
    images = images_of(paths)
    factor = 50_000.0 / max(float(image.max()) for image in images)
    true = [np.round(image * factor).astype(np.uint16) for image in images]
    tile = stacked([image.view(np.int16) for image in true], tmp_path / "in", stack=StackSpec())
    right = stacked(true, stack=StackSpec())
    assert "65536 was added" in note(tile, "wrapped")
    np.testing.assert_allclose(tile.image, right.image, rtol=1e-3, atol=1.0)


def test_a_cut_off_sky_is_not_biased_by_rejection(paths: list[Path]) -> None:  # noqa: F811
    images = [image.astype(np.float64) for image in images_of(paths)]
    sky = float(np.median(images[0]))
    true = stacked([(image - sky).astype(np.float32) for image in images], stack=StackSpec())
    tile = stacked([np.clip(np.round(image - sky), 0, 65535).astype(np.uint16) for image in images], stack=StackSpec())
    assert "have the lowest number" in note(tile, "cut off")
    assert np.nanmedian(tile.image) == pytest.approx(np.nanmedian(true.image), abs=3.0)
    assert tile.report.noise_after[0] == pytest.approx(true.report.noise_after[0], rel=0.15)
    assert tile.report.rejected_high_percent[0] < 8.0  # 15 and more without


def test_a_saturated_frame_is_left_out_before_it_is_reference(paths: list[Path]) -> None:  # noqa: F811
    images = images_of(paths)
    for k in (0, 2):
        images[k] = np.where(images[k] > np.percentile(images[k], 55), 65535, images[k]).astype(np.uint16)
    tile = stacked(images)
    assert tile.report.n_used == 3
    assert all("% of its samples have its highest number, 65535" in reason for _, reason in tile.report.dropped)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int64])
def test_numbers_beyond_float32_are_refused_with_the_step(paths: list[Path], tmp_path: Path, dtype: Any) -> None:  # noqa: F811
    offset = 1_000_000_000
    with pytest.raises(NoFramesError, match=r"lie about 1e\+09.*are 64 ADU apart.*subtract a constant"):
        stacked([image.astype(dtype) + offset for image in images_of(paths)], tmp_path / "in")
    tile = stacked([image.astype(dtype) + 100_000 for image in images_of(paths)], tmp_path / "in")
    assert tile.report.n_used == 5


def test_a_journal_keeps_what_was_put_right(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811
    images = images_of(paths)
    images[1][:, :30] = images[3][100:] = 0
    output, cache = tmp_path / "out.fits", tmp_path / "cache"
    cache.mkdir()
    first = stacked(images, tmp_path / "in", output=output, cache=cache)
    frames = [tmp_path / "in" / f"{k}.fits" for k in range(5)]
    second = stack_files(frames, output, overwrite=True, device="cpu", workers=1, stack=PLAIN, cache=cache)
    assert second.report.resumed.measured == 5
    np.testing.assert_array_equal(first.image, second.image)
    assert note(second, "filler") == note(first, "filler") != ""


def dark_file(folder: Path, like: np.ndarray) -> Path:
    current = np.random.default_rng(7).normal(40.0, 6.0, like.shape)
    fits.PrimaryHDU(current.astype(np.float32), fits.Header({"IMAGETYP": "Master Dark"})).writeto(folder / "dark.fits")
    return folder / "dark.fits"


def test_filler_is_known_before_a_dark_is_subtracted(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811
    images = images_of(paths)
    calibration = CalibrationSpec(dark=(str(dark_file(tmp_path, images[0])),))
    for k, image in enumerate(images):
        if k:
            image[:, : 10 * k] = 0
    output = tmp_path / "out.fits"
    tile = stacked(images, tmp_path / "in", output=output, calibration=calibration)
    assert tile.report.n_used == 5
    assert "4 of the frames have areas of one exact number (0)" in note(tile, "filler")
    assert tile.maps["COVERAGE"][40:-40, 3:20].max() <= 3
    frames = [tmp_path / "in" / f"{k}.fits" for k in range(5)]
    keywords = {"device": "cpu", "workers": 2, "stack": PLAIN, "calibration": calibration}
    again = stack_files(frames, output, overwrite=True, **keywords)
    assert again.report.resumed.measured == 5
    np.testing.assert_array_equal(again.image, tile.image)


def test_a_saturated_frame_is_known_before_a_dark_is_subtracted(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811
    images = images_of(paths)
    calibration = CalibrationSpec(dark=(str(dark_file(tmp_path, images[0])),))
    images[2] = np.where(images[2] > np.percentile(images[2], 55), 65535, images[2]).astype(np.uint16)
    images[3][:] = 65535
    reasons = dict(stacked(images, tmp_path / "in", calibration=calibration).report.dropped)
    assert len(reasons) == 2
    assert "% of its samples have its highest number, 65535" in reasons[str(tmp_path / "in" / "2.fits")]
    assert "every pixel is 65535" in reasons[str(tmp_path / "in" / "3.fits")]

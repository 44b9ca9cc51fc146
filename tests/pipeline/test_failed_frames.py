"""Tests of ``pipeline.failed_frames``: mirrored frames are used, others fail with the true reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from cells_case import SIGMA, save

from zemosaic_phase3.pipeline.failed_frames import review_failures
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.registering import register_group
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.spec import RegisterSpec, StackSpec

SHAPE = (200, 280)
AUTO = RegisterSpec()
COPIED = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 140.5, "CRPIX2": 100.5, "CRVAL1": 10.68, "CRVAL2": 41.27,
    "CD1_1": -6.6e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 6.6e-4,
}  # fmt: skip


def sky(seed: int = 3, n: int = 500, margin: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((n, 2)) * [280 + 2 * margin, 200 + 2 * margin] - margin, 4000 + 60000 * rng.random(n) ** 3


def frame(stars: tuple[np.ndarray, np.ndarray], move: tuple[float, float], seed: int, scale: float = 1.0) -> np.ndarray:
    """An exposure of the sky moved by (x, y) px."""
    middle = np.array([139.5, 99.5])
    at = (stars[0] - middle) * scale + middle + move
    across = np.exp(-0.5 * ((np.arange(SHAPE[1]) - at[:, :1]) / SIGMA) ** 2)
    down = np.exp(-0.5 * ((np.arange(SHAPE[0]) - at[:, 1:]) / SIGMA) ** 2)
    image = 1000.0 + (down * (stars[1] / (2 * np.pi * SIGMA**2))[:, None]).T @ across
    return np.random.default_rng(seed).poisson(image).astype(np.float64)


def dithered(seed: int) -> tuple[float, float]:
    x, y = np.random.default_rng(seed).uniform(-6, 6, 2)
    return float(x), float(y)


def registered(paths: list[Path], **keywords: object) -> Group:
    group = open_group(paths, **keywords)
    scan_group(group, AUTO, find_stars=True, workers=2)
    register_group(group, AUTO, workers=2, review=review_failures)
    return group


def written(folder: Path, frames: list[np.ndarray], **cards: object) -> list[Path]:
    return [save(folder / f"sub_{k:02d}.fits", image, **cards) for k, image in enumerate(frames)]


def test_mirrored_frames_are_turned_and_used(tmp_path: Path) -> None:
    stars = sky()
    frames = [frame(stars, dithered(k), k) for k in range(6)]
    straight = registered(written(tmp_path, frames), reference="sub_00.fits")
    rows = straight.source(5).read_rows(20, 70)
    paths = written(tmp_path, [*frames[:4], frames[4][::-1], frames[5][::-1]])
    group = registered(paths, reference="sub_00.fits")
    assert group.usable == [0, 1, 2, 3, 4, 5]
    assert "2 of 6 frames, such as sub_04.fits, are mirrored" in group.notes[0]
    for ours, theirs in zip(group.rows, straight.rows, strict=True):
        assert ours.registration is not None
        assert theirs.registration is not None
        np.testing.assert_array_equal(ours.registration.transform, theirs.registration.transform)
    np.testing.assert_array_equal(group.source(5).read_rows(20, 70), rows)


def test_a_stack_of_turned_frames_has_the_bits_of_one_of_straight_ones(tmp_path: Path) -> None:
    stars = sky()
    frames = [frame(stars, dithered(k), k) for k in range(4)]
    images = []
    for name, turned in (("straight", []), ("mirrored", [1, 3])):
        (tmp_path / name).mkdir()
        paths = written(tmp_path / name, [f[::-1] if k in turned else f for k, f in enumerate(frames)])
        images.append(stack_files(paths, stack=StackSpec(), reference=str(paths[0]), device="cpu", resume=False).image)
    np.testing.assert_array_equal(*images)


def test_a_lie_about_the_order_of_rows_costs_nothing(tmp_path: Path) -> None:
    stars = sky()
    frames = [frame(stars, dithered(k), k) for k in range(5)]
    paths = written(tmp_path, frames, ROWORDER="TOP-DOWN")
    save(paths[4], frames[4], ROWORDER="BOTTOM-UP")
    tile = stack_files(paths, device="cpu", resume=False)
    assert tile.report.n_used == 5
    assert any("mirrored" in note for note in tile.report.warnings)


def test_another_scale_is_the_reason(tmp_path: Path) -> None:
    stars = sky(n=900)
    frames = [frame(stars, dithered(k), k, 1.0 if k < 5 else 0.625) for k in range(8)]
    paths = written(tmp_path, frames, INSTRUME="S50")
    for k in (5, 6, 7):
        save(paths[k], frames[k], INSTRUME="S30")
    group = registered(paths, reference="sub_00.fits")
    assert group.usable == [0, 1, 2, 3, 4]
    for row in group.rows[5:]:
        assert "its scale is 0.62" in row.reason
        assert "INSTRUME 'S30' beside 'S50'" in row.reason
    assert [note for note in group.notes if note.startswith("3 of 8 frames are of another scale")]


def test_fields_beyond_the_reference_are_located_through_their_neighbours(tmp_path: Path) -> None:
    stars = sky()
    frames = [frame(stars, (-45.0 * k, 5.0 * k), k) for k in range(10)]
    group = registered(written(tmp_path, frames), reference="sub_00.fits")
    last = group.rows[8].reason
    assert "no overlap with the reference" in last
    assert "362 px away (x +360, y -40)" in last
    assert any("% of the reference's field overlap" in row.reason for row in group.rows)
    assert any("3 of 10 frames do not overlap with the reference" in note for note in group.notes)


def test_another_field_is_told_as_one(tmp_path: Path) -> None:
    here, there = sky(3), sky(4)
    frames = [frame(here if k < 5 else there, dithered(k), k) for k in range(9)]
    group = registered(written(tmp_path, frames), reference="sub_00.fits")
    assert group.usable == [0, 1, 2, 3, 4]
    assert all("another field" in row.reason for row in group.rows[5:])
    assert not any(f"goes with {Path(row.name).name}" in row.reason for row in group.rows)
    assert any(note.startswith("4 of 9 frames show another field") for note in group.notes)


def test_a_wcs_far_away_is_the_reason(tmp_path: Path) -> None:
    here, there = sky(3), sky(4)
    paths = written(tmp_path, [frame(here, dithered(k), k) for k in range(4)], **COPIED)
    save(paths[3], frame(there, (0, 0), 9), **{**COPIED, "CRVAL2": 43.27})
    group = registered(paths, reference="sub_00.fits")
    assert "its WCS puts it 2.00 degrees away" in group.rows[3].reason


@pytest.mark.parametrize("n", [3, 4])
def test_a_copied_wcs_is_corrected_by_few_stars(tmp_path: Path, n: int) -> None:
    stars = np.array([[60.0, 50.0], [200.0, 70.0], [110.0, 150.0], [230.0, 160.0]])[:n], np.full(n, 40000.0)
    group = registered(written(tmp_path, [frame(stars, (2.5 * k, 0.5 * k), k) for k in range(5)], **COPIED))
    assert group.usable == [0, 1, 2, 3, 4]
    reference = group.reference
    for k, row in enumerate(group.rows):
        assert row.registration is not None
        np.testing.assert_allclose(
            row.registration.transform[:2, 2], [2.5 * (k - reference), 0.5 * (k - reference)], atol=0.2
        )
    assert any("fewer than 6 stars" in note for note in group.notes)


def test_a_copied_wcs_that_stars_deny_places_no_starless_frame(tmp_path: Path) -> None:
    stars = np.array([[60.0, 50.0], [200.0, 70.0], [110.0, 150.0]]), np.full(3, 40000.0)
    none = np.empty((0, 2)), np.empty(0)
    frames = [frame(none if k == 3 else stars, (4.0 * k, 1.0 * k), k) for k in range(5)]
    group = registered(written(tmp_path, frames, **COPIED))
    assert group.usable == [0, 1, 2, 4]
    assert "one and the same WCS" in group.rows[3].reason


def test_frames_placed_by_their_wcs_alone_are_counted(tmp_path: Path) -> None:
    none = np.empty((0, 2)), np.empty(0)
    group = registered(written(tmp_path, [frame(none, (0, 0), k) for k in range(4)], **COPIED))
    assert group.usable == [0, 1, 2, 3]
    assert any("placed by their WCS alone" in note for note in group.notes)
    assert any("one and the same WCS" in note for note in group.notes)
    paths = written(tmp_path, [frame(none, (0, 0), k) for k in range(4)])
    for k, path in enumerate(paths):
        save(path, fits.getdata(path), **{**COPIED, "CRVAL1": 10.68 + 1e-4 * k})
    group = registered(paths)
    assert [("one and the same" in note) for note in group.notes] == [False]


def test_where_nothing_fails_nothing_is_said(tmp_path: Path) -> None:
    stars = sky()
    assert registered(written(tmp_path, [frame(stars, dithered(k), k) for k in range(3)])).notes == []

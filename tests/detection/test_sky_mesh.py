"""The sky of an image on a mesh (``detection.sky_mesh``)."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.detection.sky_mesh import (
    between_cells,
    median_of_nine,
    mesh_at,
    sky_mesh,
)


def noise(shape, seed=0, level=1000.0, sigma=30.0):
    return np.random.default_rng(seed).normal(level, sigma, shape).astype(np.float32)


def test_level_and_noise_of_plain_sky():
    level, sigma = sky_mesh(noise((256, 320)), 32)
    assert level.shape == sigma.shape == (8, 10)
    # Half a percent of 30 ADU is what the median of 256 samples, and that of 80 cells, can tell.
    assert np.abs(level - 1000.0).max() < 12.0
    assert abs(level.mean() - 1000.0) < 1.0
    assert sigma.mean() == pytest.approx(30.0, rel=0.05)


def test_stars_hardly_raise_the_level():
    image = noise((256, 256))
    rng = np.random.default_rng(1)
    y, x = np.mgrid[-6:7, -6:7]
    rows, columns, peaks = rng.integers(6, 250, 120), rng.integers(6, 250, 120), rng.pareto(1.0, 120)
    for row, column, peak in zip(rows, columns, peaks, strict=True):
        image[row - 6 : row + 7, column - 6 : column + 7] += 300.0 * peak * np.exp(-0.5 * (x * x + y * y) / 1.6)
    level, sigma = sky_mesh(image, 64)
    assert np.abs(level - 1000.0).max() < 12.0
    assert np.median(sigma) == pytest.approx(30.0, rel=0.15)


def test_invalid_cells_are_said_to_be_so():
    image = noise((128, 128))
    image[:64, :64] = np.nan
    image[64:, 64:][::2] = np.inf
    level, sigma = sky_mesh(image, 64, step=1)
    np.testing.assert_array_equal(np.isnan(level), [[True, False], [False, False]])
    np.testing.assert_array_equal(np.isnan(level), np.isnan(sigma))
    assert level[1, 1] == pytest.approx(1000.0, abs=3.0)


def test_a_small_image_is_one_cell_and_a_constant_has_no_noise():
    level, sigma = sky_mesh(np.full((20, 50), 7.5, np.float32), 64)
    assert (level.item(), sigma.item()) == (7.5, 0.0)


def test_a_plane_is_interpolated_exactly_between_the_centres():
    rows, columns = np.mgrid[:4, :5]
    mesh = 100.0 + 3.0 * (16 * columns + 7.5) - 2.0 * (16 * rows + 7.5)  # value at the centres of 16 px cells
    points = np.array([[20.25, 30.75], [0.0, 0.0], [79.0, 63.0]])
    found = mesh_at(np.stack((mesh, 2 * mesh), axis=2), 16, *points.T)
    expected = 100.0 + 3.0 * np.clip(points[:, 0], 7.5, 71.5) - 2.0 * np.clip(points[:, 1], 7.5, 55.5)
    np.testing.assert_allclose(found, np.column_stack((expected, 2 * expected)))


def test_one_cell_holds_everywhere():
    first, second, share = between_cells(np.array([-5.0, 3.0, 900.0]), 8, 1)
    assert not first.any() and not second.any() and not share.any()
    assert mesh_at(np.array([[2.5]]), 8, np.array([3.0]), np.array([-7.0])) == 2.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 4)])
def test_the_median_of_nine_is_that_of_scipy(shape: tuple[int, int], rng: np.random.Generator) -> None:
    from scipy.ndimage import median_filter

    grid = rng.normal(size=shape)
    np.testing.assert_array_equal(median_of_nine(grid), median_filter(grid, 3, mode="nearest"))


def test_an_unknown_place_has_an_unknown_level():
    mesh = np.arange(12.0).reshape(3, 4)
    level = mesh_at(mesh, 32, np.array([15.5, np.nan, 47.5]), np.array([15.5, 15.5, np.nan]))
    assert level[0] == 0.0
    assert np.isnan(level[1:]).all()


@pytest.mark.parametrize("unit", [1.0, 1.0 / 65535.0])
@pytest.mark.parametrize("step", [4.0, 16.0, 64.0])
def test_the_level_of_stepped_numbers_is_between_the_steps(step: float, unit: float) -> None:
    """However the sky lies in a step, and where the numbers were divided by full scale too; noise down to a step."""
    for phase in (0.0, 0.13, 0.37, 0.5, 0.82):
        sky = 1008.0 + phase * step
        image = noise((384, 512), seed=int(10 * phase), level=sky, sigma=64.0)
        plain = np.median(sky_mesh(image, 128, 4)[0])
        stepped = (np.round(image / np.float32(step)) * np.float32(step * unit)).astype(np.float32)
        level, sigma = sky_mesh(stepped, 128, 4)
        assert np.median(level) / unit == pytest.approx(sky, abs=2.0 + abs(plain - sky))
        assert np.median(sigma) / unit == pytest.approx(64.0, rel=0.04)


def defined_sky(image: np.ndarray, cell: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Level and noise of cells of continuous numbers, as the docstring says, one cell after the other."""
    rows, columns = image.shape[0] // cell, image.shape[1] // cell
    found = np.full((2, rows, columns), np.nan)
    for y, x in np.ndindex(rows, columns):
        values = image[y * cell : (y + 1) * cell : step, x * cell : (x + 1) * cell : step].astype(float)
        samples = np.sort(values[np.isfinite(values)])
        if samples.size < 0.25 * values.size:
            continue
        low, median, high = (samples[round(share * (samples.size - 1))] for share in (0.1587, 0.5, 0.8413))
        noise = min(0.5 * (high - low), median - low)
        kept = samples[np.abs(samples - median) <= 3.0 * noise]
        mean, middle = kept.mean(), kept[kept.size // 2]
        is_plain = abs(mean - middle) < 0.3 * noise
        found[:, y, x] = 2.5 * middle - 1.5 * mean if is_plain else middle, noise
    return found[0], found[1]


@pytest.mark.parametrize(("cell", "step"), [(32, 2), (48, 1), (64, 4)])
def test_the_mesh_is_that_of_the_definition(cell: int, step: int, rng: np.random.Generator) -> None:
    image = noise((200, 260), sigma=30.0)
    image[rng.random(image.shape) < 0.03] += 700.0
    image[rng.random(image.shape) < 0.1] = np.nan
    image[:70, :130] = np.nan
    level, sigma = sky_mesh(image, cell, step)
    expected = defined_sky(image, cell, step)
    np.testing.assert_allclose(level, expected[0], rtol=1e-12)
    np.testing.assert_array_equal(sigma, expected[1])


def test_numbers_in_fine_steps_are_measured_as_they_are() -> None:
    """A step below a sixteenth of the noise changes no bit; a wider one does."""
    for sigma, is_fine in ((40.0, True), (10.0, False)):
        image = np.round(noise((256, 256), sigma=sigma))
        assert (sky_mesh(image, 64)[1] == defined_sky(image, 64, 2)[1]).all() == is_fine


def test_stars_do_not_raise_the_level_of_stepped_numbers() -> None:
    image = noise((256, 256), sigma=40.0)
    stars = np.random.default_rng(3).random(image.shape) < 0.05
    image[stars] += np.random.default_rng(4).exponential(400.0, int(stars.sum())).astype(np.float32)
    plain = np.median(sky_mesh(image, 128)[0])
    stepped = np.median(sky_mesh(np.round(image / 16) * 16, 128)[0])
    assert stepped == pytest.approx(plain, abs=1.5)

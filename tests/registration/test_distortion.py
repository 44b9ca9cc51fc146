"""Distortion fields: their arithmetic, their making from two headers, stars registered on top of them, stacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from distortion_case import SPEC, optics, seen, sky_of

from zemosaic_phase3.detection.star_finder import detect_stars
from zemosaic_phase3.engine.job import Job, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.registering import register_group
from zemosaic_phase3.registration.distortion import (
    NEGLIGIBLE,
    STEP,
    checked_fields,
    displacement,
    field_shape,
    make_field,
    nodes,
    reach,
    steepest,
)
from zemosaic_phase3.spec import RegisterSpec, StackSpec
from zemosaic_worker import stack_files

SMALL = (540, 960)


def test_a_field_is_bilinear_between_its_nodes(rng: np.random.Generator) -> None:
    height, width = 150, 201
    places = nodes(height, width)
    assert places.shape == field_shape(height, width) == (4, 5, 2)
    assert places[-1, -1].tolist() == [4 * STEP, 3 * STEP]
    bilinear = places[..., 0] * 0.01 + places[..., 1] * 0.02 + places[..., 0] * places[..., 1] * 1e-4 - 3.0
    field = make_field(np.stack([bilinear, -bilinear], axis=2))
    xy = rng.uniform(0, (width - 1, height - 1), (50, 2))
    expected = xy @ (0.01, 0.02) + xy.prod(axis=1) * 1e-4 - 3.0
    np.testing.assert_allclose(displacement(field, xy), np.column_stack([expected, -expected]), atol=1e-5)
    assert reach(field) == np.abs(field[..., 1]).max() > 0
    assert steepest(field) == pytest.approx(0.02 + 1e-4 * 4 * STEP, rel=1e-5)


def test_a_negligible_field_is_none_and_missing_nodes_are_those_beside() -> None:
    flat = np.full(field_shape(100, 100), 0.9 * NEGLIGIBLE)
    assert make_field(flat).size == 0
    assert make_field(np.full_like(flat, np.nan)).size == 0
    assert displacement(make_field(flat), np.zeros((4, 2))).tolist() == [[0.0, 0.0]] * 4
    ramp = nodes(300, 300)[..., :1] * (0.01, 0.02)
    ramp[:, 3:] = np.nan
    field = make_field(ramp)
    np.testing.assert_array_equal(field[:, 3], field[:, 2])
    assert np.isfinite(field).all()


def test_a_field_of_another_size_is_refused() -> None:
    field = np.ones(field_shape(100, 100), np.float32)
    assert checked_fields([None, None], 100, 100) == []
    assert [f.size for f in checked_fields([None, field], 100, 100)] == [0, field.size]
    with pytest.raises(SpecError, match="300 x 100"):
        checked_fields([field], 100, 300)
    with pytest.raises(SpecError, match="not finite"):
        checked_fields([field * np.nan], 100, 100)


def picture(xy: np.ndarray, flux: np.ndarray, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Draw Gaussian stars on a sky with noise."""
    image = np.random.default_rng(seed).normal(1000.0, 8.0, shape)
    for (x, y), f in zip(xy, flux, strict=True):
        x0, y0 = round(x), round(y)
        rows, columns = slice(max(y0 - 8, 0), y0 + 9), slice(max(x0 - 8, 0), x0 + 9)
        v, u = np.mgrid[rows, columns][:, : shape[0], : shape[1]]
        part = image[rows, columns]
        v, u = v[: part.shape[0], : part.shape[1]], u[: part.shape[0], : part.shape[1]]
        part += f / (2 * np.pi * 1.5**2) * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 1.5**2))
    return image.astype(np.float32)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three frames of one sky, dithered by 100 px and turned, through optics that displace corners by 5 px."""
    folder = tmp_path_factory.mktemp("bent")
    pointings = [optics(SMALL, 5.0), optics(SMALL, 5.0, (100.0, -60.0)), optics(SMALL, 5.0, (-80.0, 70.0), 12.0)]
    sky = sky_of(pointings[0], SMALL, 250, 7)
    flux = np.geomspace(2e5, 1e4, len(sky))
    for k, wcs in enumerate(pointings):
        xy, on = seen(wcs, sky, SMALL)
        fits.writeto(folder / f"{k}.fits", picture(xy[on], flux[on], SMALL, k), wcs.to_header(relax=True))
    return sorted(folder.iterdir())


def registered(paths: list[Path], spec: RegisterSpec) -> Group:
    group = open_group(paths, reference=paths[0])
    scan_group(group, spec, find_stars=spec.mode != "wcs")
    register_group(group, spec)
    return group


def job_of(group: Group, *, bent: bool = True) -> Job:
    verdicts = [row.registration for row in group.rows]
    frames = [
        Frame(group.source(i), r.transform, distortion=r.distortion if bent else None) for i, r in enumerate(verdicts)
    ]
    return make_job(frames, StackSpec(normalize="none", weight="none"))


def star_errors(job: Job, i: int) -> float:
    """Rms distance (px) of a frame's stars, on the reference grid, from the reference's."""
    from scipy.spatial import cKDTree

    from zemosaic_phase3.engine.slab import fill_samples

    images = []
    for k in (0, i):
        out = np.empty(job.shape[0] * job.shape[1], np.float32)
        fill_samples(job, k, slice(0, job.shape[0]), out, np.empty(0, np.float32))
        images.append(out.reshape(job.shape))
    ours, theirs = (detect_stars(image, SPEC) for image in images)
    bright = ours.flux > 3e4
    distance, _ = cKDTree(theirs.xy).query(ours.xy[bright], distance_upper_bound=3.0)
    found = distance[np.isfinite(distance)]
    assert found.size > 40
    return float(np.sqrt(np.mean(found**2)))


@pytest.mark.parametrize("mode", ["auto", "wcs"])
def test_frames_of_bent_optics_meet_on_the_reference_grid(
    session: list[Path], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ZeMosaicWorker")
    group = registered(session, replace(SPEC, mode=mode, transform="homography"))
    assert [row.used for row in group.rows] == [True] * 3
    assert group.rows[0].registration.distortion is None
    assert "distortion (SIP) of the headers used for 2 of 3 frames" in caplog.text
    bent, straight = job_of(group), job_of(group, bent=False)
    assert bent.table.in_place.tolist() == [True, False, False]
    assert straight.table.distortion == []
    for i in (1, 2):
        assert star_errors(bent, i) < 0.05  # of which the centroids' own noise is most
        assert star_errors(straight, i) > 0.15


def test_a_tile_is_made_with_the_distortion_of_its_frames(session: list[Path], tmp_path: Path) -> None:
    """From files to file: the stack's pixels are those of the fields, and the table says how large they were."""
    from zemosaic_phase3.engine.cpu import stack

    spec = StackSpec(normalize="none", weight="none", equalize_rgb=False)
    tile = stack_files(
        session, tmp_path / "tile.fits", stack=spec, register=SPEC, reference=str(session[0]), device="cpu", maps=True
    )
    with fits.open(tmp_path / "tile.fits") as hdus:
        largest = hdus["FRAMES"].data["DISTORT"]
        assert largest[0] == 0.0
        assert (largest[1:] > 0.2).all()
        assert WCS(hdus[0].header).sip is not None
    group = registered(session, SPEC)
    bent, straight = (
        stack(replace(job_of(group, bent=is_bent), spec=spec), Resources()).image for is_bent in (True, False)
    )
    np.testing.assert_array_equal(tile.image, bent)
    assert not np.array_equal(tile.image, straight, equal_nan=True)


def test_a_frame_that_cannot_be_read_takes_its_field_along(session: list[Path]) -> None:
    from zemosaic_phase3.engine.job import without_unreadable
    from zemosaic_phase3.errors import FrameError

    job = job_of(registered(session, replace(SPEC, mode="wcs")))
    left = without_unreadable(job, FrameError(job.sources[1].name, "gone"))
    assert [f.size for f in left.table.distortion] == [0, job.table.distortion[2].size]
    np.testing.assert_array_equal(left.table.distortion[1], job.table.distortion[2])


def test_slabs_of_bent_frames_never_show(session: list[Path]) -> None:
    from zemosaic_phase3.engine.cpu import stack

    job = job_of(registered(session, replace(SPEC, mode="wcs")))
    whole = stack(job, Resources())
    for rows in (1 << 6, 37):
        assert stack(job, Resources(rows=rows)).image.tobytes() == whole.image.tobytes()


def test_a_field_of_another_size_is_found_before_a_device_is_chosen() -> None:
    frames = [Frame(open_source(np.ones((80, 90), np.float32)), distortion=np.ones((9, 9, 2), np.float32))]
    with pytest.raises(SpecError, match="90 x 80"):
        make_job(frames, StackSpec(normalize="none", weight="none"))

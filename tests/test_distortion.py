"""Distortion fields: their arithmetic, their making from two headers, stars registered on top of them, stacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS, Sip

from zemosaic_phase3.detection.star_finder import StarList, detect_stars
from zemosaic_phase3.engine.job import Job, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.io.frame import Frame
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.group import Group, open_group, register_group, scan_group
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
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.registration.transform import transform_points
from zemosaic_phase3.registration.wcs import distortion_between, register_stars_seeded, register_wcs, wcs_transform
from zemosaic_phase3.spec import RegisterSpec, StackSpec
from zemosaic_worker import stack_files

SHAPE = (1080, 1920)
SMALL = (540, 960)
SPEC = RegisterSpec()
SCALE = 2.4 / 3600  # degrees per pixel


def optics(shape: tuple[int, int], corner_px: float, shift: tuple[float, float] = (0.0, 0.0), turn: float = 0.0) -> WCS:
    """WCS of a telescope whose optics displace a star in the corner by ``corner_px``; pointed ``shift`` pixels away."""
    wcs = WCS(naxis=2)
    suffix = "-SIP" if corner_px else ""
    wcs.wcs.ctype = [f"RA---TAN{suffix}", f"DEC--TAN{suffix}"]
    wcs.wcs.crpix = [shape[1] / 2 + 0.5, shape[0] / 2 + 0.5]
    wcs.wcs.crval = [150.0 + shift[0] * SCALE / np.cos(np.deg2rad(30.0)), 30.0 + shift[1] * SCALE]
    c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    wcs.wcs.cd = SCALE * np.array([[-c, s], [s, c]])
    if corner_px:
        strength = corner_px / np.hypot(shape[0] / 2, shape[1] / 2) ** 3
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[3, 0] = a[1, 2] = b[0, 3] = b[2, 1] = strength  # radial, cubic
        a[2, 0], b[1, 1] = 0.3 * strength * shape[1], -0.2 * strength * shape[1]
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


def sky_of(wcs: WCS, shape: tuple[int, int], n: int, seed: int = 1) -> np.ndarray:
    """Stars (RA, Dec) in and around a field."""
    rng = np.random.default_rng(seed)
    margin = 150
    xy = rng.uniform((-margin, -margin), (shape[1] + margin, shape[0] + margin), (n, 2))
    return wcs.wcs_pix2world(xy, 0)


def seen(wcs: WCS, sky: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where a frame shows the stars, (n, 2) px, and which lie on it."""
    xy = wcs.all_world2pix(sky, 0)
    return xy, np.all((xy > 0) & (xy < (shape[1] - 1, shape[0] - 1)), axis=1)


def listed(xy: np.ndarray, noise: float = 0.0, seed: int = 0) -> StarList:
    """Stars at these places, brightest first."""
    n = len(xy)
    xy = xy + np.random.default_rng(seed).normal(0.0, noise, xy.shape) if noise else xy
    return StarList(xy[:, 0], xy[:, 1], np.geomspace(1e6, 1e3, n), np.full(n, 3.0), np.zeros(n), np.full(n, 0.02))


# --------------------------------------------------------------------------- the field


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


# --------------------------------------------------------------------------- from headers


@pytest.mark.parametrize("transform", ["similarity", "homography", "auto"])
@pytest.mark.parametrize(("ours", "theirs"), [(5.0, 5.0), (5.0, 0.0), (0.0, 5.0)])
def test_two_headers_give_the_whole_map(transform: str, ours: float, theirs: float) -> None:
    here, there = optics(SHAPE, ours), optics(SHAPE, theirs, (100.0, -60.0), 2.0)
    found = register_wcs(here, there, SHAPE, replace(SPEC, transform=transform))
    assert found.ok, found.reason
    assert found.distortion is not None
    assert found.rms_px < 0.01
    xy, _ = seen(here, sky_of(here, SHAPE, 500), SHAPE)
    xy = xy[np.all((xy > 0) & (xy < (SHAPE[1] - 1, SHAPE[0] - 1)), axis=1)]
    expected = there.all_world2pix(here.all_pix2world(xy, 0), 0)
    on_both = np.all((expected > 0) & (expected < (SHAPE[1] - 1, SHAPE[0] - 1)), axis=1)
    alone = transform_points(found.transform, xy)
    full = alone + displacement(found.distortion, xy)
    assert np.hypot(*(alone - expected)[on_both].T).max() > 0.2
    assert np.hypot(*(full - expected)[on_both].T).max() < 0.02


def test_headers_without_distortion_give_no_field() -> None:
    here, there = optics(SHAPE, 0.0), optics(SHAPE, 0.0, (100.0, 50.0), 3.0)
    for transform in ("similarity", "homography"):
        assert register_wcs(here, there, SHAPE, replace(SPEC, transform=transform)).distortion is None
    assert distortion_between(here, there, wcs_transform(here, there, SHAPE), SHAPE).size == 0
    faint = optics(SHAPE, 0.001), optics(SHAPE, 0.001, (100.0, 50.0))
    assert register_wcs(*faint, SHAPE, replace(SPEC, transform="homography")).distortion is None


def test_a_distortion_no_telescope_has_is_refused() -> None:
    found = register_wcs(optics(SHAPE, 0.0), optics(SHAPE, 60.0), SHAPE, replace(SPEC, transform="homography"))
    assert not found.ok
    assert "stretches" in found.reason or "inverted" in found.reason


# --------------------------------------------------------------------------- stars on top


def offset(wcs: WCS, pixels: tuple[float, float]) -> WCS:
    """Return a plate solution that is wrong by some pixels."""
    wrong = wcs.deepcopy()
    wrong.wcs.crpix = wcs.wcs.crpix + pixels
    wrong.sip = wcs.sip
    wrong.wcs.set()
    return wrong


@pytest.mark.parametrize("transform", ["similarity", "auto", "homography"])
@pytest.mark.parametrize("error", [(0.0, 0.0), (6.0, -4.0)])
def test_stars_refine_the_matrix_on_top_of_the_distortion(transform: str, error: tuple[float, float]) -> None:
    spec = replace(SPEC, transform=transform)
    here, there = optics(SHAPE, 5.0), optics(SHAPE, 5.0, (100.0, -70.0), 12.0)
    sky = sky_of(here, SHAPE, 400)
    (ours, in_ours), (theirs, in_theirs) = seen(here, sky, SHAPE), seen(there, sky, SHAPE)
    reference, frame = listed(ours[in_ours], 0.02), listed(theirs[in_theirs], 0.02, 5)
    both = in_ours & in_theirs
    by_wcs = register_wcs(here, offset(there, error), SHAPE, spec)
    found = register_stars_seeded(reference, frame, SHAPE, spec, by_wcs)
    assert found.ok and found.method == "stars", found.reason
    assert found.distortion is by_wcs.distortion
    mapped = transform_points(found.transform, ours[both]) + displacement(found.distortion, ours[both])
    bound = 0.02 + 0.01 * max(map(abs, error))  # the field of a solution that is off is off by its slope
    assert np.sqrt(np.mean(np.sum((mapped - theirs[both]) ** 2, axis=1))) < bound
    alone = register_stars(reference, frame, SHAPE, replace(spec, transform="homography"), by_wcs.transform)
    left = transform_points(alone.transform, ours[both]) - theirs[both]
    assert np.sqrt(np.mean(np.sum(left**2, axis=1))) > 0.2
    assert found.rms_px < 0.5 * alone.rms_px
    assert found.matched >= 0.95 * np.count_nonzero(both)


def test_a_header_whose_distortion_the_stars_deny_is_not_believed() -> None:
    true_here, true_there = optics(SHAPE, 0.0), optics(SHAPE, 0.0, (100.0, -70.0), 3.0)
    sky = sky_of(true_here, SHAPE, 400)
    (ours, in_ours), (theirs, in_theirs) = seen(true_here, sky, SHAPE), seen(true_there, sky, SHAPE)
    reference, frame = listed(ours[in_ours], 0.02), listed(theirs[in_theirs], 0.02, 5)
    by_wcs = register_wcs(optics(SHAPE, 0.0), optics(SHAPE, 3.0, (100.0, -70.0), 3.0), SHAPE, SPEC)
    assert by_wcs.ok and by_wcs.distortion is not None
    found = register_stars_seeded(reference, frame, SHAPE, SPEC, by_wcs)
    plain = register_stars(reference, frame, SHAPE, SPEC, by_wcs.transform)
    assert found.ok and found.distortion is None
    np.testing.assert_array_equal(found.transform, plain.transform)


def test_hot_pixels_are_known_although_the_distortion_moves_them() -> None:
    here, there = optics(SHAPE, 5.0), optics(SHAPE, 5.0, (100.0, -70.0))
    sky = sky_of(here, SHAPE, 90)
    (ours, in_ours), (theirs, in_theirs) = seen(here, sky, SHAPE), seen(there, sky, SHAPE)
    hot = np.random.default_rng(3).uniform((0, 0), (SHAPE[1] - 1, SHAPE[0] - 1), (200, 2))
    reference, frame = listed(np.vstack([hot, ours[in_ours]]), 0.02), listed(np.vstack([hot, theirs[in_theirs]]), 0.02)
    by_wcs = register_wcs(here, there, SHAPE, SPEC)
    found = register_stars_seeded(reference, frame, SHAPE, SPEC, by_wcs)
    both = in_ours & in_theirs
    assert found.ok and found.distortion is not None, found.reason
    mapped = transform_points(found.transform, ours[both]) + displacement(found.distortion, ours[both])
    assert np.sqrt(np.mean(np.sum((mapped - theirs[both]) ** 2, axis=1))) < 0.02


# --------------------------------------------------------------------------- frames and stacks


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

"""A stack on a moving target: it stands still, its light stays, and the stars go."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import zemosaic_phase3 as zp
from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.pipeline.comet import Comet, comet_of
from zemosaic_phase3.registration.distortion import displacement, field_shape, make_field, moved_field

N, HEIGHT, WIDTH, SKY = 14, 170, 220, 500.0
START, SPEED = np.array([80.0, 90.0]), np.array([1.7, -0.9])  # px, px a frame, on the sky of the first frame
BEGAN = datetime(2026, 3, 1, 22, 0, 0)  # noqa: DTZ001 - UTC
FLUX, SIGMA = 9000.0, 1.4


def blob(x, y, flux):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return flux / (2 * np.pi * SIGMA**2) * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * SIGMA**2))


def wcs_at(dx, dy):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix = [WIDTH / 2 + dx, HEIGHT / 2 + dy]
    wcs.wcs.crval = [150.0, 20.0]
    wcs.wcs.cdelt = [-0.0006, 0.0006]
    return wcs


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Dithered frames of stars, with a comet among them that crosses a dozen pixels."""
    folder = tmp_path_factory.mktemp("comet")
    rng = np.random.default_rng(8)
    stars = rng.uniform((8, 8), (WIDTH - 8, HEIGHT - 8), (70, 2))
    path = START + np.arange(-1, N + 1)[:, None] * SPEED
    stars = stars[np.min(np.hypot(*(stars[:, None] - path).transpose(2, 0, 1)), axis=1) > 18.0]
    flux = 3000.0 * rng.pareto(1.2, len(stars)) + 2500.0
    comet = []
    for k in range(N):
        dx, dy = (0.0, 0.0) if k == 0 else rng.uniform(-3, 3, 2)
        x, y = START + k * SPEED + (dx, dy)
        comet.append((x, y))
        image = SKY + rng.normal(0.0, 6.0, (HEIGHT, WIDTH)) + blob(x, y, FLUX)
        for (sx, sy), f in zip(stars, flux, strict=True):
            image += blob(sx + dx, sy + dy, f)
        header = wcs_at(dx, dy).to_header()
        header["DATE-OBS"] = (BEGAN + timedelta(seconds=60 * k)).isoformat()
        header["EXPTIME"] = 30.0
        fits.writeto(folder / f"light_{k:02d}.fits", image.astype(np.float32), header)
    return folder, np.array(comet), stars


def light(image, x, y, radius=6.0):
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    inside = np.hypot(columns - x, rows - y) <= radius
    around = (np.hypot(columns - x, rows - y) < 14) & (np.hypot(columns - x, rows - y) > 9)
    net = np.where(inside, image - np.median(image[around]), 0.0)
    return float(net.sum()), float((net * columns).sum() / net.sum()), float((net * rows).sum() / net.sum())


def stack(session, **options):
    folder, *_ = session
    return zp.stack(folder, reference="light_00.fits", resume=False, **options)


def clicks(session, first=1, last=12):
    _, comet, _ = session
    return [f"light_{k:02d}.fits:{comet[k][0]:.3f},{comet[k][1]:.3f}" for k in (first, last)]


def ephemeris(session, name, *, jd=False, horizons=False):
    folder, *_ = session
    sky = wcs_at(0, 0)
    path = folder.parent / name
    lines = ["datetime_jd,RA,DEC" if jd else "time,ra,dec"]
    for k in range(-2, N + 2):
        when = BEGAN + timedelta(seconds=60 * k + 15)
        place = sky.pixel_to_world(*(START + k * SPEED))
        moment = when.strftime("%Y-%b-%d %H:%M:%S") if horizons else when.isoformat()
        if jd:
            moment = f"{(when - datetime(2000, 1, 1, 12)).total_seconds() / 86400 + 2451545.0:.9f}"  # noqa: DTZ001
        lines.append(f"{moment},{place.ra.deg:.9f},{place.dec.deg:.9f}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("how", ["clicks", "iso", "jd", "horizons"])
def test_the_target_stands_still(session, how):
    said = (
        clicks(session)
        if how == "clicks"
        else ephemeris(session, f"{how}.csv", jd=how == "jd", horizons=how == "horizons")
    )
    tile = stack(session, comet=said)
    flux, x, y = light(tile.image, *START)
    assert (x, y) == pytest.approx(START, abs=0.06)
    assert flux == pytest.approx(FLUX, rel=0.02)
    assert tile.report.n_used == N
    assert any("aligned on a moving target: 25.0" in note for note in tile.report.warnings)
    plain = stack(session)
    assert tile.header["ZMT_MOVE"] == pytest.approx(25.0, abs=0.1)
    assert "ZMT_MOVE" not in plain.header
    assert light(plain.image, *START)[0] < 0.5 * FLUX, "on the stars it is smeared, or rejected"


def test_stars_are_rejected_and_levels_are_those_of_the_stars(session):
    _, _, stars = session
    moved, plain = stack(session, comet=clicks(session)), stack(session)
    clear = [s for s in stars if np.hypot(*(s - START)) > 30 and 20 < s[0] < WIDTH - 45 and 40 < s[1] < HEIGHT - 20]
    assert len(clear) > 8
    left = [light(moved.image, *s)[0] / light(plain.image, *s)[0] for s in clear]
    assert np.median(left) < 0.25, "trails of 25 px spread 0.45 of the light over the same places"
    for a, b in zip(moved.rows, plain.rows, strict=True):
        assert a.scale == pytest.approx(b.scale)
        assert a.weight == pytest.approx(b.weight)


def test_union_shows_all_and_the_target_still_stands(session):
    tile = stack(session, comet=clicks(session), framing="union")
    assert tile.image.shape[0] > HEIGHT
    origin = tile.canvas.origin_x, tile.canvas.origin_y
    flux, x, y = light(tile.image, *(START - origin))
    assert (x, y) == pytest.approx(START - origin, abs=0.06)
    assert flux == pytest.approx(FLUX, rel=0.02)


def test_a_frame_without_a_time_is_left_out(session, tmp_path):
    folder, *_ = session
    for path in folder.glob("*.fits"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with fits.open(tmp_path / "light_05.fits", mode="update") as file:
        del file[0].header["DATE-OBS"]
    tile = zp.stack(tmp_path, reference="light_00.fits", comet=clicks(session), resume=False)
    assert tile.report.n_used == N - 1
    assert any("does not say when" in reason for _, reason in tile.report.dropped)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["light_00.fits:1,2"], "one place alone: give the target"),
        (["light_00.fits:1,2", "light_00.fits:3,4"], "twice"),
        (["light_00.fits:1,2", "light_01.fits"], "--comet light_01.fits: give the target's place"),
        (["a:1,2", "b:3,4", "c:5,6"], "3 places: give"),
        (["light_00.fits:1,x", "light_01.fits:3,4"], "place in two frames"),
        ("nowhere.csv", "no such table"),
    ],
)
def test_wrong_words(said, words):
    with pytest.raises(SpecError, match=words):
        comet_of(said)


def test_right_words(tmp_path):
    assert comet_of(None) is None
    assert comet_of([]) is None
    found = comet_of([r"C:\data\a.fits:1.5,2", "b.fits:3,-4"])
    assert [tuple(click) for click in found.clicks] == [(r"C:\data\a.fits", 1.5, 2.0), ("b.fits", 3.0, -4.0)]
    (tmp_path / "t.csv").write_text("x")
    assert comet_of(str(tmp_path / "t.csv")) == Comet(table=tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("when,ra,dec\n1,2,3\n", "no column 'time'"),
        ("time,ra\n2026-03-01,2\n", "no column 'ra'|no column 'dec'"),
        ("time,ra,dec\n2026-03-01T00:00:00,150,20\n", "two or more places"),
        ("time,ra,dec\nsoon,150,20\nlater,150,20\n", "soon"),
        ("time,ra,dec\n2026-03-02T00:00:00,150,20\n2026-03-03T00:00:00,150,20\n", "does not reach over 2026-03-01T22"),
    ],
)
def test_wrong_tables(session, tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SpecError, match=words):
        stack(session, comet=str(tmp_path / "t.csv"))


def test_a_click_in_a_frame_that_is_not_there(session):
    with pytest.raises(SpecError, match="light_99.fits: it is not among the frames"):
        stack(session, comet=["light_99.fits:1,2", "light_01.fits:3,4"])


def test_a_field_moves_with_its_reference():
    shape = field_shape(300, 400)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    field = make_field(np.stack([columns * 0.4 - rows * 0.1, rows * 0.3], axis=2))
    shift = np.array([13.5, -40.0])
    moved = moved_field(field, shift, 300, 400)
    places = np.random.default_rng(1).uniform((60, 60), (300, 200), (50, 2))
    np.testing.assert_allclose(displacement(moved, places), displacement(field, places + shift), atol=1e-5)
    assert moved_field(field, np.zeros(2), 300, 400) is field


def test_the_target_stands_on_a_finer_grid_too(session):
    tile = stack(session, comet=clicks(session), drizzle=2.0)
    place = 2.0 * np.asarray(START) + 0.5  # centres of pixels
    assert light(tile.image, *place)[1:] == pytest.approx(place, abs=0.15)

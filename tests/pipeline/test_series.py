"""Many stacks in time from one registration, and the light curve of given positions."""

from __future__ import annotations

import csv
import math
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

import zemosaic_phase3 as zp
from zemosaic_phase3.errors import OutputError, SpecError
from zemosaic_phase3.pipeline import outputs
from zemosaic_phase3.pipeline.light_curve import Targets, aperture_flux
from zemosaic_phase3.pipeline.series import SeriesSpec
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth

N_FRAMES = 10
STEP = 20.0  # seconds between two frames of 10 s
VARIABLE = 0.7  # of its light is left in the second half


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationTruth, int, int]:
    """Frames with known times, in which one bright star fades; returns that star and one that does not."""
    folder = tmp_path_factory.mktemp("series") / "subs"
    spec = SimulationSpec(
        n_frames=N_FRAMES, height=200, width=240, n_stars=45, flux_min=9000.0, bayer="none", dither_px=3.0,
        rotation_deg=0.0, saturated_stars=0, nebula=0.0, cosmic_rays=0.0, hot_fraction=0.0, cold_fraction=0.0,
        trail_fraction=0.0, gradient=0.0, seeing_variation=0.0,
    )  # fmt: skip
    truth = simulate(spec, folder)
    order = np.argsort(truth.star_flux if truth.star_flux.ndim == 1 else truth.star_flux[:, 0])[::-1]
    inner = [s for s in order if 40 < truth.star_xy[s][0] < 200 and 40 < truth.star_xy[s][1] < 160]
    alone = [
        s for s in inner
        if np.sort(np.hypot(*(truth.star_xy - truth.star_xy[s]).T))[1] > 14
    ]  # fmt: skip
    variable, comparison = alone[0], alone[1]
    start = datetime(2025, 1, 15, 21)
    for k, name in enumerate(truth.names):
        with fits.open(folder / name, mode="update") as hdus:
            hdus[0].header["DATE-OBS"] = (start + timedelta(seconds=STEP * k)).isoformat()
            hdus[0].header["EXPTIME"] = 10.0
            for key in ("DATE-END", "DATE-AVG", "DATE-BEG", "MJD-OBS", "MJD-AVG"):
                hdus[0].header.remove(key, ignore_missing=True)
            if k >= N_FRAMES // 2:
                _fade(hdus[0].data, truth, k, variable)
    return folder, truth, variable, comparison


def _fade(pixels: np.ndarray, truth: SimulationTruth, k: int, star: int) -> None:
    """Take away a part of the light of a star: of what stands above the sky around it."""
    x, y, _ = truth.transforms[k] @ [*truth.star_xy[star], 1.0]
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    near = np.hypot(columns - x, rows - y)
    sky = np.median(pixels[(near > 10) & (near < 18)])
    inside = near < 9
    faded = sky + VARIABLE * (pixels[inside].astype(float) - sky)
    pixels[inside] = np.round(faded).astype(pixels.dtype)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_each_stack_has_its_own_times_and_the_grid_of_all(
    night: tuple[Path, SimulationTruth, int, int], tmp_path: Path
) -> None:
    folder, truth, variable, comparison = night
    out = tmp_path / "m.fits"
    with_wcs = tmp_path / "targets.csv"
    header = fits.getheader(folder / truth.names[0])
    assert "CTYPE1" in header
    targets = tmp_path / "t.csv"
    whole = zp.stack(folder, out, register="stars", bayer="none", device="cpu", progress=False, self_check=False)
    places = whole.wcs.all_pix2world(_on_grid(whole, truth, [variable, comparison]), 0)
    lines = [f"{name},{ra:.7f},{dec:.7f}" for name, (ra, dec) in zip(("V", "C"), places, strict=True)]
    with_wcs.write_text("name,ra,dec\n" + "\n".join(lines) + "\n")
    targets.write_text("# the variable\nname,x,y\nV,1,1\n")
    tile = zp.stack(
        folder, out, register="stars", bayer="none", device="cpu", progress=False, self_check=False, overwrite=True,
        series="100s", targets=with_wcs,
    )  # fmt: skip
    np.testing.assert_array_equal(tile.image, whole.image)  # the series changes nothing of the whole
    table = rows_of(tmp_path / "m_series.csv")
    assert [row["file"] for row in table] == ["m_s0001.fits", "m_s0002.fits"]
    assert [row["frames"] for row in table] == ["5", "5"]
    start = datetime(2025, 1, 15, 21)
    for k, row in enumerate(table):
        own = fits.getheader(tmp_path / row["file"])
        middle = start + timedelta(seconds=100.0 * k + 45.0)  # of five exposures, 20 s apart, of 10 s
        average = datetime.fromisoformat(own["DATE-AVG"])  # weighted as the frames are
        assert abs((average - middle).total_seconds()) < 2.0
        assert own["MJD-AVG"] == pytest.approx((average - datetime(1858, 11, 17)) / timedelta(days=1), abs=1e-8)
        assert (own["NCOMBINE"], own["LIVETIME"], own["EXPTIME"]) == (5, 50.0, 10.0)
        assert datetime.fromisoformat(own["DATE-BEG"]) == start + timedelta(seconds=100.0 * k)
        assert row["mjd_avg"] == str(own["MJD-AVG"])
        sky = WCS(own).celestial.all_pix2world([[20.0, 30.0], [200.0, 150.0]], 0)
        np.testing.assert_allclose(sky, whole.wcs.all_pix2world([[20.0, 30.0], [200.0, 150.0]], 0), atol=1e-7)
    curve = {(row["target"], row["file"]): row for row in rows_of(tmp_path / "m_lightcurve.csv")}
    assert len(curve) == 4
    ratio = [
        float(curve["V", f"m_s000{k}.fits"]["flux_adu"]) / float(curve["C", f"m_s000{k}.fits"]["flux_adu"])
        for k in (1, 2)
    ]
    errors = [float(row["flux_error_adu"]) / float(row["flux_adu"]) for row in curve.values()]
    spread = math.sqrt(sum(error**2 for error in errors))
    assert spread < 0.03
    assert ratio[1] / ratio[0] == pytest.approx(VARIABLE, abs=4 * spread + 0.01)


def _on_grid(tile: zp.Tile, truth: SimulationTruth, stars: list[int]) -> np.ndarray:
    """Return where stars lie in the tile, whose grid is that of its reference."""
    k = list(truth.names).index(Path(tile.report.reference).name)
    homogeneous = np.c_[truth.star_xy[stars], np.ones(len(stars))] @ truth.transforms[k].T
    return homogeneous[:, :2]


def test_by_number_of_frames_and_again_with_fewer(
    night: tuple[Path, SimulationTruth, int, int], tmp_path: Path
) -> None:
    folder = night[0]
    options = {"register": "stars", "bayer": "none", "device": "cpu", "progress": False, "self_check": False}
    zp.stack(folder, tmp_path / "m.fits", series=4, **options)
    assert [row["frames"] for row in rows_of(tmp_path / "m_series.csv")] == ["4", "4", "2"]
    with pytest.raises(OutputError, match="exists already"):
        zp.stack(folder, tmp_path / "m.fits", series=4, **options)
    (tmp_path / "m.fits").unlink()
    (tmp_path / "m_series.csv").unlink()
    with pytest.raises(OutputError, match=r"m_s0001\.fits: exists already"):
        zp.stack(folder, tmp_path / "m.fits", series="1h", **options)
    tile = zp.stack(folder, tmp_path / "m.fits", series="1h", overwrite=True, **options)
    assert sorted(path.name for path in tmp_path.glob("m_s0*")) == ["m_s0001.fits"]  # none of the longer series stays
    assert any("series: 1 stacks" in note for note in tile.report.warnings)
    np.testing.assert_array_equal(fits.getdata(tmp_path / "m_s0001.fits"), tile.image)  # all frames: the same stack


def test_how_frames_are_cut() -> None:
    assert SeriesSpec.of("5min") == SeriesSpec(seconds=300.0)
    assert SeriesSpec.of("90 s") == SeriesSpec(seconds=90.0)
    assert SeriesSpec.of("50") == SeriesSpec.of(50) == SeriesSpec(frames=50)
    for wrong in ("5 years", "0", "", "1.5", "-3"):
        with pytest.raises(SpecError, match="neither a time nor a number of frames"):
            SeriesSpec.of(wrong)
    starts = [0.0, 40.0, math.nan, 10.0, 500.0, 530.0]
    assert SeriesSpec(seconds=40.0).cut(starts) == [[0, 3], [1], [4, 5]]
    assert SeriesSpec(frames=2).cut(starts) == [[0, 3], [1, 4], [5]]
    assert SeriesSpec(frames=2).cut([math.nan]) == []


def test_targets(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ra,dec,name\n05:34:32,+22:00:52,M1\n83.5,22.1,\n")
    found = Targets.read(tmp_path / "a.csv")
    assert found.names == ("M1", "target2")
    assert found.on_sky
    assert found.places[0] == pytest.approx((83.633333, 22.014444), abs=1e-5)
    for text, said in (
        ("name\nx\n", "ra and dec, or x and y, are needed"),
        ("ra,dec\nhere,there\n", "target 1 has no position"),
        ("x,y\n", "0 targets"),
        ("x,y\nnan,1\n", "target 1 has no position"),
    ):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(SpecError, match=said):
            Targets.read(tmp_path / "b.csv")
    with pytest.raises(SpecError, match="the targets cannot be read"):
        Targets.read(tmp_path / "none.csv")
    with pytest.raises(SpecError, match="give --series too"):
        zp.stack(tmp_path, tmp_path / "o.fits", targets=tmp_path / "a.csv")
    with pytest.raises(SpecError, match="name an output"):
        zp.stack(tmp_path, series="5min")


def test_the_flux_of_a_star_of_known_light() -> None:
    random = np.random.default_rng(1)
    y, x = np.mgrid[:80, :90]
    sigma, flux, noise = 1.5, 50_000.0, 5.0
    star = flux / (2 * np.pi * sigma**2) * np.exp(-((x - 44.3) ** 2 + (y - 40.8) ** 2) / (2 * sigma**2))
    plane = (star + 100.0 + noise * random.standard_normal(star.shape)).astype(np.float32)
    found, error, sky, top = aperture_flux(plane, (44.3, 40.8), 2.3548 * sigma)
    assert found == pytest.approx(flux, abs=4 * error + 0.003 * flux)
    assert sky == pytest.approx(100.0, abs=1.0)
    radius = 1.5 * 2.3548 * sigma
    assert error == pytest.approx(noise * math.sqrt(math.pi) * radius, rel=0.15)
    assert top == pytest.approx(plane[41, 44], rel=0.1)
    assert math.isnan(aperture_flux(plane, (2.0, 40.0), 3.0)[0])
    plane[41, 45] = np.nan
    assert math.isnan(aperture_flux(plane, (44.3, 40.8), 3.0)[0])


def test_a_series_leaves_room_for_the_whole_stack(
    night: tuple[Path, SimulationTruth, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = outputs.shutil.disk_usage(tmp_path)
    one = outputs.Wanted(tmp_path / "m.fits").sizes((200, 240), N_FRAMES)[tmp_path / "m.fits"]
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _path: usage._replace(free=4 * one))
    with pytest.raises(OutputError, match="bytes are needed"):
        zp.stack(night[0], tmp_path / "m.fits", series="2", progress=False, device="cpu", resume=False)
    assert not list(tmp_path.glob("*.fits"))


def test_apertures_grow_with_the_drizzle_scale(night: tuple[Path, SimulationTruth, int, int], tmp_path: Path) -> None:
    folder, truth, _, comparison = night
    options = {"register": "stars", "bayer": "none", "device": "cpu", "progress": False, "self_check": False}
    whole = zp.stack(folder, tmp_path / "m.fits", **options)
    ((ra, dec),) = whole.wcs.all_pix2world(_on_grid(whole, truth, [comparison]), 0)
    (tmp_path / "t.csv").write_text(f"name,ra,dec\nC,{ra:.7f},{dec:.7f}\n")
    light = []
    for scale in (0.0, 2.0):
        zp.stack(
            folder,
            tmp_path / "m.fits",
            overwrite=True,
            series="1h",
            targets=tmp_path / "t.csv",
            drizzle=scale,
            **options,
        )
        (row,) = rows_of(tmp_path / "m_lightcurve.csv")
        light.append(float(row["flux_adu"]))
    assert light[1] / light[0] == pytest.approx(4.0, rel=0.04)  # four pixels for one, of the same brightness each

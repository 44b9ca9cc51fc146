"""Calibration from files to calibrated lights: a sensor whose truth is known, matching, masters that are kept."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from sensor_case import SHAPE, Sensor, cards, some_stars, star_image, write, write_set

import zemosaic_phase3 as zp
from zemosaic_phase3.app.cli import main
from zemosaic_phase3.errors import CalibrationError, NoFramesError, SpecError
from zemosaic_phase3.pipeline import masters as masters_module
from zemosaic_phase3.pipeline.calibration import calibrate_group
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.spec import CalibrationSpec

SKY = 800.0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def write_lights(folder: Path, sensor: Sensor, seconds=30.0, n=6, drift=0.0, stars=None, first=0, **more) -> list[Path]:
    pattern = {} if sensor.cfa is None else {"BAYERPAT": sensor.cfa}
    stars = np.empty((0, 3)) if stars is None else stars
    paths = []
    for i in range(n):
        image = star_image(sensor.shape, stars, 2.5, drift * i, 0.3 * drift * i, SKY)
        pixels = sensor.expose(image, seconds, 77_000 + first + i)
        paths.append(write(folder / f"L_{first + i:03d}.fits", pixels, cards("Light", seconds, **pattern, **more)))
    return paths


def calibrated(paths: list[Path], report: TileReport | None = None, raw=True, **spec) -> tuple[Group, TileReport]:
    report = report or TileReport()
    group = open_group(paths)
    calibrate_group(group, CalibrationSpec(**{"cosmetic": "off", **spec}), report, raw=raw, workers=2)
    return group, report


def mean_of(group: Group) -> np.ndarray:
    return np.mean([group.source(i).read_rows(0, SHAPE[0]) for i in group.usable], axis=0, dtype=np.float64)


def flatness(image: np.ndarray, sensor: Sensor) -> tuple[float, float]:
    """Mean over the truth, and largest difference of patches of 16 x 16 from it, both relative."""
    ratio = image / (SKY * sensor.colour)
    patches = np.nanmean(ratio.reshape(SHAPE[0] // 16, 16, SHAPE[1] // 16, 16), axis=(1, 3))
    return float(np.nanmean(ratio)), float(np.abs(patches / np.nanmean(patches) - 1.0).max())


@pytest.mark.parametrize("cfa", [None, "GRBG"])
def test_lights_of_a_sensor_come_out_as_its_truth(tmp_path, cfa) -> None:
    sensor = Sensor(cfa=cfa)
    lights = write_lights(tmp_path / "lights", sensor)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0)
    bias = write_set(tmp_path, sensor, "Bias", 0.0, 0.0, seed=1)
    flat = write_set(tmp_path, sensor, "Flat", 20_000.0, 1.0, seed=2)
    group, report = calibrated(lights, dark=dark, bias=bias, flat=flat)
    sound = ~sensor.hot
    image = np.where(sound, mean_of(group), np.nan)
    raw_mean, raw_flatness = flatness(np.where(sound, mean_of(open_group(lights)), np.nan), sensor)
    mean, worst = flatness(image, sensor)
    expected = np.mean(sensor.response[sound])  # a flat's mean is 1, so the light keeps its mean
    assert raw_mean > 1.3
    assert raw_flatness > 0.15
    assert mean == pytest.approx(expected, rel=0.01)
    assert worst < 0.02
    noise = np.nanstd(image[40:56, 56:72] / sensor.colour[40:56, 56:72])
    assert noise < 1.3 * np.sqrt(2.0 * (SKY / 0.6 + 40.0) / 6.0)
    assert report.calstat == "DF"
    text = "\n".join(report.calibration)
    assert "dark of 6 frames (30 s, gain 80" in text
    assert "flat of 6 frames" in text
    assert "bias of 6 frames" in text
    assert "subtracted from the flats" in text
    assert "not needed" not in text
    assert "6 of 6 frames" in text
    assert report.warnings == []


def test_a_master_is_the_mean_of_what_is_kept_and_is_kept_itself(tmp_path, monkeypatch) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, n=1)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0, n=7)
    frames = np.stack([fits.getdata(p).astype(np.float64) for p in sorted(dark.iterdir())])
    spoilt = dark / "dark_30_03.fits"
    data = fits.getdata(spoilt)
    data[10, 10] = 60_000  # a cosmic ray
    write(spoilt, data, cards("Dark", 30.0))
    keep = tmp_path / "keep"
    group, _ = calibrated(lights, dark=dark, cache=keep)
    first = group.source(0).read_rows(0, SHAPE[0])
    light = fits.getdata(lights[0]).astype(np.float64)
    np.testing.assert_allclose(light - first, frames.mean(axis=0), atol=12.0)
    assert abs(float(light[10, 10] - first[10, 10]) - np.delete(frames[:, 10, 10], 3).mean()) < 0.01
    (kept,) = keep.glob("*.fits")
    header = fits.getheader(kept)
    assert (header["IMAGETYP"], header["NCOMBINE"], header["EXPTIME"], header["GAIN"]) == ("Master Dark", 7, 30.0, 80.0)

    def never(*_args, **_more):
        raise AssertionError("built anew")

    with monkeypatch.context() as patch:
        patch.setattr(masters_module.cpu, "stack", never)
        again = calibrated(lights, dark=dark, cache=keep)[0].source(0).read_rows(0, SHAPE[0])
        np.testing.assert_array_equal(again, first)
        finished = calibrated(lights, dark=kept)[0].source(0).read_rows(0, SHAPE[0])  # and by its own name
        np.testing.assert_array_equal(finished, first)
        os.utime(spoilt, (1, 1))
        with pytest.raises(AssertionError, match="built anew"):
            calibrated(lights, dark=dark, cache=keep)
    kept.write_bytes(kept.read_bytes()[:4000])  # damaged: built anew
    np.testing.assert_array_equal(calibrated(lights, dark=dark, cache=keep)[0].source(0).read_rows(0, SHAPE[0]), first)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, n=1)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0, n=2)
    (tmp_path / "file").write_text("")
    group, report = calibrated(lights, dark=dark, cache=tmp_path / "file" / "below")
    assert group.source(0).dtype == np.float32
    assert "the dark master is not kept" in report.warnings[0]


def test_every_light_gets_the_dark_of_its_exposure(tmp_path) -> None:
    sensor = Sensor()
    short = write_lights(tmp_path / "lights", sensor, seconds=10.0, n=3)
    long = write_lights(tmp_path / "lights", sensor, seconds=60.0, n=2, first=10)
    other = write_lights(tmp_path / "lights", sensor, seconds=200.0, n=1, first=20)
    for seconds in (10.0, 60.0):
        write_set(tmp_path, sensor, "Dark", 0.0, seconds)
    group, report = calibrated([*short, *long, *other], dark=tmp_path / "dark")
    for i in range(5):
        difference = group.source(i).read_rows(0, SHAPE[0]) - SKY * sensor.colour * sensor.response
        assert abs(float(np.median(difference))) < 3.0
        assert abs(float(np.median(difference[:20, -20:]))) < 15.0  # the glow
    assert group.source(5).dtype == np.uint16
    assert len(report.calibration) == 2
    (warning,) = report.warnings
    assert warning.startswith("1 of 6 frames: no dark for 200 s, gain 80")
    assert "there is: exposure" in warning


def test_a_dark_is_scaled_only_on_request(tmp_path) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, seconds=20.0, n=6)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 60.0, n=12)
    bias = write_set(tmp_path, sensor, "Bias", 0.0, 0.0, n=12)
    with pytest.raises(
        CalibrationError, match=r"none of the darks fits any light: no dark for 20 s.*there is: exposure 60 s"
    ):
        calibrated(lights, dark=dark, bias=bias)
    with pytest.raises(SpecError, match="needs a bias"):
        CalibrationSpec(dark=dark, scale_dark=True)
    group, report = calibrated(lights, dark=dark, bias=bias, scale_dark=True)
    difference = mean_of(group) - SKY * sensor.colour * sensor.response
    assert abs(np.median(difference[sensor.hot])) < 30.0  # of 600 to 6,000 ADU
    assert abs(np.median(difference[:20, -20:])) < 4.0
    assert "scaled by 0.333" in report.calibration[0]


def test_bias_alone(tmp_path) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, seconds=0.1, n=2)
    bias = write_set(tmp_path, sensor, "Bias", 0.0, 0.0)
    group, report = calibrated(lights, bias=bias)
    assert abs(np.median(mean_of(group) - SKY * sensor.colour * sensor.response)) < 2.0
    assert report.calstat == "B"


def test_flats_are_calibrated_by_their_own_darks(tmp_path) -> None:
    sensor = Sensor(cfa=None)
    lights = write_lights(tmp_path / "lights", sensor, n=2)
    flat = write_set(tmp_path, sensor, "Flat", 2_000.0, 8.0, n=8)
    dark_flat = write_set(tmp_path, sensor, "DarkFlat", 0.0, 8.0, seed=4)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0)
    with_it, report = calibrated(lights, dark=dark, flat=flat, dark_flat=dark_flat)
    without, poor = calibrated(lights, dark=dark, flat=flat)
    right, wrong = (flatness(np.where(sensor.hot, np.nan, mean_of(g)), sensor)[1] for g in (with_it, without))
    assert right < 0.03
    assert wrong > 2.0 * right
    assert any("dark-flat of 6 frames" in line and "subtracted from the flats" in line for line in report.calibration)
    assert any("neither dark-flat nor bias" in line for line in poor.warnings)


def test_flats_by_filter_and_a_library(tmp_path) -> None:
    sensor = Sensor(cfa=None)
    other = Sensor(cfa=None)
    other.response = other.response[::-1]
    lights = write_lights(tmp_path / "lights", sensor, n=1, FILTER="Ha")
    lights += write_lights(tmp_path / "lights", other, n=1, first=1, FILTER="OIII")
    lights += write_lights(tmp_path / "lights", sensor, n=1, first=2, FILTER="S2")
    library = tmp_path / "library"
    write_set(library / "1", sensor, "Flat", 20_000.0, 1.0, FILTER="Ha")
    write_set(library / "2", other, "Flat", 20_000.0, 1.0, FILTER="OIII", seed=3)
    write_set(library, sensor, "Dark", 0.0, 30.0)
    write_set(library, sensor, "Dark", 0.0, 300.0)
    write_set(library, sensor, "Bias", 0.0, 0.0)
    write(library / "Light_1.fits", np.ones(SHAPE, np.uint16), cards("Light", 30.0))
    group, report = calibrated(lights, library=library)
    for i in (0, 1):
        image = np.where(sensor.hot, np.nan, group.source(i).read_rows(0, SHAPE[0]))
        assert flatness(image, sensor)[1] < 0.04
    assert report.calstat == "DF"
    (warning,) = report.warnings
    assert warning.startswith("1 of 3 frames: no flat for 30 s, gain 80, S2")
    with pytest.raises(NoFramesError, match="no calibration frames in"):
        calibrated(lights, library=tmp_path / "lights")
    with pytest.raises(NoFramesError, match="no such folder"):
        calibrated(lights, library=tmp_path / "nothing")


def test_masters_of_other_programs(tmp_path) -> None:
    """Floats from 0 to 1 are brought to the range of the lights; one that is stored upside down is turned over."""
    sensor = Sensor(cfa=None)
    lights = write_lights(tmp_path / "lights", sensor, n=2, ROWORDER="TOP-DOWN")
    truth = sensor.bias + 30.0 * sensor.current
    unit = write(tmp_path / "a.fits", (truth / 65535.0).astype(np.float32), cards("Master Dark", 30.0))
    turned = write(
        tmp_path / "b.fits", truth[::-1].astype(np.float32), cards("Master Dark", 30.0, ROWORDER="BOTTOM-UP")
    )
    for path, said in ((unit, "brought from 0 .. 1"), (turned, "turned over")):
        group, report = calibrated(lights, dark=path)
        difference = mean_of(group) - SKY * sensor.response
        assert abs(np.median(difference)) < 3.0
        assert np.std(difference[~sensor.hot]) < 40.0
        assert any(said in line for line in report.calibration)
        assert report.calibration[-1].startswith("master dark (30 s")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"GAIN": 0}, "gain 0"), ({"CCD-TEMP": 20.0}, r"temperature 20\.0 C"), ({"XBINNING": 2}, "binning 2x1")],
)
def test_darks_that_fit_no_light_are_an_error(tmp_path, change, reason) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, n=2)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0, n=2, **change)
    with pytest.raises(CalibrationError, match=f"none of the darks fits any light.*{reason}"):
        calibrated(lights, dark=dark)
    group, report = calibrated(lights, library=tmp_path / "dark")  # in a library it is what does not fit
    assert group.source(0).dtype == np.uint16
    assert report.warnings[0].startswith("2 of 2 frames: no dark")
    if "CCD-TEMP" in change:
        assert calibrated(lights, dark=dark, temperature_tolerance=40.0)[0].source(0).dtype == np.float32


def test_lights_that_are_calibrated_already_are_told(tmp_path) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, n=2, CALSTAT="BDF")
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0, n=2)
    _, report = calibrated(lights, dark=dark)
    assert "2 of 2 frames say that they are calibrated already (CALSTAT BDF)" in report.warnings[0]


def test_files_of_another_kind_among_those_named(tmp_path) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, n=1)
    mixed = write_set(tmp_path, sensor, "Dark", 0.0, 30.0, n=3)
    write(mixed / "x.fits", sensor.expose(2e4, 30.0, 1), cards("Flat", 30.0))
    group, report = calibrated(lights, dark=mixed)
    assert "dark of 3 frames" in report.calibration[0]
    assert report.warnings == ["files named as dark are flat by their headers or names: 1 of them left out"]
    wrong = tmp_path / "caps"
    for i in range(2):
        write(wrong / f"{i}.fits", sensor.expose(0.0, 30.0, 50 + i), cards("Light", 30.0))  # with the cap on
    group, report = calibrated(lights, dark=wrong)
    assert group.source(0).dtype == np.float32
    assert report.warnings == ["files named as dark are light by their headers or names: taken as dark all the same"]


def test_what_was_named_and_not_needed_is_said_and_a_dark_of_the_flats_serves_them(tmp_path) -> None:
    sensor = Sensor(cfa=None)
    lights = write_lights(tmp_path / "lights", sensor, n=1)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0)
    bias = write_set(tmp_path, sensor, "Bias", 0.0, 0.0, n=3)
    _, report = calibrated(lights, dark=dark, bias=bias)
    assert report.calibration[-1].startswith("not needed: bias of 3 frames (0 s, gain 80")
    flat = write_set(tmp_path, sensor, "Flat", 2_000.0, 8.0)
    write_set(tmp_path, sensor, "Dark", 0.0, 8.0, n=4)
    _, report = calibrated(lights, dark=dark, flat=flat)
    assert any(line.startswith("dark of 4 frames") and "from the flats" in line for line in report.calibration)


def test_what_cannot_be_opened(tmp_path) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, n=1)
    with pytest.raises(NoFramesError, match="no dark can be opened.*no such file"):
        calibrated(lights, dark=tmp_path / "nothing.fits")
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0, n=2)
    (dark / "broken.fits").write_bytes(b"SIMPLE  =")
    assert "calibration frame left out" in calibrated(lights, dark=dark)[1].warnings[0]


@pytest.mark.parametrize("cfa", [None, "RGGB"])
def test_defects_are_learned_and_replaced(tmp_path, cfa) -> None:
    sensor = Sensor(cfa=cfa)
    lights = write_lights(tmp_path / "lights", sensor, n=9, drift=0.4, stars=some_stars(SHAPE, 20, 1))
    group, report = calibrated(lights, cosmetic="auto")
    assert report.defects >= 25
    assert report.calibration == [f"cosmetic: {report.defects} defects ({report.defects / 122.88:.2g} %)"]
    image = group.source(0).read_rows(0, SHAPE[0])
    raw = fits.getdata(lights[0])
    changed = image != raw
    assert np.count_nonzero(changed & ~sensor.hot) <= 3  # the warmest of the rest
    assert image.dtype == np.uint16
    off, nothing = calibrated(lights, cosmetic="off")
    np.testing.assert_array_equal(off.source(0).read_rows(0, SHAPE[0]), raw)
    assert (nothing.defects, nothing.calibration) == (0, [])
    registered, _ = calibrated(lights, cosmetic="auto", raw=False)  # not on the grid of the sensor
    np.testing.assert_array_equal(registered.source(0).read_rows(0, SHAPE[0]), raw)
    few, _ = calibrated(lights[:4], cosmetic="auto")
    np.testing.assert_array_equal(few.source(0).read_rows(0, SHAPE[0]), raw)


def test_hot_photosites_of_the_dark_and_a_map(tmp_path) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, n=2)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0)
    _, report = calibrated(lights, dark=dark, cosmetic="auto")
    assert report.defects >= 25
    mask = write(tmp_path / "map.fits", sensor.hot.astype(np.uint8), {})
    _, report = calibrated(lights, cosmetic=mask)
    assert report.defects == np.count_nonzero(sensor.hot)
    with pytest.raises(SpecError, match="the frames 128 x 96"):
        calibrated(lights, cosmetic=write(tmp_path / "m2.fits", np.zeros((9, 9), np.uint8), {}))


def test_command_line_and_report(tmp_path, capsys) -> None:
    sensor = Sensor()
    stars = some_stars(SHAPE, 25, 1, faintest=5000.0)
    write_lights(tmp_path / "lights", sensor, n=6, drift=1.0, stars=stars)
    for kind, light, seconds in (("Dark", 0.0, 30.0), ("Flat", 2e4, 1.0), ("Bias", 0.0, 0.0)):
        write_set(tmp_path, sensor, kind, light, seconds, n=4)
    out = tmp_path / "out.fits"
    given = [f"--{kind}={tmp_path / kind}" for kind in ("dark", "flat", "bias")]
    options = [
        "--preview=none",
        "--device=cpu",
        f"--json={tmp_path / 'r.json'}",
        f"--calibration-cache={tmp_path / 'c'}",
    ]
    assert main(["stack", str(tmp_path / "lights"), "-o", str(out), *given, *options]) == 0
    text = capsys.readouterr().out
    assert "dark of 4 frames" in text
    header = fits.getheader(out)
    assert header["CALSTAT"] == "DF"
    assert header["ZMT_COSM"] > 20
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["calstat"] == "DF"
    assert len(report["calibration"]) == 4
    assert report["seconds"]["calibrate"] > 0
    sky = np.median(fits.getdata(out), axis=(1, 2))
    expected = SKY * np.array([0.6, 1.0, 0.8]) * sensor.response.mean()
    np.testing.assert_allclose(sky, expected, rtol=0.03)
    assert len(list((tmp_path / "c").iterdir())) == 3
    bad = [
        "stack",
        str(tmp_path / "lights"),
        "-o",
        str(tmp_path / "o2.fits"),
        f"--dark={tmp_path / 'bias'}",
        *options[:2],
    ]
    assert main([*bad, "--cosmetic=off"]) == 1
    assert "none of the darks fits any light" in capsys.readouterr().err


def test_from_python(tmp_path) -> None:
    sensor = Sensor()
    write_lights(tmp_path / "lights", sensor, n=6)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0, n=3)
    write_set(tmp_path, sensor, "Bias", 0.0, 0.0, n=3)
    given = {"register": "none", "device": "cpu", "progress": False}
    tile = zp.stack(tmp_path / "lights", dark=dark, cosmetic="off", **given)
    assert tile.header["CALSTAT"] == "D"
    assert tile.report.spec["calibration"]["dark"] == (str(dark),)
    assert "dark of 3 frames" in tile._repr_html_()
    by_library = zp.stack(tmp_path / "lights", calibration=tmp_path, cosmetic="off", **given)
    np.testing.assert_array_equal(by_library.image, tile.image)
    by_spec = zp.stack(tmp_path / "lights", calibration=zp.CalibrationSpec(dark=[dark], cosmetic="off"), **given)
    np.testing.assert_array_equal(by_spec.image, tile.image)
    plain = zp.stack(tmp_path / "lights", **given)
    assert "CALSTAT" not in plain.header
    difference = plain.image - tile.image
    assert np.nanmedian(difference) > 500
    with pytest.raises(zp.CalibrationError, match="none of the darks fits any light"):
        zp.stack(tmp_path / "lights", dark=tmp_path / "bias", **given)


def test_specifications() -> None:
    assert CalibrationSpec(dark="a.fits").dark == ("a.fits",)
    assert CalibrationSpec(dark=["a", Path("b")]).dark == ("a", "b")
    assert not CalibrationSpec().wants_masters
    assert CalibrationSpec(cosmetic="OFF").cosmetic == "off"
    assert replace(CalibrationSpec(), library="x").wants_masters
    with pytest.raises(SpecError, match="dark-flat = 3 is no file"):
        CalibrationSpec(dark_flat=(3,))
    with pytest.raises(SpecError, match="temperature tolerance"):
        CalibrationSpec(temperature_tolerance=-1)


def test_origins_of_calibrated_lights_follow_the_masters(tmp_path) -> None:
    sensor = Sensor()
    lights = write_lights(tmp_path / "lights", sensor, n=2)
    dark = write_set(tmp_path, sensor, "Dark", 0.0, 30.0, n=3)
    one, again = (calibrated(lights, dark=dark)[0].source(0).origin for _ in range(2))
    assert one is not None
    assert one == again
    (dark / "dark_30_02.fits").unlink()
    assert calibrated(lights, dark=dark)[0].source(0).origin.recipe != one.recipe

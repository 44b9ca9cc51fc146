"""Frames of a tile: opened, measured, registered; what is wrong with one is said and costs that one alone."""

from __future__ import annotations

import threading
import tracemalloc
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from real_sky import cut_subs

from zemosaic_phase3.errors import FrameError, NoFramesError
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.pipeline.measuring import scan_group
from zemosaic_phase3.pipeline.registering import register_group
from zemosaic_phase3.pipeline.scan import scan_bytes, scan_frame
from zemosaic_phase3.registration.match import register_stars
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, SimulationTruth
from zemosaic_phase3.spec import RegisterSpec
from zemosaic_worker import stack_files

AUTO = RegisterSpec()
SKY = SimulationSpec(
    n_frames=5, height=144, width=192, n_stars=60, flux_min=3000.0, bayer="none", dither_px=5.0, saturated_stars=0,
    nebula=0.0, cosmic_rays=0.0, hot_fraction=0.0, cold_fraction=0.0, trail_fraction=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationTruth]:
    folder = tmp_path_factory.mktemp("mono") / "raw"
    return folder, simulate(SKY, folder)


@pytest.fixture
def paths(truth: tuple[Path, SimulationTruth]) -> list[Path]:
    folder, session = truth
    return [folder / name for name in session.names]


@pytest.fixture
def arrays(paths: list[Path]) -> list[np.ndarray]:
    return [fits.getdata(path).astype(np.float32) for path in paths]


def prepared(descriptors: list[Any], spec: RegisterSpec = AUTO, **keywords: Any) -> Group:
    group = open_group(descriptors, **keywords)
    scan_group(group, spec, find_stars=spec.mode in ("auto", "stars"), workers=2)
    register_group(group, spec, workers=2)
    return group


def reasons(group: Group) -> list[str]:
    return [row.reason for row in group.rows]


def test_what_is_no_frame_of_this_size_is_left_out_with_the_reason(
    paths: list[Path], arrays: list[np.ndarray], tmp_path: Path
) -> None:
    text, cut = tmp_path / "notes.fits", tmp_path / "cut.fits"
    text.write_text("nothing but notes")
    cut.write_bytes(paths[0].read_bytes()[:9000])
    group = open_group([paths[0], tmp_path / "absent.fits", text, cut, arrays[1][:100], paths[1], 7, arrays[2]])
    assert group.usable == [0, 5, 7]
    found = reasons(group)
    for i, words in {1: "no such file", 2: "neither FITS nor .npy", 3: "truncated", 4: "(100, 192)", 6: "int"}.items():
        assert words in found[i]
    assert [row.name for row in group.rows][1:4] == [str(tmp_path / "absent.fits"), str(text), str(cut)]


def test_the_commonest_size_wins_unless_a_reference_is_named(arrays: list[np.ndarray]) -> None:
    small = {"data": arrays[0][:96, :96], "name": "small"}
    assert open_group([small, *arrays[:2]]).usable == [1, 2]
    assert open_group([small, *arrays[:2]], reference="small").usable == [0]
    colour = np.repeat(arrays[0][:, :, None], 3, axis=2)
    assert open_group([colour, *arrays[:2]]).usable == [1, 2]


def test_every_frame_has_a_name_of_its_own(paths: list[Path], arrays: list[np.ndarray]) -> None:
    source = open_source(paths[0])
    group = open_group([source, source, paths[0], arrays[0], arrays[0]])
    names = [row.name for row in group.rows]
    path = str(paths[0])
    assert names == [path, f"{path} (2)", f"{path} (3)", "<array>", "<array> (2)"]
    assert [group.source(i).name for i in range(5)] == names
    assert source.name == path  # the caller's object keeps its name


def test_many_frames_of_one_name_take_no_quadratic_time() -> None:
    frame = open_source(np.arange(64.0, dtype=np.float32).reshape(8, 8))
    group = open_group([frame] * 5000)
    assert len({row.name for row in group.rows}) == 5000


def test_reference_is_found_by_path_or_by_name(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(paths[0].parent)
    for reference in (paths[2], str(paths[2]), paths[2].name, f"./{paths[2].name}"):
        assert open_group(paths, reference=reference).reference == 2
    with pytest.raises(NoFramesError, match="not among the 5"):
        open_group(paths, reference="other.fits")
    with pytest.raises(NoFramesError, match="not among the 5"):
        open_group(paths, reference=Path("elsewhere") / paths[2].name)


def test_unreadable_reference_says_why(paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.fits"
    broken.write_bytes(paths[0].read_bytes()[:9000])
    with pytest.raises(NoFramesError, match=r"broken\.fits.* cannot be used.*truncated"):
        open_group([*paths, broken], reference="broken.fits")
    blank = {"data": np.full((SKY.height, SKY.width), 5.0, np.float32), "name": "blank"}
    with pytest.raises(NoFramesError, match="the reference blank cannot be used: blank frame: every pixel is 5"):
        prepared([*paths, blank], reference="blank")


def test_nothing_at_all_is_an_error_that_lists_reasons(tmp_path: Path) -> None:
    with pytest.raises(NoFramesError, match="no frames were given"):
        open_group([]).require_some("opened")
    group = open_group([tmp_path / "a.fits", tmp_path / "b.fits"])
    with pytest.raises(NoFramesError, match=r"none of 2 frames could be opened: .*a\.fits: no such file.*b\.fits"):
        group.require_some("opened")


def test_blank_and_invalid_frames_are_left_out(arrays: list[np.ndarray]) -> None:
    nan, constant = np.full_like(arrays[0], np.nan), np.zeros_like(arrays[0])
    infinite = np.full_like(arrays[0], np.inf)
    group = open_group([arrays[0], nan, constant, infinite, arrays[1]])
    scan_group(group, AUTO, find_stars=True)
    assert group.usable == [0, 4]
    assert ["no valid pixel" in reason for reason in reasons(group)] == [False, True, False, True, False]
    assert "every pixel is 0" in reasons(group)[2]


def test_channels_that_are_each_constant_make_a_blank_frame() -> None:
    colour = np.broadcast_to(np.array([1, 2, 3], np.float32), (32, 32, 3))
    with pytest.raises(FrameError, match="blank frame: every pixel is 1, 2, 3"):
        scan_frame(open_source(np.array(colour)), AUTO, find_stars=True)
    one_dead = np.random.default_rng(1).normal(100, 5, (32, 32, 3)).astype(np.float32)
    one_dead[..., 2] = 0
    assert np.isfinite(scan_frame(open_source(one_dead), AUTO, find_stars=False).stats.median).all()


def unmeasured(pixels, **how):
    return scan_frame(open_source(pixels, **how), RegisterSpec(mode="none"), find_stars=False, measure=False)


@pytest.mark.parametrize("shape", [(60, 40), (60, 40, 3)])
def test_a_look_finds_what_a_reading_finds(shape, rng):
    frame = rng.normal(1000.0, 10.0, shape).astype(np.float32)
    assert unmeasured(frame).stats is None
    flat = np.full(shape, 5.0, np.float32)
    with pytest.raises(FrameError, match=r"blank frame: every pixel is 5"):
        unmeasured(flat)
    flat[0, 0] = 6.0  # far from the rows that are looked at
    assert unmeasured(flat).fwhm != unmeasured(flat).fwhm  # nan
    frame[..., -1] = np.nan
    if len(shape) == 2:
        frame[:] = np.nan
    with pytest.raises(FrameError, match="no valid pixel"):
        unmeasured(frame)


def test_a_look_at_a_mosaic_sees_its_colours():
    mosaic = np.full((60, 40), 100, np.uint16)
    mosaic[::2, ::2] = 300  # every red pixel alike, and every other one
    with pytest.raises(FrameError, match="blank frame: every pixel is 300, 100, 100"):
        unmeasured(mosaic, bayer="RGGB")
    mosaic[1, 1] += 1
    assert unmeasured(mosaic, bayer="RGGB").n_stars == 0


@pytest.mark.parametrize("bayer", ["none", "GRBG", "RGGB", "rgb"])
def test_stars_are_found_in_full_resolution_pixels(tmp_path: Path, bayer: str) -> None:
    spec = replace(SKY, bayer=bayer, n_frames=1, n_stars=25, flux_min=15000.0)
    session = simulate(spec, tmp_path / "raw")
    stars = scan_frame(open_source(tmp_path / "raw" / session.names[0]), AUTO, find_stars=True).stars
    assert stars is not None
    inside = np.all((session.star_xy > 12) & (session.star_xy < (spec.width - 12, spec.height - 12)), axis=1)
    distance = np.hypot(*(stars.xy[:, None] - session.star_xy[None, inside]).T)
    assert np.count_nonzero(distance.min(axis=1) < 0.5) >= 0.8 * np.count_nonzero(inside)
    assert np.median(distance.min(axis=1)) < 0.15


@pytest.mark.parametrize(
    ("cards", "start", "exposure"),
    [
        ({"DATE-OBS": "2025-01-15T21:00:00", "EXPTIME": 10}, datetime(2025, 1, 15, 21), 10.0),
        ({"DATE-OBS": "2025-01-15T21:00:00Z", "EXPOSURE": "2.5"}, datetime(2025, 1, 15, 21), 2.5),
        ({"DATE-OBS": "2025-01-15T21:00:00+02:00", "EXPTIME": -1}, datetime(2025, 1, 15, 19), np.nan),
        ({"DATE-OBS": "15/01/95", "EXPTIME": "10,0", "EXPOSURE": 3.0}, None, 3.0),
        ({"DATE-OBS": "0001-01-01T00:00:00+10:00", "EXPTIME": True}, None, np.nan),
        ({"DATE-OBS": "", "EXPTIME": "long"}, None, np.nan),
        ({}, None, np.nan),
    ],
)
def test_times_are_read_as_far_as_they_can_be(
    arrays: list[np.ndarray], cards: dict[str, Any], start: datetime | None, exposure: float
) -> None:
    scan = scan_frame(open_source({"data": arrays[0], "header": cards}), AUTO, find_stars=False)
    assert scan.exposure.start == start
    assert scan.exposure.seconds == pytest.approx(exposure, nan_ok=True)


@pytest.mark.parametrize("kind", ["mono", "rgb", "bayer"])
def test_memory_of_a_scan_is_what_the_planner_believes(rng: np.random.Generator, kind: str) -> None:
    image = rng.normal(1000, 30, (400, 500, 3) if kind == "rgb" else (400, 500)).astype(np.float32)
    image = image.astype(np.uint16) if kind == "bayer" else image
    source = open_source(image, bayer="RGGB" if kind == "bayer" else "none")
    scan_frame(source, AUTO, find_stars=True)  # whatever is loaded on first use
    tracemalloc.start()
    scan_frame(source, AUTO, find_stars=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * scan_bytes(source)
    assert peak > 0.3 * scan_bytes(source)


def test_memory_limits_how_many_frames_are_scanned_at_a_time(arrays: list[np.ndarray]) -> None:
    threads: set[str] = set()

    def seen(*_: Any) -> None:
        threads.add(threading.current_thread().name)

    group = open_group(arrays)
    scan_group(group, AUTO, find_stars=True, workers=4, allowed_bytes=1, progress=seen)
    assert threads == {threading.current_thread().name}
    assert group.usable == list(range(5))


@pytest.mark.parametrize("mode", ["auto", "stars", "wcs"])
def test_transforms_are_the_true_ones(truth: tuple[Path, SimulationTruth], paths: list[Path], mode: str) -> None:
    group = prepared(list(paths), RegisterSpec(mode=mode))  # type: ignore[arg-type]
    assert group.usable == list(range(5))
    session, inverse = truth[1], np.linalg.inv(truth[1].transforms[group.reference])
    grid = np.array([(x, y, 1.0) for x in (0, SKY.width - 1) for y in (0, SKY.height - 1)])
    for k, row in enumerate(group.rows):
        assert row.registration is not None
        error = grid @ (row.registration.transform - session.transforms[k] @ inverse).T
        assert np.hypot(error[:, 0], error[:, 1]).max() < (0.02 if mode == "wcs" else 0.25)
        assert row.registration.method == ("reference" if k == group.reference else "wcs" if mode == "wcs" else "stars")


def test_register_none_takes_the_frames_as_they_lie(arrays: list[np.ndarray]) -> None:
    group = prepared(arrays, RegisterSpec(mode="none"))
    assert group.reference == 0
    assert all(np.array_equal(row.registration.transform, np.eye(3)) for row in group.rows if row.registration)
    assert group.usable == list(range(5))


def test_wcs_mode_prefers_a_reference_that_has_one_and_says_who_has_none(
    paths: list[Path], arrays: list[np.ndarray]
) -> None:
    group = prepared([arrays[0], paths[1], paths[2]], RegisterSpec(mode="wcs"))
    assert group.reference == 1
    assert reasons(group) == ["not registered: the frame has no celestial WCS; use --register stars", "", ""]
    with pytest.raises(NoFramesError, match="not among"):
        prepared([arrays[0], paths[1]], RegisterSpec(mode="wcs"), reference="absent")


def test_wcs_mode_without_a_wcs_on_the_reference_is_refused(paths: list[Path], arrays: list[np.ndarray]) -> None:
    wcs = RegisterSpec(mode="wcs")
    with pytest.raises(NoFramesError, match="reference bare has no celestial WCS.*--register stars"):
        prepared([{"data": arrays[0], "name": "bare"}, paths[1]], wcs, reference="bare")
    with pytest.raises(NoFramesError, match="none of 3 frames has a celestial WCS; use --register stars"):
        prepared(list(arrays[:3]), wcs)
    assert prepared([arrays[0]], wcs).usable == [0]  # nothing to register


def test_a_frame_with_a_wcs_is_the_better_reference(paths: list[Path], arrays: list[np.ndarray]) -> None:
    for place in range(3):
        frames: list[Any] = list(arrays[:3])
        frames[place] = paths[place]
        assert prepared(frames).reference == place


def test_too_few_stars_leave_the_wcs(paths: list[Path]) -> None:
    blind = RegisterSpec(detection_sigma=999.0)
    group = prepared(list(paths), blind)
    assert sorted(row.registration.method for row in group.rows if row.registration) == ["reference"] + ["wcs"] * 4
    bare = [fits.getdata(path).astype(np.float32) for path in paths[:3]]
    assert sum("at least 4 are needed" in reason for reason in reasons(prepared(bare, blind))) == 2


def test_a_reference_that_shows_another_field_is_not_kept(arrays: list[np.ndarray], tmp_path: Path) -> None:
    # The stranger is the sharpest frame, so it is chosen first; nothing registers on it.
    other = simulate(replace(SKY, n_frames=1, seed=77, fwhm_px=2.2), tmp_path / "other")
    stranger = fits.getdata(tmp_path / "other" / other.names[0]).astype(np.float32)
    group = prepared([*arrays[:2], stranger, *arrays[2:]])
    assert group.usable == [0, 1, 3, 4, 5]
    assert group.reference in group.usable
    assert "not registered" in reasons(group)[2]


def test_frames_of_three_fields_keep_the_largest_group(arrays: list[np.ndarray], tmp_path: Path) -> None:
    others = []
    for seed in (77, 78):
        simulate(replace(SKY, n_frames=1, seed=seed, fwhm_px=2.2), tmp_path / str(seed))
        others.append(fits.getdata(tmp_path / str(seed) / "sub_0001.fits").astype(np.float32))
    assert prepared([*others, *arrays[:2]]).usable == [2, 3]


def test_registering_needs_no_file_that_was_scanned(paths: list[Path], tmp_path: Path) -> None:
    victim = tmp_path / "victim.fits"
    victim.write_bytes(paths[1].read_bytes())
    group = open_group([paths[0], victim, paths[2]], reference=paths[0])
    scan_group(group, AUTO, find_stars=True)
    victim.unlink()
    register_group(group, AUTO)
    assert group.usable == [0, 1, 2]
    assert all(group.scan(i).wcs is None and group.scan(i).stars is None for i in group.usable)  # given up


def test_a_wcs_that_cannot_be_used_costs_nothing(paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.fits"
    with fits.open(paths[1]) as hdus:
        for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
            hdus[0].header[key] = 0.0
        hdus.writeto(broken)
    assert prepared([paths[0], broken, paths[2]]).usable == [0, 1, 2]


def test_real_sky_registers_to_a_tenth_of_a_pixel(data_dir: Path, rng: np.random.Generator) -> None:
    sky = fits.getdata(data_dir / "isaac_cutout.fits")
    subs = cut_subs(sky, rng, count=6, size=300, sigma=20.0, dither_px=12.0, angle_deg=3.0)
    group = prepared(list(subs.noisy))
    assert group.usable == list(range(6))
    errors = [subs.rms_error(row.registration.transform, group.reference, k) for k, row in enumerate(group.rows)]  # type: ignore[union-attr]
    assert max(errors) < 0.1


def test_bayer_choice_reaches_the_frames(arrays: list[np.ndarray]) -> None:
    group = open_group([arrays[0]], partial(open_source, bayer="RGGB"))
    assert group.source(0).shape == (*arrays[0].shape, 3)


def test_small_census_of_good_subs_and_wrong_fields(tmp_path: Path) -> None:
    """The small version of ``benchmarks/bench_robustness.py``: raw mosaics of two fields, no WCS."""
    lists = []
    for seed in (1, 2):
        spec = SimulationSpec(
            n_frames=8, height=320, width=480, seed=seed, with_wcs=False, gain_range=(0.4, 1.0), trail_fraction=0.5,
            n_stars=300, flux_min=1500.0,
        )  # fmt: skip
        session = simulate(spec, tmp_path / str(seed))
        group = open_group([tmp_path / str(seed) / name for name in session.names])
        scan_group(group, AUTO, find_stars=True)
        lists.append([group.scan(i).stars for i in group.usable])
        register_group(group, AUTO)
        assert group.usable == list(range(8))
        here = np.linalg.inv(session.transforms[group.reference])
        corners = np.array([(x, y, 1.0) for x in (0, 479) for y in (0, 319)])
        for k, row in enumerate(group.rows):
            assert row.registration is not None
            error = corners @ (row.registration.transform - session.transforms[k] @ here).T
            assert np.hypot(error[:, 0], error[:, 1]).max() < 0.5
    for k in range(8):
        for reference, frame in ((lists[0][k], lists[1][k]), (lists[1][k], lists[0][(k + 1) % 8])):
            verdict = register_stars(reference, frame, (320, 480), AUTO)
            assert not verdict.ok
            assert verdict.reason


def test_distortion_of_the_reference_stays_in_the_wcs_of_the_tile(paths: list[Path], tmp_path: Path) -> None:
    cards = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 6e-6, "B_0_2": -5e-6, "B_1_1": 3e-6}
    for k, path in enumerate(paths):
        with fits.open(path) as hdus:
            hdus[0].header.update(cards | {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"})
            hdus.writeto(tmp_path / f"sip{k}.fits")
    inputs = sorted(tmp_path.glob("sip*.fits"))
    tile = stack_files(inputs, tmp_path / "tile.fits", device="cpu")
    reference, made = open_source(tile.report.reference).wcs(), open_source(tmp_path / "tile.fits").wcs()
    assert reference is not None and made is not None and made.sip is not None
    y, x = (axis.ravel() for axis in np.mgrid[0 : SKY.height - 1 : 5j, 0 : SKY.width - 1 : 5j])
    back = made.all_world2pix(reference.all_pix2world(np.column_stack((x, y)), 0), 0)
    assert np.hypot(back[:, 0] - x, back[:, 1] - y).max() < 0.01

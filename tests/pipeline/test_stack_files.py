"""From files to a tile: what is stacked, what the table and the header say of it, what is written or refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from pipeline_case import SKY, paths, sessions  # noqa: F401 - fixtures
from real_sky import cut_subs

from zemosaic_phase3.app.summary import json_text, report_document
from zemosaic_phase3.errors import NoFramesError, OutputError, PlanError, SpecError, StackCancelled
from zemosaic_phase3.pipeline.tile import Tile
from zemosaic_phase3.simulate.session import SimulationTruth
from zemosaic_phase3.spec import RegisterSpec, StackSpec
from zemosaic_worker import stack_files

PLAIN = StackSpec(normalize="none", weight="none", reject="none")


@pytest.fixture
def arrays(paths: list[Path]) -> list[np.ndarray]:
    return [fits.getdata(path).astype(np.float32) for path in paths]


def blank_at(image: np.ndarray, value: float) -> np.ndarray:
    """Give all but the stars one level: readable, but without measurable noise."""
    flat = np.full_like(image, value)
    bright = image > np.percentile(image, 99.5)
    flat[bright] = image[bright]
    return flat


@pytest.mark.parametrize("bayer", ["none", "GRBG", "rgb"])
def test_folder_becomes_a_tile_of_the_true_sky(
    sessions: dict[str, tuple[Path, SimulationTruth]], tmp_path: Path, bayer: str
) -> None:
    folder, truth = sessions[bayer]
    tile = stack_files([folder], tmp_path / "tile.fits", reference=truth.names[0], maps=True)
    colour = () if bayer == "none" else (3,)
    assert tile.image.shape == (SKY.height, SKY.width, *colour)
    assert (tile.report.n_used, tile.report.dropped) == (5, [])
    inner = (slice(16, -16), slice(16, -16))
    expected = truth.image[inner].reshape(-1, *colour) * truth.gains[0] + truth.sky[0]
    error = tile.image[inner].reshape(-1, *colour) - expected
    noise = truth.sample_sigma[0]
    assert (np.abs(np.median(error, axis=0)) < 0.5 * noise).all()  # levels are the reference's
    spread = 1.4826 * np.median(np.abs(error - np.median(error, axis=0)), axis=0)
    assert (spread < 1.2 * noise / np.sqrt(truth.spec.n_frames)).all()
    with fits.open(tmp_path / "tile.fits", checksum=True) as hdus:
        expected_names = {"ALPHA", "COVERAGE", "WEIGHT", "REJ_LOW", "REJ_HIGH", "ERR", "FRAMES", "RUN"}
        assert {hdu.name for hdu in hdus[1:]} == expected_names
        data = hdus[0].data if hdus[0].data.ndim == 2 else np.moveaxis(hdus[0].data, 0, -1)
        assert np.array_equal(data, tile.image, equal_nan=True)
        wcs = WCS(hdus[0].header, naxis=2)
        assert "BAYERPAT" not in hdus[0].header
    corner = np.array([[0.0, 0.0]])
    assert tile.wcs is not None
    for found in (wcs, tile.wcs):
        sky = WCS(fits.getheader(folder / truth.names[0]), naxis=2).all_pix2world(corner, 0)
        assert np.abs(found.all_world2pix(sky, 0) - corner).max() < 0.01


def test_real_sky_reaches_the_ideal_noise(data_dir: Path, rng: np.random.Generator) -> None:
    subs = cut_subs(
        fits.getdata(data_dir / "isaac_cutout.fits"), rng, count=16, size=320, sigma=40.0, dither_px=12.0, angle_deg=3.0
    )  # fmt: skip
    tile = stack_files(list(subs.noisy))
    assert tile.report.n_used == 16
    reference = [row.name for row in tile.rows].index(tile.report.reference)
    errors = [subs.rms_error(row.registration.transform, reference, k) for k, row in enumerate(tile.rows)]  # type: ignore[union-attr]
    assert max(errors) < 0.1
    pixels, blocks = subs.noise_ratios(tile.image, tile.maps["COVERAGE"], reference)
    assert pixels < 1.1
    assert blocks < 1.15  # 1,400 blocks know their own scatter to 4 %


def test_colour_and_mosaic_of_one_shape_stack_together(sessions: dict[str, tuple[Path, SimulationTruth]]) -> None:
    inputs = [sessions["GRBG"][0] / "sub_0001.fits", sessions["rgb"][0] / "sub_0001.fits"]
    tile = stack_files(inputs, register=RegisterSpec(mode="none"))
    assert (tile.report.n_used, tile.image.shape) == (2, (SKY.height, SKY.width, 3))


def test_one_frame_alone_is_that_frame(paths: list[Path], arrays: list[np.ndarray]) -> None:
    for inputs in ([paths[0]], paths[0], [str(paths[0])], [arrays[0]]):
        assert np.array_equal(stack_files(inputs).image, arrays[0])


def test_nan_and_borders_are_no_data(arrays: list[np.ndarray]) -> None:
    holed = arrays[0].copy()
    holed[50:54, 60:64] = np.nan
    alone = stack_files([holed])
    assert (alone.alpha[50:54, 60:64] == 0).all()
    assert np.count_nonzero(alone.alpha == 0) == 16
    assert (alone.maps["COVERAGE"] == np.isfinite(holed)).all()
    pair = stack_files([{"data": holed, "name": "holed"}, arrays[4]], stack=PLAIN, reference="holed")
    assert (pair.maps["COVERAGE"][50:54, 60:64] == 1).all()
    assert pair.maps["COVERAGE"].min() == 1  # beyond the second frame's border only the reference counts
    border = pair.maps["COVERAGE"] == 1
    assert np.array_equal(pair.image[border & np.isfinite(holed)], holed[border & np.isfinite(holed)])


def test_inputs_are_not_modified(arrays: list[np.ndarray]) -> None:
    before = [a.copy() for a in arrays]
    stack_files(arrays, stack=StackSpec(radial_weight=True, normalize="linear_fit"))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("memory", ["50%", "tight"])
@pytest.mark.parametrize("workers", [1, 3])
def test_pixels_depend_neither_on_memory_nor_on_workers(
    sessions: dict[str, tuple[Path, SimulationTruth]], memory: str, workers: int
) -> None:
    from zemosaic_phase3.engine.slab_plan import stack_bytes
    from zemosaic_phase3.runtime.limits import process_bytes

    folder = sessions["GRBG"][0]
    expected = stack_files([folder], workers=1)
    if memory == "tight":
        size = {"n_frames": 5, "height": SKY.height, "width": SKY.width, "channels": 3, "workers": workers}
        rows = stack_bytes(12, **size, source_margin=24, raw_bytes=4)
        grown = 200_000  # bytes, by which the process may have grown when the limit is looked at
        tile = stack_files([folder], workers=workers, memory=process_bytes() + rows + grown)
        assert tile.report.rows_per_slab < SKY.height
    else:
        tile = stack_files([folder], workers=workers, memory=memory)
    assert np.array_equal(tile.image, expected.image, equal_nan=True)


def test_too_little_memory_is_refused_before_a_frame_is_read(paths: list[Path]) -> None:
    steps: list[tuple[Any, ...]] = []
    with pytest.raises(PlanError, match=r"needed|need"):
        stack_files(paths, memory=1000, progress=lambda *step: steps.append(step))
    assert steps == []


def test_a_limit_below_what_the_process_uses_says_so(paths: list[Path]) -> None:
    with pytest.raises(PlanError, match=r"limit of 10000000 bytes.*process alone needs \d{8,} .*; .*--memory"):
        stack_files(paths, memory="10MB")


def table_of(path: Path) -> Table:
    with fits.open(path) as hdus:
        return Table(hdus["FRAMES"].data, copy=True)


def test_frames_table_has_one_row_per_input(paths: list[Path], arrays: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "notes.fits").write_text("no image")
    noise = {"data": np.random.default_rng(3).normal(1000, 30, arrays[0].shape), "name": "noise"}
    small = {"data": arrays[0][:99], "name": "small"}
    blank = {"data": np.zeros_like(arrays[0]), "name": "blank"}
    inputs = [*paths[:3], tmp_path / "notes.fits", tmp_path / "absent.fits", noise, small, blank]
    tile = stack_files(inputs, tmp_path / "out.fits", maps=True)
    table = table_of(tmp_path / "out.fits")
    rows = {Path(row["NAME"]).name: row for row in table}
    assert len(table) == len(inputs) == len(rows)
    words = {
        "notes.fits": "neither FITS", "absent.fits": "no such file", "noise": "not registered: ", "small": "shape (99,",
        "blank": "every pixel is 0",
    }  # fmt: skip
    for name, word in words.items():
        assert not rows[name]["USED"]
        assert word in rows[name]["REASON"]
        assert np.isnan(rows[name]["TRANSFORM"]).all()
        assert all(np.isnan(rows[name][column]).all() for column in ("WEIGHT", "SCALE", "OFFSET", "REJECTED"))
    for path in paths[:3]:
        row = rows[path.name]
        assert row["USED"]
        assert row["REASON"] == ""
        assert 0 < row["WEIGHT"] <= 1
        assert row["STARS"] > 6
        assert 1 < row["FWHM"] < 6
        assert 0 <= row["REJECTED"] < 5
    assert dict(tile.report.dropped).keys() >= {"noise", "small", "blank"}
    assert (tile.report.n_input, tile.report.n_used) == (8, 3)
    with fits.open(tmp_path / "out.fits") as hdus:
        columns = hdus["FRAMES"].columns
        assert {name: columns[name].unit for name in ("RMS_PX", "FWHM", "OFFSET", "REJECTED")} == {
            "RMS_PX": "pixel", "FWHM": "pixel", "OFFSET": "adu", "REJECTED": None,
        }  # fmt: skip


def test_frames_table_holds_names_that_fits_cannot(arrays: list[np.ndarray], tmp_path: Path) -> None:
    named = [{"data": a, "name": f"\u661f\u96f2 {k}"} for k, a in enumerate(arrays[:3])]
    tile = stack_files(named, tmp_path / "o.fits", maps=True)
    assert [row.name for row in tile.rows] == [d["name"] for d in named]
    assert "\\u661f" in table_of(tmp_path / "o.fits")["NAME"][0]


def test_frames_that_nothing_needs_measured_are_not_and_still_have_their_rows(
    arrays: list[np.ndarray], tmp_path: Path
) -> None:
    blank = np.full_like(arrays[0], 7.0)
    spec = StackSpec(normalize="none", weight="none")
    tile = stack_files([*arrays, blank], tmp_path / "t.fits", stack=spec, register=RegisterSpec(mode="none"), maps=True)
    assert tile.report.n_used == len(arrays)
    assert "blank frame: every pixel is 7" in tile.report.dropped[0][1]
    rows = table_of(tmp_path / "t.fits")
    for column in ("FWHM", "ECCENTR", "SKY", "NOISE", "TRANSPAR"):
        assert np.isnan(rows[column]).all()
    assert json.loads(json_text(report_document(tile, {})))["frames"][0]["fwhm"] is None


@pytest.mark.parametrize("place", [0, 1])
def test_frame_whose_noise_cannot_be_measured_is_dropped(arrays: list[np.ndarray], place: int) -> None:
    # It is dropped only when the stack begins; in place 0 it is the reference.
    inputs = [{"data": a, "name": str(k)} for k, a in enumerate(arrays)]
    inputs[place]["data"] = blank_at(arrays[place], 900.0)
    tile = stack_files(inputs, reference="0", register=RegisterSpec(mode="none"))
    assert [row.used for row in tile.rows] == [k != place for k in range(5)]
    assert "could not be measured" in tile.rows[place].reason
    assert tile.header["NCOMBINE"] == 4
    assert np.isfinite([row.weight for row in tile.rows if row.used]).all()
    assert tile.report.reference == "0"


def test_frames_of_one_name_keep_their_own_numbers(arrays: list[np.ndarray]) -> None:
    # All arrays are called "<array>"; the second cannot be measured, and only its row may say so.
    arrays[1] = blank_at(arrays[1], 900.0)
    tile = stack_files(arrays, register=RegisterSpec(mode="none"))
    assert [row.used for row in tile.rows] == [True, False, True, True, True]
    assert [len(row.weight) for row in tile.rows] == [1, 0, 1, 1, 1]


def test_file_truncated_while_stacking_is_dropped(paths: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / path.name for path in paths]
    for path, target in zip(paths, copies, strict=True):
        target.write_bytes(path.read_bytes())

    def truncate(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("register", total):
            copies[3].write_bytes(copies[3].read_bytes()[:6000])

    spec = StackSpec(weight="noise_variance")  # others depend on the median of the session, that frame included
    tile = stack_files(copies, stack=spec, progress=truncate, reference=paths[0].name)
    assert [row.used for row in tile.rows] == [True, True, True, False, True]
    assert "was written or replaced" in tile.rows[3].reason
    assert (tile.header["EXPTOTAL"], tile.header["NCOMBINE"]) == (40.0, 4)
    expected = stack_files([*copies[:3], copies[4]], stack=spec, reference=paths[0].name)
    assert np.array_equal(tile.image, expected.image, equal_nan=True)


def test_nothing_left_says_why(arrays: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(NoFramesError, match=r"none of 2 frames could be read: .*blank frame"):
        stack_files([np.zeros_like(arrays[0])] * 2)
    with pytest.raises(NoFramesError, match="no frames"):
        stack_files([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoFramesError, match="no frames found in"):
        stack_files([tmp_path / "empty"])


@pytest.fixture
def times() -> list[dict[str, Any]]:
    """Headers of exposures that end in another order than they begin."""
    return [
        {"DATE-OBS": "2025-01-15T22:00:00", "EXPTIME": 60.0, "OBJECT": "first"},
        {"DATE-OBS": "2025-01-15T21:59:00", "EXPTIME": 600.0},
        {"DATE-OBS": "2025-01-15T22:05:00", "EXPTIME": 60.0},
    ]


def test_times_of_the_tile(arrays: list[np.ndarray], times: list[dict[str, Any]]) -> None:
    inputs = [{"data": a, "header": h, "name": str(k)} for k, (a, h) in enumerate(zip(arrays, times, strict=False))]
    header = stack_files(inputs, reference="0").header
    assert (header["DATE-OBS"], header["DATE-END"]) == ("2025-01-15T21:59:00", "2025-01-15T22:09:00")
    assert (header["EXPTIME"], header["EXPTOTAL"], header["OBJECT"]) == (60.0, 720.0, "first")
    without = stack_files([a for a in arrays[:2]]).header
    assert {"DATE-OBS", "DATE-END", "EXPTIME", "EXPTOTAL"}.isdisjoint(without)


@pytest.mark.parametrize("combine", ["mean", "median", "min", "max"])
def test_header_names_the_weights_that_were_used(arrays: list[np.ndarray], combine: str) -> None:
    spec = StackSpec(combine=combine, radial_weight=True)  # type: ignore[arg-type]
    header = stack_files(arrays, stack=spec).header
    weighted = combine == "mean"
    assert header["ZMT_WGHT"] == ("point_source" if weighted else "none")
    assert header["ZMT_RADW"] is weighted
    assert ("ZMT_RADF" in header) is weighted
    assert (header["ZMT_COMB"], header["ZMT_WSC"], header["ZMT_KAPLO"]) == (combine, "pixinsight", 4.0)
    assert "ZMT_WINLO" not in header


def test_header_without_a_wcs(arrays: list[np.ndarray], tmp_path: Path) -> None:
    tile = stack_files(arrays, tmp_path / "o.fits")
    assert tile.wcs is None
    assert "CTYPE1" not in fits.getheader(tmp_path / "o.fits")


def test_report_is_ready_for_json(paths: list[Path]) -> None:
    import json

    report = stack_files(paths, workers=2).report
    text = json.dumps(report.as_dict())
    assert json.loads(text)["n_used"] == 5
    assert set(report.seconds) == {"open", "calibrate", "measure", "register", "stack", "finish"}
    assert report.noise_after[0] < 0.7 * report.noise_before[0]
    assert report.peak_rss_bytes > 1e6


def test_existing_output_is_refused_before_the_work(paths: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "tile.fits"
    output.write_text("precious")
    steps: list[Any] = []
    with pytest.raises(OutputError, match="exists already"):
        stack_files(paths, output, progress=lambda *s: steps.append(s))
    assert steps == []
    assert output.read_text() == "precious"
    stack_files(paths, output, overwrite=True)
    assert fits.getheader(output)["NCOMBINE"] == 5


def test_an_earlier_tile_among_the_inputs_is_not_stacked(paths: list[Path], tmp_path: Path) -> None:
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    output = tmp_path / "tile.fits"
    first = stack_files([tmp_path], output)
    again = stack_files([tmp_path], output, overwrite=True)
    assert (first.report.n_input, again.report.n_input) == (5, 5)
    assert np.array_equal(first.image, again.image, equal_nan=True)


def test_an_input_is_never_the_output(paths: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "sub.fits"
    copy.write_bytes(paths[0].read_bytes())
    with pytest.raises(OutputError, match="is itself an input"):
        stack_files([*paths, copy], copy, overwrite=True)
    assert copy.read_bytes() == paths[0].read_bytes()


@pytest.mark.parametrize("given", ["folder", "pattern"])
def test_a_raw_frame_of_a_folder_is_never_overwritten(paths: list[Path], tmp_path: Path, given: str) -> None:
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = tmp_path / paths[0].name
    with pytest.raises(OutputError, match="is itself an input"):
        stack_files([tmp_path if given == "folder" else tmp_path / "*.fits"], raw, overwrite=True)
    assert raw.read_bytes() == paths[0].read_bytes()


def test_an_earlier_stack_among_its_subs_is_no_frame_unless_named(paths: list[Path], caplog) -> None:
    earlier = paths[0].parent / "earlier.fits"
    stack_files(paths, earlier, overwrite=True)
    try:
        tile = stack_files([paths[0].parent])
        assert tile.report.n_input == 5
        assert tile.report.warnings[0].startswith("earlier.fits: it is a finished stack, not a frame")
        assert "earlier.fits: it is a finished stack" in caplog.text
        assert stack_files([paths[0].parent, earlier]).report.n_input == 6
    finally:
        earlier.unlink()


def test_a_file_named_twice_counts_once(paths: list[Path]) -> None:
    assert stack_files([paths[0].parent, *paths, str(paths[0])]).report.n_input == 5


def test_progress_tells_every_stage(paths: list[Path]) -> None:
    steps: list[tuple[str, int, int]] = []
    stack_files(paths, workers=1, progress=lambda *step: steps.append(step))
    for stage in ("measure", "register"):
        assert [step for step in steps if step[0] == stage] == [(stage, k, 5) for k in range(1, 6)]
    stacked = [step for step in steps if step[0] == "stack"]
    assert stacked[-1][1] == stacked[-1][2] == len(stacked)


@pytest.mark.parametrize("stage", ["measure", "register", "stack"])
@pytest.mark.parametrize("workers", [1, 3])
def test_stop_leaves_nothing_but_a_journal(paths: list[Path], tmp_path: Path, stage: str, workers: int) -> None:
    def stop(name: str, *_: Any) -> None:
        if name == stage:
            raise StackCancelled("the user said stop")

    with pytest.raises(StackCancelled):
        stack_files(paths, tmp_path / "tile.fits", workers=workers, progress=stop)
    assert {path.name for path in tmp_path.iterdir()} <= {"tile.fits.journal"}  # to go on from
    assert not [t for t in threading.enumerate() if t.name.startswith("zemosaic")]


def test_a_progress_that_raises_changes_nothing(paths: list[Path]) -> None:
    def broken(*_: Any) -> None:
        raise OSError("the terminal went away")

    assert np.array_equal(stack_files(paths, progress=broken).image, stack_files(paths).image, equal_nan=True)


def test_bad_choices_are_refused_before_the_work(paths: list[Path]) -> None:
    steps: list[Any] = []
    for wrong in ({"device": "tpu"}, {"bayer": "XYZW"}, {"memory": "lots"}):
        with pytest.raises(SpecError):
            stack_files(paths, progress=lambda *s: steps.append(s), **wrong)  # type: ignore[arg-type]
    assert steps == []


def test_required_gpu_is_never_silently_the_cpu(paths: list[Path]) -> None:
    from zemosaic_phase3.engine.gpu_check import usability

    if usability().usable:
        pytest.skip("there is a GPU, and it may well stack this")
    with pytest.raises(Exception, match="the GPU is required"):
        stack_files(paths, device="gpu")


def test_a_tile_is_a_value_of_its_own(paths: list[Path]) -> None:
    tile = stack_files(paths)
    assert isinstance(tile, Tile)
    assert tile.wcs is not None
    assert tile.wcs.pixel_shape == (SKY.width, SKY.height)
    assert set(tile.maps) == {"COVERAGE", "WEIGHT", "REJ_LOW", "REJ_HIGH"}

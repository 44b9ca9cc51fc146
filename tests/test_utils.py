"""Tiles out: what is written is what astropy reads, whole or not at all; and the small helpers."""

from __future__ import annotations

import errno
import math
import os
import resource
import signal

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from zemosaic_phase3.compat import gpu_names
from zemosaic_phase3.compat.gpu_names import gpu_is_available, gpu_memory_sufficient
from zemosaic_phase3.compat.radial_map import make_radial_weight_map
from zemosaic_phase3.compat.sky_match import compute_sky_statistics, estimate_sky_affine_to_ref
from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io import atomic_write, tile_file
from zemosaic_phase3.io.atomic_write import write_fits_atomically
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.tile_file import save_fits_image, tile_hdus
from zemosaic_phase3.runtime import cuda

HEIGHT, WIDTH = 12, 10
RNG = np.random.default_rng(7)
COLOUR = RNG.normal(900.0, 30.0, (HEIGHT, WIDTH, 3)).astype(np.float32)
COLOUR[2, 3] = np.nan
WCS_CARDS = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 5.0, "CRPIX2": 6.0}


def read_back(path):
    """All units of a file, in memory; astropy checks the checksums, and any warning is an error here."""
    with fits.open(path, checksum=True, memmap=False) as hdus:
        for hdu in hdus:
            assert {"CHECKSUM", "DATASUM"} <= {*hdu.header}
            assert hdu.data is not None
        hdus.verify("exception")
        return fits.HDUList([hdu.copy() for hdu in hdus])


def only_file(folder):
    (path,) = folder.iterdir()
    return path


# --------------------------------------------------------------------------- layout


@pytest.mark.parametrize("axis_order", ["HWC", "CHW"])
@pytest.mark.parametrize("legacy", [False, True])
def test_float_colour_tile(tmp_path, axis_order, legacy):
    path = tmp_path / "tile.fits"
    image = COLOUR if axis_order == "HWC" else np.moveaxis(COLOUR, -1, 0)
    before = image.copy()
    alpha = np.isfinite(COLOUR[..., 0])
    options = {"axis_order": axis_order, "legacy_rgb_cube": legacy, "alpha_mask": alpha}
    save_fits_image(image, path, {"OBJECT": "M 31"}, save_as_float=True, **options)
    primary, alpha_hdu = read_back(path)
    np.testing.assert_array_equal(primary.data, np.moveaxis(COLOUR, -1, 0))
    header = primary.header
    assert (header["BITPIX"], header["CTYPE3"], header["EXTNAME"], header["OBJECT"]) == (-32, "RGB", "RGB", "M 31")
    assert not {"BSCALE", "BZERO"} & {*header}
    assert alpha_hdu.name == "ALPHA" and alpha_hdu.data.dtype == np.uint8
    np.testing.assert_array_equal(alpha_hdu.data, np.where(alpha, 255, 0))
    np.testing.assert_array_equal(image, before)
    source = open_source(path)
    assert source.shape == COLOUR.shape
    np.testing.assert_array_equal(source.read_rows(0, HEIGHT), COLOUR)


def test_float_mono_tile_stays_two_dimensional(tmp_path):
    for number, image in enumerate([COLOUR[..., 0], COLOUR[..., :1], COLOUR[..., 0].astype(np.float64)]):
        save_fits_image(image, tmp_path / f"{number}.fits", save_as_float=True)
        (primary,) = read_back(tmp_path / f"{number}.fits")
        np.testing.assert_array_equal(primary.data, COLOUR[..., 0])
        assert "CTYPE3" not in primary.header and "EXTNAME" not in primary.header


def test_integers_are_clipped_and_rounded_never_shifted(tmp_path):
    image = np.full((8, 8), 1000.0)
    image[0, :8] = -5, 0.4, 0.6, 65534.6, 70000, np.nan, np.inf, -np.inf
    save_fits_image(image, tmp_path / "a.fits")
    (primary,) = read_back(tmp_path / "a.fits")
    assert primary.data[0].tolist() == [0, 0, 1, 65535, 65535, 0, 65535, 0]
    assert (primary.data[1:] == 1000).all()
    with fits.open(tmp_path / "a.fits", do_not_scale_image_data=True) as hdus:
        assert (hdus[0].header["BITPIX"], hdus[0].header["BZERO"]) == (16, 32768)
    assert open_source(tmp_path / "a.fits").dtype == np.uint16

    raw = RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    save_fits_image(raw, tmp_path / "raw.fits", {"BAYERPAT": "GRBG"})
    np.testing.assert_array_equal(read_back(tmp_path / "raw.fits")[0].data, raw)
    assert open_source(tmp_path / "raw.fits").cfa == "GRBG"


def test_the_header_of_a_raw_frame_becomes_that_of_a_tile(tmp_path):
    raw = fits.PrimaryHDU(np.zeros((30, 40), np.uint16)).header
    raw.update(WCS_CARDS | {"CD1_1": -1e-3, "CD2_2": 1e-3, "WCSAXES": 2, "BAYERPAT": "GRBG", "XBAYROFF": 0, "BLANK": 5})
    raw.update({"EXTNAME": "RAW", "DATAMAX": 9.0, "CHECKSUM": "x", "ROWORDER": "TOP-DOWN", "GAIN": 80})
    raw["HISTORY"] = "first"
    before = raw.tostring()
    save_fits_image(COLOUR, tmp_path / "a.fits", raw, save_as_float=True)
    header = read_back(tmp_path / "a.fits")[0].header
    assert not {"BAYERPAT", "XBAYROFF", "BLANK", "DATAMAX", "BZERO"} & {*header}
    assert (header["GAIN"], header["NAXIS1"], header["WCSAXES"], header["ROWORDER"]) == (80, WIDTH, 3, "TOP-DOWN")
    assert list(header["HISTORY"]) == ["first"]
    assert raw.tostring() == before
    wcs = open_source(tmp_path / "a.fits").wcs()
    np.testing.assert_allclose(wcs.all_pix2world(1, 2, 0), WCS(raw).all_pix2world(1, 2, 0), rtol=1e-12)
    assert np.linalg.det(WCS(header).pixel_scale_matrix) != 0  # the third axis leaves the matrix regular

    save_fits_image(COLOUR[..., 0], tmp_path / "b.fits", header, save_as_float=True)  # a colour header on a mono tile
    header = read_back(tmp_path / "b.fits")[0].header
    assert header["WCSAXES"] == 2 and "CTYPE3" not in header and "CD3_3" not in header


def test_a_header_that_fits_cannot_hold_does_not_lose_the_tile(tmp_path):
    cards = {"EXPTIME": 10.0, "RGBGAINR": float("nan"), "MT_NFRAMES": 5, "THING": object(), "SITE": "Orléans"}
    save_fits_image(COLOUR, tmp_path / "a.fits", cards, save_as_float=True)
    header = read_back(tmp_path / "a.fits")[0].header
    assert (header["EXPTIME"], header["MT_NFRAMES"], header["SITE"]) == (10.0, 5, "Orl?ans")
    assert "RGBGAINR" not in header and "THING" not in header

    raw = fits.Header.fromstring("FOCALLEN= 250mm".ljust(80) + "GOOD    = 1".ljust(80) + "END".ljust(80))
    save_fits_image(COLOUR, tmp_path / "b.fits", raw, save_as_float=True)
    with fits.open(tmp_path / "b.fits") as hdus:
        assert hdus[0].header["GOOD"] == 1


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (np.full((HEIGHT, WIDTH), 0.5), 128),
        (np.full((HEIGHT, WIDTH, 1), 2.0, np.float32), 255),
        (np.full((HEIGHT, WIDTH), np.nan), 0),
        (np.full((HEIGHT, WIDTH), 200, np.uint8), 200),
        (np.full((HEIGHT, WIDTH), 300, np.int64), 255),
        (np.ones((HEIGHT, WIDTH), bool), 255),
    ],
)
def test_alpha_values(alpha, expected):
    assert np.unique(tile_hdus(COLOUR, None, alpha=alpha)["ALPHA"].data).tolist() == [expected]


def test_maps_and_frames(tmp_path):
    coverage = RNG.integers(0, 300, (HEIGHT, WIDTH)).astype(np.uint16)
    rejected = RNG.integers(0, 3, (HEIGHT, WIDTH, 3))
    columns = {
        "name": ["a.fits", "Orléans.fits", ""],
        "used": [True, False, True],
        "transform": np.arange(27.0).reshape(3, 3, 3),
        "stars": np.array([5, 6, 7]),
        "fwhm": np.array([2.5, np.nan, 3.0], np.float32),
    }
    hdus = tile_hdus(
        COLOUR,
        {},
        maps={"COVERAGE": coverage, "WEIGHT": COLOUR.astype(np.float64), "REJ_LOW": rejected},
        frames_table=columns,
        frames_units={"fwhm": "pix"},
    )
    write_fits_atomically(hdus, tmp_path / "a.fits", overwrite=False)
    back = read_back(tmp_path / "a.fits")
    assert [hdu.name for hdu in back[1:]] == ["COVERAGE", "WEIGHT", "REJ_LOW", "FRAMES"]
    np.testing.assert_array_equal(back["COVERAGE"].data, coverage)
    assert back["COVERAGE"].header["BITPIX"] == 32 and "BZERO" not in back["COVERAGE"].header
    np.testing.assert_array_equal(back["WEIGHT"].data, np.moveaxis(COLOUR, -1, 0))
    np.testing.assert_array_equal(back["REJ_LOW"].data, np.moveaxis(rejected, -1, 0))
    table = back["FRAMES"]
    assert table.data["name"].tolist() == ["a.fits", "Orl\\xe9ans.fits", ""]
    assert table.data["used"].tolist() == columns["used"]
    np.testing.assert_array_equal(table.data["transform"], columns["transform"])
    np.testing.assert_array_equal(table.data["fwhm"], columns["fwhm"])
    assert table.columns["fwhm"].unit == "pix" and table.columns["stars"].unit is None


def test_frames_without_a_row(tmp_path):
    write_fits_atomically(tile_hdus(COLOUR, None, frames_table={"name": []}), tmp_path / "a.fits", overwrite=False)
    with fits.open(tmp_path / "a.fits", checksum=True) as hdus:
        assert len(hdus["FRAMES"].data) == 0


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="alpha"):
        tile_hdus(COLOUR, None, alpha=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="different lengths"):
        tile_hdus(COLOUR, None, frames_table={"a": [1], "b": [1, 2]})
    with pytest.raises(ValueError, match="axis_order 'WHC'"):
        save_fits_image(COLOUR, tmp_path / "a.fits", axis_order="WHC")
    for shape in ((5,), (5, 5, 4), (0, 5), (2, 2, 2, 2)):
        with pytest.raises(ValueError, match="shape"):
            save_fits_image(np.zeros(shape), tmp_path / "a.fits", save_as_float=True)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- atomic writing


def write(path, value=1.0, overwrite=True):
    write_fits_atomically(tile_hdus(np.full((9, 9), value), None), path, overwrite=overwrite)


def value_of(path):
    return read_back(path)[0].data[0, 0]


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_without_overwrite_an_existing_file_is_an_error(tmp_path):
    path = tmp_path / "tile.fits"
    write(path, 1.0, overwrite=False)
    with pytest.raises(OutputError, match=r"tile\.fits: exists already.*--overwrite"):
        write(path, 2.0, overwrite=False)
    with pytest.raises(OutputError, match="exists"):
        save_fits_image(np.ones((9, 9)), path, overwrite=False)
    assert value_of(only_file(tmp_path)) == 1
    write(path, 2.0, overwrite=True)
    assert value_of(only_file(tmp_path)) == 2


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, has_links):
    path = tmp_path / "tile.fits"
    genuine = os.fsync

    def fsync_while_another_process_writes(handle):
        genuine(handle)
        if not path.exists():
            path.write_bytes(b"somebody else's")

    monkeypatch.setattr(os, "fsync", fsync_while_another_process_writes)
    if not has_links:
        monkeypatch.setattr(os, "link", fail_with(OSError(errno.EPERM, "no hard links here")))
    with pytest.raises(OutputError, match="exists already"):
        write(path, overwrite=False)
    assert only_file(tmp_path).read_bytes() == b"somebody else's"


def test_a_folder_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", fail_with(OSError(errno.EPERM, "no hard links here")))
    write(tmp_path / "tile.fits", overwrite=False)
    assert value_of(only_file(tmp_path)) == 1
    monkeypatch.setattr(os, "replace", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "other.fits", overwrite=False)
    assert only_file(tmp_path).name == "tile.fits"


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "bus"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_any_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error, existed):
    path = tmp_path / "tile.fits"
    if existed:
        write(path, 1.0)
    monkeypatch.setattr(os, step, fail_with(error))
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(kind) as caught:
        write(path, 2.0)
    monkeypatch.undo()
    if kind is OutputError:
        assert str(path) in str(caught.value)
        assert ("free space" if error.errno == errno.ENOSPC else "bus") in str(caught.value)
    assert [(p.name, value_of(p)) for p in tmp_path.iterdir()] == ([("tile.fits", 1)] if existed else [])


def test_interrupt_in_the_middle_of_the_data(tmp_path):
    class Interrupting(fits.ImageHDU):
        def _writedata(self, fileobj):
            raise KeyboardInterrupt

    hdus = tile_hdus(COLOUR, None)
    hdus.append(Interrupting(np.ones((9, 9))))
    with pytest.raises(KeyboardInterrupt):
        write_fits_atomically(hdus, tmp_path / "tile.fits", overwrite=True)
    assert not list(tmp_path.iterdir())


def test_a_real_limit_on_the_size_of_files(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, old[1]))
        with pytest.raises(OutputError, match=r"tile\.fits") as caught:
            save_fits_image(np.ones((400, 400)), tmp_path / "tile.fits", save_as_float=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert "no room left" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_seen_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_file.shutil, "disk_usage", lambda path: Usage)
    monkeypatch.setattr(os, "fsync", fail_with(AssertionError("written all the same")))
    with pytest.raises(OutputError, match=r"\d+ bytes are needed and 4000 are free"):
        write(tmp_path / "tile.fits")
    assert not list(tmp_path.iterdir())


class Usage:
    free = 4000


def test_folders_that_cannot_take_a_file(tmp_path):
    with pytest.raises(OutputError, match=r"folder .*gone does not exist; create it"):
        write(tmp_path / "gone" / "tile.fits")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="create it"):
        write(tmp_path / "file" / "tile.fits")
    (tmp_path / "folder.fits").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write(tmp_path / "folder.fits")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.fits"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_unwritable_folder(tmp_path, monkeypatch, code):
    if os.geteuid() == 0:  # root may write everywhere, so the refusal is made
        monkeypatch.setattr(atomic_write, "_write_to_disk", fail_with(OSError(code, "refused")))
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="may not be written; choose another"):
        write(tmp_path / "tile.fits")
    assert not list(tmp_path.iterdir())


def test_compressed_names_are_refused(tmp_path):
    with pytest.raises(OutputError, match="uncompressed"):
        write(tmp_path / "tile.fits.gz")


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    write(tmp_path / "tile.fits")
    (tmp_path / "plain").touch()
    assert (tmp_path / "tile.fits").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --------------------------------------------------------------------------- weights and sky


def radial_weight(height, width, x, y, feather, power):
    """One pixel of the map, from the definition."""
    distance = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) / (np.hypot(height, width) / 2)
    return np.cos(np.pi / 2 * min(distance / feather, 1.0)) ** power


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (5, 64), (33, 17)])
@pytest.mark.parametrize(("feather", "power", "floor"), [(0.8, 2.0, 0.05), (0.5, 1.0, 0.0), (1.0, 3.0, 0.2)])
def test_radial_weight_map(height, width, feather, power, floor):
    got = make_radial_weight_map(height, width, feather, power, floor)
    assert got.shape == (height, width) and got.dtype == np.float32
    for y, x in {(0, 0), (height // 2, width // 2), (height - 1, width // 3)}:
        expected = max(radial_weight(height, width, x, y, feather, power), floor)
        assert got[y, x] == pytest.approx(expected, rel=1e-6, abs=1e-7)
    np.testing.assert_array_equal(got, got[::-1, ::-1])


def test_radial_limits():
    assert make_radial_weight_map(2, 2, 1.4)[0, 0] == pytest.approx(0.5)  # feather 1.4 counts as 1
    np.testing.assert_array_equal(make_radial_weight_map(9, 9, 0.01), make_radial_weight_map(9, 9, 0.1))
    assert make_radial_weight_map(9, 9, min_weight_floor=1.5).min() == np.float32(0.99)
    assert make_radial_weight_map(9, 9, min_weight_floor=-1).min() >= 0
    assert (make_radial_weight_map(9, 9, shape_power=-3) == 1).all()
    for bad in ((0, 5), (5, -1)):
        with pytest.raises(ValueError, match="at least 1"):
            make_radial_weight_map(*bad)
    with pytest.raises(ValueError, match="finite"):
        make_radial_weight_map(5, 5, float("nan"))


def test_sky_statistics_are_percentiles_of_the_valid_pixels():
    levels = np.linspace(0, 100, 101)
    with_gaps = np.concatenate([levels, [np.nan, np.inf, -np.inf]])
    assert compute_sky_statistics(with_gaps, 25.0, 75.0) == {"median": 50.0, "low": 25.0, "high": 75.0}
    assert compute_sky_statistics(np.full((4, 4), np.nan), 25.0, 60.0) is None
    assert compute_sky_statistics(None, 25.0, 60.0) is None
    with pytest.raises(ValueError, match="percentiles 60"):
        compute_sky_statistics(levels, 60, 25)


def test_sky_affine_is_recovered_in_spite_of_outliers_and_gaps():
    rng = np.random.default_rng(42)
    source = rng.uniform(10, 100, 5000).astype(np.float32)
    reference = 1.2 * source - 5.0
    reference[:50] += rng.normal(0, 25, 50)
    source[50:60] = np.nan
    gain, offset, samples = estimate_sky_affine_to_ref(source, reference, sky_low=25.0, sky_high=60.0, clip_sigma=2.5)
    assert gain == pytest.approx(1.2, abs=0.02)
    assert offset == pytest.approx(-5.0, abs=0.5)
    assert samples == pytest.approx(0.35 * 5000, rel=0.02)


def test_sky_affine_takes_no_scale_from_noise():
    """Two flat skies of different noise differ in level alone; a ratio of their spreads would be 3."""
    rng = np.random.default_rng(3)
    source, reference = rng.normal(1000, 10, 20000), rng.normal(1100, 30, 20000)
    gain, offset, _ = estimate_sky_affine_to_ref(source, reference, 25.0, 60.0, 2.5)
    assert gain == 1.0
    assert offset == pytest.approx(100.0, abs=1.0)


def test_sky_affine_is_not_flattened_by_noise():
    """A least-squares line through equally noisy sides would give 1.5 times 0.95."""
    rng = np.random.default_rng(4)
    sky = rng.uniform(900, 1100, 20000)
    noise = 0.05 * sky.std() ** 2
    source = sky + rng.normal(0, math.sqrt(noise), sky.size)
    reference = 1.5 * (sky + rng.normal(0, math.sqrt(noise), sky.size)) + 40.0
    gain, offset, _ = estimate_sky_affine_to_ref(source, reference, 0.0, 100.0, 5.0)
    assert gain == pytest.approx(1.5, rel=0.005)
    assert gain * 1000 + offset == pytest.approx(1540.0, abs=2.0)


def test_sky_affine_needs_pairs():
    few = np.arange(10.0)
    assert estimate_sky_affine_to_ref(few, few, 25.0, 60.0, 2.5) is None
    assert estimate_sky_affine_to_ref(np.arange(20.0), np.arange(21.0), 25.0, 60.0, 2.5) is None
    assert estimate_sky_affine_to_ref(None, few, 25.0, 60.0, 2.5) is None
    assert estimate_sky_affine_to_ref(np.full(99, 50.0), np.full(99, 80.0), 25.0, 60.0, 2.5) == (1.0, 30.0, 99)


# --------------------------------------------------------------------------- the GPU under inherited names


def test_gpu_names_answer_as_cuda_utils_does(monkeypatch):
    assert gpu_is_available() == cuda.gpu_supported()
    assert gpu_names.ensure_cupy_pool_initialized() == cuda.initialize_pools()
    assert gpu_names.free_cupy_memory_pools() == cuda.free_pools()
    monkeypatch.setattr(cuda, "memory_info", lambda: (1000, 2000))
    assert gpu_memory_sufficient(750) and not gpu_memory_sufficient(751)
    assert gpu_memory_sufficient(1000, safety_fraction=1.0)
    monkeypatch.setattr(cuda, "memory_info", lambda: None)
    assert not gpu_memory_sufficient(0)

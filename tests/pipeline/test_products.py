"""Every kind of tile as other programs see it: fitsverify, astropy, CCDData."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.wcs import WCS
from pipeline_case import SKY, sessions  # noqa: F401 - fixtures

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.outputs import check_tile_name
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.pipeline.tile_header import wcs_cards
from zemosaic_phase3.simulate.session import SimulationTruth
from zemosaic_phase3.spec import StackSpec

FITSVERIFY = shutil.which("fitsverify")
SIP = {
    "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 2e-6, "B_0_2": -3e-6,
    "AP_ORDER": 2, "BP_ORDER": 2, "AP_2_0": -2e-6, "BP_0_2": 3e-6,
}  # fmt: skip
Sessions = dict[str, tuple[Path, SimulationTruth]]


def frames_of(sessions: Sessions, kind: str) -> list[Any]:  # noqa: F811 - fixture
    """Return three frames of a session: as files, without a WCS, or with one that has a distortion."""
    bayer, _, change = kind.partition(" ")
    folder, truth = sessions[bayer]
    files = [folder / name for name in truth.names[:3]]
    if not change:
        return list(files)
    frames = []
    for path in files:
        header = fits.getheader(path)
        header.update(SIP if change == "sip" else {})
        header.strip()
        for key in [key for key in header if change == "bare" and not key.startswith(("BAYER", "ROW", "DATE", "EXP"))]:
            del header[key]
        frames.append({"path": path, "header": header, "name": path.name})
    return frames


@pytest.fixture(
    scope="module", params=["none", "GRBG", "rgb", "none bare", "rgb bare", "none sip", "GRBG sip"], ids=lambda p: p
)
def product(request: pytest.FixtureRequest, sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    path: Path = tmp_path_factory.mktemp("products") / f"{request.param.replace(' ', '_')}.fits"
    stack_files(frames_of(sessions, request.param), path, maps=True)
    return path


@pytest.mark.skipif(FITSVERIFY is None, reason="fitsverify is not installed (apt-get install fitsverify)")
def test_fitsverify_finds_nothing(product: Path) -> None:
    told = subprocess.run(
        [str(FITSVERIFY), "-l", str(product)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "**** Verification found 0 warning(s) and 0 error(s). ****" in told.stdout, told.stdout


def test_scale_and_centre_are_those_of_the_frames(product: Path) -> None:
    header = fits.getheader(product)
    assert not {key for key in header if key.startswith(("PC", "CDELT"))}
    if "bare" in product.name:
        assert "CTYPE1" not in header and "CRPIX3" not in header
        return
    wcs = WCS(header, naxis=2)
    scale = 3600.0 * np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix)))
    assert scale == pytest.approx(SKY.scale_arcsec, rel=1e-9)
    cd = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
    np.testing.assert_array_equal(cd, wcs.pixel_scale_matrix)
    middle = wcs.pixel_to_world((header["NAXIS1"] - 1) / 2, (header["NAXIS2"] - 1) / 2)
    assert (header["RA"], header["DEC"]) == pytest.approx((middle.ra.deg, middle.dec.deg), abs=1e-7)
    hours = [float(part) for part in header["OBJCTRA"].split()]
    assert 15 * (hours[0] + hours[1] / 60 + hours[2] / 3600) == pytest.approx(middle.ra.deg, abs=1e-4)
    assert (wcs.sip is not None) == ("sip" in product.name)
    own = open_source(product).wcs()  # a tile may be a frame of the next stack
    assert own is not None
    corner = (header["NAXIS1"] - 1.0, header["NAXIS2"] - 1.0)
    assert own.pixel_to_world(*corner).separation(wcs.pixel_to_world(*corner)).arcsec < 1e-6
    if header["NAXIS"] == 2:
        WCS(header).pixel_to_world(1, 2)
    else:
        assert [header[key] for key in ("WCSAXES", "CTYPE3", "CRPIX3", "CRVAL3", "CD3_3")] == [3, "RGB", 1, 1, 1]


@pytest.mark.filterwarnings("ignore")  # of astropy, on what it adds to any header
def test_ccddata_reads_it_with_its_unit(product: Path) -> None:
    ccd = CCDData.read(product)
    assert str(ccd.unit) == "adu"
    assert ccd.data.shape == fits.getdata(product).shape


def test_frames_say_when_they_were_exposed(product: Path) -> None:
    with fits.open(product) as hdus:
        table, header = hdus["FRAMES"].data, hdus[0].header
        assert min(table["DATE_OBS"].tolist()) == header["DATE-OBS"]
        assert table["EXPTIME"].tolist() == [10.0] * 3
        assert header["EXPTOTAL"] == 30.0


def test_equalised_colours_have_no_common_gain(sessions: Sessions) -> None:  # noqa: F811 - fixture
    folder, truth = sessions["rgb"]
    frames = [fits.getdata(folder / name) for name in truth.names[:3]]
    inputs = [{"data": pixels, "header": {"EGAIN": 0.5}, "name": str(k)} for k, pixels in enumerate(frames)]
    plain = stack_files(inputs).header
    equal = stack_files(inputs, stack=StackSpec(equalize_rgb=True)).header
    assert plain["EGAIN"] == 0.5 and "RGBGAINR" not in plain
    assert "EGAIN" not in equal and equal["RGBGAINR"] != equal["RGBGAINB"] and equal["RGBEQMED"] > 0


def test_maps_are_small(product: Path) -> None:
    with fits.open(product) as hdus:
        assert {hdu.name: hdu.header["BITPIX"] for hdu in hdus[2:6]} == {
            "COVERAGE": 16, "WEIGHT": -32, "REJ_LOW": 16, "REJ_HIGH": 16,
        }  # fmt: skip


def test_a_name_is_written_alike_in_header_and_table(sessions: Sessions, tmp_path: Path) -> None:  # noqa: F811
    folder, truth = sessions["none"]
    odd = tmp_path / ("Light é '3' " + 70 * "x" + ".fits")
    odd.write_bytes((folder / truth.names[0]).read_bytes())
    stack_files(
        [odd, *(folder / name for name in truth.names[1:3])], tmp_path / "t.fits", maps=True, reference=odd.name
    )
    if FITSVERIFY is not None:
        told = subprocess.run([FITSVERIFY, "-q", tmp_path / "t.fits"], capture_output=True, text=True, check=False)
        assert told.stdout.startswith("verification OK")
    with fits.open(tmp_path / "t.fits") as hdus:
        name = hdus[0].header["ZMT_REF"]
        assert name == "Light \\xe9 '3' " + 70 * "x" + ".fits"
        (row,) = [row for row in hdus["FRAMES"].data if row["NAME"].endswith("/" + name)]
        assert row["METHOD"] == "reference"


@pytest.mark.parametrize("name", ["nb2.tif", "tile", "tile.fits.fz", "tile.fits.gz", "tile.png"])
def test_a_tile_is_written_under_the_name_of_a_fits_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="choose a name that ends in .fits"):
        check_tile_name(tmp_path / name)
    with pytest.raises(OutputError, match=name):
        stack_files([], tmp_path / name)


def test_galactic_and_broken_wcs_have_cards_all_the_same() -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = (
        ["GLON-TAN", "GLAT-TAN"],
        [0, 0],
        [50, 50],
        [-0.01, 0.01],
    )
    wcs.pixel_shape = (99, 99)
    cards = wcs_cards(wcs)
    assert (cards["RA"], cards["DEC"]) == pytest.approx((266.405, -28.936), abs=1e-3)  # the centre of the Galaxy
    wcs.pixel_shape = None
    assert "RA" not in wcs_cards(wcs)

"""A finished image in other programs' formats: every number comes back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from astropy.io import fits

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io.export import FULL_SCALE, check_export, write_export
from zemosaic_phase3.io.open_frame import open_source

RANDOM = np.random.default_rng(2)
IMAGES = {
    "grey": (70000.0 * RANDOM.random((40, 50)) - 50.0).astype(np.float32),
    "colour": (70000.0 * RANDOM.random((40, 50, 3)) - 50.0).astype(np.float32),
}
for _image in IMAGES.values():
    _image[3, 4] = np.nan
HEADER = fits.Header({"OBJECT": "M 31", "EXPTIME": 10.0, "CTYPE1": "RA---TAN", "DATE-OBS": "2025-01-15T21:00:00"})


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", ["a.xisf", "a.tif", "a.fits.fz"])
def test_32_bits_come_back(tmp_path: Path, kind: str, name: str) -> None:
    image = IMAGES[kind]
    write_export(image, HEADER, tmp_path / name)
    source = open_source(tmp_path / name)
    pixels = source.read_rows(0, 40)
    wanted = image if name == "a.fits.fz" else np.nan_to_num(image[::-1], nan=0.0) / FULL_SCALE
    np.testing.assert_array_equal(pixels, wanted)
    assert source.card_values("OBJECT", "EXPTIME") == ["M 31", 10.0]
    if name != "a.fits.fz":
        np.testing.assert_array_equal(pixels * FULL_SCALE, np.nan_to_num(image[::-1], nan=0.0))  # exact


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("name", ["a.xisf", "a.tif", "a.png"])
def test_16_bits_are_whole_adu(tmp_path: Path, kind: str, name: str) -> None:
    image = IMAGES[kind]
    header = HEADER.copy()
    header["ROWORDER"] = "TOP-DOWN"
    write_export(image, header, tmp_path / name, bits=16)
    wanted = np.rint(np.clip(np.nan_to_num(image, nan=0.0), 0, 65535)).astype(np.uint16)
    if name == "a.png":
        pixels = pytest.importorskip("imagecodecs").png_decode((tmp_path / name).read_bytes())
    elif name == "a.tif":
        pixels = tifffile.imread(tmp_path / name)
    else:
        pixels = open_source(tmp_path / name).read_rows(0, 40)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, wanted)


def test_what_cannot_be_written_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"must end in \.xisf"):
        check_export(tmp_path / "a.jpg")
    write_export(IMAGES["grey"], HEADER, tmp_path / "a.tif")
    with pytest.raises(OutputError, match="exists already"):
        write_export(IMAGES["grey"], HEADER, tmp_path / "a.tif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif"]
    monkeypatch.setitem(sys.modules, "xisf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OutputError, match="package xisf is needed"):
        check_export(tmp_path / "a.xisf")

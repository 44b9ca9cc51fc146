"""Several images in one file: which are frames."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.further_images import further_images
from zemosaic_phase3.io.open_frame import open_source, split_unit
from zemosaic_phase3.io.tile_file import tile_hdus

SIZE = (64, 80)


def image(seed: int = 1, dtype: Any = np.uint16, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, size).astype(dtype)


def units(path: Path) -> list[int]:
    return further_images(open_source(path)).frames


def write(path: Path, *hdus: Any) -> Path:
    fits.HDUList(list(hdus)).writeto(path, overwrite=True)
    return path


def two(path: Path, name: str, second: np.ndarray | None = None, first: np.ndarray | None = None) -> Path:
    extension = fits.ImageHDU(image(2) if second is None else second, name=name)
    return write(path, fits.PrimaryHDU(image(1) if first is None else first), extension)


def test_chips_are_frames(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.fits", fits.PrimaryHDU(), *(fits.ImageHDU(image(k), name=f"CHIP{k}") for k in (1, 2, 3))
    )  # fmt: skip
    assert units(path) == [2, 3]
    for k in (1, 2, 3):
        source = open_source(f"{path}[{k}]")
        assert source.name == f"{path}[{k}]"
        assert np.array_equal(source.read_rows(0, 64), image(k))
    assert np.array_equal(open_source(path).read_rows(0, 64), image(1))
    with pytest.raises(FrameError, match=r"unit 0 holds no image.*name another one"):
        open_source(f"{path}[0]")
    with pytest.raises(FrameError, match="unit 9 holds no image"):
        open_source(f"{path}[9]")


def test_a_primary_image_and_an_extension_without_a_name(tmp_path: Path) -> None:
    assert units(two(tmp_path / "a.fits", "")) == [1]


@pytest.mark.parametrize("name", ["IM1", "CCD2", "EXP2", "SCI", "amp12", "GREEN", "B"])
def test_names_that_mean_no_map(tmp_path: Path, name: str) -> None:
    assert units(two(tmp_path / "a.fits", name)) == [1]


@pytest.mark.parametrize(
    "name",
    ["ALPHA", "DQ", "ERR", "MASK", "VAR", "WHT", "WEIGHT", "WeightMap", "COVERAGE", "REJ_LOW", "REJ_HIGH",
     "VAR_POISSON", "UNCERT", "BPM", "CTX", "SIGMA", "Thumbnail", "exposure-map", "BKG", "mask_2", "DQ1", "PSF"],
)  # fmt: skip
def test_maps_are_no_frames_and_no_notes(tmp_path: Path, name: str) -> None:
    found = further_images(open_source(two(tmp_path / "a.fits", name)))
    assert (found.frames, found.notes) == ([], [])


def test_masks_are_told_by_their_numbers(tmp_path: Path) -> None:
    for first, second in ((np.float32, np.int32), (np.uint16, np.uint8), (np.float32, np.uint8)):
        found = further_images(open_source(two(tmp_path / "a.fits", "", image(2, second), image(1, first))))
        assert (found.frames, found.notes) == ([], [])
    found = further_images(open_source(two(tmp_path / "a.fits", "", image(2, np.float32))))
    assert found.frames == []
    assert "other numbers than the first one" in found.notes[0]


def test_other_shapes_are_noted_and_thumbnails_are_not(tmp_path: Path) -> None:
    found = further_images(open_source(two(tmp_path / "a.fits", "CHIP2", image(2, size=(60, 80)))))
    assert found.frames == []
    assert found.notes == ["a.fits: another image is in it and not stacked: [1] (CHIP2, 80 x 60 pixels)"]
    found = further_images(open_source(two(tmp_path / "a.fits", "", image(2, size=(12, 12)))))
    assert (found.frames, found.notes) == ([], [])


def test_hubble_and_webb(tmp_path: Path) -> None:
    science = [fits.ImageHDU(image(k, np.float32), name="SCI", ver=k) for k in (1, 2)]
    errors = [fits.ImageHDU(image(k, np.float32), name="ERR", ver=k) for k in (1, 2)]
    quality = [fits.ImageHDU(image(k, np.int16), name="DQ", ver=k) for k in (1, 2)]
    table = fits.BinTableHDU(np.zeros(3, [("a", "f4")]), name="WCSCORR")
    path = write(
        tmp_path / "a.fits",
        fits.PrimaryHDU(),
        science[0],
        errors[0],
        quality[0],
        table,
        science[1],
        errors[1],
        quality[1],
    )
    assert units(path) == [5]


def test_our_tiles_are_one_image(tmp_path: Path) -> None:
    maps = {"COVERAGE": image(2, np.int32), "WEIGHT": image(3, np.float32), "EXTRA": image(4, np.float32)}
    hdus = tile_hdus(image(1, np.float32), {"ZMT_REF": "sub.fit"}, alpha=np.full(SIZE, 255, np.uint8), maps=maps)
    hdus.writeto(tmp_path / "tile.fits")
    found = further_images(open_source(tmp_path / "tile.fits"))
    assert (found.frames, found.notes) == ([], [])


@pytest.mark.parametrize("kind", ["gz", "fz"])
def test_compressed(tmp_path: Path, kind: str) -> None:
    if kind == "gz":
        path = tmp_path / "a.fits.gz"
        path.write_bytes(gzip.compress(two(tmp_path / "a.fits", "").read_bytes()))
        single = tmp_path / "b.fits.gz"
        fits.writeto(single, image())
        wanted = 1
    else:
        path = write(tmp_path / "a.fz", fits.PrimaryHDU(), *(fits.CompImageHDU(image(k)) for k in (1, 2)))
        single = write(tmp_path / "b.fz", fits.PrimaryHDU(), fits.CompImageHDU(image(1)))
        wanted = 2
    assert (units(path), units(single)) == ([wanted], [])
    assert np.array_equal(open_source(f"{path}[{wanted}]").read_rows(0, 64), image(2))


def test_what_follows_may_be_damaged(tmp_path: Path) -> None:
    path = two(tmp_path / "a.fits", "")
    raw = path.read_bytes()
    at = raw.index(b"XTENSION")
    path.write_bytes(
        raw[:at] + raw[at:].replace(b"BITPIX  =                   16", b"BITPIX  =                   17", 1)
    )
    found = further_images(open_source(path))
    assert found.frames == []
    assert "BITPIX = 17 is no number type" in found.notes[0]
    path.write_bytes(raw[: at + 2880 + 100])  # cut in the second image
    assert units(path) == []
    path.write_bytes(raw[:at] + bytes(5000))  # blanks behind the last unit
    assert units(path) == []


def test_arrays_and_npy_hold_one(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", image())
    assert units(tmp_path / "a.npy") == []
    assert further_images(open_source(image())).frames == []


def test_a_file_that_is_called_so_is_itself(tmp_path: Path) -> None:
    odd = tmp_path / "a.fits[2].fits"
    fits.writeto(odd, image())
    assert split_unit(str(odd)) == (str(odd), None)
    assert split_unit("a.fits[2]") == ("a.fits", 2)
    fits.writeto(tmp_path / "b.fits[3]", image())
    assert split_unit(str(tmp_path / "b.fits[3]"))[1] is None
    assert split_unit("b[3]")[1] is None

"""Frames in files of other formats: every pixel, the cards, and what is said of damaged files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import formats_case as formats
import numpy as np
import pytest
import tifffile

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.foreign_file import Decoded, DecodedFile
from zemosaic_phase3.io.further_images import further_images
from zemosaic_phase3.io.moments import MOMENT_KEYS, exposure_of
from zemosaic_phase3.io.open_frame import open_source

RANDOM = np.random.default_rng(11)
GREY = RANDOM.integers(0, 2**16, (50, 70)).astype(np.uint16)
COLOUR = RANDOM.integers(0, 2**16, (50, 70, 3)).astype(np.uint16)
FLOAT = RANDOM.random((50, 70, 3)).astype(np.float32)
PLANES = np.ascontiguousarray(np.moveaxis(COLOUR, 2, 0))
BYTES = (GREY >> 8).astype(np.uint8)

TIFFS: dict[str, tuple[np.ndarray, np.ndarray, dict[str, Any]]] = {
    "grey": (GREY, GREY, {}),
    "bytes": (BYTES, BYTES, {}),
    "big-endian": (GREY, GREY, {"byteorder": ">"}),
    "bigtiff": (GREY, GREY, {"bigtiff": True}),
    "colour": (COLOUR, COLOUR, {"photometric": "rgb"}),
    "float": (FLOAT, FLOAT, {"photometric": "rgb"}),
    "planes": (PLANES, COLOUR, {"photometric": "rgb", "planarconfig": "separate"}),
    "deflate": (GREY, GREY, {"compression": "zlib", "rowsperstrip": 8}),
    "deflate big-endian": (GREY, GREY, {"compression": "zlib", "rowsperstrip": 50, "byteorder": ">"}),
    "lzw": (GREY, GREY, {"compression": "lzw", "predictor": True, "rowsperstrip": 11}),
    "tiles": (COLOUR, COLOUR, {"photometric": "rgb", "compression": "zlib", "tile": (16, 32)}),
    "plain tiles": (GREY, GREY, {"tile": (32, 16)}),
    "float deflate": (FLOAT, FLOAT, {"photometric": "rgb", "compression": "zlib", "predictor": True}),
    "planes deflate": (
        PLANES, COLOUR,
        {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "rowsperstrip": 9},
    ),
    "alpha": (np.dstack([COLOUR, COLOUR[..., :1]]), COLOUR, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
}  # fmt: skip


def check_pixels(path: Path, pixels: np.ndarray) -> Any:
    """Any range of rows has the numbers that were written."""
    source = open_source(path)
    assert source.dtype == (np.uint16 if pixels.dtype == np.uint16 else np.float32)
    for y0, y1 in ((0, 50), (7, 33), (49, 50), (0, 1)):
        got = source.read_rows(y0, y1)
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, pixels[y0:y1])
    if source.raw_file is not None:
        raw = np.empty((20, *pixels.shape[1:]), pixels.dtype)
        source.read_raw(10, 30, raw.view(np.uint8).reshape(-1))
    return source


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff(tmp_path: Path, kind: str) -> None:
    written, pixels, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "a.tif", written, **options)
    source = check_pixels(tmp_path / "a.tif", pixels)
    is_plain = "compression" not in options and kind not in ("alpha", "plain tiles") and pixels.dtype != np.uint8
    assert (source.raw_layout is not None) == is_plain
    assert source.row_order == "TOP-DOWN"


@pytest.mark.parametrize("options", [{}, {"codec": "zlib"}, {"codec": "lz4hc", "shuffle": True}, {"codec": "zstd"}])
@pytest.mark.parametrize("kind", ["grey", "smooth", "float"])
def test_xisf(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    pixels = {"grey": GREY, "float": FLOAT, "smooth": (COLOUR >> 12).astype(np.uint16)}[kind]
    formats.write_xisf(tmp_path / "a.xisf", pixels, {"DATE-OBS": "2025-01-15T21:00:00", "EXPTIME": 30}, **options)
    source = check_pixels(tmp_path / "a.xisf", pixels)
    if kind == "smooth":
        assert isinstance(source, DecodedFile) == bool(options)
    assert source.read_header()["EXPTIME"] == 30
    assert source.card_values("DATE-OBS", "OBJECT") == ["2025-01-15T21:00:00", None]


def test_xisf_mosaic_and_no_sky(tmp_path: Path) -> None:
    cards = {"BAYERPAT": "GRBG", "CTYPE1": "RA---TAN", "CRVAL1": 10.0, "RA": 10.0, "FILTER": "Ha"}
    formats.write_xisf(tmp_path / "a.xisf", GREY, cards)
    source = open_source(tmp_path / "a.xisf")
    assert source.cfa == "GRBG"
    assert source.wcs() is None  # its rows lie the other way round
    assert source.some_cards({"RA", "FILTER", "CRVAL1"}) == {"RA": 10.0, "FILTER": "Ha"}
    assert open_source(tmp_path / "a.xisf", bayer="none").cfa is None


def test_camera_raw(tmp_path: Path) -> None:
    formats.write_dng(tmp_path / "a.dng", GREY >> 2, cfa="GBRG")
    source = check_pixels(tmp_path / "a.dng", GREY >> 2)
    assert source.cfa == "GBRG"
    cards = source.some_cards({"EXPTIME", "ISOSPEED", "SATURATE", "BLKLEVEL", "DATE-OBS", "INSTRUME", "ROWORDER"})
    assert cards == {
        "EXPTIME": 30.0, "ISOSPEED": 800, "SATURATE": 16000.0, "BLKLEVEL": 512.0, "DATE-OBS": "2025-01-15T21:30:00",
        "INSTRUME": "Cam X", "ROWORDER": "TOP-DOWN",
    }  # fmt: skip
    assert "rawpy" in source.origin.recipe


def test_camera_raw_without_a_zone_has_no_moment(tmp_path: Path) -> None:
    formats.write_dng(tmp_path / "a.dng", GREY >> 2)
    data = (tmp_path / "a.dng").read_bytes()
    (tmp_path / "a.dng").write_bytes(data.replace(b"+02:00", b"      "))
    source = open_source(tmp_path / "a.dng")
    values = dict(zip(MOMENT_KEYS, source.card_values(*MOMENT_KEYS), strict=True))
    assert values["DATE-OBS"] is None
    assert exposure_of(values).start is None
    assert exposure_of(values).seconds == 30.0


@pytest.mark.parametrize("colours", ["mono", "GRBG", "rgb", "bgr"])
@pytest.mark.parametrize("depth", [8, 16])
def test_ser_frames(tmp_path: Path, colours: str, depth: int) -> None:
    plane = COLOUR if colours in ("rgb", "bgr") else GREY
    plane = plane if depth == 16 else (plane >> 8).astype(np.uint8)
    frames = [plane, plane[::-1], np.roll(plane, 3, axis=1)]
    formats.write_ser(tmp_path / "a.ser", frames, colours, start=datetime(2025, 1, 15, 21), step=10.0)
    first = check_pixels(tmp_path / "a.ser", frames[0][..., ::-1] if colours == "bgr" else frames[0])
    assert further_images(first).frames == [1, 2]
    third = open_source(f"{tmp_path / 'a.ser'}[2]")
    np.testing.assert_array_equal(third.read_rows(0, 50), frames[2][..., ::-1] if colours == "bgr" else frames[2])
    assert third.card_values("DATE-OBS", "INSTRUME") == ["2025-01-15T21:00:20", "ASI 533"]
    assert third.cfa == ("GRBG" if colours == "GRBG" else None)
    assert first.origin != third.origin
    with pytest.raises(FrameError, match=r"frame 3 is not there \(3 of 3"):
        open_source(f"{tmp_path / 'a.ser'}[3]")


def test_a_ser_that_was_cut_off_keeps_its_whole_frames(tmp_path: Path) -> None:
    formats.write_ser(tmp_path / "a.ser", [GREY, GREY + 1, GREY + 2], start=datetime(2025, 1, 15))
    data = (tmp_path / "a.ser").read_bytes()
    (tmp_path / "a.ser").write_bytes(data[: 178 + 2 * GREY.nbytes + 100])
    first = open_source(tmp_path / "a.ser")
    assert further_images(first).frames == [1]
    (tmp_path / "a.ser").write_bytes(data[:100])
    with pytest.raises(FrameError, match="truncated: its SER header has 100 of 178 bytes"):
        open_source(tmp_path / "a.ser")


def write_deflated_tiff(path: Path) -> None:
    tifffile.imwrite(path, GREY, compression="zlib", rowsperstrip=10)


def write_packed_xisf(path: Path) -> None:
    formats.write_xisf(path, (GREY >> 12).astype(np.uint16), codec="zlib")


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.tif": lambda path: tifffile.imwrite(path, GREY),
    "b.tif": write_deflated_tiff,
    "a.xisf": lambda path: formats.write_xisf(path, GREY),
    "b.xisf": write_packed_xisf,
    "a.dng": lambda path: formats.write_dng(path, GREY >> 2),
    "a.ser": lambda path: formats.write_ser(path, [GREY]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_truncation_is_read_as_data(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    good = open_source(path).read_rows(0, 50)
    for share in (0.02, 0.2, 0.6, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        try:
            got = open_source(path).read_rows(0, 50)
        except FrameError as exc:
            assert str(path) in str(exc)
            assert ";" in str(exc)  # the remedy
        else:
            np.testing.assert_array_equal(got, good)


@pytest.mark.parametrize("name", WRITERS)
def test_bytes_spoilt_at_random_end_in_a_reason_or_in_pixels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(5)
    for _ in range(25):
        spoilt = whole.copy()
        spoilt[random.integers(0, min(len(whole), 600), 6)] = random.integers(0, 256, 6)
        path.write_bytes(spoilt.tobytes())
        try:
            source = open_source(path)
            assert source.read_rows(0, source.height).shape[:2] == (source.height, source.width)
        except FrameError as exc:
            assert str(path) in str(exc)


@pytest.mark.parametrize(("module", "name"), [("tifffile", "a.tif"), ("xisf", "a.xisf"), ("rawpy", "a.dng")])
def test_a_library_that_is_missing_is_named_with_its_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    WRITERS[name](tmp_path / name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FrameError, match=rf"package {module} is needed; pip install tifffile imagecodecs rawpy xisf"):
        open_source(tmp_path / name)


def test_what_is_no_brightness_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", BYTES, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    with pytest.raises(FrameError, match="PALETTE samples, which are no brightness"):
        open_source(tmp_path / "p.tif")
    tifffile.imwrite(tmp_path / "w.tif", GREY, photometric="miniswhite")
    with pytest.raises(FrameError, match="MINISWHITE"):
        open_source(tmp_path / "w.tif")


def test_a_file_that_is_written_meanwhile_is_not_read_on(tmp_path: Path) -> None:
    for name in WRITERS:
        WRITERS[name](tmp_path / name)
        source = open_source(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b" ")
        with pytest.raises(FrameError, match="written or replaced after it was opened"):
            source.read_rows(0, 50)


def test_decoded_frames_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats.write_dng(tmp_path / "a.dng", GREY >> 2)
    formats.write_dng(tmp_path / "b.dng", GREY >> 3)
    sources = [open_source(tmp_path / "a.dng"), open_source(tmp_path / "b.dng")]
    decoded = Decoded(tmp_path)
    for source in sources:
        assert isinstance(source, DecodedFile)
        source.decoded = decoded
        source.read_rows(0, 5)
        monkeypatch.setattr(type(source), "_whole", lambda self: pytest.fail("decoded again"), raising=True)
        np.testing.assert_array_equal(source.read_rows(9, 40), (GREY >> (2 if source is sources[0] else 3))[9:40])
        monkeypatch.undo()
    decoded.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.dng", "b.dng"]
    np.testing.assert_array_equal(sources[0].read_rows(9, 40), (GREY >> 2)[9:40])


def test_a_disk_without_room_keeps_no_decoded_frames(tmp_path: Path) -> None:
    formats.write_dng(tmp_path / "a.dng", GREY >> 2)
    source = open_source(tmp_path / "a.dng")
    source.decoded = Decoded(tmp_path)
    source.decoded.spare = 1 << 60
    for _ in range(2):
        np.testing.assert_array_equal(source.read_rows(0, 50), GREY >> 2)
    assert source.decoded.is_full


def test_tiff_cards_of_astap_and_exif(tmp_path: Path) -> None:
    text = "SIMPLE  = T\nDATE-OBS= '2025-01-15T21:00:00' / UT\nEXPTIME =     10.0 / s\nOBJECT  = 'M 31'\n"
    tifffile.imwrite(tmp_path / "a.tif", GREY, description=text, metadata=None)
    source = open_source(tmp_path / "a.tif")
    assert source.card_values("DATE-OBS", "EXPTIME", "OBJECT") == ["2025-01-15T21:00:00", 10.0, "M 31"]
    tifffile.imwrite(tmp_path / "b.tif", GREY, description="a=b", metadata=None)
    assert open_source(tmp_path / "b.tif").card_values("EXPTIME") == [None]

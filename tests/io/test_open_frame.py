"""Frames in: every format against astropy's own reading, every row range against the whole, every lie refused."""

from __future__ import annotations

import gzip
import os
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from header_case import NPY_HEADS, TABLE_CARDS, compressed_bytes, frame_bytes, npy_bytes, with_card, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zemosaic_phase3.errors import FrameError, SpecError
from zemosaic_phase3.io.frame import Frame, FrameSource
from zemosaic_phase3.io.mosaic_cards import cfa_from_header
from zemosaic_phase3.io.open_frame import open_source

HEIGHT, WIDTH = 23, 17
RNG = np.random.default_rng(20251)
COUNTS = RNG.integers(0, 60000, (HEIGHT, WIDTH))
PLANES = RNG.integers(0, 250, (3, HEIGHT, WIDTH))


def with_cards(hdu, **cards):
    hdu.header.update(cards)
    return hdu


def scaled(values, **cards):
    """A unit whose stored numbers are ``values`` and whose scaling cards are as given."""
    hdu = fits.PrimaryHDU(values)
    hdu.header.update(cards)
    return hdu


def celestial_cards(**more):
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0}
    return cards | {"CRPIX1": 9.0, "CRPIX2": 12.0, "CD1_1": -1e-3, "CD2_2": 1e-3} | more


def save(path, *hdus):
    fits.HDUList(list(hdus)).writeto(path)
    return path


# name -> (file name, how to make it, dtype of the samples)
FITS_KINDS = {
    "u8": lambda: [fits.PrimaryHDU((COUNTS // 256).astype(np.uint8))],
    "u16": lambda: [fits.PrimaryHDU(COUNTS.astype(np.uint16))],
    "i16": lambda: [fits.PrimaryHDU((COUNTS - 30000).astype(np.int16))],
    "u32": lambda: [fits.PrimaryHDU(COUNTS.astype(np.uint32) * 70001)],
    "i32": lambda: [fits.PrimaryHDU(COUNTS.astype(np.int32) * 1001)],
    "f32": lambda: [fits.PrimaryHDU((COUNTS / 7).astype(np.float32))],
    "f64": lambda: [fits.PrimaryHDU(COUNTS / 7)],
    "scaled": lambda: [scaled((COUNTS // 2).astype(np.int16), BSCALE=0.25, BZERO=-3.0)],
    "blank": lambda: [scaled((COUNTS // 2).astype(np.int16), BLANK=int(COUNTS[3, 4] // 2))],
    "planar u16": lambda: [fits.PrimaryHDU(PLANES.astype(np.uint16))],
    "planar f32": lambda: [fits.PrimaryHDU(PLANES.astype(np.float32))],
    "interleaved u16": lambda: [fits.PrimaryHDU(np.moveaxis(PLANES, 0, -1).astype(np.uint16))],
    "one plane": lambda: [fits.PrimaryHDU(COUNTS[None].astype(np.float32))],
    "extension": lambda: [
        with_cards(fits.PrimaryHDU(), OBJECT="M 31"),
        fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.arange(5.0))]),
        fits.ImageHDU(np.arange(9.0)),
        fits.ImageHDU(COUNTS.astype(np.uint16), name="SCI"),
    ],
    "tiles u16": lambda: [fits.PrimaryHDU(), fits.CompImageHDU(COUNTS.astype(np.uint16))],
    "tiles i16 blank": lambda: [
        fits.PrimaryHDU(),
        with_cards(fits.CompImageHDU((COUNTS // 2).astype(np.int16)), BLANK=int(COUNTS[3, 4] // 2)),
    ],
    "tiles of 5 rows": lambda: [
        fits.PrimaryHDU(),
        fits.CompImageHDU(COUNTS.astype(np.int32), compression_type="GZIP_2", tile_shape=(5, 7)),
    ],
    "tiles f32": lambda: [
        fits.PrimaryHDU(),
        fits.CompImageHDU((COUNTS / 7).astype(np.float32), compression_type="GZIP_1", quantize_level=0),
    ],
    "tiles planar u16": lambda: [fits.PrimaryHDU(), fits.CompImageHDU(PLANES.astype(np.uint16))],
}
KINDS = [*FITS_KINDS, *(f"{kind}.gz" for kind in ("u16", "planar f32", "extension", "tiles u16"))]


def make(folder, kind):
    path = save(folder / "frame.fits", *FITS_KINDS[kind.removesuffix(".gz")]())
    if kind.endswith(".gz"):
        packed = folder / "frame.fits.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    return path


def oracle(path):
    """What astropy reads, as (H, W) or (H, W, 3) float32."""
    with fits.open(path) as hdus:
        data = next(hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None and hdu.data.ndim > 1)
        data = np.array(data).astype(np.float32)
    if data.ndim == 3 and data.shape[0] in (1, 3):
        data = np.moveaxis(data, 0, -1)
    return data[..., 0] if data.ndim == 3 and data.shape[-1] == 1 else data


@pytest.mark.parametrize("kind", KINDS)
def test_fits_equals_astropy(tmp_path, kind):
    path = make(tmp_path, kind)
    source = open_source(path)
    whole = source.read_rows(0, source.height)
    expected = oracle(path)
    assert source.shape == whole.shape == expected.shape
    assert whole.dtype == source.dtype == (np.uint16 if "u16" in kind or "extension" in kind else np.float32)
    assert whole.dtype.isnative and whole.flags.c_contiguous and whole.flags.writeable
    np.testing.assert_array_equal(whole, expected)
    assert np.isnan(whole).any() == ("blank" in kind)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*KINDS, "npy", "npy columns", "array"]), st.data())
def test_any_row_range_equals_the_whole(sources, kind, data):
    y0 = data.draw(st.integers(0, HEIGHT))
    y1 = data.draw(st.integers(y0, HEIGHT))
    source = sources[kind]
    part = source.read_rows(y0, y1)
    assert part.dtype == source.dtype and part.flags.c_contiguous and part.flags.writeable
    np.testing.assert_array_equal(part, source.read_rows(0, HEIGHT)[y0:y1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([*KINDS, "npy", "npy columns", "array", "array u16"]), st.data())
def test_raw_bytes_mean_the_samples(sources, kind, data):
    y0 = data.draw(st.integers(0, HEIGHT - 1))
    y1 = data.draw(st.integers(y0 + 1, HEIGHT))
    source, layout = sources[kind], sources[kind].raw_layout
    if layout is None:
        return
    expected = source.read_rows(y0, y1)
    raw = np.empty(expected.size * layout.dtype.itemsize, np.uint8)
    source.read_raw(y0, y1, raw)
    values = raw.view(layout.dtype).astype(layout.dtype.newbyteorder("="))
    if layout.flipped:
        values = values.view(np.uint16) ^ np.uint16(0x8000)
    if layout.planar:
        values = np.moveaxis(values.reshape(3, y1 - y0, WIDTH), 0, -1)
    values = values.astype(expected.dtype).reshape(expected.shape)
    np.testing.assert_array_equal(np.where(np.isinf(values), np.nan, values), expected)


def test_which_frames_are_stored_simply(sources):
    simple = {kind for kind, source in sources.items() if source.raw_layout is not None}
    assert {"u16", "i16", "f32", "planar u16", "interleaved u16", "npy", "array u16"} <= simple
    assert simple.isdisjoint({"u8", "u32", "i32", "f64", "scaled", "npy columns", "array"})
    assert not any("blank" in kind or "gz" in kind or "tiles" in kind for kind in simple)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    made = {kind: open_source(make(tmp_path_factory.mktemp("kind"), kind)) for kind in KINDS}
    folder = tmp_path_factory.mktemp("npy")
    colour = np.moveaxis(PLANES, 0, -1).astype(np.float32)
    np.save(folder / "rows.npy", np.ascontiguousarray(colour))
    np.save(folder / "columns.npy", np.asfortranarray(colour))
    made |= {"npy": open_source(folder / "rows.npy"), "npy columns": open_source(folder / "columns.npy")}
    return made | {"array": open_source(PLANES), "array u16": open_source(np.moveaxis(PLANES, 0, -1).astype(np.uint16))}


def test_rows_outside_the_frame_are_an_error(sources):
    for y0, y1 in ((-1, 3), (5, 4), (0, HEIGHT + 1)):
        with pytest.raises(ValueError, match="outside"):
            sources["u16"].read_rows(y0, y1)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "u1", ">u2", "<i4"])
@pytest.mark.parametrize("layout", ["mono", "interleaved", "planar", "columns"])
def test_npy_caches(tmp_path, dtype, layout):
    array = {
        "mono": COUNTS,
        "interleaved": np.ascontiguousarray(np.moveaxis(PLANES, 0, -1)),
        "planar": PLANES,
        "columns": np.asfortranarray(COUNTS),
    }[layout]
    array = (array % 250).astype(dtype)
    np.save(tmp_path / "cache.npy", array)
    source = open_source(tmp_path / "cache.npy")
    expected = np.moveaxis(array, 0, -1) if layout == "planar" else array
    got = source.read_rows(0, HEIGHT)
    assert got.dtype == source.dtype == (np.uint16 if dtype == ">u2" else np.float32)
    np.testing.assert_array_equal(got, expected.astype(np.float64))
    assert source.cfa is None and source.wcs() is None and len(source.read_header()) == 0


def test_infinite_and_too_large_values_are_invalid(tmp_path):
    array = np.full((8, 8), 2.0)
    array[0, :4] = np.inf, -np.inf, np.nan, 1e300
    fits.PrimaryHDU(array).writeto(tmp_path / "a.fits")
    for descriptor in (tmp_path / "a.fits", array):
        got = open_source(descriptor).read_rows(0, 8)
        assert np.isnan(got[0, :4]).all() and (got[1:] == 2).all()
    assert np.isinf(array[0, 0])


def test_arrays_are_copied_and_their_layout_is_known():
    colour = np.moveaxis(PLANES, 0, -1).astype(np.float32)
    for array in (colour, PLANES.astype(np.float32)):
        source = open_source(array)
        rows = source.read_rows(2, 5)
        np.testing.assert_array_equal(rows, colour[2:5])
        before = array.copy()
        rows[:] = -1
        np.testing.assert_array_equal(array, before)
    assert open_source(np.zeros((3, 8, 3))).shape == (3, 8, 3)  # W = 3 is too narrow for channel-first
    assert open_source(np.zeros((1, 9, 9))).shape == (9, 9)
    masked = np.ma.array(np.ones((8, 8)), mask=np.eye(8, dtype=bool))
    np.testing.assert_array_equal(np.isnan(open_source(masked).read_rows(0, 8)), np.eye(8, dtype=bool))


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4), (4, 9, 9), (2, 2, 9, 9), ()])
def test_arrays_that_are_no_image(shape):
    with pytest.raises(FrameError, match=r"expected \(H, W\)"):
        open_source(np.zeros(shape))


@pytest.mark.parametrize("dtype", [bool, complex, object])
def test_arrays_of_no_brightness(dtype, tmp_path):
    with pytest.raises(FrameError, match="float32"):
        open_source(np.zeros((9, 9), dtype))
    np.save(tmp_path / "a.npy", np.zeros((9, 9), dtype))
    with pytest.raises(FrameError, match="float32"):
        open_source(tmp_path / "a.npy")


def test_descriptors_of_a_dict(tmp_path):
    path = save(tmp_path / "raw.fits", with_cards(fits.PrimaryHDU(COUNTS.astype(np.uint16)), BAYERPAT="GRBG"))
    np.save(tmp_path / "cache.npy", np.moveaxis(PLANES, 0, -1).astype(np.float32))
    wcs = WCS(fits.Header(celestial_cards()))
    header = {"OBJECT": "M 31", "BAD": float("nan"), "a long keyword": 3, "PLACE": "Orléans"}
    both = {"path": path, "path_preprocessed_cache": str(tmp_path / "cache.npy"), "header": header, "wcs": wcs}
    source = open_source(both)
    assert source.shape == (HEIGHT, WIDTH, 3) and source.cfa is None and source.wcs() is wcs
    read = source.read_header()
    assert read["OBJECT"] == "M 31" and read["A LONG KEYWORD"] == 3 and "BAD" not in read and read["PLACE"] == "Orl?ans"

    raw = open_source({"path": path, "header": header})
    assert raw.cfa == "GRBG" and raw.channels == 3  # the header says nothing of the mosaic, so the file does
    assert open_source({"path": path, "header": {"BAYERPAT": "RGGB"}}).cfa == "RGGB"
    assert open_source({"data": COUNTS, "name": "mine"}).name == "mine"
    assert open_source({"data": None, "array": COUNTS, "header": {"BAYERPAT": "BGGR"}}).cfa == "BGGR"
    with pytest.raises(FrameError, match="path_raw"):
        open_source({"path_raw": path})
    with pytest.raises(FrameError, match="int"):
        open_source(3)


def test_sources_and_frames_are_descriptors():
    source = open_source(COUNTS)
    assert open_source(source) is source
    frame = Frame(source)
    assert open_source(frame) is source
    np.testing.assert_array_equal(frame.transform, np.eye(3))
    assert Frame(source).transform is not frame.transform
    assert "17 x 23" in repr(source)


def colour_at(pattern, height, x, y, dx, dy, row_order):
    """Colour of array pixel (x, y), from the definition: look the displayed pixel up in the displayed pattern."""
    shown = height - 1 - y if row_order == "BOTTOM-UP" else y
    # Offsets are odd or even shifts of the pattern against the displayed image.
    return pattern[2 * ((shown + dy) % 2) + (x + dx) % 2]


@pytest.mark.parametrize("height", [22, 23])
@pytest.mark.parametrize("row_order", ["TOP-DOWN", "BOTTOM-UP", None])
@pytest.mark.parametrize("pattern", ["RGGB", "BGGR", "GRBG", "GBRG"])
def test_pattern_offsets_and_row_order(height, row_order, pattern):
    for dx in (0, 1, 2):
        for dy in (0, 1, 3):
            cards = {"BAYERPAT": f" {pattern.lower()} ", "XBAYROFF": dx, "YBAYROFF": float(dy)}
            cards |= {"ROWORDER": row_order} if row_order else {}
            got = cfa_from_header(cards, height, "f")
            expected = [colour_at(pattern, height, x, y, dx, dy, row_order) for y in (0, 1) for x in (0, 1)]
            assert list(got) == expected


def test_row_order_by_hand():
    # RGGB of an even picture, first row at the bottom: the array begins with the picture's last row, G B.
    assert cfa_from_header({"BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP"}, 1080, "f") == "GBRG"
    assert cfa_from_header({"BAYERPAT": "RGGB", "ROWORDER": "BOTTOM-UP"}, 1081, "f") == "RGGB"
    assert cfa_from_header({"BAYERPAT": "RGGB", "XBAYROFF": 1}, 1080, "f") == "GRBG"


@pytest.mark.parametrize("kind", ["plain", "tiles", "gz"])
def test_seestar_like_mosaic(tmp_path, kind):
    cards = {"BAYERPAT": "GRBG", "XBAYROFF": 0, "YBAYROFF": 0}
    unit = fits.CompImageHDU if kind == "tiles" else fits.PrimaryHDU
    hdus = [fits.PrimaryHDU()] * (kind == "tiles") + [with_cards(unit(COUNTS.astype(np.uint16)), **cards)]
    path = save(tmp_path / ("sub.fits.gz" if kind == "gz" else "sub.fits"), *hdus)
    source = open_source(path)
    assert (source.cfa, source.channels, source.shape) == ("GRBG", 3, (HEIGHT, WIDTH, 3))
    assert source.read_rows(1, 4).shape == (3, WIDTH)
    assert source.dtype == np.uint16
    np.testing.assert_array_equal(source.read_rows(1, 4), COUNTS[1:4])
    mono = open_source(path, bayer="none")
    assert mono.cfa is None and mono.shape == (HEIGHT, WIDTH)
    assert open_source(path, bayer="rggb").cfa == "RGGB"
    with pytest.raises(SpecError, match="RGBG"):
        open_source(path, bayer="RGBG")


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"COLORTYP": "GBRG"}, "GBRG"),
        ({"CFA_PAT": "BGGR", "COLORTYP": "RGB"}, "BGGR"),
        ({"COLORTYP": "RGB"}, None),
        ({"BAYERPAT": ""}, None),
        ({"BAYERPAT": "NONE"}, None),
        ({"BAYERPAT": None}, None),
    ],
)
def test_other_spellings_of_the_mosaic(tmp_path, cards, expected):
    path = save(tmp_path / "a.fits", with_cards(fits.PrimaryHDU(COUNTS.astype(np.uint16)), **cards))
    assert open_source(path).cfa == expected


@pytest.mark.parametrize("value", ["TRUE", True, "GBGGBGRGRRGRGBGGBGGRGGRGBRBGBRGRGGRG", "CYYM"])
def test_unknown_patterns_name_the_remedy(tmp_path, value):
    path = save(tmp_path / "xtrans.fits", with_cards(fits.PrimaryHDU(COUNTS.astype(np.uint16)), BAYERPAT=value))
    with pytest.raises(FrameError, match="--bayer none") as caught:
        open_source(path)
    assert caught.value.name == str(path)
    assert open_source(path, bayer="none").channels == 1


def test_three_planes_are_never_debayered():
    assert open_source({"data": PLANES, "header": {"BAYERPAT": "TRUE"}}).cfa is None
    assert open_source(PLANES, bayer="RGGB").cfa is None


def test_truncated_files_name_expected_and_found_bytes(tmp_path):
    path = make(tmp_path, "u16")
    size = 2880 + 2 * HEIGHT * WIDTH
    path.write_bytes(path.read_bytes()[: size - 1])
    with pytest.raises(FrameError, match=f"expected {size} bytes.*found {size - 1} bytes"):
        open_source(path)
    path.write_bytes(path.read_bytes() + b"x")  # the padding of the last block carries nothing
    assert open_source(path).height == HEIGHT

    np.save(tmp_path / "a.npy", np.zeros((9, 9), np.float32))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(FrameError, match="expected 452 bytes.*found 451"):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", ["u16", "tiles u16", "extension", "planar f32"])
def test_no_truncation_is_read_as_data(tmp_path, kind):
    path = make(tmp_path, kind)
    content = path.read_bytes()
    whole = open_source(path).read_rows(0, HEIGHT)
    lengths = {*range(0, len(content), 1440), 79, 80, 2879, 2881, len(content) - 2881}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        try:
            got = open_source(path).read_rows(0, HEIGHT)
        except FrameError as exc:
            assert exc.name == str(path)
        else:
            np.testing.assert_array_equal(got, whole)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FrameError):
        open_source(path)


def test_a_cut_or_damaged_gz_is_a_frame_error(tmp_path):
    path = make(tmp_path, "u16.gz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    source = open_source(path)  # its header can still be decompressed
    with pytest.raises(FrameError, match="cut short or damaged"):
        source.read_rows(0, HEIGHT)
    path.write_bytes(content[:20])
    with pytest.raises(FrameError, match="cut short or damaged"):
        open_source(path)
    path.write_bytes(content[:400] + b"\xff" * 40 + content[440:])
    with pytest.raises(FrameError):
        open_source(path).read_rows(0, HEIGHT)


def test_damaged_tiles_are_a_frame_error(tmp_path):
    path = make(tmp_path, "tiles of 5 rows")
    content = bytearray(path.read_bytes())
    with fits.open(path, disable_image_compression=True) as hdus:
        heap = hdus[1].fileinfo()["datLoc"] + hdus[1].header["NAXIS1"] * hdus[1].header["NAXIS2"]
    content[heap : heap + 60] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(FrameError, match="damaged"):
        open_source(path).read_rows(0, HEIGHT)


@pytest.mark.parametrize("kind", ["RICE_1", "HCOMPRESS_1"])
def test_a_frame_whose_codec_stumbles_is_left_out_like_any_other(kind, tmp_path):
    path = tmp_path / "x.fits.fz"
    pixels = np.random.default_rng(0).integers(900, 1100, (64, 80)).astype(np.int32)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels, compression_type=kind)]).writeto(path)
    content = bytearray(path.read_bytes())
    with fits.open(path, disable_image_compression=True) as hdus:
        heap = hdus[1].fileinfo()["datLoc"] + hdus[1].header["NAXIS1"] * hdus[1].header["NAXIS2"]
        size = hdus[1].header["PCOUNT"]
    content[heap + 20 : heap + size] = b"\xff" * (size - 20)
    path.write_bytes(content)
    with pytest.raises(FrameError, match="damaged"):
        open_source(path).read_rows(0, 64)


def test_hcompress_tiles_are_read_by_many_threads(tmp_path):
    from zemosaic_phase3.runtime.threads import parallel_map

    pixels = np.random.default_rng(0).integers(900, 1100, (6, 96, 80)).astype(np.int32)
    for k, frame in enumerate(pixels):
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(frame, compression_type="HCOMPRESS_1")]).writeto(
            tmp_path / f"{k}.fits.fz"
        )
    sources = [open_source(tmp_path / f"{k % 6}.fits.fz") for k in range(48)]
    for k, block in enumerate(parallel_map(lambda source: source.read_rows(0, 96), sources, 4)):
        np.testing.assert_array_equal(block, pixels[k % 6])


def test_a_file_that_shrinks_or_goes_after_opening(tmp_path):
    path = make(tmp_path, "u16")
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FrameError, match="written or replaced after it was opened"):
        source.read_rows(0, HEIGHT)
    path.unlink()
    for call in (lambda: source.read_rows(0, 1), source.read_header):
        with pytest.raises(FrameError, match="no such file"):
            call()


HUGE = 2_000_000_000


@pytest.mark.parametrize(
    ("card", "value", "message"),
    [
        ("NAXIS1", HUGE, "truncated"),
        ("NAXIS2", 10**14, "truncated"),
        ("NAXIS1", -17, "is no size"),
        ("NAXIS1", 1.5, "is no size"),
        ("NAXIS2", 0, "no image"),
        ("NAXIS", 1, "no image"),
        ("NAXIS", -2, "is no size"),
        ("BITPIX", 12, "BITPIX = 12"),
        ("BZERO", "much", "no number"),
        ("BSCALE", 0.0, "leave no brightness"),
        ("GCOUNT", 0, "GCOUNT"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_header_claims_are_checked_before_memory_is_taken(tmp_path, card, value, message, packed):
    hdu = fits.PrimaryHDU(COUNTS.astype(np.float32))
    content = hdu_bytes(hdu, tmp_path / "a.fits", card, value)
    (tmp_path / "a.fits").write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match=message):
            open_source(tmp_path / "a.fits")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def hdu_bytes(hdu, path, card, value):
    """Bytes of a file in which one card lies."""
    hdu.writeto(path)
    content = path.read_bytes()
    header = fits.Header.fromstring(content[:2880])
    header[card] = value
    return header.tostring().encode().ljust(2880) + content[2880:]


def test_a_lying_tile_count_is_refused(tmp_path):
    path = make(tmp_path, "tiles u16")
    content = path.read_bytes()
    honest = f"ZNAXIS2 = {HEIGHT:>20}".encode()
    assert content.count(honest) == 1
    path.write_bytes(content.replace(honest, f"ZNAXIS2 = {HUGE:>20}".encode()))
    with pytest.raises(FrameError, match="tiles"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(5000), "PNG picture"),
        (b"SIMPLE  =                    T" + b" " * 20000, "no END card"),
        (b"\x93NUMPY\x01\x00\x10\x00not a dictionary", "npy header"),
        (b"\x93NUMPY\x03\x00\x10\x00\x00\x00", "npy header"),
        (b"\x1f\x8b not a gzip file", "damaged"),
        (gzip.compress(b"just text", mtime=0), "neither FITS nor .npy"),
    ],
)
def test_files_that_are_no_image(tmp_path, content, message):
    path = tmp_path / "frame.fits"
    path.write_bytes(content)
    with pytest.raises(FrameError, match=message) as caught:
        open_source(path)
    assert caught.value.name == str(path)


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(FrameError, match="no such file"):
        open_source(tmp_path / "gone.fits")
    with pytest.raises(FrameError, match="is a folder"):
        open_source(tmp_path)
    os.mkfifo(tmp_path / "pipe.fits")
    with pytest.raises(FrameError, match="regular file"):
        open_source(str(tmp_path / "pipe.fits"))
    (tmp_path / "loop.fits").symlink_to(tmp_path / "loop.fits")
    with pytest.raises(FrameError, match="cannot be read"):
        open_source(tmp_path / "loop.fits")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = make(tmp_path, "u16")
    path.chmod(0)
    with pytest.raises(FrameError, match="permissions"):
        open_source(path)


def test_images_with_the_wrong_axes(tmp_path):
    for number, shape in enumerate([(500,), (1, 3, 20, 20)]):
        path = save(tmp_path / f"{number}.fits", fits.PrimaryHDU(np.zeros(shape, np.float32)))
        with pytest.raises(FrameError, match="2 or 3 axes"):
            open_source(path)
    path = save(tmp_path / "five.fits", fits.PrimaryHDU(np.zeros((5, 20, 20), np.float32)))
    with pytest.raises(FrameError, match=r"\(5, 20, 20\)"):
        open_source(path)
    path = save(tmp_path / "strip.fits", fits.PrimaryHDU(np.zeros((7, 20), np.float32)))
    with pytest.raises(FrameError, match="20 x 7"):
        open_source(path)


def test_an_extension_inherits_but_keeps_its_own_wcs(tmp_path):
    primary = with_cards(fits.PrimaryHDU(), OBJECT="M 31", BAYERPAT="GRBG", CD1_2=5.0, **{"DATE-OBS": "2025-01-01"})
    image = with_cards(fits.ImageHDU(COUNTS.astype(np.uint16)), OBJECT="M 32", **celestial_cards())
    source = open_source(save(tmp_path / "a.fits", primary, image))
    header = source.read_header()
    assert (header["OBJECT"], header["DATE-OBS"], header["NAXIS1"]) == ("M 32", "2025-01-01", WIDTH)
    assert "CD1_2" not in header and source.cfa == "GRBG"


def test_characters_that_fits_does_not_allow(tmp_path):
    path = save(tmp_path / "a.fits", with_cards(fits.PrimaryHDU(COUNTS.astype(np.uint16)), SITE="Orleans"))
    path.write_bytes(path.read_bytes().replace(b"Orleans", "Orléans".encode("latin-1")))
    assert open_source(path).read_header()["SITE"] == "Orl?ans"


def test_keywords_that_break_the_standard_do_not_warn(tmp_path):
    path = save(tmp_path / "a.fits", with_cards(fits.PrimaryHDU(COUNTS.astype(np.uint16)), **celestial_cards(SITE=1)))
    bad = b"ESO-LOG 00:00:00> DATE = '1992-10-26' / Mon".ljust(80)
    path.write_bytes(path.read_bytes().replace(b"SITE    =                    1".ljust(80), bad))
    source = open_source(path)
    assert "ESO-LOG" in source.read_header().tostring() and source.wcs() is not None


@pytest.mark.parametrize("kind", ["mono", "planar", "planar with three axes", "interleaved", "tiles", "sip"])
def test_celestial_wcs(tmp_path, kind):
    cards = celestial_cards()
    expected = WCS(fits.Header(cards))
    data = COUNTS.astype(np.float32)
    if kind.startswith("planar"):
        data = PLANES.astype(np.float32)
        cards |= {"CTYPE3": "RGB", "WCSAXES": 3} if "three" in kind else {}
    elif kind == "interleaved":
        data = np.moveaxis(PLANES, 0, -1).astype(np.float32)
        cards = {key.translate(str.maketrans("12", "23")): value for key, value in cards.items()} | {"CTYPE1": "RGB"}
    elif kind == "sip":
        data = PLANES.astype(np.float32)
        cards |= {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-3}
        expected = WCS(fits.Header(cards))
    hdus = [fits.PrimaryHDU(data)] if kind != "tiles" else [fits.PrimaryHDU(), fits.CompImageHDU(data)]
    with_cards(hdus[-1], **cards)
    wcs = open_source(save(tmp_path / "a.fits", *hdus)).wcs()
    assert wcs.naxis == 2 and wcs.pixel_shape == (WIDTH, HEIGHT)
    np.testing.assert_allclose(wcs.all_pix2world(3.0, 5.0, 0), expected.all_pix2world(3.0, 5.0, 0), rtol=1e-12)


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"},
        celestial_cards(CD1_1=0.0, CD2_2=0.0),
        celestial_cards(CTYPE2="RA---TAN"),
        celestial_cards(CTYPE2="DEC--SIN"),
    ],
)
def test_no_or_broken_wcs_is_none(tmp_path, cards):
    path = save(tmp_path / "a.fits", with_cards(fits.PrimaryHDU(COUNTS.astype(np.float32)), **cards))
    assert open_source(path).wcs() is None


def test_wcs_warnings_stay_inside_and_filters_survive_threads(tmp_path):
    cards = celestial_cards(**{"DATE-OBS": "01/02/25", "MJD-OBS": 60000.0, "RADECSYS": "FK5"})
    path = save(tmp_path / "a.fits", with_cards(fits.PrimaryHDU(COUNTS.astype(np.float32)), **cards))
    source, failures, before = open_source(path), [], list(warnings.filters)

    def work():
        for _ in range(5):
            if source.wcs() is None:
                failures.append("no wcs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and warnings.filters == before


def test_wcs_of_a_descriptor_loses_its_colour_axis():
    three = WCS(fits.Header(celestial_cards(WCSAXES=3, CTYPE3="RGB", CD3_3=1.0)))
    assert open_source({"data": COUNTS, "wcs": three}).wcs().naxis == 2
    assert open_source({"data": COUNTS, "header": celestial_cards()}).wcs().pixel_shape == (WIDTH, HEIGHT)


def open_handles():
    folder = Path("/proc/self/fd")  # Linux; elsewhere only the memory is checked
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def test_ten_thousand_sources_are_cheap(tmp_path):
    names = []
    path = make(tmp_path, "u16")
    for number in range(200):
        names.append(str(tmp_path / f"light_{number:05d}.fits"))
        os.link(path, names[-1])
    open_source(names[0])
    handles = open_handles()
    taken = []
    for _ in range(2):  # what a thread of an earlier test does meanwhile is counted too, but not twice
        tracemalloc.start()
        try:
            sources = [open_source(name) for name in names]
            taken.append(tracemalloc.get_traced_memory()[0] / len(sources))
        finally:
            tracemalloc.stop()
    assert min(taken) < 2000
    assert open_handles() == handles
    assert all(isinstance(source, FrameSource) for source in sources)


def test_reading_a_few_rows_takes_the_memory_of_a_few_rows(tmp_path):
    np.save(tmp_path / "big.npy", np.zeros((3, 600, 400), np.float32))
    fits.PrimaryHDU(np.zeros((3, 600, 400), np.uint16)).writeto(tmp_path / "big.fits.gz")
    for name in ("big.npy", "big.fits.gz"):
        source = open_source(tmp_path / name)
        source.read_rows(0, 1)
        tracemalloc.start()
        try:
            rows = source.read_rows(300, 320)
            # The rows, one plane of them as stored, and what a decompressor holds.
            assert tracemalloc.get_traced_memory()[1] < 2 * rows.nbytes + 300_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("head", NPY_HEADS, ids=lambda head: head[:20])
@pytest.mark.parametrize("version", [1, 2])
def test_heads_of_npy_files_that_are_no_images_are_refused(tmp_path, head, version):
    with pytest.raises(FrameError):
        open_source(write(tmp_path, "a.npy", npy_bytes(head, version)))


def test_a_head_of_four_gigabytes_takes_no_memory(tmp_path):
    path = write(tmp_path, "a.npy", b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b"{}" + b" " * 5000)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="npy header"):
            open_source(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_blank_beyond_all_numbers_is_refused(tmp_path):
    raw = frame_bytes(np.zeros((16, 16), np.int16), {})
    with pytest.raises(FrameError, match="BLANK is no number"):
        open_source(write(tmp_path, "a.fits", with_card(raw, "BLANK   = 1.0E999")))


@pytest.mark.parametrize("card", TABLE_CARDS)
def test_damaged_tables_of_compressed_images_are_refused(tmp_path, card):
    raw = compressed_bytes(np.zeros((16, 16), np.int16))
    with pytest.raises(FrameError):
        open_source(write(tmp_path, "a.fz", with_card(raw, card, unit=1))).read_rows(0, 16)

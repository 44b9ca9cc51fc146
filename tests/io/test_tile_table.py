from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.open_frame import open_source

IMAGE = (np.arange(40 * 60).reshape(40, 60) % 251 + 1000).astype(np.int32)


def packed(method: str, pixels: np.ndarray = IMAGE, **options: object) -> bytes:
    stream = io.BytesIO()
    unit = fits.CompImageHDU(pixels, compression_type=method, **options)
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(stream)
    return stream.getvalue()


def opened(folder: Path, raw: bytes) -> np.ndarray:
    path = folder / "frame.fits"
    path.write_bytes(raw)
    source = open_source(path)
    return source.read_rows(0, source.height)


def table_at(raw: bytes) -> int:
    """Where the table of descriptors begins."""
    end = raw.index(b"END" + b" " * 77, raw.index(b"ZIMAGE  ="))
    return -(-(end + 80) // 2880) * 2880


def heap_at(raw: bytes) -> int:
    with fits.open(io.BytesIO(raw), disable_image_compression=True) as hdus:
        return table_at(raw) + hdus[1].header["NAXIS1"] * hdus[1].header["NAXIS2"]


def put(raw: bytes, at: int, number: int, size: int = 4) -> bytes:
    return raw[:at] + number.to_bytes(size, "big", signed=True) + raw[at + size :]


def card(raw: bytes, key: str, value: str) -> bytes:
    at = raw.index(key.ljust(8).encode() + b"=", raw.index(b"XTENSION"))
    return raw[:at] + f"{key:<8}= {value:>20}".encode().ljust(80) + raw[at + 80 :]


METHODS = {
    "RICE_1": {}, "GZIP_1": {}, "GZIP_2": {}, "PLIO_1": {}, "HCOMPRESS_1": {"tile_shape": (20, 30)},
    "NOCOMPRESS": {},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 60), (37, 53)])
def test_good_files_of_every_method_are_read(method: str, shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = IMAGE[: shape[0], : shape[1]]
    found = opened(tmp_path, packed(method, pixels, **METHODS[method]))
    np.testing.assert_array_equal(found, pixels)


def test_floats_whose_tiles_stand_in_another_column_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).normal(1000.0, 10.0, (40, 60)).astype(np.float32)
    pixels[:10] = 7.0
    np.testing.assert_allclose(opened(tmp_path, packed("RICE_1", pixels, quantize_level=16.0)), pixels, atol=3.0)
    np.testing.assert_array_equal(opened(tmp_path, packed("GZIP_2", pixels, quantize_level=0.0)), pixels)


@pytest.mark.parametrize("at", [0, 4], ids=["length", "place"])
@pytest.mark.parametrize("number", [-1, 1 << 20, (1 << 31) - 1, -(1 << 31)])
@pytest.mark.parametrize("method", ["RICE_1", "GZIP_1", "HCOMPRESS_1", "PLIO_1"])
def test_descriptors_outside_of_the_heap_are_refused(method: str, at: int, number: int, tmp_path: Path) -> None:
    raw = packed(method, **METHODS[method])
    with pytest.raises(FrameError, match=r"tile 1 of \d+ claims .* of a heap of \d+ bytes"):
        opened(tmp_path, put(raw, table_at(raw) + at, number))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ZVAL1", "0", "BLOCKSIZE = 0"),
        ("ZVAL1", "1000000000", "BLOCKSIZE"),
        ("ZVAL2", "3", "BYTEPIX = 3"),
        ("ZCMPTYPE", "'XXX     '", "ZCMPTYPE = 'XXX'"),
        ("TFORM1", "'1PX(90)'", "COMPRESSED_DATA has the format"),
        ("TFORM1", "'abc     '", "TFORM1 = 'abc'"),
        ("TFORM1", "'1QB(90)'", "rows of 8"),
        ("TTYPE1", "'OTHER   '", "COMPRESSED_DATA"),
    ],
)
def test_a_table_that_no_decoder_could_read_is_refused(key: str, value: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=said):
        opened(tmp_path, card(packed("RICE_1"), key, value))


def test_an_image_that_its_heap_cannot_hold_is_refused(tmp_path: Path) -> None:
    raw = card(packed("RICE_1"), "ZNAXIS1", "2000000000")
    with pytest.raises(FrameError, match="cannot hold 2000000000 x 40 pixels"):
        opened(tmp_path, card(raw, "ZTILE1", "2000000000"))


@pytest.mark.parametrize("at", [0, 2, 6])
def test_a_stream_of_another_size_than_its_tile_is_refused(at: int, tmp_path: Path) -> None:
    raw = packed("HCOMPRESS_1", tile_shape=(20, 30))
    with pytest.raises(FrameError, match="the stream of tile 1 is not that of 30 x 20 pixels"):
        opened(tmp_path, put(raw, heap_at(raw) + at, 30000, 2 if at == 0 else 4))


def test_a_list_of_pixels_longer_than_its_stream_is_refused(tmp_path: Path) -> None:
    raw = packed("PLIO_1")
    with pytest.raises(FrameError, match="the stream of tile 1"):
        opened(tmp_path, put(raw, heap_at(raw) + 4, 32000, 2))

"""Pictures: the stretch does what it says, and the files are PNGs that anyone can read."""

from __future__ import annotations

import struct
import zlib
from typing import get_args

import numpy as np
import pytest

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.report.preview import SEPARATOR_PX, before_after_png, draw_marks, save_png, side_by_side
from zemosaic_phase3.report.sky_marks import SkyMarks
from zemosaic_phase3.report.stretch import StretchName, apply_stretch, shrink, stretch, stretch_levels


def decode(data: bytes) -> np.ndarray:
    """Read an 8-bit grey or RGB PNG by the specification: chunks, checksums, filters 0 and 2."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, body, kinds = 8, b"", []
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + content)
        kinds.append(kind)
        if kind == b"IHDR":
            width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", content)
        body += content if kind == b"IDAT" else b""
        at += 12 + length
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND" and depth == 8 and rest == [0, 0, 0]
    channels = {0: 1, 2: 3}[colour]
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height, width * channels), np.uint8)
    for y, row in enumerate(rows):
        assert row[0] in (0, 2)
        out[y] = row[1:] + (out[y - 1] if row[0] == 2 and y else 0)
    return out.reshape(height, width, channels).squeeze()


def sky(rng, shape=(120, 160, 3), level=1000.0, sigma=30.0):
    image = rng.normal(level, sigma, shape).astype(np.float32)
    image[40:43, 50:53] = 40_000
    return image


@pytest.mark.parametrize("shape", [(120, 160), (120, 160, 3)])
@pytest.mark.parametrize("target", [0.1, 0.2, 0.5])
def test_sky_becomes_the_target(rng, shape, target):
    picture = stretch(sky(rng, shape), target_background=target)
    assert picture.shape == shape and picture.dtype == np.uint8
    assert np.median(picture) == pytest.approx(255 * target, abs=1.5)
    assert picture.max() == 255 and (picture == 0).mean() < 0.01  # 2.8 sigma below the sky: 0.3 %


def test_stretch_keeps_the_order_of_levels():
    ramp = np.linspace(0, 65535, 4096, dtype=np.float32).reshape(64, 64)
    assert (np.diff(stretch(ramp).ravel().astype(int)) >= 0).all()


def test_levels_of_the_data_do_not_matter(rng):
    image = sky(rng)
    assert np.abs(stretch(image).astype(int) - stretch(image / 65535 - 3.0)).max() <= 1


def test_unlinked_and_neutral_make_the_sky_grey_and_linked_keeps_the_cast(rng):
    image = sky(rng) * np.array([1.0, 1.3, 0.8], np.float32)
    median = {name: np.median(stretch(image, colours=name).reshape(-1, 3), axis=0) for name in get_args(StretchName)}
    assert np.ptp(median["unlinked"]) <= 1 and np.ptp(median["neutral"]) <= 1
    assert median["linked"][1] > median["linked"][0] > median["linked"][2]
    with pytest.raises(ValueError, match="'pink'"):
        stretch(image, colours="pink")


def test_neutral_keeps_the_colours_that_unlinked_balances(rng):
    image = rng.normal(0.0, 20.0, (90, 90, 3)) * (1.0, 2.0, 1.0) + (900.0, 1500.0, 700.0)  # green twice as sensitive
    image[40:50, 40:50] += (300.0, 600.0, 300.0)  # and so is a white nebula
    white = {
        name: np.median(stretch(image, colours=name)[42:48, 42:48], axis=(0, 1)) for name in ("unlinked", "neutral")
    }
    assert np.ptp(white["unlinked"]) < 15  # the peaks of the noise are the white points
    assert white["neutral"][1] > white["neutral"][0] + 30


def test_invalid_pixels_are_black_and_change_nothing(rng):
    image = sky(rng)
    holes = image.copy()
    holes[:10] = np.nan
    holes[10, 0, 1] = np.inf
    picture = stretch(holes)
    assert (picture[:10] == 0).all() and (picture[10, 0] == 0).all()
    assert np.median(picture[11:]) == pytest.approx(51, abs=1.5)


@pytest.mark.parametrize("value", [0.0, 1234.5, -7.0, 1e-12])
@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3)])
def test_constant_image_is_even_grey(value, shape):
    assert (stretch(np.full(shape, value, np.float32)) == 51).all()


def test_nothing_valid_is_black():
    assert (stretch(np.full((5, 6, 3), np.nan, np.float32)) == 0).all()


def test_mostly_constant_image_keeps_its_few_stars():
    image = np.zeros((50, 50), np.float32)
    image[10, 10], image[20, 20] = 100.0, 10_000.0
    picture = stretch(image)
    assert picture[0, 0] < picture[10, 10] < picture[20, 20] == 255


def test_wrong_input_is_refused(rng):
    with pytest.raises(ValueError, match=r"\(3, 20, 20\)"):
        stretch(np.zeros((3, 20, 20), np.float32))
    with pytest.raises(ValueError, match="target_background"):
        stretch(sky(rng), target_background=1.0)


def test_input_is_not_modified(rng):
    image = sky(rng)
    image[0] = np.nan
    kept = image.copy()
    stretch(image)
    side_by_side(image, image)
    assert np.array_equal(image, kept, equal_nan=True)


def test_shrink_is_the_mean_of_valid_pixels():
    image = np.arange(48, dtype=np.float32).reshape(6, 8)
    image[0, 0] = np.nan
    image[4:, 6:] = np.nan
    small = shrink(image, 4)
    assert small.shape == (3, 4)
    assert small[0, 0] == np.float32((1 + 8 + 9) / 3) and small[1, 1] == image[2:4, 2:4].mean()
    assert np.isnan(small[2, 3])
    assert shrink(image, 8) is not None and np.array_equal(shrink(image, 8), image, equal_nan=True)


@pytest.mark.parametrize(("shape", "side"), [((100, 333, 3), 100), ((1, 50), 7), ((50, 50), 1)])
def test_shrink_keeps_within_the_side(shape, side):
    small = shrink(np.ones(shape, np.float32), side)
    assert max(small.shape[:2]) <= side and (small == 1).all() and small.ndim == len(shape)


def test_both_halves_are_stretched_alike(rng):
    after = sky(rng, sigma=8.0)
    before = sky(rng, level=1400.0, sigma=32.0)
    picture = side_by_side(before, after)
    assert picture.shape == (120, 2 * 160 + SEPARATOR_PX, 3)
    left, right = picture[:, :160].astype(float), picture[:, -160:].astype(float)
    assert np.median(left) == pytest.approx(np.median(right), abs=2)
    assert (left == 0).mean() < 0.01  # the noisy half is not cut off at its dark side
    assert left.std() > 2 * np.median(np.abs(right - np.median(right))) * 1.4826
    same = side_by_side(after, after)
    assert np.array_equal(same[:, :160], same[:, -160:])
    levels = stretch_levels(after)
    assert np.array_equal(same[:, :160], apply_stretch(after, levels))


def test_halves_of_different_shape_are_refused(rng, tmp_path):
    with pytest.raises(ValueError, match="differ"):
        side_by_side(np.zeros((5, 5)), np.zeros((5, 6)))
    with pytest.raises(ValueError, match="differ"):
        before_after_png(np.zeros((50, 50)), np.zeros((50, 50, 3)), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(7, 11), (7, 11, 1), (7, 11, 3), (1, 1), (1, 300, 3)])
def test_png_holds_the_pixels(rng, tmp_path, shape):
    picture = rng.integers(0, 256, shape, dtype=np.uint8)
    path = save_png(picture, tmp_path / "p.png")
    assert np.array_equal(decode(path.read_bytes()), picture.squeeze())


def test_others_can_read_the_png(rng, tmp_path):
    reader = pytest.importorskip("matplotlib.image")
    image = sky(rng)
    path = save_png(image, tmp_path / "p.png")
    assert np.array_equal(np.rint(reader.imread(path) * 255).astype(np.uint8), stretch(image))


def test_row_zero_is_the_top_unless_flipped(tmp_path):
    picture = np.arange(12, dtype=np.uint8).reshape(4, 3)
    assert np.array_equal(decode(save_png(picture, tmp_path / "p.png").read_bytes()), picture)
    flipped = save_png(picture, tmp_path / "p.png", flip_vertical=True)
    assert np.array_equal(decode(flipped.read_bytes()), picture[::-1])
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_previews_are_shrunk_and_comparisons_cut(rng, tmp_path):
    image = sky(rng, (120, 160, 3))
    for size, shape in ((80, (60, 80, 3)), ("half", (60, 80, 3)), ("full", (120, 160, 3)), (1600, (120, 160, 3))):
        assert decode(save_png(image, tmp_path / "a.png", size=size).read_bytes()).shape == shape
    both = decode(before_after_png(image + 50, image, tmp_path / "b.png", size=104).read_bytes())
    assert both.shape == (104, 104, 3)
    assert np.array_equal(both[:, :50], both[:, -50:])
    assert (both[:, 50:54] == 255).all()
    for bad in (0, "quarter"):
        with pytest.raises(ValueError, match="size"):
            save_png(image, tmp_path / "c.png", size=bad)
    with pytest.raises(ValueError, match="size"):
        before_after_png(image, image, tmp_path / "c.png", size=4)


def test_marks_stand_where_they_belong(rng, tmp_path):
    pytest.importorskip("PIL")
    marks = SkyMarks("M 31", ("2 h 00 min",), 200.0, "10′", north=(0.0, -1.0), east=(-1.0, 0.0))
    for shape in ((300, 400), (300, 400, 3)):
        grey = np.full(shape, 100, np.uint8)
        drawn = draw_marks(grey, marks, 800)
        assert drawn.shape == shape and (grey == 100).all()
        changed = drawn != 100 if drawn.ndim == 2 else (drawn != 100).any(axis=2)
        for part in (changed[:60, :150], changed[-60:, :130], changed[-90:, -90:]):  # name, bar, arrows
            assert part.any()
        assert not changed[60:200].any() and not changed[:200, 200:].any()
        bar = np.flatnonzero(changed[-9 - 3 :, :].any(axis=0))  # 200 px of 800 are 100 of 400
        assert 100 <= np.ptp(bar[bar < 200]) <= 106
    image = sky(rng, (300, 400))
    up = decode(save_png(image, tmp_path / "a.png", marks=marks).read_bytes())
    down = decode(save_png(image[::-1], tmp_path / "b.png", marks=marks.flipped(), flip_vertical=True).read_bytes())
    assert np.array_equal(up, down)


def test_a_failed_write_leaves_nothing_and_says_where(rng, tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        save_png(sky(rng), tmp_path / "nowhere" / "p.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputError, match=r"taken\.png"):
        save_png(sky(rng), tmp_path / "taken.png")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]

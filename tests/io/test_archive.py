"""Frames inside zip and tar archives: every pixel, by rows; what is damaged is told."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.further_images import further_images
from zemosaic_phase3.io.inputs import find_inputs
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.same_pixels import same_exposures

PIXELS = np.random.default_rng(3).integers(0, 2**16, (60, 80)).astype(np.uint16)
KINDS = ("stored.zip", "deflated.zip", "plain.tar")


def make(folder: Path) -> dict[str, Path]:
    """Archives with the same members: plain, gzipped, tile-compressed and .npy."""
    source = folder / "made"
    source.mkdir()
    for k in range(3):
        header = fits.Header({"DATE-OBS": f"2025-01-15T21:00:0{k}", "EXPTIME": 10.0})
        fits.writeto(source / f"sub_{k}.fit", PIXELS + np.uint16(k), header)
    (source / "sub_3.fits.gz").write_bytes(gzip.compress((source / "sub_0.fit").read_bytes()))
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(PIXELS + np.uint16(4))]).writeto(source / "sub_4.fits.fz")
    np.save(source / "sub_5.npy", PIXELS + np.uint16(5))
    two = fits.HDUList([fits.PrimaryHDU(PIXELS + np.uint16(6)), fits.ImageHDU(PIXELS + np.uint16(7))])
    two.writeto(source / "sub_6.fits")
    (source / "readme.txt").write_text("no frame")
    archives = {kind: folder / kind for kind in KINDS}
    for kind, path in archives.items():
        if kind.endswith(".tar"):
            with tarfile.open(path, "w") as tar:
                tar.add(source, "night")
            continue
        method = zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as packed:
            for file in sorted(source.iterdir()):
                packed.write(file, f"night/{file.name}")
            packed.writestr("__MACOSX/night/._sub_0.fit", b"x")
    return archives


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make(tmp_path_factory.mktemp("archives"))


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_frames(archives: dict[str, Path], kind: str) -> None:
    found = find_inputs([archives[kind]]).paths
    assert [path.name for path in found] == [
        "sub_0.fit", "sub_1.fit", "sub_2.fit", "sub_3.fits.gz", "sub_4.fits.fz", "sub_5.npy", "sub_6.fits",
    ]  # fmt: skip
    for k, path in enumerate(found):
        source = open_source(path)
        wanted = PIXELS + np.uint16(0 if k == 3 else k)
        for y0, y1 in ((0, 60), (11, 40), (59, 60)):
            np.testing.assert_array_equal(source.read_rows(y0, y1), wanted[y0:y1])
        is_plain = kind != "deflated.zip" and k not in (3, 4)
        assert (source.raw_layout is not None) == is_plain
        if is_plain:
            raw = np.empty(10 * 80 * 2, np.uint8)
            source.read_raw(20, 30, raw)
            stored = raw.view(source.raw_layout.dtype).reshape(10, 80)
            samples = stored.astype(np.int64) + (32768 if source.raw_layout.flipped else 0)
            np.testing.assert_array_equal(samples, wanted[20:30])
    assert open_source(found[1]).read_header()["EXPTIME"] == 10.0
    assert open_source(found[1]).card_values("DATE-OBS") == ["2025-01-15T21:00:01"]
    assert further_images(open_source(found[6])).frames == [1]
    np.testing.assert_array_equal(open_source(f"{found[6]}[1]").read_rows(0, 60), PIXELS + np.uint16(7))


def test_members_are_known_again_and_copies_found(archives: dict[str, Path]) -> None:
    paths = [path for kind in KINDS for path in find_inputs([archives[kind]]).paths]
    sources = {k: open_source(path) for k, path in enumerate(paths)}
    assert len({str(source.origin) for source in sources.values()}) == len(paths)
    starts = {k: str(source.card_values("DATE-OBS")[0] or "") for k, source in sources.items()}
    same = same_exposures(sources, starts)
    assert [0, 3, 7, 10, 14, 17] in same  # sub_0, in three archives, with and without gzip
    assert [1, 8, 15] in same


def test_an_archive_in_a_folder_is_named_and_not_opened(archives: dict[str, Path]) -> None:
    folder = archives["plain.tar"].parent
    (folder / "lone.fits").write_bytes(b"x")
    notes = " ".join(find_inputs([folder]).notes())
    assert "2 .zip" in notes
    assert "1 .tar" in notes


def test_what_is_wrong_with_an_archive_is_told(archives: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FrameError, match=r"has no member night/sub_9\.fit"):
        open_source(archives["plain.tar"] / "night" / "sub_9.fit")
    data = archives["deflated.zip"].read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    (path,) = find_inputs([tmp_path / "cut.zip"]).paths
    with pytest.raises(FrameError, match="zip archive"):
        open_source(path)
    at = data.index(b"sub_0.fit") + 600
    (tmp_path / "bad.zip").write_bytes(data[:at] + bytes(64) + data[at + 64 :])
    with pytest.raises(FrameError, match=r"compressed data are cut short or damaged"):
        open_source(tmp_path / "bad.zip" / "night" / "sub_0.fit").read_rows(0, 60)
    (tmp_path / "text.zip").write_bytes(b"PK\5\6" + bytes(18))
    assert find_inputs([tmp_path / "text.zip"]).paths == [tmp_path / "text.zip"]


def test_other_formats_in_an_archive_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a.fits", b"XISF0100" + bytes(4000))
    with pytest.raises(FrameError, match="another format than FITS inside an archive; unpack it first"):
        open_source(tmp_path / "a.zip" / "a.fits")

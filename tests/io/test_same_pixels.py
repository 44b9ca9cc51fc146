"""Files that hold one exposure: told by their pixels."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.io import same_pixels
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.same_pixels import same_exposures

SIZE = (64, 80)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(900, 1100, SIZE).astype(np.uint16)


def write(path: Path, pixels: np.ndarray, **cards: Any) -> Path:
    header = fits.Header()
    header.update({key.replace("_", "-"): value for key, value in cards.items()})
    fits.writeto(path, pixels, header, overwrite=True)
    return path


def sets(paths: list[Any], starts: dict[int, str] | None = None) -> list[list[int]]:
    return same_exposures({i: open_source(path) for i, path in enumerate(paths)}, starts or {})


def test_copies_are_told_whatever_their_headers_say(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.fits", image(1), DATE_OBS="x"), write(tmp_path / "b.fits", image(2))
    copy = write(tmp_path / "c.fits", image(1), OBJECT="M 1", DATE_OBS="y")
    third = tmp_path / "d.fits"
    third.write_bytes(a.read_bytes())
    assert sets([a, b, copy, third]) == [[0, 2, 3]]
    assert sets([b, a]) == []


def test_one_other_sample_is_another_exposure(tmp_path: Path) -> None:
    other = image(1)
    other[0, 0] ^= 1
    assert sets([write(tmp_path / "a.fits", image(1)), write(tmp_path / "b.fits", other)]) == []


def test_links_are_one_file_and_read_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write(tmp_path / "a.fits", image(1))
    os.link(a, tmp_path / "b.fits")

    def refuse(*_: object) -> bytes:
        raise AssertionError("was read whole")

    monkeypatch.setattr(same_pixels, "_whole", refuse)
    assert sets([a, tmp_path / "b.fits"]) == [[0, 1]]


def test_other_numbers_in_the_same_bytes_are_other_pixels(tmp_path: Path) -> None:
    signed = (image(1).astype(np.int32) - 32768).astype(np.int16)  # the bytes of the unsigned image
    assert sets([write(tmp_path / "a.fits", image(1)), write(tmp_path / "b.fits", signed)]) == []
    flipped = image(1).reshape(80, 64)
    assert sets([tmp_path / "a.fits", write(tmp_path / "c.fits", flipped)]) == []


def test_compressed_copies(tmp_path: Path) -> None:
    a = write(tmp_path / "a.fits", image(1))
    for k in (1, 2):
        (tmp_path / f"a{k}.fits.gz").write_bytes(gzip.compress(a.read_bytes(), 6, mtime=k))
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image(1))]).writeto(tmp_path / f"a{k}.fz")
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress(write(tmp_path / "b.fits", image(2)).read_bytes()))
    paths = [a, *(tmp_path / name for name in ("a1.fits.gz", "b.fits.gz", "a2.fits.gz", "a1.fz", "a2.fz"))]
    assert sets(paths) == [[1, 3], [4, 5]]  # other formats are compared only where the times agree
    starts = dict.fromkeys(range(6), "2024-08-01T22:00:00")
    assert sets(paths, starts) == [[0, 1, 3, 4, 5]]


def test_frames_of_one_value_and_arrays_are_left_alone(tmp_path: Path) -> None:
    blank = np.full(SIZE, 7, np.uint16)
    assert sets([write(tmp_path / "a.fits", blank), write(tmp_path / "b.fits", blank)]) == []
    assert sets([image(1), image(1)]) == []


def test_a_file_that_went_away_ends_nothing(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{k}.fits", image(k // 2)) for k in range(4)]
    sources = {i: open_source(path) for i, path in enumerate(paths)}
    paths[0].unlink()
    assert same_exposures(sources, {}) == [[2, 3]]


def test_a_few_kilobytes_of_each_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / f"{k}.fits", image(k)) for k in range(6)]
    read = []
    monkeypatch.setattr(same_pixels, "_whole", lambda source: read.append(source.name))
    assert sets(paths) == []
    assert read == []
    assert same_pixels.SAMPLE_PLACES * same_pixels.SAMPLE_BYTES <= 8192


def test_cubes_and_npy(tmp_path: Path) -> None:
    colour = np.stack([image(1), image(2), image(3)])
    np.save(tmp_path / "a.npy", image(1))
    np.save(tmp_path / "b.npy", image(1))
    paths = [
        write(tmp_path / "a.fits", colour),
        write(tmp_path / "b.fits", colour),
        tmp_path / "a.npy",
        tmp_path / "b.npy",
    ]
    assert sets(paths) == [[0, 1], [2, 3]]

"""A file that changes after it was opened is another frame: reading it says so, and a stack goes on without it."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.engine import cpu
from zemosaic_phase3.engine.job import Job, make_job
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.frame import Frame, FrameSource
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.io.pixel_files import Identity
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.spec import RegisterSpec, StackSpec

SHAPE = (24, 32)


def _write(path: Path, level: int = 1000) -> Path:
    pixels = (level + np.arange(np.prod(SHAPE)).reshape(SHAPE) % 97).astype(np.uint16)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".gz":
        plain = path.with_suffix("")
        fits.PrimaryHDU(pixels).writeto(plain)
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        plain.unlink()
    elif path.suffix == ".fz":
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels)]).writeto(path)
    else:
        fits.PrimaryHDU(pixels).writeto(path)
    return path


def _raw(source: FrameSource) -> None:
    source.read_raw(0, 4, np.empty(4 * SHAPE[1] * 2, np.uint8))


def _touched(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))


def _replaced(path: Path) -> None:
    """Another file of the same size and time in its place."""
    status, other = path.stat(), path.with_name("other")
    shutil.copyfile(path, other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def _longer(path: Path) -> None:
    status = path.stat()
    with path.open("ab") as stream:
        stream.write(b" ")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [_touched, _replaced, _longer])
@pytest.mark.parametrize("name", ["a.fits", "a.npy", "a.fits.gz", "a.fits.fz"])
def test_every_way_of_reading_notices(name: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    path = _write(tmp_path / name)
    source = open_source(path)
    source.require_unchanged()
    source.read_rows(0, 4)
    change(path)
    reads: list[Callable[[], object]] = [lambda: source.read_rows(0, 4), source.require_unchanged]
    if source.raw_layout is not None:
        reads.append(lambda: _raw(source))
    if not name.endswith(".npy"):
        reads.append(source.read_header)
    for read in reads:
        with pytest.raises(FrameError, match="written or replaced after it was opened"):
            read()


def test_a_file_written_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.npy")
    source = open_source(path)
    read = type(source)._read_stream  # noqa: SLF001 - the moment between the two looks

    def and_written(self: FrameSource, *arguments: object) -> np.ndarray:
        rows = read(self, *arguments)
        _touched(path)
        return rows

    monkeypatch.setattr(type(source), "_read_stream", and_written)
    with pytest.raises(FrameError, match="written or replaced"):
        source.read_rows(0, 4)


def test_links_permissions_and_restless_numbers_are_no_change(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.fits")
    source = open_source(path)
    os.link(path, tmp_path / "backup.fits")
    path.chmod(0o600)
    source.read_rows(0, 4)
    known = Identity(100, 5, number=7, changed_ns=6)
    assert known.is_same(known._replace(number=8))  # as some network folders have it
    assert known.is_same(known._replace(changed_ns=9))
    assert not known.is_same(known._replace(number=8, changed_ns=9))


def test_an_array_never_changes_its_file() -> None:
    open_source(np.ones((16, 16), np.float32)).require_unchanged()


@pytest.fixture
def paths(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    paths = [tmp_path / f"s{k}.npy" for k in range(9)]
    for path in paths:
        np.save(path, rng.normal(1000.0, 20.0, (64, 48)).astype(np.float32))
    return paths


def test_frames_replaced_before_the_stack_are_left_out_by_name(paths: list[Path]) -> None:
    def replace(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("register", total):
            for k in (3, 4):
                shutil.copyfile(paths[8], paths[k])

    plain = RegisterSpec(mode="none")
    tile = stack_files(paths, register=plain, reference=str(paths[0]), workers=1, progress=replace)
    assert [row.used for row in tile.rows] == [k not in (3, 4) for k in range(9)]
    assert all("written or replaced" in tile.rows[k].reason for k in (3, 4))
    expected = stack_files([*paths[:3], *paths[5:]], register=plain, reference=str(paths[0]), workers=1)
    assert np.array_equal(tile.image, expected.image, equal_nan=True)


def test_frames_replaced_between_two_slabs_leave_nothing_of_themselves(paths: list[Path]) -> None:
    spec, starts = StackSpec(normalize="none", weight="none"), []

    def replace(_stage: str, done: int, _total: int) -> None:
        starts.append(done == 1)
        if len(starts) == 3:
            for k in (3, 4):
                shutil.copyfile(paths[8], paths[k])

    def job(some: list[Path]) -> Job:
        return make_job([Frame(open_source(path)) for path in some], spec)

    result = cpu.stack(job(paths), Resources(workers=1, rows=16), replace)
    assert [name for name, _ in result.job.dropped] == [str(paths[k]) for k in (3, 4)]
    assert sum(starts) == 2, "all that changed are dropped at once"
    expected = cpu.stack(job([*paths[:3], *paths[5:]]), Resources(workers=1))
    assert np.array_equal(result.image, expected.image, equal_nan=True)

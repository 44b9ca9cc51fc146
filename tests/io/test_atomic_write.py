"""Tests of ``io.atomic_write``."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest
from astropy.io import fits
from utils_case import COLOUR, fail_with, only_file, value_of, write

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.io import atomic_write
from zemosaic_phase3.io.atomic_write import write_fits_atomically
from zemosaic_phase3.io.tile_file import tile_hdus


def test_frames_without_a_row(tmp_path):
    write_fits_atomically(tile_hdus(COLOUR, None, frames_table={"name": []}), tmp_path / "a.fits", overwrite=False)
    with fits.open(tmp_path / "a.fits", checksum=True) as hdus:
        assert len(hdus["FRAMES"].data) == 0


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, has_links):
    path = tmp_path / "tile.fits"
    genuine = os.fsync

    def fsync_while_another_process_writes(handle):
        genuine(handle)
        if not path.exists():
            path.write_bytes(b"somebody else's")

    monkeypatch.setattr(os, "fsync", fsync_while_another_process_writes)
    if not has_links:
        monkeypatch.setattr(os, "link", fail_with(OSError(errno.EPERM, "no hard links here")))
    with pytest.raises(OutputError, match="exists already"):
        write(path, overwrite=False)
    assert only_file(tmp_path).read_bytes() == b"somebody else's"


def test_a_folder_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", fail_with(OSError(errno.EPERM, "no hard links here")))
    write(tmp_path / "tile.fits", overwrite=False)
    assert value_of(only_file(tmp_path)) == 1
    monkeypatch.setattr(os, "replace", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "other.fits", overwrite=False)
    assert only_file(tmp_path).name == "tile.fits"


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "bus"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_any_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error, existed):
    path = tmp_path / "tile.fits"
    if existed:
        write(path, 1.0)
    monkeypatch.setattr(os, step, fail_with(error))
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(kind) as caught:
        write(path, 2.0)
    monkeypatch.undo()
    if kind is OutputError:
        assert str(path) in str(caught.value)
        assert ("free space" if error.errno == errno.ENOSPC else "bus") in str(caught.value)
    assert [(p.name, value_of(p)) for p in tmp_path.iterdir()] == ([("tile.fits", 1)] if existed else [])


def test_folders_that_cannot_take_a_file(tmp_path):
    with pytest.raises(OutputError, match=r"folder .*gone does not exist; create it"):
        write(tmp_path / "gone" / "tile.fits")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="create it"):
        write(tmp_path / "file" / "tile.fits")
    (tmp_path / "folder.fits").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write(tmp_path / "folder.fits")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.fits"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_unwritable_folder(tmp_path, monkeypatch, code):
    if os.geteuid() == 0:  # root may write everywhere, so the refusal is made
        monkeypatch.setattr(atomic_write, "_new_file", fail_with(OSError(code, "refused")))
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="may not be written; choose another"):
        write(tmp_path / "tile.fits")
    assert not list(tmp_path.iterdir())


def test_compressed_names_are_refused(tmp_path):
    with pytest.raises(OutputError, match="uncompressed"):
        write(tmp_path / "tile.fits.gz")


def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    write(tmp_path / "tile.fits")
    (tmp_path / "plain").touch()
    assert (tmp_path / "tile.fits").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_planted_link_is_not_written_through(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n))
    (tmp_path / f".zemosaic-{os.getpid()}-{atomic_write.machine()}-{'00' * 6}.tmp").symlink_to(victim)
    with pytest.raises(OutputError):
        write(tmp_path / "tile.fits")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "tile.fits").exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    def left(pid, age):
        path = tmp_path / f".zemosaic-{pid}-0123456789ab.tmp"
        path.write_bytes(b"half a tile")
        os.utime(path, (time.time() - age,) * 2)
        return path

    gone = int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)
    stray, young, alive = left(gone, 7200), left(gone + 10**7, 60), left(os.getpid(), 7200)
    other = tmp_path / ".zemosaic-notes.tmp"
    other.write_text("mine")
    assert atomic_write.remove_strays(tmp_path) == [stray]
    assert {path.name for path in tmp_path.iterdir()} == {young.name, alive.name, other.name}

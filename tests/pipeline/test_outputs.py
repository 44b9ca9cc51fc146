"""Tests of ``pipeline.outputs``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pipeline_case import paths, sessions  # noqa: F401 - fixtures

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.pipeline import outputs
from zemosaic_phase3.pipeline.input_list import is_own_tile
from zemosaic_phase3.pipeline.outputs import Wanted, check_output, check_room, frames_columns
from zemosaic_worker import stack_files


def test_table_of_frames_that_never_opened_can_be_made() -> None:
    from zemosaic_phase3.pipeline.group import FrameRow

    columns = frames_columns([FrameRow("a", reason="no such file"), FrameRow("b", reason="truncated")])
    assert {len(values) for values in columns.values()} == {2}


def test_a_link_to_nothing_is_an_existing_output(tmp_path: Path) -> None:
    link = tmp_path / "tile.fits"
    link.symlink_to(tmp_path / "gone.fits")
    with pytest.raises(OutputError, match="exists already"):
        check_output(link, overwrite=False)
    check_output(link, overwrite=True)


def test_impossible_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="does not exist; create it"):
        check_output(tmp_path / "no" / "tile.fits", overwrite=True)


def test_own_tiles_are_known_by_their_header(paths: list[Path], tmp_path: Path) -> None:
    tile, notes, other = tmp_path / "tile.fits", tmp_path / "notes.fits", tmp_path / "other.fits"
    stack_files(paths[:2], tile)
    notes.write_text("nothing but notes")
    fits.writeto(other, np.ones((8, 8), np.float32), fits.Header([("NCOMBINE", 9), ("ALPHAEXT", 1)]))
    assert is_own_tile(tile)
    assert not any(is_own_tile(path) for path in (paths[0], notes, other, tmp_path / "absent.fits"))


def test_a_link_is_replaced_and_not_followed(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811 - fixture
    link, kept = tmp_path / "tile.fits", tmp_path / "kept.txt"
    kept.write_text("mine")
    link.symlink_to(kept)
    stack_files(paths, link, overwrite=True)
    assert not link.is_symlink()
    assert link.read_bytes().startswith(b"SIMPLE")
    assert kept.read_text() == "mine"


def test_links_that_lead_back_to_themselves(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811 - fixture
    loop = tmp_path / "loop.fits"
    loop.symlink_to(loop)
    with pytest.raises(OutputError, match="leads back to itself"):
        stack_files(paths, loop, overwrite=True)
    tile = stack_files([*paths, loop], tmp_path / "tile.fits")
    assert [Path(name).name for name, _ in tile.report.dropped] == ["loop.fits"]


def test_long_names_are_written_or_refused_at_the_start(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811
    name = f"{'n' * 245}.fits"
    stack_files(paths, tmp_path / name)
    assert (tmp_path / name).is_file()
    steps: list[object] = []
    with pytest.raises(OutputError, match="too long"):
        stack_files(paths, tmp_path / f"n{'n' * 250}.fits", progress=lambda *step: steps.append(step))
    assert not steps


def test_room_is_looked_for_before_a_frame_is_read(
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # noqa: F811 - fixture
) -> None:
    steps: list[object] = []
    usage = outputs.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="bytes are needed and 1000 are free"):
        stack_files(paths, tmp_path / "tile.fits", progress=lambda *step: steps.append(step))
    assert not steps


def test_files_on_one_disk_need_room_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = outputs.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _path: usage._replace(free=100))
    check_room({tmp_path / "a": 60, tmp_path / "b": 40})
    with pytest.raises(OutputError, match=r"a and .*b: 101 bytes"):
        check_room({tmp_path / "a": 60, tmp_path / "b": 41})


def test_the_files_are_no_larger_than_was_looked_for(subs_of_a_run: Path) -> None:
    wanted = Wanted(subs_of_a_run / "a.fits", True, subs_of_a_run / "a.png", subs_of_a_run / "a.json")
    shape = (fits.getheader(wanted.tile)["NAXIS2"], fits.getheader(wanted.tile)["NAXIS1"], 3)
    for path, size in wanted.sizes(shape, 3).items():
        assert path.stat().st_size <= size, path.name


@pytest.fixture
def subs_of_a_run(tmp_path: Path) -> Path:
    from zemosaic_phase3.app import cli
    from zemosaic_phase3.simulate.scene import simulate
    from zemosaic_phase3.simulate.session import SimulationSpec

    simulate(SimulationSpec(n_frames=3, height=128, width=192, seed=3, dither_px=4.0), tmp_path / "subs")
    order = ["stack", tmp_path / "subs", "-o", tmp_path / "a.fits", "--maps", "--json", tmp_path / "a.json", "--quiet"]
    assert cli.main([str(part) for part in order]) == 0
    return tmp_path

"""Tests of ``pipeline.outputs``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pipeline_case import paths, sessions  # noqa: F401 - fixtures

from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.pipeline.input_list import is_own_tile
from zemosaic_phase3.pipeline.outputs import check_output, frames_columns
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

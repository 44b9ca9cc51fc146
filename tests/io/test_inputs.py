"""Tests of ``io.inputs``."""

from __future__ import annotations

import pytest

from zemosaic_phase3.errors import FrameError, NoFramesError
from zemosaic_phase3.io.inputs import expand_inputs
from zemosaic_phase3.io.open_frame import open_source


def test_expand_inputs(tmp_path, monkeypatch):
    for name in ("sub_10.fit", "sub_2.FITS", "sub_1.fits.gz", ".hidden.fits", "notes.txt", "cache.npy", "[odd].fts"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more.fits").mkdir()
    (tmp_path / "more.fits" / "deep.fz").write_bytes(b"x")
    expected = ["[odd].fts", "cache.npy", "sub_1.fits.gz", "sub_2.FITS", "sub_10.fit"]
    assert [path.name for path in expand_inputs([tmp_path])] == expected
    assert [path.name for path in expand_inputs([f"{tmp_path}/sub_*.f*", tmp_path / "sub_2.FITS"])] == expected[2:]
    assert expand_inputs([tmp_path / "[odd].fts"]) == [tmp_path / "[odd].fts"]
    assert [path.name for path in expand_inputs([tmp_path / "*" / "*.fz"])] == ["deep.fz"]
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in expand_inputs(["sub_?.*", str(tmp_path / "sub_2.FITS")])] == [
        "sub_1.fits.gz",
        "sub_2.FITS",
    ]


def test_inputs_that_match_nothing_are_reported_by_name(tmp_path):
    missing = tmp_path / "none_*.fits"
    assert expand_inputs([missing]) == [missing]
    with pytest.raises(FrameError, match="no such file"):
        open_source(missing)
    for inputs in ([tmp_path], []):
        with pytest.raises(NoFramesError, match="no frames found"):
            expand_inputs(inputs)

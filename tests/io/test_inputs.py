"""Tests of ``io.inputs``."""

from __future__ import annotations

import pytest

from zemosaic_phase3.errors import FrameError, NoFramesError
from zemosaic_phase3.io.inputs import MOST_LOOKED_AT, expand_inputs, find_inputs
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


def test_a_unit_behind_names_and_patterns(tmp_path):
    for name in ("a1.fits", "a2.fits", "b.fits"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in expand_inputs([tmp_path / "a*.fits[2]"])] == ["a1.fits[2]", "a2.fits[2]"]
    given = [tmp_path / "b.fits[1]", tmp_path / "b.fits[2]"]
    assert expand_inputs(given) == given


def folders(tmp_path):
    for name in ("a/1.fits", "a/b/2.fits", "a/b/c/3.fits", "a/.hidden/4.fits", "a/x.cr2", "a/b/y.cr2", "a/n.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "a"


def test_recursive_takes_the_folders_below_once(tmp_path):
    top = folders(tmp_path)
    (top / "b" / "again").symlink_to(top)
    (top / "loop").symlink_to(top / "loop")
    (top / "linked").symlink_to(top / "b" / "c")
    found = find_inputs([top], recursive=True)
    assert [path.name for path in found.paths] == ["1.fits", "2.fits", "3.fits"]
    assert found.others[".cr2"] == 2
    assert found.below == {}


def test_what_is_not_taken_is_told(tmp_path):
    top = folders(tmp_path)
    found = find_inputs([top])
    assert [path.name for path in found.paths] == ["1.fits"]
    assert found.notes() == [
        "1 .cr2 passed over: name such files, or a pattern, to stack them",
        f"2 more frames in 2 folders below ({top / 'b'}), not taken: --recursive takes them",
    ]


def test_the_error_says_where_the_frames_are(tmp_path):
    top = folders(tmp_path)
    with pytest.raises(
        NoFramesError, match=r"no frames directly in .*; 3 in 3 folders below: add --recursive, or name"
    ):
        find_inputs([tmp_path])
    (top / "1.fits").unlink()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "x.avi").write_bytes(b"x")
    (tmp_path / "raw" / "x.jpg").write_bytes(b"x")
    with pytest.raises(NoFramesError, match=r"no frames found in: .*; there are 1 .avi, 1 .jpg, which are not read"):
        find_inputs([tmp_path / "raw"])


def test_looking_below_has_an_end(tmp_path):
    for k in range(MOST_LOOKED_AT + 50):
        (tmp_path / f"d{k:04d}").mkdir()
        (tmp_path / f"d{k:04d}" / "1.fits").write_bytes(b"x")
    with pytest.raises(NoFramesError, match=f"{MOST_LOOKED_AT - 1} in {MOST_LOOKED_AT - 1} folders below"):
        find_inputs([tmp_path])
    assert len(find_inputs([tmp_path], recursive=True).paths) == MOST_LOOKED_AT + 50


@pytest.mark.parametrize(
    ("lying", "taken"),
    [
        ({"a.fit": 3, "b.tif": 9}, ".fit"),  # pictures made of the frames
        ({"a.fit": 3, "b.cr2": 3}, ".fit"),
        ({"a.fit": 2, "b.CR2": 3, "c.tif": 9}, ".CR2"),  # what was made of the camera's files
        ({"a.xisf": 4, "b.tif": 9}, ".tif"),
        ({"a.fits": 1, "b.xisf": 4}, ".xisf"),  # the stack of an earlier run
        ({"a.fits": 1, "b.xisf": 1}, ".fits"),
        ({"a.ser": 1, "a.jpg": 4}, ".ser"),
    ],
)
def test_a_folder_stands_for_frames_of_one_family(tmp_path, lying, taken):
    for name, n in lying.items():
        for k in range(n):
            (tmp_path / f"{k}{name}").write_bytes(b"x")
    found = find_inputs([tmp_path])
    assert {path.suffix for path in found.paths} == {taken}
    told = [kind for kind in found.others if kind not in (".jpg", taken.lower())]
    assert all(any(kind in note for note in found.notes()) for kind in told)

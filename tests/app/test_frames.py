"""The options that say which frames, as a user calls them: groups, filters, folders below, too few frames."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pipeline_case import paths, sessions  # noqa: F401 - fixtures

import zemosaic_phase3 as zp
from zemosaic_phase3.app.cli import main


@pytest.fixture
def folder(paths: list[Path], tmp_path: Path) -> Path:
    """Five frames in a folder below one; two of them of another filter."""
    (tmp_path / "in" / "night").mkdir(parents=True)
    for k, path in enumerate(paths):
        target = tmp_path / "in" / "night" / path.name
        shutil.copy(path, target)
        fits.setval(target, "FILTER", value="Ha" if k < 3 else "O III")
    return tmp_path / "in"


def run(*args: object) -> int:
    return main(["stack", *map(str, args), "--device", "cpu", "--preview", "none", "--quiet"])


def test_recursive_and_filter(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.fits"
    assert run(folder, "-o", output) == 1
    assert "5 in 1 folder below: add --recursive" in capsys.readouterr().err
    assert run(folder, "-o", output, "--recursive", "--filter", "oiii") == 0
    assert fits.getheader(output)["NCOMBINE"] == 2


def test_a_stack_for_each_group(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.fits"
    assert run(folder / "night", "-o", output, "--group-by", "filter", "--json", tmp_path / "r.json") == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".journal" and path.is_file()) == [
        "out_Ha.fits", "out_O-III.fits", "r_Ha.json", "r_O-III.json",
    ]  # fmt: skip
    assert [fits.getheader(tmp_path / f"out_{name}.fits")["NCOMBINE"] for name in ("Ha", "O-III")] == [3, 2]
    assert json.loads((tmp_path / "r_Ha.json").read_text())["n_meant"] == 3


def test_groups_are_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu", "--preview", "none", "--group-by", "filter"]
    assert main(["stack", str(folder / "night"), "-o", str(tmp_path / "out.fits"), *options]) == 0
    said = capsys.readouterr().err
    assert "2 groups by filter:" in said
    assert "Ha: 3 frames -> " in said


def test_no_group_is_stacked_where_one_output_exists(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out_O-III.fits").write_bytes(b"kept")
    assert run(folder / "night", "-o", tmp_path / "out.fits", "--group-by", "filter") == 1
    assert "exists already" in capsys.readouterr().err
    assert not (tmp_path / "out_Ha.fits").exists()


def test_a_group_that_fails_leaves_the_others(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(2):
        blank = np.full((144, 192), 5, np.uint16)
        fits.writeto(folder / "night" / f"z{k}.fits", blank, fits.Header([("FILTER", "SII")]))
    assert run(folder / "night", "-o", tmp_path / "out.fits", "--group-by", "filter") == 1
    assert "SII: none of 2 frames could be read" in capsys.readouterr().err
    assert (tmp_path / "out_Ha.fits").exists()
    assert (tmp_path / "out_O-III.fits").exists()


@pytest.mark.parametrize("more", [["--json", "-"], ["--reference", "a.fits"]])
def test_what_cannot_go_with_groups(folder: Path, tmp_path: Path, more: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(folder / "night", "-o", tmp_path / "out.fits", "--group-by", "filter", *more)
    assert stopped.value.code == 2


@pytest.fixture
def poor(paths: list[Path], tmp_path: Path) -> Path:
    """Two good frames and three blank ones."""
    (tmp_path / "poor").mkdir()
    for path in paths[:2]:
        shutil.copy(path, tmp_path / "poor")
    for k in range(3):
        fits.writeto(tmp_path / "poor" / f"z{k}.fits", np.full((144, 192), k, np.uint16))
    return tmp_path / "poor"


def test_fewer_than_half_of_the_frames_is_exit_status_3(
    poor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.fits"
    assert run(poor, "-o", output) == 3
    assert "attention: only 2 of 5 frames were used (wanted: 3, --min-frames)" in capsys.readouterr().err
    assert fits.getheader(output)["NCOMBINE"] == 2
    assert run(poor, "-o", output, "--overwrite", "--min-frames", "2") == 0
    assert run(poor, "-o", output, "--overwrite", "--min-frames", "90%") == 3
    assert capsys.readouterr().err.count("attention") == 1


def test_one_frame_of_several_is_no_stack(poor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(poor.glob("sub_*")).unlink()
    output = tmp_path / "out.fits"
    assert run(poor, "-o", output) == 1
    said = capsys.readouterr().err
    assert "1 of 4 frames is left, and one frame is no stack; nothing is written" in said
    assert not output.exists()
    assert run(poor, "-o", output, "--min-frames", "1") == 0
    assert fits.getheader(output)["NCOMBINE"] == 1
    assert run(next(poor.glob("sub_*")), "-o", output, "--overwrite") == 0


def test_a_wrong_number_of_frames_is_wrong_usage(poor: Path, tmp_path: Path) -> None:
    for wrong in ("0", "120%", "some"):
        with pytest.raises(SystemExit) as stopped:
            run(poor, "-o", tmp_path / "out.fits", "--min-frames", wrong)
        assert stopped.value.code == 2


def test_a_raw_file_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.cr2").write_bytes(b"II*\0\x10\0\0\0CR\x02\0" + bytes(3000))
    assert run(tmp_path / "a.cr2", "-o", tmp_path / "out.fits") == 1
    assert "a.cr2: its raw header cannot be read" in capsys.readouterr().err


def test_the_same_from_python(folder: Path, tmp_path: Path) -> None:
    tile = zp.stack(folder, filter="Ha", recursive=True, progress=False, device="cpu")
    assert (tile.report.n_used, tile.report.n_meant) == (3, 3)
    assert [row.facts.filter for row in tile.rows if row.facts is not None] == ["Ha"] * 3 + ["O III"] * 2
    with pytest.raises(zp.NoFramesError, match="at least 4 are asked for"):
        zp.stack(folder, filter="Ha", recursive=True, min_frames=4, progress=False, device="cpu")

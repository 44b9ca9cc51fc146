"""Groups of frames that are stacked each on their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.pipeline.frame_groups import MOST_GROUPS, frame_groups, group_keys
from zemosaic_phase3.pipeline.input_list import list_inputs


def write(path: Path, size: tuple[int, int] = (16, 20), **cards: Any) -> Path:
    header = fits.Header()
    header.update(cards)
    fits.writeto(path, np.random.default_rng(abs(hash(path))).normal(0, 1, size).astype(np.float32), header)
    return path


def groups(folder: Path, keys: str) -> dict[str, list[str]]:
    found, _ = frame_groups(list_inputs([folder], None), group_keys(keys))
    return {group.label: [Path(str(frame)).name for frame in group.inputs.frames] for group in found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(2):
        write(tmp_path / f"a{k}.fits", FILTER="Ha", EXPTIME=300.0, GAIN=100, OBJECT="NGC 7000")
        write(tmp_path / f"b{k}.fits", FILTER="OIII", EXPTIME=300.0, GAIN=100, OBJECT="NGC 7000", size=(20, 20))
    write(tmp_path / "c.fits", FILTER="H-alpha", EXPTIME=299.9, GAIN=100, OBJECT="NGC7000")
    write(tmp_path / "d.fits", FILTER="Ha", EXPTIME=30.0, GAIN=0, XBINNING=2, YBINNING=2)
    write(tmp_path / "e.fits", IMAGETYP="Dark", EXPTIME=30.0)
    return tmp_path


def test_by_filter(folder: Path) -> None:
    assert groups(folder, "filter") == {
        "Ha": ["a0.fits", "a1.fits", "c.fits", "d.fits"],
        "OIII": ["b0.fits", "b1.fits"],
    }


def test_by_several(folder: Path) -> None:
    assert groups(folder, "filter,exposure,gain") == {
        "Ha_299.9s_gain100": ["a0.fits", "a1.fits", "c.fits"], "OIII_299.9s_gain100": ["b0.fits", "b1.fits"],
        "Ha_30s_gain0": ["d.fits"],
    }  # fmt: skip
    assert set(groups(folder, " Object , binning")) == {"NGC-7000_bin1", "noobject_bin2x2"}


def test_of_one_filter(folder: Path) -> None:
    found, notes = frame_groups(list_inputs([folder], None), ("exposure",), filter="Ha")
    assert [group.label for group in found] == ["299.9s", "30s"]
    assert "b0.fits: its filter is OIII, and --filter asks for Ha" in notes


def test_what_is_in_no_group_is_told(folder: Path) -> None:
    _, notes = frame_groups(list_inputs([folder], None), ("filter",))
    assert notes == ["e.fits: it is a dark frame (IMAGETYP = Dark) and no light; it is not stacked with lights"]


def test_labels_are_names_of_files_and_all_different(tmp_path: Path) -> None:
    write(tmp_path / "a.fits", OBJECT="M/31: a?")
    write(tmp_path / "b.fits", OBJECT="M 31 (a)")
    write(tmp_path / "c.fits", FILTER="r")
    write(tmp_path / "d.fits", FILTER="R")
    assert set(groups(tmp_path, "object")) == {"M-31-a", "noobject"}
    assert set(groups(tmp_path, "filter")) == {"nofilter", "r", "R-2"}  # also where names have no case
    found, _ = frame_groups(list_inputs([tmp_path], None), ("filter",))
    assert [group.output(Path("out/m31.fits")).name for group in found] == [
        "m31_nofilter.fits",
        "m31_r.fits",
        "m31_R-2.fits",
    ]


def test_images_of_one_file_are_sorted_too(tmp_path: Path) -> None:
    images = [fits.ImageHDU(np.random.default_rng(k).normal(0, 1, (16, 20)), name=f"IM{k}") for k in range(2)]
    images[1].header["FILTER"] = "g"
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "m.fits")
    assert groups(tmp_path, "filter") == {"nofilter": ["m.fits[1]"], "g": ["m.fits[2]"]}


@pytest.mark.parametrize("wrong", ["", ",", "colour", "filter,date"])
def test_keys_that_are_none(wrong: str) -> None:
    with pytest.raises(SpecError, match="cannot be grouped by .*; choose of: filter, exposure"):
        group_keys(wrong)


def test_too_many_groups(tmp_path: Path) -> None:
    for k in range(MOST_GROUPS + 1):
        write(tmp_path / f"{k}.fits", GAIN=k)
    with pytest.raises(NoFramesError, match="are more than"):
        groups(tmp_path, "gain")

"""Tests of ``pipeline.colour_check``: colours and rows that headers claim, against what the pixels show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cells_case import photons, save, session

from zemosaic_phase3.errors import SpecError
from zemosaic_phase3.pipeline.colour_check import check_rows_and_colours
from zemosaic_phase3.pipeline.group import Group, open_group
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.spec import RegisterSpec, StackSpec

SUBURBAN = (0.8, 1.0, 1.3)
PLAIN = StackSpec(normalize="none", weight="none", reject="none")


def opened(paths: list[Path], bayer: str = "auto", **keywords: object) -> Group:
    return open_group(paths, choose=lambda group: check_rows_and_colours(group, bayer), **keywords)


def stacked(paths: list[Path], **keywords: object):
    return stack_files(
        paths, stack=PLAIN, register=RegisterSpec(mode="none"), device="cpu", resume=False, **keywords
    )  # fmt: skip


def test_a_mosaic_that_no_header_names_stays_grey_and_is_told(tmp_path: Path) -> None:
    paths = session(tmp_path, 4, SUBURBAN, "GRBG", cards={"BAYERPAT": ""})
    tile = stacked(paths)
    assert tile.image.ndim == 2
    note = next(note for note in tile.report.warnings if "COLOUR MOSAIC" in note)
    assert "--bayer GRBG or --bayer GBRG" in note
    assert "RGGB" not in note
    colour = stacked(paths, bayer="GRBG")
    assert not any("MOSAIC" in note for note in colour.report.warnings)
    np.testing.assert_allclose(np.median(colour.image, axis=(0, 1)), [800, 1000, 1300], rtol=0.01)
    assert not any("MOSAIC" in note for note in stacked(paths, bayer="none").report.warnings)


def test_a_claimed_mosaic_that_is_none_is_grey_and_told(tmp_path: Path) -> None:
    paths = session(tmp_path, 4, cards={"BAYERPAT": "RGGB"})
    tile = stacked(paths)
    assert tile.image.ndim == 2
    assert any("--bayer RGGB" in note for note in tile.report.warnings)
    assert stacked(paths, bayer="RGGB").image.shape[2] == 3


def test_a_true_mosaic_is_left_alone(tmp_path: Path) -> None:
    paths = session(tmp_path, 3, SUBURBAN, "GRBG", cards={"BAYERPAT": "GRBG"})
    group = opened(paths)
    assert [group.source(i).cfa for i in range(3)] == ["GRBG"] * 3
    assert group.notes == []


def test_grey_frames_are_left_alone(tmp_path: Path) -> None:
    assert opened(session(tmp_path, 3)).notes == []


def test_a_frame_without_the_card_gets_the_pattern_of_the_others(tmp_path: Path) -> None:
    paths = session(tmp_path, 4, SUBURBAN, "GRBG", cards={"BAYERPAT": "GRBG"})
    save(paths[2], photons(2, SUBURBAN, "GRBG"))
    group = opened(paths)
    assert [group.source(i).cfa for i in group.usable] == ["GRBG"] * 4
    assert "1 of 4 frames, such as sub_2.fits" in group.notes[0]


def test_a_grey_frame_among_mosaics_stays_out(tmp_path: Path) -> None:
    paths = session(tmp_path, 4, SUBURBAN, "GRBG", cards={"BAYERPAT": "GRBG"})
    save(paths[2], photons(2))
    group = opened(paths)
    assert group.usable == [0, 1, 3]
    assert group.notes == []


@pytest.mark.parametrize("reference", [None, 4])
def test_rows_in_the_other_order_are_turned(tmp_path: Path, reference: int | None) -> None:
    paths = session(tmp_path, 5, SUBURBAN, "GRBG", cards={"BAYERPAT": "GRBG", "ROWORDER": "TOP-DOWN"})
    there = [photons(k, SUBURBAN, "GRBG") for k in range(5)]
    for k in (3, 4):
        save(paths[k], there[k][::-1], BAYERPAT="GRBG", ROWORDER="BOTTOM-UP")
    group = opened(paths, reference=None if reference is None else paths[reference])
    turned, as_stored = ((3, 4), (0, 1, 2)) if reference is None else ((0, 1, 2), (3, 4))
    assert "ROWORDER" in group.notes[0]
    assert f"{len(turned)} of 5 frames" in group.notes[0]
    assert len({group.source(i).cfa for i in range(5)}) == 1
    assert {type(group.source(i)).__name__ for i in turned} == {"FlippedSource"}
    assert {type(group.source(i)).__name__ for i in as_stored} == {"PixelFile"}
    expected = np.clip(np.round(there[3]), 0, 65535)
    np.testing.assert_array_equal(group.source(3).read_rows(0, 256), expected if reference is None else expected[::-1])


def test_one_order_of_rows_is_left_alone(tmp_path: Path) -> None:
    paths = session(tmp_path, 3, cards={"ROWORDER": "BOTTOM-UP"})
    save(paths[1], photons(1))
    group = opened(paths)
    assert group.notes == []
    assert {type(group.source(i)).__name__ for i in range(3)} == {"PixelFile"}


def test_what_the_user_says_is_not_questioned(tmp_path: Path) -> None:
    paths = session(tmp_path, 3, SUBURBAN, "GRBG")
    assert opened(paths, bayer="none").notes == []
    with pytest.raises(SpecError):
        stacked(paths, bayer="XYZW")


def test_frames_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    paths = session(tmp_path, 3, SUBURBAN, "GRBG")
    group = open_group(paths)
    paths[0].unlink()
    check_rows_and_colours(group, "auto")
    assert "COLOUR MOSAIC" in group.notes[0]

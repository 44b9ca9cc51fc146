"""How many of the frames must be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline_case import paths, sessions  # noqa: F401 - fixtures

from zemosaic_phase3.errors import NoFramesError, SpecError
from zemosaic_phase3.pipeline.frame_count import LeastFrames, meant_frames
from zemosaic_phase3.pipeline.group import FrameRow, Group
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.spec import RegisterSpec, SelectSpec


def group(used: int, of: int, not_meant: int = 0) -> Group:
    rows = [FrameRow(f"f{k}.fits", used=k < used, reason="" if k < used else "cut short") for k in range(of)]
    rows += [FrameRow(f"d{k}.fits", reason="a dark", meant=False) for k in range(not_meant)]
    return Group(rows, [None] * len(rows))


@pytest.mark.parametrize(
    ("text", "meant", "needed"),
    [(None, 10, 5), (None, 11, 6), (None, 1, 1), (None, 2, 1), ("3", 10, 3), (3, 2, 3), ("80%", 10, 8), ("80 %", 11, 9),
     ("0%", 10, 1), ("100%", 7, 7), ("33.3%", 3, 1)],
)  # fmt: skip
def test_how_many_are_needed(text: str | int | None, meant: int, needed: int) -> None:
    assert LeastFrames.of(text).needed(meant) == needed


@pytest.mark.parametrize("wrong", ["0", 0, "-1", "half", "101%", "-5%", "2.5", "", "%", True])
def test_what_is_no_number_of_frames(wrong: str | int) -> None:
    with pytest.raises(SpecError, match="neither a number of frames"):
        LeastFrames.of(wrong)


def test_one_of_several_is_no_stack_for_the_command_line() -> None:
    default = LeastFrames.of(None, fails="one")
    for fine in (group(1, 1), group(2, 9), group(1, 1, not_meant=5)):
        default.check(fine)
    with pytest.raises(
        NoFramesError, match=r"1 of 4 frames is left, and one frame is no stack.*3 frames such as f1.fits"
    ):
        default.check(group(1, 4))
    with pytest.raises(NoFramesError, match="--min-frames 1"):
        LeastFrames.of("5", fails="one").check(group(1, 4))
    LeastFrames.of("1", fails="one").check(group(1, 4))
    LeastFrames.of("5", fails="one").check(group(2, 9))  # written, and exit status 3
    LeastFrames.of(None).check(group(1, 4))  # a program is told by the report


def test_a_program_that_asks_gets_an_error() -> None:
    with pytest.raises(
        NoFramesError, match=r"4 of 9 frames are left, and at least 5 are asked for; nothing is written"
    ):
        LeastFrames.of("50%").check(group(4, 9, not_meant=3))
    LeastFrames.of("50%").check(group(5, 9))


def test_what_was_not_meant_does_not_count() -> None:
    assert meant_frames(group(2, 4, not_meant=7)) == 4
    assert LeastFrames().remark(2, 4) == ""
    assert LeastFrames().remark(1, 4).startswith("only 1 of 4 frames were used, fewer than half")
    assert "fewer than 80 %" in LeastFrames.of("80%").remark(3, 4)
    assert "fewer than 20 frames" in LeastFrames.of(20).remark(3, 4)


def test_the_report_warns(paths: list[Path]) -> None:
    bad = [np.full((144, 192), 5.0, np.float32)] * 5
    tile = stack_files([*paths[:2], *bad])
    assert (tile.report.n_used, tile.report.n_meant, tile.report.n_needed) == (2, 7, 4)
    assert tile.report.warnings[0].startswith("only 2 of 7 frames were used, fewer than half")
    with pytest.raises(NoFramesError, match="at least 6 are asked for"):
        stack_files([*paths[:2], *bad], min_frames="80%")


def test_what_was_asked_to_be_left_out_is_no_failure(paths: list[Path]) -> None:
    tile = stack_files(paths, select=SelectSpec(drop_worst=60.0), min_frames="90%", register=RegisterSpec(mode="none"))
    assert (tile.report.n_used, tile.report.n_meant) == (2, 2)


def test_the_error_has_no_reasons_where_nothing_was_left_out(paths: list[Path]) -> None:
    with pytest.raises(NoFramesError, match=r"nothing is written\. To have it all the same: --min-frames 5"):
        stack_files(paths, min_frames=6, device="cpu", workers=1, resume=False)

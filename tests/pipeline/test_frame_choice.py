"""Which frames belong to the stack, by headers and names; and what is said of a result."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from pipeline_case import paths, sessions  # noqa: F401 - fixtures

from zemosaic_phase3.errors import NoFramesError
from zemosaic_phase3.io.frame_kind import FrameKind
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline.frame_choice import (
    Choice,
    all_images,
    choose_frames,
    differences,
    exposure_classes,
    remarks_on_result,
)
from zemosaic_phase3.pipeline.group import FrameRow, Group, open_group
from zemosaic_phase3.pipeline.input_list import list_inputs, named_files
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.spec import RegisterSpec, StackSpec

Cards = dict[str, Any]
LIGHT = {"IMAGETYP": "Light", "EXPTIME": 10.0}


def write(path: Path, cards: Cards, seed: int | None = None, size: tuple[int, int] = (16, 20)) -> Path:
    header = fits.Header()
    header.update(cards)
    number = abs(hash(str(path))) % 2**32 if seed is None else seed
    pixels = np.random.default_rng(number).integers(0, 60000, size).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.writeto(path, pixels, header, overwrite=True)
    return path


def lights(folder: Path, n: int, **cards: Any) -> list[Path]:
    return [write(folder / f"{cards.get('FILTER', 'sub')}_{k}.fits", {**LIGHT, **cards}) for k in range(n)]


def chosen(
    folder: Path, named: list[Path] | None = None, *, filter: str | None = None, reference: Path | None = None
) -> Group:  # noqa: A002
    listed = list_inputs([folder, *(named or [])], None)
    return open_group(
        listed.frames, open_source, reference=reference, further=all_images,
        choose=partial(choose_frames, choice=Choice(listed.named, filter)),
    )  # fmt: skip


def left_out(group: Group) -> dict[str, str]:
    return {Path(name).name: reason for name, reason in group.dropped()}


# ------------------------------------------------------------------------------------------- kinds


def test_a_device_s_own_stack_among_its_subs_is_left_out_unless_named(tmp_path: Path) -> None:
    lights(tmp_path, 3)
    stack = write(tmp_path / "Stacked_57_M 31_10.0s_IRCUT_20240801-225959.fit", {**LIGHT, "STACKCNT": 57})
    group = chosen(tmp_path)
    assert list(left_out(group)) == [stack.name]
    assert (
        "it is a finished stack of 57 exposures (STACKCNT = 57) among single exposures" in left_out(group)[stack.name]
    )
    assert "name the file itself" in left_out(group)[stack.name]
    assert [row.meant for row in group.rows].count(False) == 1
    assert left_out(chosen(tmp_path, [stack])) == {}
    assert chosen(tmp_path, [stack]).notes[0].endswith(f"because named: {stack.name} (a finished stack of 57)")
    assert left_out(chosen(tmp_path, reference=stack)) == {}


def test_a_run_of_stacks_is_stacked(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"night{k}.fits", {**LIGHT, "STACKCNT": 100 + k})
    assert left_out(chosen(tmp_path)) == {}
    lights(tmp_path, 1)
    group = chosen(tmp_path)
    assert left_out(group) == {}
    assert "3 finished stacks and 1 single exposure are stacked together" in group.notes[0]
    lights(tmp_path, 3)
    assert len(left_out(chosen(tmp_path))) == 3


def test_calibration_frames_among_lights_are_left_out(tmp_path: Path) -> None:
    lights(tmp_path, 2)
    kinds = {"d.fits": "Dark", "f.fits": "Flat Field", "b.fits": "Bias", "df.fits": "DARKFLAT"}
    for name, kind in kinds.items():
        write(tmp_path / name, {"IMAGETYP": kind})
    for k in range(9):  # more than the lights, and of another size
        write(tmp_path / f"e{k}.fits", {"IMAGETYP": "Dark"}, size=(16, 16))
    group = chosen(tmp_path)
    assert len(group.usable) == 2
    assert (
        left_out(group)["d.fits"] == "it is a dark frame (IMAGETYP = Dark) and no light; it is not stacked with lights"
    )
    assert "dark-flat frame" in left_out(group)["df.fits"]
    named = chosen(tmp_path, [tmp_path / "d.fits"])
    assert len(named.usable) == 3
    assert named.notes == ["stacked with the others because named: d.fits (a dark frame)"]


def test_darks_alone_are_what_is_to_be_stacked(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"d{k}.fits", {"IMAGETYP": "Dark"})
    write(tmp_path / "b.fits", {"IMAGETYP": "Bias"})
    group = chosen(tmp_path)
    assert list(left_out(group)) == ["b.fits"]
    assert group.notes == ["the frames are dark frames (3), no lights; they are stacked as they are"]


# ------------------------------------------------------------------------------------------- filters


def test_the_filter_of_most_frames_is_stacked(tmp_path: Path) -> None:
    lights(tmp_path, 3, FILTER="Ha")
    lights(tmp_path, 2, FILTER="OIII")
    write(tmp_path / "other.fits", {**LIGHT, "FILTER": "H-alpha 7nm"})
    write(tmp_path / "unknown.fits", LIGHT)
    group = chosen(tmp_path)
    assert set(left_out(group)) == {"OIII_0.fits", "OIII_1.fits"}
    assert left_out(group)["OIII_0.fits"] == "its filter is OIII, and Ha is stacked; use --filter OIII for it"
    assert group.notes[0].startswith("2 filters: Ha (4), OIII (2); Ha is stacked. --filter NAME chooses one")
    assert all(row.meant for row in group.rows)  # these count as frames that were to be stacked


def test_of_as_many_frames_the_longer_exposed_filter_is_stacked(tmp_path: Path) -> None:
    lights(tmp_path, 2, FILTER="Ha", EXPTIME=10.0)
    lights(tmp_path, 2, FILTER="OIII", EXPTIME=300.0)
    assert set(left_out(chosen(tmp_path))) == {"Ha_0.fits", "Ha_1.fits"}
    assert set(left_out(chosen(tmp_path, reference=tmp_path / "Ha_0.fits"))) == {"OIII_0.fits", "OIII_1.fits"}


@pytest.mark.parametrize("wanted", ["OIII", "oiii", "O3", "O-III 6nm"])
def test_a_filter_is_asked_for_in_any_spelling(tmp_path: Path, wanted: str) -> None:
    lights(tmp_path, 3, FILTER="Ha")
    lights(tmp_path, 2, FILTER="OIII")
    group = chosen(tmp_path, filter=wanted)
    assert set(left_out(group)) == {f"Ha_{k}.fits" for k in range(3)}
    assert [row.meant for row in group.rows].count(False) == 3


def test_a_filter_that_no_frame_has(tmp_path: Path) -> None:
    lights(tmp_path, 2, FILTER="Ha")
    with pytest.raises(NoFramesError, match=r"no frame has the filter 'LP'; their filters are: Ha \(2\)"):
        chosen(tmp_path, filter="LP")


def test_one_letter_may_be_asked_for_in_another_case(tmp_path: Path) -> None:
    lights(tmp_path, 2, FILTER="L")
    lights(tmp_path, 2, FILTER="Ha")
    assert len(chosen(tmp_path, filter="l").usable) == 2


# ------------------------------------------------------------------------------------------- copies


def test_an_exposure_counts_once(tmp_path: Path) -> None:
    lights(tmp_path, 3)
    shutil.copy(tmp_path / "sub_1.fits", tmp_path / "sub_1 (1).fits")
    group = chosen(tmp_path)
    assert left_out(group) == {"sub_1 (1).fits": "holds the same pixels as sub_1.fits; an exposure counts once"}
    copy = tmp_path / "sub_1 (1).fits"
    assert list(left_out(chosen(tmp_path, [copy]))) == ["sub_1.fits"]
    assert list(left_out(chosen(tmp_path, reference=copy))) == ["sub_1.fits"]


def test_copies_in_two_folders_are_named_with_their_folders(tmp_path: Path) -> None:
    lights(tmp_path / "a", 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    group = chosen(tmp_path / "a", [tmp_path / "b"])
    assert (
        left_out(group)["sub_0.fits"]
        == f"holds the same pixels as {tmp_path / 'a' / 'sub_0.fits'}; an exposure counts once"
    )
    assert len(group.usable) == 2


# ------------------------------------------------------------------------------------------- several images


def test_the_images_of_a_file_are_frames(tmp_path: Path) -> None:
    for k in range(2):
        images = [fits.ImageHDU(np.random.default_rng(10 * k + i).normal(0, 1, (16, 20))) for i in range(3)]
        fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / f"m{k}.fits")
    group = chosen(tmp_path)
    assert [Path(row.name).name for row in group.rows] == [
        "m0.fits", "m0.fits[2]", "m0.fits[3]", "m1.fits", "m1.fits[2]", "m1.fits[3]",
    ]  # fmt: skip
    assert "2 files hold up to 3 images, and each is a frame: m0.fits, m0.fits[2], ..." in group.notes[0]
    one = open_group([f"{tmp_path / 'm0.fits'}[2]"], open_source, further=all_images)
    assert [Path(row.name).name for row in one.rows] == ["m0.fits[2]"]


def test_images_of_another_size_are_told_once(tmp_path: Path) -> None:
    for k in range(3):
        pixels = [np.random.default_rng(3 * k + i).normal(0, 1, (16, 20 + i)) for i in range(2)]
        fits.HDUList([fits.PrimaryHDU(pixels[0]), fits.ImageHDU(pixels[1])]).writeto(tmp_path / f"m{k}.fits")
    group = chosen(tmp_path)
    assert group.notes == ["3 files such as m0.fits: another image is in it and not stacked: [1] (21 x 16 pixels)"]
    assert len(group.usable) == 3


# ------------------------------------------------------------------------------------------- what differs


def test_what_differs_is_said_in_a_line_each() -> None:
    a = FrameKind(object="M 31", gain=80.0, exposure=10.0, instrument="Seestar S50", binning="1x1")
    b = FrameKind(object="M 33", gain=100.0, exposure=30.0, instrument="Seestar S30", binning="2x2")
    assert differences([a, a]) == []
    assert differences([a, FrameKind(object="m31", exposure=9.99)]) == []
    lines = differences([a, a, b])
    assert lines == [
        "2 objects (OBJECT): M 31 (2), M 33 (1); frames of another field will not register",
        "2 cameras (INSTRUME): Seestar S50 (2), Seestar S30 (1); --group-by instrument stacks each",
        "2 binnings (XBINNING): 1x1 (2), 2x2 (1); --group-by binning stacks each",
        "2 gains (GAIN): 80 (2), 100 (1); levels are matched, --group-by gain stacks each",
        "2 exposure times: 10 s (2), 30 s (1); levels are matched, weights follow the noise",
    ]
    many = differences([FrameKind(object=f"o{k}") for k in range(9)])
    assert many[0].startswith("9 objects (OBJECT): o0 (1), o1 (1), o2 (1), o3 (1), ...;")


def test_exposures_that_differ_by_a_per_cent_are_one() -> None:
    assert exposure_classes([10.0, 9.99, 30.0, float("nan"), 0.0, 300.2, 300.0]) == {
        9.99: 9.99, 10.0: 9.99, 30.0: 30.0, 300.0: 300.0, 300.2: 300.0,
    }  # fmt: skip


def row(name: str, weight: float, rejected: float = 0.3, count: int = 1) -> FrameRow:
    return FrameRow(name, used=True, weight=[weight], rejected_percent=rejected, facts=FrameKind(count=count))


def test_one_frame_that_outweighs_the_others_is_told() -> None:
    assert remarks_on_result([row("a", 1.0), row("b", 0.6), row("c", 0.5)]) == []
    told = remarks_on_result([row("s.fit", 1.0, count=40), row("b", 0.4), row("c", 0.5)])
    assert told == [
        "s.fit (a stack of 40) outweighs the 2 others together (1 against 0.9): the result is nearly that frame"
    ]
    assert remarks_on_result([row("a", 1.0), row("b", 0.3)]) == []  # of two one always does
    assert "outweighs the other one" in remarks_on_result([row("a", 1.0), row("b", 0.2)])[0]
    assert remarks_on_result([row("a", 1.0)]) == []


def test_frames_that_lose_much_to_rejection_are_told() -> None:
    told = remarks_on_result([row("a", 1.0, 26.0), row("b", 1.0, 57.2), row("c", 1.0, float("nan"))])
    assert told == [
        "2 frames lost more than 25 % of the samples to rejection: b (57 %), a (26 %); look at them, or leave them out"
    ]


# ------------------------------------------------------------------------------------------- naming


def test_what_counts_as_naming(tmp_path: Path) -> None:
    files = lights(tmp_path, 10)
    assert named_files(files[:2]) == frozenset(files[:2])
    assert named_files(files[:4]) == frozenset(files[:4])  # less than half of the folder
    assert named_files(files[:5]) == frozenset()  # as a shell's pattern gives them
    assert named_files([*files, files[3]]) == frozenset(files[3:4])  # one of them once more
    assert named_files([tmp_path, files[3]]) == frozenset(files[3:4])
    assert named_files([tmp_path / "absent.fits"]) == frozenset()
    many = lights(tmp_path / "many", 50)
    assert named_files(many[:20]) == frozenset()
    assert named_files(many[:19]) == frozenset(many[:19])


# ------------------------------------------------------------------------------------------- whole runs


def test_a_folder_as_a_telescope_leaves_it(paths: list[Path], tmp_path: Path) -> None:
    for path in paths:
        shutil.copy(path, tmp_path / path.name)
    shutil.copy(paths[0], tmp_path / f"copy of {paths[0].name}")
    stacked = np.mean([fits.getdata(path) for path in paths], axis=0)
    cards = fits.Header()
    cards.update({"STACKCNT": 40, "EXPTIME": 10.0})
    fits.writeto(tmp_path / "Stacked_40_M31_10.0s_IRCUT_20240801-225959.fit", stacked.astype(np.float32), cards)
    fits.writeto(tmp_path / "Dark_10.0s_0001.fit", fits.getdata(paths[0])[::-1].copy())
    (tmp_path / "a.cr2").write_bytes(b"II*\0")
    plain = stack_files(paths)
    tile = stack_files([tmp_path])
    assert (tile.report.n_used, tile.report.n_input, tile.report.n_meant) == (5, 8, 5)
    assert np.array_equal(tile.image, plain.image, equal_nan=True)
    assert "1 .cr2 passed over: name such files, or a pattern, to stack them" in tile.report.warnings


def test_a_stack_that_decides_alone_is_told(paths: list[Path], tmp_path: Path) -> None:
    frame = fits.getdata(paths[0]).astype(np.float32)
    level = np.median(frame)
    quiet = level + np.where(frame > level + 150, frame - level, (frame - level) * 0.05)
    cards = fits.Header()
    cards.update({"STACKCNT": 4000})
    fits.writeto(tmp_path / "m.fits", quiet.astype(np.float32), cards)
    plain = StackSpec(normalize="none")
    tile = stack_files([*paths[:3], tmp_path / "m.fits"], stack=plain, register=RegisterSpec(mode="none"))
    assert any(note.startswith("m.fits (a stack of 4000) outweighs the 3 others") for note in tile.report.warnings)

"""Plans of tiles: which frames are together, and the file."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from mosaic_case import write_panels

from zemosaic_phase3.cluster.grouping import GroupingSpec, plan_keys, plan_tiles
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan, plan_text, read_plan, write_plan
from zemosaic_phase3.errors import NoFramesError, OutputError, SpecError
from zemosaic_phase3.pipeline.input_list import list_inputs


def planned(folder: Path, **options: object) -> TilePlan:
    return plan_tiles(list_inputs([folder], None), GroupingSpec(**options))  # type: ignore[arg-type]


def names(tile: PlannedTile) -> list[str]:
    return [Path(frame).name for frame in tile.frames]


@pytest.fixture(scope="module")
def panels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panels")
    write_panels(folder, grid=(2, 2), n_frames=6, size=(32, 48), filters=("L", "Ha"))
    return folder


def test_panels_and_filters(panels: Path) -> None:
    plan = planned(panels)
    assert len(plan.tiles) == 8
    assert {len(tile.frames) for tile in plan.tiles} == {3}
    for tile in plan.tiles:
        assert len({name[:4] for name in names(tile)}) == 1
        assert tile.name.endswith("_10s")
        assert (tile.height, tile.width, tile.shared) == (32, 48, 0)
    assert len({tile.name for tile in plan.tiles}) == 8
    assert plan.n_frames == 24


def test_by_night_alone(panels: Path) -> None:
    plan = planned(panels, by=("night",))
    assert len(plan.tiles) == 4  # every panel is of a night of its own here
    assert {len(tile.frames) for tile in plan.tiles} == {6}
    assert {tile.group for tile in plan.tiles} == {f"2025-01-0{k}" for k in range(1, 5)}


def test_large_tiles_are_cut_evenly(panels: Path) -> None:
    plan = planned(panels, by=("exposure",), max_frames=4)
    assert Counter(len(tile.frames) for tile in plan.tiles) == {3: 8}
    assert {name for tile in plan.tiles for name in names(tile)} == {path.name for path in panels.glob("*.fits")}


def test_overlap_lends_frames_of_neighbours(panels: Path) -> None:
    plan = planned(panels, by=("exposure",), overlap=1.0)
    assert all(tile.shared > 0 for tile in plan.tiles)
    assert all(len(tile.frames) == 6 + tile.shared for tile in plan.tiles)
    assert plan.n_frames == 24


def test_one_width_for_all(panels: Path) -> None:
    assert len(planned(panels, by=("exposure",), spread=3.0).tiles) == 1


def test_what_cannot_be_placed_is_said(tmp_path: Path) -> None:
    write_panels(tmp_path, grid=(1, 1), n_frames=4, size=(32, 48))
    rng = np.random.default_rng(0)
    fits.writeto(tmp_path / "lost.fits", rng.integers(0, 99, (32, 48)).astype(np.uint16))
    header = fits.Header({"FILTER": "L", "EXPTIME": 10.0, "GAIN": 80, "RA": 83.82, "DEC": -5.39})
    fits.writeto(tmp_path / "mount.fits", rng.integers(0, 99, (32, 48)).astype(np.uint16), header)
    (tmp_path / "bad.fits").write_bytes(b"SIMPLE  =                    T")
    plan = planned(tmp_path)
    assert len(plan.tiles) == 1
    assert "mount.fits" in names(plan.tiles[0])
    text = "; ".join(plan.notes)
    assert "lost.fits" in text
    assert "placed by what the mount said, for they have no WCS: mount.fits" in text
    assert "bad.fits" in text


def test_nothing_to_plan(tmp_path: Path) -> None:
    fits.writeto(tmp_path / "lost.fits", np.arange(1536, dtype=np.uint16).reshape(32, 48))
    with pytest.raises(NoFramesError, match=r"lost\.fits"):
        planned(tmp_path)
    write_panels(tmp_path, grid=(1, 1), n_frames=2, size=(32, 48))
    with pytest.raises(NoFramesError, match="no tile has 3 frames"):
        planned(tmp_path)


def test_keys() -> None:
    assert plan_keys("Filter, night") == ("filter", "night")
    with pytest.raises(SpecError, match=r"mood.*night"):
        plan_keys("filter,mood")
    with pytest.raises(SpecError, match="less than min frames"):
        GroupingSpec(max_frames=4, min_frames=5)
    with pytest.raises(SpecError, match="spread"):
        GroupingSpec(spread=0.0)


def test_file_comes_back(tmp_path: Path) -> None:
    odd = PlannedTile(
        "a_1", ("/x/b.fits", '/x/a "q" ö.fits', "s3://b/k/c.fits[2]", "/x/d.fits"), 1.5, -2.25, 0.1, "L", 3, 4, 1
    )
    plan = TilePlan(
        (odd, replace(odd, name="b", ra=float("nan"), dec=float("nan"), spread=0.0)), ("said",), {"by": ["filter"]}
    )
    write_plan(plan, tmp_path / "p.toml")
    back = read_plan(tmp_path / "p.toml")
    assert back.tiles[0] == odd
    assert back.tiles[1].frames == odd.frames
    assert (back.notes, back.options) == (plan.notes, plan.options)
    with pytest.raises(OutputError, match="exists already"):
        write_plan(plan, tmp_path / "p.toml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("schema = 1", "names no tile"),
        ("schema = 2", "reads 1"),
        ("schema = ", "is no plan"),
        ('schema = 1\n[[tile]]\nname = "../x"', "no name of a file"),
        ('schema = 1\n[[tile]]\nname = "x"', "has no frames"),
        ('schema = 1\n[[tile]]\nname = "x"\n[[tile.from]]\nfolder = 3', "needs a folder"),
        ("schema = 1\ntiles = 3", "'tiles' means nothing here"),
        ('schema = 1\n[[tile]]\nname = "x"\n[[tile.form]]\nfolder = "/a"', "tile 1: 'form' means nothing here"),
        ('schema = 1\n[[tile]]\nname = "x"\n[[tile.from]]\nfolder = "/a"\nframe = []', "tile x: 'frame' means nothing"),
        ('schema = 1\n[[tile]]\nname = "x"\n[[tile.from]]\nfolder = "/a"\nframes = ["b", "b"]', "names /a/b twice"),
        ('schema = 1\ntile = ["x"]', "'x' is no table"),
    ],
)
def test_plans_that_are_none(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(SpecError, match=error):
        read_plan(tmp_path / "p.toml")
    with pytest.raises(OutputError, match="cannot be read"):
        read_plan(tmp_path / "q.toml")


def test_two_tiles_of_one_name(tmp_path: Path) -> None:
    tile = PlannedTile("x", ("/a/b.fits",))
    (tmp_path / "p.toml").write_text(plan_text(TilePlan((tile, replace(tile, name="X")))))
    with pytest.raises(SpecError, match="two tiles are called"):
        read_plan(tmp_path / "p.toml")

"""Names of files that are no text, and files that are none."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path

import pytest

from zemosaic_phase3.app.cli import main
from zemosaic_phase3.app.watch import _wait
from zemosaic_phase3.cluster.tile_plan import PlannedTile, TilePlan, write_plan
from zemosaic_phase3.errors import OutputError
from zemosaic_phase3.pipeline.input_list import list_inputs
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

LATIN = "n\udce9buleuse"  # b"n\xe9buleuse", as an archive from another system leaves it
pytestmark = pytest.mark.skipif(os.name != "posix", reason="names are bytes and pipes are files there only")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / LATIN
    try:
        found.mkdir()
    except OSError:
        pytest.skip("this file system wants text")
    simulate(SimulationSpec(n_frames=4, height=96, width=128, n_stars=40, flux_min=4000.0, bayer="none"), found)
    (found / "sub_0002.fits").rename(found / f"{LATIN}.fits")
    return found


def test_a_folder_whose_name_is_no_text_is_stacked_whole(folder: Path) -> None:
    out, report = folder / f"{LATIN}_o.fits", folder / "r.json"
    more = ["--series", "2", "--json", str(report), "--preview", "none", "--quiet"]
    for _ in range(2):  # the second finds what the first measured
        assert main(["stack", str(folder), "-o", str(out), "--overwrite", *more]) == 0
        told = json.loads(report.read_text())
        assert (told["n_used"], told["dropped"]) == (4, [])
    assert told["resumed"]["measured"] == 4


def test_what_cannot_hold_such_a_name_says_so(folder: Path, tmp_path: Path) -> None:
    plan = TilePlan((PlannedTile("a", (str(folder / "sub_0001.fits"),)),))
    with pytest.raises(OutputError, match="no text"):
        write_plan(plan, tmp_path / "plan.toml")


def test_such_a_folder_is_watched(folder: Path) -> None:
    _wait(folder, 0.01, Namespace(until_idle=None))


def test_a_pipe_that_is_named_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "z.fits")
    assert list_inputs([tmp_path / "z.fits", tmp_path / "*.fits"], None).frames == [tmp_path / "z.fits"]
    assert list_inputs([tmp_path / "*.fits"], None).frames == [tmp_path / "z.fits"]

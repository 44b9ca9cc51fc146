"""Tests of ``pipeline.run_facts``."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from astropy.io import fits
from pipeline_case import paths, sessions  # noqa: F401 - fixtures

from zemosaic_phase3.pipeline.run_facts import report_from, run_columns
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.records import Resumed, SelfCheck, TileReport


def read_back(report: TileReport) -> TileReport:
    table = run_columns(report)
    return report_from(table["KEY"], table["VALUE"], report.dropped)


def test_a_report_comes_back_from_its_table() -> None:
    full = TileReport(
        n_input=9, n_used=7, dropped=[("a.fits", "blank")], reference="b.fits", device="gpu", gpu_attempts=2,
        noise_after=[1.5, 2.25], fwhm_px=2.5, spec={"reject": "gesd", "spare_stars": True, "select": {"min_stars": 5}},
        seconds={"measure": 1.5}, warnings=["one", "two"], calibration=["dark"], saturation_level=65535.0,
        self_check=SelfCheck(4, 0.5, 0.25, "told"), resumed=Resumed("j", 1, 2, 3), command=["p", "a b.fits"],
        started="2025-01-15T21:00:00Z",
    )  # fmt: skip
    assert read_back(full) == full
    assert math.isnan(read_back(TileReport()).fwhm_px)
    assert read_back(replace(full, fwhm_px=0.0, warnings=[], self_check=None)).self_check is None


def test_what_a_later_version_wrote_is_passed_over() -> None:
    read = report_from(["n_used", "colour.new", "n_input", "resumed.rows"], ["5", "blue", "many", "2"])
    assert (read.n_used, read.n_input, read.resumed) == (5, 0, Resumed(rows=2))


def test_a_tile_holds_its_run_and_its_frames(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811 - fixture
    (tmp_path / "flat.fits").write_bytes(b"no FITS")
    tile = stack_files([*paths, tmp_path / "flat.fits"], tmp_path / "m.fits", command=["zemosaic-phase3", "stack"])
    with fits.open(tmp_path / "m.fits", checksum=True) as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["ALPHA", "FRAMES", "RUN"]
        run, frames = hdus["RUN"].data, hdus["FRAMES"].data
        dropped = [(row["NAME"], row["REASON"]) for row in frames if not row["USED"]]
        read = report_from(run["KEY"], run["VALUE"], dropped)
    assert (read.command, read.n_used, read.n_input) == (["zemosaic-phase3", "stack"], 5, 6)
    assert read.noise_typical == tile.report.noise_typical
    assert read.dropped == tile.report.dropped
    assert read.spec["reject"] == "winsorized_sigma_clip"
    assert read.seconds["measure"] > 0

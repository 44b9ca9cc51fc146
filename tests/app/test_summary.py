"""Tests of ``app.summary``."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_case import strict_json
from pipeline_case import paths, sessions  # noqa: F401 - fixtures
from rich.console import Console

from zemosaic_phase3.app import cli, summary
from zemosaic_phase3.pipeline.tile_facts import TileFacts
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.report import words


def test_dropped_frames_with_one_reason_share_a_line():
    many = [(f"f{k}.fits", f"truncated: expected 100 bytes, found {k}") for k in range(40)]
    lines = summary.dropped_lines([("odd.fits", "blank"), *many])
    assert lines == ["40 frames, such as f0.fits: truncated: expected 100 bytes, found 0", "odd.fits: blank"]
    different = [(f"f{k}.fits", "abcdefghijklmnopqrst"[k]) for k in range(20)]
    lines = summary.dropped_lines(different)
    assert len(lines) == summary.DROPPED_LINES + 1
    assert lines[-1] == "... and 8 more; --json lists all"


def test_json_holds_no_nan():
    value = {
        "a": float("nan"),
        "b": [np.float32(1.5), np.inf],
        "c": np.array([1.0, np.nan]),
        4: (True, Path("x"), None),
    }
    text = summary.json_text(summary.json_ready(value))
    assert strict_json(text) == {"a": None, "b": [1.5, None], "c": [1.0, None], "4": [True, "x", None]}


FACTS = TileFacts(
    "M 31", "LP", 10.0, 2150.0, 214, "2025-01-15T21:00:00", "2025-01-16T03:00:00", 1920, 1080, 2.393, "WCS", 3.1
)


def test_what_an_observer_asks_first() -> None:
    assert summary.observation_lines(FACTS) == [
        ("object", "M 31, filter LP"),
        ("exposure", "2150 s (36 min) in 214 exposures, levels of 10 s"),
        ("taken", "2025-01-15T21:00:00 to 2025-01-16T03:00:00 UTC"),
        ("image", '1920 x 1080 pixels, 2.393"/px, FWHM 3.10 px = 7.42"'),
    ]
    nan = float("nan")
    unknown = TileFacts("", "", nan, nan, 5, "", "", 400, 300, nan, "", nan)
    assert summary.observation_lines(unknown) == [("image", "400 x 300 pixels")]


def facts_on_a_terminal(facts: list[tuple[str, str]], **options: Any) -> list[str]:
    stream = io.StringIO()
    summary.print_facts(Console(file=stream, width=80, color_system=None, **options), facts)
    return stream.getvalue().splitlines()


def test_words_are_not_broken_and_paths_stay_whole() -> None:
    path = "/data/" + "/".join(f"night_{k:02d}" for k in range(12)) + "/master.fits"
    note = "the others share fewer than 12 patches of sky with the reference, and are stacked as they are; " * 2
    lines = facts_on_a_terminal([("note", note), ("output", path)], force_terminal=True)
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert " ".join(" ".join(lines).split()).startswith(f"note {note.strip()}")
    assert lines[-1] == path.rjust(len(path) + 8) or lines[-1] == f"output  {path}"
    assert facts_on_a_terminal([("note", note)], force_terminal=False) == [f"note  {note}"]


@pytest.mark.parametrize(
    ("has_card", "report", "text"),
    [
        (False, TileReport(device_reason="the GPU failed its health check: CuPy is not installed"), "cpu"),
        (True, TileReport(device_reason="the GPU is old"), "cpu (the GPU is old)"),
        (False, TileReport(device_reason="out of memory", gpu_attempts=2), "cpu (out of memory)"),
        (False, TileReport(device_reason="the CPU was asked for"), "cpu (the CPU was asked for)"),
        (True, TileReport(device="gpu", device_reason="GPU", gpu_attempts=1), "gpu (GPU)"),
        (False, TileReport(), "cpu"),
    ],
)
def test_without_a_card_nothing_failed(
    has_card: bool, report: TileReport, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "has_nvidia_card", lambda: has_card)
    assert words.device_text(report) == text


def test_the_report_says_what_was_run_and_what_came_out(paths: list[Path], tmp_path: Path) -> None:  # noqa: F811
    order = ["stack", *map(str, paths), "-o", str(tmp_path / "m.fits"), "--json", str(tmp_path / "m.json"), "--quiet"]
    assert cli.main(order) == 0
    document = strict_json((tmp_path / "m.json").read_text())
    assert document["schema"] == summary.REPORT_SCHEMA
    assert document["command"] == ["zemosaic-phase3", *order]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document["started"])
    assert (document["object"], document["filter"], document["total_exposure_s"]) == ("Simulated nebula", "IRCUT", 50.0)
    assert document["scale_arcsec"] == pytest.approx(2.393)
    assert document["fwhm_px"] == pytest.approx(np.nanmedian([frame["fwhm"] for frame in document["frames"]]), rel=0.1)
    factor = np.array(document["noise_typical"]) / document["noise_after"]
    np.testing.assert_allclose(document["noise_factor"], factor)


def test_noise_is_compared_with_a_typical_frame(paths: list[Path]) -> None:  # noqa: F811 - fixture
    from astropy.io import fits

    from zemosaic_phase3.pipeline.stack_files import stack_files

    frames = [fits.getdata(path).astype(np.float32) for path in paths]
    frames[0] += np.random.default_rng(3).normal(0.0, 2 * np.std(frames[0][:20, :20]), frames[0].shape)
    calm = stack_files(frames, reference="<array> (2)").report
    noisy = stack_files(frames, reference="<array>").report
    assert noisy.noise_before[0] > 1.7 * calm.noise_before[0]
    assert noisy.noise_typical[0] == pytest.approx(calm.noise_typical[0], rel=0.15)

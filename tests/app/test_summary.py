"""Tests of ``app.summary``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cli_case import strict_json

from zemosaic_phase3.app import summary


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

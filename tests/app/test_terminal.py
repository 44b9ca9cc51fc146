"""What a user sees in a terminal, in the program as it is started."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from pipeline_case import paths, sessions  # noqa: F401 - fixtures

from zemosaic_phase3.runtime.nvidia_card import has_nvidia_card

terminal = pytest.importorskip("terminal", exc_type=ImportError)  # Windows has no pty

ROOT = Path(__file__).parents[2]
START = [sys.executable, "-c", "from zemosaic_phase3.app.program import run_program; run_program()"]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_run_fits_the_terminal_and_breaks_no_word(paths: list[Path], tmp_path: Path, columns: int) -> None:  # noqa: F811
    (tmp_path / "no_frame.fits").write_bytes(b"neither FITS nor anything else")
    for path in paths:
        (tmp_path / path.name).symlink_to(path)
    command = [*START, "stack", ".", "-o", "m.fits", "--no-resume"]
    played = terminal.play(command, columns, cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert played.status == 0
    lines = played.last.lines
    assert max(map(len, lines)) <= columns
    told = {line.split()[0]: line for line in lines if re.match(r"[a-z]", line)}
    assert told["device"] == "device      cpu" or has_nvidia_card()
    assert told["frames"].startswith("frames      5 of 6 used; reference sub_")
    # A line that is broken ends with a whole word: the next one would not have fitted.
    text = " ".join(line.strip() for line in lines[lines.index(told["left"]) :])
    assert "no_frame.fits: is neither FITS nor" in text and "; convert it to FITS" in text
    for line, following in zip(lines, lines[1:], strict=False):
        if re.match(r" {12}[a-z]", following) and re.match(r"[a-z]", line):
            assert len(line) + 1 + len(following.split()[0]) > columns
    seen = {line for screen in played.screens for line in screen.lines}
    assert not [line for line in seen if "/?" in line or re.search(r" 0/\d", line)]
    assert any(line.startswith("stack ") for line in seen)

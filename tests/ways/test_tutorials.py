"""Each newcomer's way: the commands and cells of the tutorials, run on small simulated frames."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from astropy.io import fits
from tutorial_case import DOCS, commands_of

from zemosaic_phase3.app import cli


def run(command: list[str]) -> None:
    assert cli.main(command) == 0, command


def test_a_seestar_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    commands = commands_of("tutorial-seestar.md")
    assert [command[0] for command in commands] == ["simulate", "stack", "stack", "stack", "view"]
    for command in commands:
        run(command)
    said = capsys.readouterr().out
    assert "6 of 6 used" in said
    assert "6 of 6 would be measured" in said
    assert fits.getheader("m31.fits")["STACKCNT"] == 6
    assert Path("m31.png").stat().st_size > 1000
    assert "<html" in Path("pages/m31.html").read_text(encoding="utf-8")


def test_a_user_of_siril(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(["simulate", "lights", "--frames", "5", "--size", "240x320", "--quiet"])
    (command,) = commands_of("tutorial-siril.md")
    run(command)
    header = fits.getheader("master.fits")
    assert header["ZMT_REJ"].startswith("winsorized")
    assert (header["ZMT_KAPLO"], header["ZMT_KAPHI"]) == (3, 3)
    assert header["ZMT_NORM"] == "additive_scaling"


def test_the_notebook_says_what_it_says() -> None:
    notebook = json.loads((DOCS / "tutorial-notebook.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    for cell in cells:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec("".join(cell["source"]), names)  # noqa: S102 - a cell of our own notebook
        assert said.getvalue() == "".join(output["text"] for output in cell["outputs"])

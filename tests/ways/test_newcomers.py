"""The ways of a ZeMosaic user, of a cluster and of a developer: their pages' commands, and what comes out of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.io import fits
from checkout_case import GIT, TILES, build, git, groups, python, snapshot  # noqa: F401 - a fixture
from mosaic_case import write_panels
from tutorial_case import commands_of

from zemosaic_phase3.app import cli

ROOT = Path(__file__).parents[2]
NEW = "wide_clip"  # the method that a developer adds


@pytest.mark.skipif(not GIT, reason="git is not installed; the stand-in is a git checkout")
def test_a_zemosaic_user(
    tmp_path: Path,
    groups: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkout, tiles = build(tmp_path), tmp_path / "tiles"
    before = snapshot(checkout)
    attach, detach = (command for command in commands_of("zemosaic.md") if command[0] in ("attach", "detach"))
    assert [attach[1], detach[1]] == ["/path/to/zemosaic"] * 2
    assert cli.main(["doctor"]) == 0
    assert "stack would use the" in " ".join(capsys.readouterr().out.split())
    assert cli.main([attach[0], str(checkout)]) == 0
    said = capsys.readouterr().out
    assert "create_master_tile" in said and "zemosaic_worker" in said
    assert git(checkout, "status", "--porcelain") == ""  # no file of theirs is changed
    paths, told, _ = json.loads(python(checkout, "run_zemosaic.py", str(groups), str(tiles)).stdout)
    assert len(paths) == TILES and "mastertile_info_saved" in told
    assert all(fits.getheader(path)["MT_NFRAMES"] == 4 for path in paths)
    assert cli.main([detach[0], str(checkout)]) == 0
    assert snapshot(checkout) == before


def test_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("reproject")
    monkeypatch.chdir(tmp_path)
    frames = write_panels(tmp_path / "all", n_frames=4, size=(64, 96))
    for k, path in enumerate(frames):
        night = Path(f"NIGHT{1 + k // 4}")
        night.mkdir(exist_ok=True)
        path.rename(night / path.name)
    plan, tiles, mosaic = (c for c in commands_of("scale.md") if c in (
        ["plan", "NIGHT1", "NIGHT2", "-o", "plan.toml"], ["tiles", "plan.toml", "-o", "tiles/"],
        ["mosaic", "tiles/", "-o", "mosaic.fits"],
    ))  # fmt: skip
    assert cli.main(plan) == 0
    assert "2 of 8 different frames" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*tiles, "--processes", "1", "--threads", "1", "--device", "cpu"]) == 0
    made = json.loads(Path("tiles/manifest.json").read_text(encoding="utf-8"))
    names = sorted(path.name for path in Path("tiles").glob("*.fits"))
    assert len(names) == len(made["tiles"]) == 2
    assert cli.main(mosaic) == 0
    header = fits.getheader("mosaic.fits")
    assert header["NAXIS1"] > 96 + 40 and header["NAXIS2"] >= 64  # both fields, side by side
    assert {fits.getheader(f"tiles/{name}")["NCOMBINE"] for name in names} == {4}


def blocks_of_contributing() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Example: a rejection method") : text.index("## Example: a file format")]
    return re.findall(r"```(?:python|c)\n(.*?)```", section, re.DOTALL)


def put(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, (path, old)
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")


def test_a_developer_adds_a_method(tmp_path: Path) -> None:
    """The worked example of CONTRIBUTING.md under another name, in a copy of the checkout; then its commands."""
    judge, twin, row, definition = blocks_of_contributing()
    home = tmp_path / "zemosaic_phase3"
    shutil.copytree(ROOT / "zemosaic_phase3", home, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "docs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # 1 and 2: the twins. The helper above them is that of the example.
    for suffix, block in ((".py", judge), (".cu", twin)):
        text = (home / "rejection" / f"mad_clip{suffix}").read_text(encoding="utf-8")
        assert block in text  # the page shows what the code is
        text = (
            text.replace("mad_clip", NEW)
            .replace("median_distance(", "wide_distance(")
            .replace("distance_of(", "wide_of(")
        )
        (home / "rejection" / f"{NEW}{suffix}").write_text(text, encoding="utf-8")
    # 3: the row, and the name for type checkers
    assert row.strip() in (home / "methods.py").read_text(encoding="utf-8")
    put(
        home / "methods.py",
        ('    "mad_clip",\n]', f'    "mad_clip",\n    "{NEW}",\n]'),
        (f"    {row.strip()},", f"    {row.strip().replace('mad_clip', NEW)},\n    {row.strip()},"),
    )
    # 4: the definition
    assert definition in (home / "check" / "definitions.py").read_text(encoding="utf-8")
    put(
        home / "check" / "definitions.py",
        (definition, definition + "\n\n" + definition.replace("mad_clip", NEW)),
        ('    "mad_clip": (side_mad_clip, 3),', f'    "mad_clip": (side_mad_clip, 3),\n    "{NEW}": (side_{NEW}, 3),'),
    )
    # Its test, by the interpreter: kernel beside definition; lint.
    program = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / "tests" / "support")!r}]
import numpy as np
from rejection_case import run
from zemosaic_phase3 import methods
from zemosaic_phase3.check.definitions import combine_pixel
assert methods.__file__.startswith({str(tmp_path)!r})
assert {NEW!r} in methods.KERNELS
rng = np.random.default_rng(1)
cube = rng.normal(100.0, 5.0, (9, 12)).astype(np.float32)
cube[3, :4], cube[5, 2] = 900.0, np.nan
ours = run(cube, {NEW!r}, par=(4.5, 4.5, 0.05, 0.05))
for j in range(cube.shape[1]):
    wanted = combine_pixel(cube[:, j], None, {NEW!r}, "mean", kappa_low=4.5, kappa_high=4.5)
    assert abs(ours["image"][j] - wanted.value) <= 1e-4, (j, ours["image"][j], wanted)
assert ours["high"][:4].tolist() == [1, 1, 1, 1]
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        for command in (["check", "--quiet"], ["format", "--quiet", "--check"]):
            done = subprocess.run(
                [ruff, *command, f"zemosaic_phase3/rejection/{NEW}.py", "zemosaic_phase3/methods.py"],
                cwd=tmp_path, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr


def test_commands_of_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)) <= targets
    for path in re.findall(r"python ([\w/]+\.py)", text):
        assert (ROOT / path).is_file(), path
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

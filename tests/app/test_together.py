"""Options beside each other: each pair is refused before a frame is read, with reason and remedy, or it works."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from astropy.io import fits

from zemosaic_phase3.app.cli import main
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec

TABLE = "time,ra,dec\n2025-01-15T20:00:00,83.82,-5.39\n2025-01-15T23:00:00,83.83,-5.39\n"
CLICKS = ["--comet", "sub_a.fits:10,10", "--comet", "sub_b.fits:20,10"]

# Command, options, exit status and what is said. Every input is a file that is no frame: reading it would fail.
REFUSED = [
    ("stack", ["--group-by", "filter", *CLICKS], 2, "names frames of one; give a table with times and places"),
    ("stack", ["--group-by", "filter", "--json", "-"], 2, "name a file with --json"),
    ("stack", ["--group-by", "filter", "--reference", "sub_a.fits"], 2, "stack that group alone"),
    ("stack", ["--targets", "xy.csv"], 2, "give --series too, e.g. 5min"),
    ("stack", ["--series", "5min", "--targets", "sky.csv", "--comet", "path.csv"], 2, "give x and y of the target"),
    ("stack", ["--series", "5min", "--targets", "none.csv"], 2, "the targets cannot be read"),
    ("stack", ["--comet", "sub_a.fits:10,10"], 2, "give the target's place in two frames"),
    ("stack", ["--export", "o.png"], 2, "--export must name other files than output, preview"),
    ("stack", ["--export", "a.tif", "--export", "a.tif"], 2, "--export must name other files"),
    ("stack", ["--export", "there.tif"], 1, "there.tif: exists already"),
    ("stack", ["--dry-run", "--export", "there.tif"], 1, "there.tif: exists already"),
    ("stack", ["--drizzle", "2", "--radial-weight"], 2, "radial weights and drizzle exclude each other"),
    ("stack", ["--pixfrac", "0.7"], 2, "--pixfrac needs --drizzle"),
    ("stack", ["--drizzle", "4"], 2, "is outside 1 to 3"),
    ("stack", ["--report", "there.tif"], 1, "is a file; --report names a folder"),
    ("watch", ["--group-by", "filter"], 2, "watch and --group-by do not go together; use stack"),
    ("watch", ["--series", "5min"], 2, "watch and --series do not go together; use stack"),
    ("watch", ["--targets", "xy.csv"], 2, "give --series too"),
    ("watch", ["--dry-run"], 2, "watch and --dry-run do not go together; use stack"),
    ("watch", ["--no-resume"], 2, "watch and --no-resume do not go together"),
    ("watch", ["--json", "-"], 2, "name a file with --json, not the standard output"),
    ("watch", ["--comet", "later.fits:1,1", "--comet", "sub_a.fits:2,2"], 2, "later.fits: no such frame in subs yet"),
    ("watch", ["--export", "there.tif"], 1, "there.tif: exists already"),
    ("watch", ["--preview", "there.png"], 1, "there.png: exists already"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("subs").mkdir()
    for name in ("a", "b"):
        Path("subs", f"sub_{name}.fits").write_bytes(b"no frame, and never read")
    Path("path.csv").write_text(TABLE)
    Path("xy.csv").write_text("name,x,y\nV,10,10\n")
    Path("sky.csv").write_text("name,ra,dec\nV,83.82,-5.39\n")
    for name in ("there.tif", "there.png"):
        Path(name).write_bytes(b"mine")
    return tmp_path


@pytest.mark.parametrize(("command", "options", "status", "said"), REFUSED)
def test_what_does_not_go_together_is_refused_before_the_first_frame(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, options: list[str], status: int, said: str
) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    quick = ["--no-page", "--until-idle", "0.1"] if command == "watch" else []
    try:
        ended = main([command, "subs", "-o", "o.fits", *quick, *options])
    except SystemExit as stopped:
        ended = int(stopped.code or 0)
    told = " ".join(capsys.readouterr().err.split())
    assert (ended, said in told) == (status, True), told
    assert "neither FITS" not in told
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def two_filters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "subs"
    spec = SimulationSpec(n_frames=6, height=120, width=160, n_stars=40, flux_min=4000.0, bayer="none")
    simulate(spec, folder)
    for k, path in enumerate(sorted(folder.glob("*.fits"))):
        fits.setval(path, "FILTER", value="Ha" if k < 3 else "OIII")
    return folder


def test_groups_have_exports_series_and_pages_of_their_own(
    two_filters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tifffile")
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(two_filters, "in")
    command = ["stack", "in", "--bayer", "none", "--group-by", "filter", "--export", "e.tif", "--export", "e.fits.fz"]
    command += ["--series", "2", "--report", "pages"]
    assert main([*command, "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split()) + " ".join(capsys.readouterr().err.split())
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert main(command) == 0
    told += capsys.readouterr().err
    assert "Ha: 3 frames -> Simulated-nebula_Ha.fits" in told
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if "in/" not in str(path)}
    for band in ("Ha", "OIII"):
        wanted = {
            f"Simulated-nebula_{band}{end}" for end in (".fits", ".png", "_s0001.fits", "_s0002.fits", "_series.csv")
        }
        assert wanted | {f"e_{band}.tif", f"e_{band}.fits.fz"} <= names, names
        assert fits.getheader(f"Simulated-nebula_{band}.fits")["FILTER"] == band
        assert (fits.getdata(f"e_{band}.fits.fz", 1) == fits.getdata(f"Simulated-nebula_{band}.fits")).mean() > 0.9
        assert any(name.startswith("pages/") and band in name for name in names)
    for name in names:
        if name.endswith("OIII.fits"):
            Path(name).unlink()
    assert main([*command, "--quiet"]) == 1  # nothing of the first run is replaced
    assert "Simulated-nebula_Ha.fits: exists already" in capsys.readouterr().err

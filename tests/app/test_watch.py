"""A stack that grows with the frames in a folder, and the page that shows it."""

from __future__ import annotations

import json
import math
import shutil
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from astropy.io import fits

from zemosaic_phase3.app.cli import main
from zemosaic_phase3.app.live_page import LivePage, State
from zemosaic_phase3.app.watch import Rhythm, first_reference, look_at, settled
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec


@pytest.fixture(scope="module")
def subs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("watch") / "subs"
    simulate(SimulationSpec(n_frames=12, height=120, width=160, n_stars=40, flux_min=4000.0, bayer="none"), folder)
    return sorted(folder.glob("*.fits"))


def test_the_stack_grows_and_goes_on_after_a_stop(
    subs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "night", tmp_path / "live.fits"
    folder.mkdir()
    for path in subs[:10]:
        shutil.copy(path, folder)
    (folder / subs[10].name).write_bytes(subs[10].read_bytes()[:9000])  # still being written

    def arrive() -> None:
        for _ in range(300):
            if out.exists():
                break
            time.sleep(0.1)
        shutil.copy(subs[10], folder)

    writer = threading.Thread(target=arrive)
    writer.start()
    command = ["watch", str(folder), "-o", str(out), "--until-idle", "3", "--no-page", "--bayer", "none"]
    assert main(command) == 0
    writer.join()
    first = fits.getheader(out)
    assert first["NCOMBINE"] == 11
    told = capsys.readouterr().err
    assert "11 frames, 110 s" in told
    assert out.with_suffix(".png").exists()
    shutil.copy(subs[11], folder)
    assert main([*command, "--json", str(tmp_path / "r.json")]) == 0
    again = fits.getheader(out)
    assert (again["NCOMBINE"], again["ZMT_REF"]) == (12, first["ZMT_REF"])  # the grid stays
    assert json.loads((tmp_path / "r.json").read_text())["resumed"]["measured"] == 11
    assert first_reference(out, folder) == str(folder / first["ZMT_REF"])


def test_what_is_not_the_watchers_own_is_not_replaced(
    subs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(subs[0], tmp_path / "mine.fits")
    before = (tmp_path / "mine.fits").read_bytes()
    assert main(["watch", str(subs[0].parent), "-o", str(tmp_path / "mine.fits"), "--no-page"]) == 1
    assert "exists already and is no stack" in capsys.readouterr().err
    assert (tmp_path / "mine.fits").read_bytes() == before
    for arguments, said in (
        ([str(tmp_path / "none")], "watch takes one folder"),
        ([str(tmp_path)], "watch needs -o OUT"),
        ([str(tmp_path), "-o", str(tmp_path / "o.fits"), "--dry-run"], "watch and --dry-run do not go together"),
    ):
        with pytest.raises(SystemExit):
            main(["watch", *arguments])
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_frame_counts_when_nobody_writes_it_any_more(tmp_path: Path) -> None:
    (tmp_path / "a.fits").write_bytes(b"x")
    (tmp_path / "empty.fits").write_bytes(b"")
    (tmp_path / "out.fits").write_bytes(b"x")
    look = look_at(tmp_path, tmp_path / "out.fits", recursive=False)
    assert {path.name for path in look} == {"a.fits", "empty.fits"}
    modified = look[tmp_path / "a.fits"][1] / 1e9
    assert not settled(look, {}, modified + 0.1)
    assert {path.name for path in settled(look, {}, modified + 10.0)} == {"a.fits"}
    assert {path.name for path in settled(look, look, modified + 0.1)} == {"a.fits"}


def test_rhythm() -> None:
    rhythm = Rhythm(every=5)
    assert rhythm.is_due(5, 0.0, 10.0, 4.0)
    assert not rhythm.is_due(5, 0.0, 3.0, 4.0)  # half of the time at most
    assert not rhythm.is_due(4, 10.0, 60.0, 1.0)
    assert rhythm.is_due(4, 31.0, 60.0, 1.0)
    assert not rhythm.is_due(0, 100.0, 100.0, 1.0)


def test_the_page_answers_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"\x89PNG picture")
    state = State("night", "<b>.fits", noise=math.nan, fault="so & so")
    page = LivePage(state, tmp_path / "p.png", 0)
    address = page.start()
    try:
        with urllib.request.urlopen(address) as answer:  # noqa: S310 - our own server
            text = answer.read().decode()
        assert "<title>zemosaic-phase3 watch" in text
        with urllib.request.urlopen(f"{address}state.json?1") as answer:  # noqa: S310
            told = json.load(answer)
        assert (told["fault"], told["noise"], told["output"]) == ("so & so", None, "<b>.fits")
        with urllib.request.urlopen(f"{address}preview.png?3") as answer:  # noqa: S310
            assert answer.read() == b"\x89PNG picture"
        for path, host in (("../p.png", None), ("state.json", "evil.example:80")):
            request = urllib.request.Request(address + path, headers={} if host is None else {"Host": host})  # noqa: S310
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(request)  # noqa: S310
        other = LivePage(state, None, int(address.rstrip("/").rpartition(":")[2]))  # taken: another port
        assert other.start() != address
        other.stop()
    finally:
        page.stop()

"""Tests of the page: what it tells, and that a browser shows it whole."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from browser import Browser, open_browser, program

import zemosaic_phase3 as zp
from zemosaic_phase3.app import cli
from zemosaic_phase3.errors import FrameError, OutputError, SpecError
from zemosaic_phase3.pipeline.stack_files import stack_files
from zemosaic_phase3.records import TileReport
from zemosaic_phase3.report import needs, words
from zemosaic_phase3.report.charts import TimeAxis, frames_chart, time_axis
from zemosaic_phase3.report.page import STYLE, check_page, page_text, write_page
from zemosaic_phase3.report.pictures import in_turn
from zemosaic_phase3.report.story import Story, read_story, story_of
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec
from zemosaic_phase3.spec import RegisterSpec

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

SESSION = SimulationSpec(n_frames=7, height=160, width=240, n_stars=60, flux_min=3000.0, trail_fraction=0.3)
NAME = 'a <b> & "c".fits'  # of a frame, which must not become markup
LARGEST = 5_000_000  # bytes of a page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``m.fits``, stacked with maps by the command line, and its page ``report/m.html``."""
    folder = tmp_path_factory.mktemp("page")
    simulate(SESSION, folder / "subs")
    first = sorted((folder / "subs").glob("*.fits"))[0]
    (folder / "subs" / NAME).write_bytes(first.read_bytes()[:20_000])
    (folder / "subs" / "empty.fits").write_bytes(b"")
    with fits.open(first) as hdus:
        hdus[0].data[:] = 1000
        hdus.writeto(folder / "subs" / "sub_flat.fits")
    order = ["stack", folder / "subs", "-o", folder / "m.fits", "--report", folder / "report", "--maps", "--quiet"]
    order += ["--before-after", folder / "pair.png", "--annotate", "--preview-size", "half"]
    assert cli.main([str(part) for part in order]) == 0
    return folder


@pytest.fixture(scope="module")
def browser():
    if program() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with open_browser() as opened:
        yield opened


class Outline(HTMLParser):
    """What a page links to, its pictures and headings; and that every element that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "img":
            self.pictures.append(dict(attrs))
        if tag not in ("img", "meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_holds_all_it_shows(run: Path) -> None:
    text = (run / "report" / "m.html").read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.open == []
    assert {address.partition(":")[0].partition("#")[0] for address in outline.addresses} == {"data", ""}
    assert "@import" not in text and "url(http" not in text
    assert len(outline.pictures) == 2 + 2 + 3 + 1  # the stack twice, the pair, three maps, one frame that can be read
    assert all(picture["alt"] for picture in outline.pictures)
    assert text.count('<div class="chart" role="img" aria-label="') == 7
    assert len(text) < LARGEST
    for told in (
        "Simulated nebula", "70 s", "7 × 10 s", "winsorized_sigma_clip", "What the run noted", "empty.fits",
        "Left out: 3 of 10", "zemosaic-phase3 stack", "measure frames", "as too bright",
        "% of √N", "a &lt;b&gt; &amp; &#34;c&#34;.fits",
    ):  # fmt: skip
        assert told in text, told
    assert "<b> &" not in text
    assert (run / "pair.png").read_bytes()[:4] == (run / "m.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, False), (400, True)])
def test_a_browser_shows_it_whole(run: Path, browser: Browser, width: int, dark: bool) -> None:
    seen = browser.look(run / "report" / "m.html", width, dark=dark)
    assert seen == ([], [], [], [], width)
    paper = browser.value_of("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) < 60) is dark
    letters = browser.value_of(
        "[...document.querySelectorAll('.chart text')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(letters) > 50 and min(letters) > 9  # px, of a line: legible on a telephone
    shown = "[...document.querySelectorAll('.sky img')].map(i => getComputedStyle(i).display).join()"
    assert browser.value_of(shown) == "block,none"
    assert browser.value_of(f"document.querySelector('[for=neutral]').click() || {shown}") == "none,block"


def test_the_browser_sees_faults(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><link rel=icon href='data:,'>"
        "<img alt=gone src='gone.png'>"
        "<p style='width: 900px'>wide</p><script>fault()</script>"
    )
    seen = browser.look(page, 400)
    assert len(seen.errors) == 2 and len(seen.requests) == 1 and seen.broken == ["gone"]
    assert seen.overflow == ["P. wide"] and seen.width > 400


def test_view_tells_the_same_from_the_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", str(run / "m.fits"), "--no-browser", "--report", str(tmp_path / "v")]) == 0
    assert str(tmp_path / "v" / "m.html") in capsys.readouterr().out
    told, again = ((folder / "m.html").read_text(encoding="utf-8") for folder in (run / "report", tmp_path / "v"))
    timeless = re.compile(r'<dl class="bars">.*?</dl>|Time, [0-9.]+ s|<dd>[0-9.]+ s', re.DOTALL)  # writing took some
    assert timeless.sub("", told) == timeless.sub("", again)


def test_view_tells_what_a_tile_without_tables_holds(run: Path, tmp_path: Path) -> None:
    with fits.open(run / "m.fits") as hdus:
        fits.HDUList(hdus[:2]).writeto(tmp_path / "old.fits")
    story = read_story(tmp_path / "old.fits")
    assert story.frames is None and not story.maps
    assert (story.report.n_used, story.report.device, len(story.report.noise_after)) == (7, "cpu", 3)
    text = page_text(story)
    assert "no table of frames" in text and "written without maps" in text and "winsorized_sigma_clip" in text
    Outline(text)


def test_view_refuses_what_is_no_tile(run: Path, tmp_path: Path) -> None:
    frame = next((run / "subs").glob("sub_0*.fits"))
    (tmp_path / "cut.fits").write_bytes((run / "m.fits").read_bytes()[:5000])
    for path, why in (
        (frame, "no tile"),
        (tmp_path / "none.fits", "no such file"),
        (tmp_path / "cut.fits", "cannot be"),
    ):
        with pytest.raises(FrameError, match=why):
            read_story(path)
    assert cli.main(["view", str(frame), "--no-browser", "--quiet"]) == 1


def test_what_cannot_be_written_is_refused_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = ["stack", str(run / "subs"), "-o", str(tmp_path / "m.fits"), "--quiet"]
    for folder, why in (
        (run / "m.fits", "is a file"),
        (tmp_path / "a" / "b", "does not exist"),
        (run / "report", "exists"),
    ):
        assert cli.main([*order, "--report", str(folder)]) == 1
        assert why in capsys.readouterr().err
    for wrong in (["--report", order[3]], ["--preview-size", "quarter"], ["--preview-size", "0"]):
        with pytest.raises(SystemExit):
            cli.main([*order, *wrong])
    told = capsys.readouterr().err
    assert "must be different files" in told and "'quarter' is neither half nor full" in told
    monkeypatch.setattr("zemosaic_phase3.extras.find_spec", lambda name: None if name in ("jinja2", "PIL") else True)
    with pytest.raises(SystemExit):
        cli.main([*order, "--report", str(tmp_path / "r")])
    assert "--report needs jinja2 and pillow: pip install jinja2 pillow" in capsys.readouterr().err
    with pytest.raises(SpecError, match="--annotate needs pillow: pip install pillow"):
        needs.require("--annotate", "PIL")
    assert [path.name for path in tmp_path.iterdir()] == []
    with pytest.raises(OutputError, match="cannot be made"):
        monkeypatch.undo()
        write_page(read_story(run / "m.fits"), tmp_path / "a" / "b")
    assert check_page(run / "report", "m.fits", overwrite=True) == run / "report" / "m.html"


def test_nothing_of_it_is_imported_without_being_asked_for() -> None:
    code = (
        "import sys; from zemosaic_phase3.app import cli; "
        "print([m for m in ('matplotlib', 'jinja2', 'PIL', 'numba', 'astropy') if m in sys.modules])"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parents[2])
    assert "matplotlib" not in told and "jinja2" not in told and "PIL" not in told


def test_two_thousand_frames_are_a_light_page(run: Path) -> None:
    story = many(read_story(run / "m.fits"), 2000)
    text = page_text(story)
    assert len(text) < LARGEST
    assert text.count("<tr") > 2000
    assert "thousand" not in text and "All frames as a table" in text
    axis = TimeAxis(np.arange(5000.0), "frame")
    values = np.random.default_rng(0).normal(size=5000)
    svg = frames_chart(axis, values, np.ones(5000, bool), 7, title="t", unit="u", from_zero=False)
    assert len(svg) < 60_000 and "fill-opacity" in svg  # a band for the range, not five thousand points


def many(story: Story, n: int) -> Story:
    """A story of n frames, over three nights, made of those of another."""
    assert story.frames is not None
    pick = np.arange(n) % len(story.frames["NAME"])
    frames = {name: values[pick] for name, values in story.frames.items()}
    rng = np.random.default_rng(0)
    frames["FWHM"] = rng.normal(3.0, 0.2, n)
    frames["DATE_OBS"] = np.array([f"2025-01-{15 + k * 3 // n}T{20 + k % 4}:{k // 4 % 60:02d}:00" for k in range(n)])
    dropped = [(f"{k}.fits", f"FWHM {k} px") for k in range(n // 7)]
    return replace(story, frames=frames, report=replace(story.report, dropped=dropped, n_input=n))


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_in_both_themes(theme: int) -> None:
    """WCAG 2.1, 1.4.3: 4.5 to 1 for text, 3 to 1 for what charts are drawn with."""
    block = STYLE.read_text(encoding="utf-8").split(":root {")[1 + theme].partition("}")[0]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))

    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for ground in ("paper", "card", "code"):
        for name, least in (
            ("ink", 7),
            ("soft", 4.5),
            ("out", 4.5),
            ("link", 4.5),
            ("used", 3),
            ("mark", 3),
            ("bar", 3),
        ):
            lighter, darker = sorted((light(colours[name]), light(colours[ground])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= least, (name, ground)


def test_frames_stand_where_their_time_is() -> None:
    night = [f"2025-01-15T{h:02d}:30:00" for h in (22, 23)] + ["2025-01-16T00:30:00"]
    axis = time_axis(night, np.ones(3, bool))
    assert axis.is_clock and axis.at.tolist() == [22.5, 23.5, 24.5]
    nights = time_axis([*night, "2025-01-18T21:00:00", ""], np.array([True] * 4 + [False]))
    assert nights.at[:4].tolist() == [1.0, 2.0, 3.0, 4.0] and np.isnan(nights.at[4])
    assert nights.nights == ((0.5, "2025-01-15"), (3.5, "2025-01-18"))
    assert time_axis([*night, ""], np.ones(4, bool)).label == "frame, in the order given"


def test_expected_noise_is_the_square_root_law_for_equal_frames() -> None:
    n = 16
    frames = {
        "USED": np.array([True] * n + [False]), "WEIGHT": np.ones((n + 1, 3)), "SCALE": np.full((n + 1, 3), 2.0),
        "NOISE": np.full((n + 1, 3), 7.0),
    }  # fmt: skip
    order = np.arange(n + 1)[::-1]
    np.testing.assert_allclose(words.expected_noise(frames, order), 1.0 / np.sqrt(np.arange(1.0, n + 1.0)))
    frames["NOISE"][:8] = 14.0  # half of the frames twice as noisy, weighted as they deserve
    frames["WEIGHT"] = 1.0 / frames["NOISE"] ** 2
    median = np.median(frames["NOISE"][:n, 0])
    last = words.expected_noise(frames, order)[-1]
    assert last == pytest.approx(1.0 / np.sqrt(8 / 14.0**2 + 8 / 7.0**2) / median)


def test_each_reason_comes_before_any_comes_twice() -> None:
    dropped = [("a", "FWHM 5 px"), ("b", "FWHM 6 px"), ("c", "FWHM 7 px"), ("d", "truncated"), ("e", "blank")]
    assert [name for name, _ in in_turn(dropped)] == ["a", "d", "e", "b", "c"]
    assert words.reasons(dropped)[0] == (3, "FWHM 5 px")


def test_python_writes_the_same_things(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        zp.stack(run / "subs", report=tmp_path / "a" / "b", progress=False)
    tile = zp.stack(run / "subs", report=tmp_path / "r", progress=False)
    text = (tmp_path / "r" / "tile.html").read_text(encoding="utf-8")
    assert "Simulated nebula" in text and "<pre>" not in text  # no command line
    for options in ({}, {"stretch": "neutral", "size": 60, "annotate": True}):
        assert tile.save_preview(tmp_path / "p.png", **options).read_bytes()[:4] == b"\x89PNG"


def test_only_options_that_differ_are_shown_first(run: Path) -> None:
    story = read_story(run / "m.fits")
    names = [name for name, _ in words.parameters(story)]
    assert names[:3] == ["reject", "kappa low", "kappa high"] and "min area" not in names
    changed = replace(story.report, spec={**story.report.spec, "flatten": True, "select": {"max_fwhm": 4.5}})
    told = words.parameters(replace(story, report=changed))
    assert ("flatten", "yes") in told and ("max fwhm", "4.5") in told


def test_a_picture_shows_the_sky_and_no_mirror_of_it(run: Path) -> None:
    story = read_story(run / "m.fits")
    assert story.wcs is not None and np.linalg.det(story.wcs.pixel_scale_matrix) < 0
    assert story.is_bottom_up
    story.header["ROWORDER"] = "TOP-DOWN"
    assert not story.is_bottom_up
    assert not replace(story, wcs=None).is_bottom_up


def test_a_stack_of_arrays_has_a_page(run: Path) -> None:
    rng = np.random.default_rng(1)
    frames = list(rng.normal(1000.0, 10.0, (5, 40, 60)).astype(np.float32))
    tile = stack_files(frames, register=RegisterSpec(mode="none"))
    text = page_text(story_of(tile, "array"))
    assert Outline(text).open == [] and "Every frame was stacked" in text
    assert page_text(replace(story_of(tile, "array"), report=TileReport())).count("<h2>") >= 3

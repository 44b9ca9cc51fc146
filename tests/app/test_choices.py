"""Presets, configuration files, other programs' words, dry runs, names of outputs, log files, completion."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from astropy.io import fits

import zemosaic_phase3 as zp
from zemosaic_phase3.app.cli import _parsed, build_parser, main
from zemosaic_phase3.app.commands import specs_of
from zemosaic_phase3.app.config import save_config
from zemosaic_phase3.errors import OutputError, SpecError
from zemosaic_phase3.methods import (
    ALIASES,
    OTHER_PROGRAMS,
    CombineName,
    InterpolationName,
    NormalizeName,
    RejectName,
    WeightName,
    canonical,
)
from zemosaic_phase3.pipeline.outputs import check_output
from zemosaic_phase3.pipeline.presets import PRESETS, preset_of
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec


@pytest.fixture(scope="module")
def subs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choices") / "subs"
    simulate(SimulationSpec(n_frames=4, height=120, width=160, n_stars=40, flux_min=4000.0, bayer="none"), folder)
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["stack", "x", "-o", "o.fits", *arguments])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_options_it_names(name: str) -> None:
    plain = _parsed(["stack", "x"])
    args = _parsed(["stack", "x", "--preset", name])
    for option, value in PRESETS[name].values:
        assert getattr(args, option) == value
        assert getattr(plain, option) != value or option in ("weight", "reject", "combine")
    specs_of(args)  # allowed together
    assert _parsed(["stack", "x", "--preset", name, "--kappa-high", "2.5"]).kappa_high == 2.5


def test_the_command_line_wins_over_file_and_preset(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    config.write_text(
        'inputs = ["a", "b"]\npreset = "zemosaic"\nkappa-high = 2.5\nwinsor_limits = [0.1, 0.2]\nmaps = true\n'
        'dark = "d"\nmemory = "2GB"\ngroup-by = ["filter", "exposure"]\nreject = "w"\n'
    )
    args = _parsed(["stack", "--config", str(config), "--kappa-low", "4"])
    assert (args.inputs, args.kappa_low, args.kappa_high, args.maps) == (["a", "b"], 4.0, 2.5, True)
    assert (args.normalize, args.winsor_limits, args.dark) == ("linear_fit", (0.1, 0.2), ["d"])
    assert args.memory == 2 * 10**9
    assert args.group_by == ("filter", "exposure")
    assert args.reject == "winsorized_sigma_clip"
    assert _parsed(["stack", "c", "--config", str(config)]).inputs == ["c"]
    assert build_parser().parse_args(["stack", "x"]).normalize == "auto"  # the next run is not touched


def test_what_is_saved_is_what_was_given(tmp_path: Path, subs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.toml").write_text("no-such = 1\n".replace("no-such", "kappa-low") + 'preset = "quick"\n')
    arguments = [str(subs), "--config", "first.toml", "--rej", "w", "3", "2.5", "--no-spare-stars", "--maps"]
    assert main(["stack", *arguments, "-o", "o.fits", "--save-config", "saved.toml", "--quiet"]) == 0
    saved = tomllib.loads(Path("saved.toml").read_text())
    assert saved == {
        "inputs": [str(subs)], "preset": "quick", "reject": "winsorized_sigma_clip", "kappa-low": 3, "kappa-high": 2.5,
        "spare-stars": False, "maps": True, "output": "o.fits", "quiet": True,
    }  # fmt: skip
    again = vars(_parsed(["stack", "--config", "saved.toml"]))
    once = vars(_parsed(["stack", *arguments, "-o", "o.fits", "--quiet"]))
    leave = ("config", "save_config", "parser", "root", "to_save")
    assert {k: v for k, v in again.items() if k not in leave} == {k: v for k, v in once.items() if k not in leave}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kapa-low = 3", "there is no option kapa-low; did you mean kappa-low?"),
        ('maps = "yes"', "maps = 'yes': is not true or false"),
        ('kappa-low = "x"', "kappa-low = 'x': could not convert"),
        ("reject = true", "reject = True: must be a text or a number"),
        ("[stack]\nmaps = true", "there is no option stack"),
        ("maps = ", "is no TOML that can be read"),
        ('preset = "fast"', "unknown preset 'fast'"),
        ('output = "a.jpg"', "must end in .fits"),
        ('preview-stretch = "bogus"', "preview-stretch = 'bogus': choose one of: unlinked"),
        ("export-bits = 24", "choose one of: 16, 32"),
        ("kappa-low = 3\nkappa_low = 4", "kappa_low is given twice"),
        ('rej = "w 3 3"\nreject = "none"', "reject is given twice"),
        ('rej = "w 3"', "1 limits"),
        ("quiet = true\nverbose = true", "contradict each other"),
    ],
)
def test_a_wrong_configuration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "a.toml").write_text(text)
    told = refused(["--config", str(tmp_path / "a.toml")], capsys)
    assert said in told
    assert str(tmp_path / "a.toml") in told.replace(" ", "")
    assert "no such file; write one with --save-config" in refused(["--config", str(tmp_path / "b.toml")], capsys)


def test_every_option_comes_back_from_the_file_it_is_saved_to(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    for given in (
        ["--export-bits", "16", "--export", "a.tif"], ["--rej", "p", "0.1", "0.2"], ["--flatten"], ["--no-self-check"],
        ["--preset", "best", "--flatten", "off"], ["--filter", "007"], ["--filter", "a\x7f\u00fc"], ["--gpus", "0,2"],
        ["--comet", "a:1,2", "--comet", "b:3,4"], ["--winsor-limits", "0.1,0.2"], ["--max-background", "-5"],
    ):  # fmt: skip
        args = _parsed(["stack", "in put", *given, "--save-config", str(file)])
        save_config(file, args.to_save, args.parser, overwrite=True)
        again = _parsed(["stack", "--config", str(file)])
        leave = ("config", "save_config", "parser", "root", "to_save", "preset")
        first, second = ({k: v for k, v in vars(a).items() if k not in leave} for a in (args, again))
        assert first == second, given


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('rej = "p 0.1 0.2"', {"reject": "percentile_clip", "kappa_low": 0.1, "kappa_high": 0.2}),
        ('rej = ["g"]', {"reject": "gesd"}),
        ("flatten = true", {"flatten": "on"}),
        ('norm = "none"', {"normalize": "none"}),
    ],
)
def test_a_file_knows_the_words_of_the_command_line(text: str, names: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    args = vars(_parsed(["stack", "x", "--config", str(tmp_path / "a.toml")]))
    assert {name: args[name] for name in names} == names


def test_a_name_that_is_no_text_is_not_saved(tmp_path: Path) -> None:
    args = _parsed(["stack", "\udcff.fits", "--save-config", "a.toml"])
    with pytest.raises(OutputError, match="no text"):
        save_config(tmp_path / "a.toml", args.to_save, args.parser, overwrite=True)


def test_the_command_line_may_be_loud_where_the_file_is_quiet(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("quiet = true")
    args = _parsed(["stack", "x", "--config", str(tmp_path / "a.toml"), "--verbose"])
    assert args.verbose
    assert not args.quiet


def test_words_of_other_programs() -> None:
    args = _parsed(["stack", "x", "--rej", "w", "3", "2.5", "--norm", "addscale", "--weight", "wfwhm"])
    assert (args.reject, args.kappa_low, args.kappa_high) == ("winsorized_sigma_clip", 3.0, 2.5)
    assert (args.normalize, args.weight) == ("additive_scaling", "noise_fwhm")
    assert _parsed(["stack", "x", "--rej", "l"]).kappa_low is None
    assert canonical("rejection", "Winsorized Sigma Clipping", RejectName) == "winsorized_sigma_clip"
    kinds = (RejectName, NormalizeName, WeightName, CombineName, InterpolationName)
    for word in OTHER_PROGRAMS:
        assert any(OTHER_PROGRAMS[word] in get_args(kind) for kind in kinds), word
        assert word not in ALIASES


def test_wrong_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "write e.g. --rej w 3 3" in refused(["--rej", "q", "3", "3"], capsys)
    assert "give the low and the high one" in refused(["--rej", "w", "3"], capsys)
    assert "unknown preset 'fast'; choose one of: seestar" in refused(["--preset", "fast"], capsys)
    with pytest.raises(SpecError, match="unknown preset"):
        preset_of("fast")


def test_a_dry_run_tells_and_writes_nothing(
    subs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(subs, "in")
    first = min(Path("in").glob("*.fit*"))
    fits.writeto(first.with_name("dark_1.fits"), fits.getdata(first)[::-1], fits.Header({"IMAGETYP": "Dark"}))
    before = sorted(tmp_path.rglob("*"))
    assert main(["stack", "in", "--dry-run", "--bayer", "none"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for said in ("4 of 5 would be measured", "40 s", "160 x 120 pixels, grey", "dark_1.fits", "1 slab of 120 rows",
                 "that are free", "about", "stacked in", "_4x10s_"):  # fmt: skip
        assert said in told, said
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["stack", "in", "-o", "o.fits", "--dry-run", "--memory", "1MB"]) == 1  # as the stack would fail


def test_an_output_is_named_after_its_frames(
    subs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    log = ["--log", "run.log", "--bayer", "none"]
    assert main(["stack", str(subs), *log]) == 0
    (image,) = tmp_path.glob("*.fits")
    assert image.name == "Simulated-nebula_4x10s_IRCUT_2025-01-15.fits"
    assert (tmp_path / "zemosaic.journal").exists()
    capsys.readouterr()
    assert main(["stack", str(subs), *log, "--overwrite", "--quiet"]) == 0
    written = Path("run.log").read_text()
    assert "command: zemosaic-phase3 stack" in written
    assert "4 frames were measured before" in written  # the journal was found again
    assert written.count("INFO    command:") == 2
    assert "DEBUG" in written
    assert "info:" not in capsys.readouterr().err  # the console shows no more than before


def test_what_must_fail_fails_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.fits").write_bytes(b"no frame, and never read")
    inputs = ["stack", str(tmp_path / "a.fits")]
    assert main([*inputs, "-o", "/proc/o.fits"]) == 1
    assert "may not be written" in capsys.readouterr().err
    assert main([*inputs, "-o", str(tmp_path / "o.fits"), "--log", str(tmp_path / "no" / "log")]) == 1
    assert "the log cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["stack"])
    assert "no input was named" in capsys.readouterr().err


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "a.fits", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--normalize" in script
    found = shutil.which(shell)
    if found:
        assert subprocess.run([found, "-n"], input=script, text=True, check=False).returncode == 0


def test_the_library_knows_presets_too(subs: Path) -> None:
    tile = zp.stack(subs, preset="quick", bayer="none", kappa_low=2.0, device="cpu", progress=False)
    assert (tile.report.spec["reject"], tile.report.spec["interpolation"]) == ("sigma_clip", "bilinear")
    assert tile.report.spec["kappa_low"] == 2.0
    with pytest.raises(SpecError, match="unknown preset"):
        zp.stack(subs, preset="fast")

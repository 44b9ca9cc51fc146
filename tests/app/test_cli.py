"""The command line as a user meets it: what it makes, what it says, and how it fails."""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from cli_case import strict_json
from places import ROOT

from zemosaic_phase3 import __version__
from zemosaic_phase3.app import cli, demo, doctor
from zemosaic_phase3.app import commands as commands_file
from zemosaic_phase3.app import options as options_module
from zemosaic_phase3.runtime import cuda
from zemosaic_phase3.simulate.scene import simulate
from zemosaic_phase3.simulate.session import SimulationSpec, load_truth
from zemosaic_phase3.spec import RegisterSpec, SelectSpec, StackSpec

SMALL = SimulationSpec(n_frames=6, height=128, width=192, seed=3, dither_px=4.0)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="session")
def subs(tmp_path_factory) -> Path:
    """A folder of six small frames."""
    folder = tmp_path_factory.mktemp("cli") / "subs"
    simulate(SMALL, folder)
    return folder


@pytest.fixture
def copies(subs, tmp_path) -> Path:
    """The frames alone, to be spoiled by one test."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in subs.glob("*.fits"):
        shutil.copy(path, folder)
    return folder


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def one_line(text: str) -> str:
    """Return the error, making sure that it is one line and no traceback."""
    lines = [line for line in text.splitlines() if "error:" in line]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_stack_writes_image_and_preview_and_says_what_it_did(subs, tmp_path, capsys):
    out = tmp_path / "master.fits"
    assert run("stack", subs, "-o", out) == 0
    said = capsys.readouterr()
    with fits.open(out, checksum=True) as hdus:
        assert hdus[0].data.shape == (3, SMALL.height, SMALL.width)
        assert hdus[0].data.dtype == ">f4"
        assert hdus[0].header["NCOMBINE"] == SMALL.n_frames
        assert [hdu.name for hdu in hdus[1:]] == ["ALPHA", "FRAMES", "RUN"]
    assert (tmp_path / "master.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["master.fits", "master.fits.journal", "master.png"]
    for text in ("6 of 6 used", "noise of the stack", "rejected high", "cpu", "peak", "time", "master.fits"):
        assert text in said.out
    assert "measure: 6 of 6 frames" in said.err  # no terminal: plain lines, on the other stream
    assert "register: 6 of 6 frames" in said.err
    assert "\x1b" not in said.err + said.out


def test_the_defaults_are_those_of_the_specification():
    args = cli.build_parser().parse_args(["stack", "x", "-o", "y.fits"])
    stack, register, select = commands_file.specs_of(args)
    assert (stack, register, select) == (StackSpec(), RegisterSpec(), SelectSpec())
    assert (stack.reject, stack.wsc_impl, stack.kappas) == ("winsorized_sigma_clip", "pixinsight", (4.0, 3.0))
    assert (register.mode, args.reference, args.bayer, args.device) == ("auto", "auto", "auto", "auto")


def test_options_reach_the_stack(subs, tmp_path, capsys):
    out, report = tmp_path / "a.fits", tmp_path / "a.json"
    chosen = (
        "--register",
        "wcs",
        "--interpolation",
        "bilinear",
        "--reject",
        "kappa",
        "--kappa-low",
        2,
        "--kappa-high",
        2.5,
    )
    chosen += (
        "--normalize",
        "sky_mean",
        "--weight",
        "none",
        "--combine",
        "median",
        "--radial-weight",
        "--equalize-rgb",
        "--no-spare-stars",
    )
    chosen += ("--bayer", "none", "--device", "cpu", "--workers", 1, "--memory", "2GB", "--preview", "none")
    assert run("stack", subs, "-o", out, "--maps", "--json", report, "--quiet", *chosen) == 0
    document = strict_json(report.read_text())
    spec = document["spec"]
    wanted = {
        "interpolation": "bilinear",
        "reject": "kappa_sigma",
        "kappa_low": 2.0,
        "kappa_high": 2.5,
        "weight": "none",
    }
    wanted |= {"normalize": "sky_mean", "combine": "median", "radial_weight": True, "equalize_rgb": True}
    wanted |= {"spare_stars": False}
    assert {name: spec[name] for name in wanted} == wanted
    assert {frame["method"] for frame in document["frames"]} == {"wcs", "reference"}
    assert document["device_reason"] == "the CPU was asked for"
    with fits.open(out) as hdus:
        assert hdus[0].data.shape == (SMALL.height, SMALL.width)  # --bayer none: one channel
        assert [hdu.name for hdu in hdus[1:]] == [
            "ALPHA",
            "COVERAGE",
            "WEIGHT",
            "REJ_LOW",
            "REJ_HIGH",
            "ERR",
            "FRAMES",
            "RUN",
        ]
    assert not (tmp_path / "a.png").exists()
    assert capsys.readouterr() == ("", "")


def test_json_on_stdout_is_alone_there(subs, tmp_path, capsys):
    out = tmp_path / "a.fits"
    assert run("stack", subs, "-o", out, "--json", "-") == 0
    said = capsys.readouterr()
    document = strict_json(said.out)
    assert document["output"] == str(out)
    assert document["preview"] == str(tmp_path / "a.png")
    assert document["versions"]["zemosaic-phase3"] == __version__
    assert (document["n_input"], document["n_used"]) == (6, 6)
    assert len(document["noise_factor"]) == len(document["rejected_high_percent"]) == 3
    assert {"measure", "register", "stack", "write", "preview"} <= set(document["seconds"])
    frame = document["frames"][1]
    assert np.shape(frame["transform"]) == (3, 3)
    assert len(frame["scale"]) == 3
    assert frame["used"] is True
    assert "6 of 6 used" in said.err


def test_output_may_have_blanks_brackets_and_other_alphabets(subs, tmp_path, capsys):
    folder = tmp_path / "mit Raum ü [red] 星"
    folder.mkdir()
    assert run("stack", subs / "sub_*.fits", "-o", folder / "mäster [bold].fits", "--json", folder / "ö.json") == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "mäster [bold].fits", "mäster [bold].fits.journal", "mäster [bold].png", "ö.json",
    ]  # fmt: skip
    assert "mäster [bold].fits" in capsys.readouterr().out


def test_reference_is_found_however_its_path_is_written(subs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(subs)
    other_way = Path("..") / "subs" / "sub_0004.fits"
    assert run("stack", subs, "-o", tmp_path / "a.fits", "--reference", other_way, "--preview", "none") == 0
    assert "reference sub_0004.fits" in capsys.readouterr().out


def test_an_earlier_result_in_the_folder_is_not_stacked(copies, capsys):
    out = copies / "master.fits"
    assert run("stack", copies, "-o", out) == 0
    assert run("stack", copies, "-o", out, "--overwrite") == 0
    said = capsys.readouterr()
    assert said.out.count("6 of 6 used") == 2
    assert said.out.count("lies among the inputs and is not stacked") == 1


def test_bad_frames_are_left_out_by_name_and_reason(copies, tmp_path, capsys):
    whole = (copies / "sub_0001.fits").read_bytes()
    (copies / "cut.fits").write_bytes(whole[: len(whole) // 2])
    (copies / "text.fits").write_text("these are notes, not a picture")
    fits.writeto(copies / "blank.fits", np.full((SMALL.height, SMALL.width), 7, np.uint16))
    fits.writeto(copies / "wide.fits", np.ones((SMALL.height, SMALL.width + 2), np.uint16))
    np.save(copies / "empty.npy", np.full((SMALL.height, SMALL.width, 3), np.nan, np.float32))
    report = tmp_path / "r.json"
    assert run("stack", copies, tmp_path / "gone.fits", "-o", tmp_path / "a.fits", "--json", report) == 0
    said = capsys.readouterr()
    dropped = {Path(item["name"]).name: item["reason"] for item in strict_json(report.read_text())["dropped"]}
    told = " ".join(said.out.split())
    reasons = {
        "cut.fits": "truncated", "text.fits": "neither FITS nor", "wide.fits": "shape", "empty.npy": "NaN",
        "blank.fits": "", "gone.fits": "no such file",
    }  # fmt: skip
    assert set(dropped) == set(reasons)
    for name, reason in reasons.items():
        assert reason in dropped[name]
        assert f"{name}: " in told
    assert "6 of 12 used" in told
    assert "left out" not in said.err  # told once, in the summary


@pytest.mark.parametrize("kind", ["missing", "empty", "spoiled"])
def test_nothing_to_stack_is_an_error_that_says_why(kind, tmp_path, capsys):
    folder = tmp_path / "in"
    if kind != "missing":
        folder.mkdir()
    if kind == "spoiled":
        (folder / "a.fits").write_bytes(b"SIMPLE  =                    T")
    assert run("stack", folder, "-o", tmp_path / "a.fits") == 1
    said = capsys.readouterr()
    line = one_line(said.err)
    assert str(folder) in line
    assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ([] if kind == "missing" else ["in"])


def test_verbose_shows_where_an_error_comes_from(tmp_path, capsys):
    assert run("stack", tmp_path / "nothing", "-o", tmp_path / "a.fits", "--verbose") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--reject", "nonsense"], "winsorized_sigma_clip"),
        (["--wsc-impl", "x"], "pixinsight"),
        (["--normalize", "x"], "additive_scaling"),
        (["--weight", "x"], "noise_variance"),
        (["--combine", "x"], "median"),
        (["--interpolation", "x"], "lanczos3"),
        (["--register", "x"], "stars"),
        (["--device", "tpu"], "auto, cpu, gpu"),
        (["--bayer", "RGBG"], "GRBG"),
        (["--memory", "lots"], "4GB"),
        (["--workers", "0"], "at least 1"),
        (["--kappa-low", "-1"], "[0, 1000]"),
        (["--kappa-high", "nan"], "[0, 1000]"),
        (["--winsor-limits", "0.1"], "0.05,0.05"),
        (["--wsc-impl", "legacy_quantile", "--winsor-limits", "0.1,0.6"], "[0, 0.5)"),
        (["--winsor-limits", "0.1,0.1"], "legacy_quantile"),
        (["--device", "cpu", "--require-gpu"], "contradict"),
        (["--preview", "x.jpg"], ".png"),
        (["--json", "report.txt"], ".json"),
        (["-o", "master.fits.gz"], ".fits"),
        (["--kappa", "3"], "--kappa"),  # no abbreviations: they would break when an option is added
        (["--quiet", "--verbose"], "not allowed with"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_a_usage_error_with_what_is_allowed(options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run("stack", "no such folder", "-o", "a.fits", *options)
    assert stop.value.code == 2
    assert said in one_line(capsys.readouterr().err)
    assert not any(tmp_path.iterdir())


def test_output_preview_and_report_are_different_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options_module, "TILE_SUFFIXES", (".png",))  # else no two could have one name
    with pytest.raises(SystemExit) as stop:
        run("stack", "x", "-o", "a.png", "--preview", tmp_path / "a.png")
    assert stop.value.code == 2
    assert "different files" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("existing", ["a.fits", "a.png", "r.json"])
def test_existing_files_are_safe_without_overwrite(existing, subs, tmp_path, capsys):
    (tmp_path / existing).write_text("mine")
    order = ("stack", subs, "-o", tmp_path / "a.fits", "--json", tmp_path / "r.json")
    assert run(*order) == 1
    said = capsys.readouterr()
    assert existing in one_line(said.err)
    assert "--overwrite" in said.err
    assert "measure" not in said.err  # said before the first frame was read
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(existing, "mine")]
    assert run(*order, "--overwrite") == 0
    assert (tmp_path / existing).read_bytes() != b"mine"


@pytest.mark.parametrize("option", ["-o", "--preview", "--json"])
def test_a_missing_folder_is_found_before_the_work(option, subs, tmp_path, capsys):
    name = {"-o": "a.fits", "--preview": "a.png", "--json": "a.json"}[option]
    assert run("stack", subs, "-o", tmp_path / "b.fits", option, tmp_path / "no" / name) == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "no") in one_line(err)
    assert "measure" not in err
    assert not any(tmp_path.iterdir())


def test_output_that_is_a_folder_or_an_input_is_refused(copies, tmp_path, capsys):
    (tmp_path / "dir.fits").mkdir()
    assert run("stack", copies, "-o", tmp_path / "dir.fits", "--overwrite") == 1
    assert "folder" in one_line(capsys.readouterr().err)
    frame = copies / "sub_0001.fits"
    before = frame.read_bytes()
    assert run("stack", frame, copies / "sub_0002.fits", "-o", frame, "--overwrite") == 1
    assert "is itself an input" in one_line(capsys.readouterr().err)
    assert run("stack", copies, "-o", frame, "--overwrite") == 1  # through its folder
    assert "is itself an input" in one_line(capsys.readouterr().err)
    assert frame.read_bytes() == before


def test_reference_that_is_no_input_is_refused(subs, copies, tmp_path, capsys):
    assert run("stack", copies, "-o", tmp_path / "a.fits", "--reference", subs / "sub_0001.fits") == 1
    assert "sub_0001.fits cannot be used: it is not among the 6" in one_line(capsys.readouterr().err)


def test_too_little_memory_is_refused_with_the_numbers(subs, tmp_path, capsys):
    assert run("stack", subs, "-o", tmp_path / "a.fits", "--memory", "1MB") == 1
    line = one_line(capsys.readouterr().err)
    assert "--memory" in line
    assert "needs" in line
    assert not any(tmp_path.iterdir())


def test_a_required_gpu_that_is_not_there_is_an_error(subs, tmp_path, capsys):
    if cuda.probe().usable_hint:
        pytest.skip("this machine has a GPU")
    assert run("stack", subs, "-o", tmp_path / "a.fits", "--require-gpu") == 1
    assert "doctor" in one_line(capsys.readouterr().err)
    assert not any(tmp_path.iterdir())


def test_a_caller_keeps_its_own_garbage_collection(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run_doctor", lambda *_: seen.append(gc.get_threshold()))
    before = gc.get_threshold()
    assert cli.main(["doctor"]) == 0
    assert seen[0][0] == cli.GARBAGE_OBJECTS
    assert gc.get_threshold() == before


def test_as_a_program_it_ends_with_everything_written_and_its_status(subs, tmp_path):
    program = [sys.executable, "-m", "zemosaic_phase3", "stack", subs, "-o", tmp_path / "a.fits", "--json", "-"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["n_used"] == SMALL.n_frames
    assert fits.getdata(tmp_path / "a.fits").shape == (3, SMALL.height, SMALL.width)
    again = subprocess.run(program, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists already" in again.stderr


@pytest.mark.skipif(os.name != "posix", reason="closed descriptors are a POSIX matter")
def test_a_program_whose_output_is_closed_ends_well(subs, tmp_path):
    program = f"'{sys.executable}' -m zemosaic_phase3 stack '{subs}' -o '{tmp_path}/a.fits' --quiet --preview none >&-"
    assert subprocess.run(["/bin/sh", "-c", program], cwd=Path(cli.__file__).parent).returncode == 0
    assert (tmp_path / "a.fits").exists()


@pytest.mark.skipif(os.name != "posix", reason="SIGINT to another process is a POSIX matter")
def test_interrupted_run_leaves_nothing_but_its_journal(tmp_path):
    frames, out = tmp_path / "frames", tmp_path / "out"
    simulate(SimulationSpec(n_frames=8, height=768, width=768, seed=5), frames)
    out.mkdir()
    command = [sys.executable, "-m", "zemosaic_phase3", "stack", frames, "-o", out / "a.fits", "--json", out / "a.json"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("measure: 8 of 8"):
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.stderr.read(), process.wait(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert [path.name for path in out.iterdir()] == ["a.fits.journal"]  # to go on from


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001 - argparse has no other way to list them


def commands() -> dict:
    return next(action.choices for action in actions(cli.build_parser()) if action.choices)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([n, "--help"] for n in ("stack", "demo", "simulate", "doctor", "bench", "attach", "detach"))],
)
def test_help_is_shown(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 0
    assert "usage: zemosaic-phase3" in capsys.readouterr().out


def test_help_gives_meaning_and_default_of_each_option():
    assert sorted(commands()) == [
        "attach",
        "bench",
        "completion",
        "demo",
        "detach",
        "doctor",
        "mosaic",
        "plan",
        "simulate",
        "stack",
        "tiles",
        "view",
        "watch",
    ]
    wanted = (
        "--output --reference --register --interpolation --reject --kappa-low --kappa-high --winsor-limits --wsc-impl "
        "--line-fit --normalize --weight --combine --radial-weight --equalize-rgb --bayer --device --require-gpu "
        "--flatten --transform --max-fwhm --max-eccentricity --max-background --min-stars --drop-worst "
        "--memory --workers --maps --preview --overwrite "
        "--json --quiet --verbose --recursive --filter --group-by --min-frames --cache --no-resume --fresh "
        "--dark --flat --bias --dark-flat --calibration --scale-dark --temperature-tolerance "
        "--calibration-cache --cosmetic --no-self-check --no-spare-stars --gpus "
        "--preset --config --save-config --dry-run --rej --log --series --targets --export --export-bits --framing "
        "--comet --drizzle --pixfrac "
        "--report --annotate --before-after --preview-size --preview-stretch"
    )
    stack = {action.option_strings[-1] if "--equalize-rgb" not in action.option_strings else "--equalize-rgb": action
             for action in actions(commands()["stack"]) if action.option_strings}  # fmt: skip
    assert set(wanted.split()) == set(stack) - {"--help"}
    for name in set(wanted.split()) - {"--quiet", "--verbose"}:
        assert "(default: " in stack[name].help, name
    bench = {action.option_strings[-1]: action for action in actions(commands()["bench"]) if action.option_strings}
    wanted = "--frames --size --channels --methods --files --subs --repeat --workers --memory --json --overwrite"
    assert {*wanted.split(), "--quiet", "--verbose", "--log"} == set(bench) - {"--help"}
    for name in wanted.split():
        assert "(default: " in bench[name].help, name


def test_version_and_missing_command(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"zemosaic-phase3 {__version__}"
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2


def test_simulate_takes_its_options(tmp_path, capsys):
    folder = tmp_path / "new" / "subs"
    options = "--frames 2 --size 96x80 --seed 7 --bayer RGGB --fwhm 2.5 --dither 3 --rotation 0 --stars 30 --trails 0.5"
    assert run("simulate", folder, *options.split(), "--gradient", 0, "--nebula", 0, "--no-wcs") == 0
    spec = load_truth(folder).spec
    assert (spec.n_frames, spec.height, spec.width, spec.seed, spec.bayer) == (2, 96, 80, 7, "RGGB")
    assert (spec.fwhm_px, spec.dither_px, spec.rotation_deg, spec.n_stars, spec.trail_fraction) == (2.5, 3, 0, 30, 0.5)
    assert (spec.gradient, spec.nebula, spec.with_wcs) == (0, 0, False)
    assert str(folder) in capsys.readouterr().out
    assert run("simulate", folder, "--frames", 1, "--size", "64x64") == 1
    assert str(folder) in one_line(capsys.readouterr().err)
    assert run("simulate", folder, "--frames", 1, "--size", "64x64", "--overwrite", "--quiet") == 0
    assert [path.name for path in sorted(folder.glob("*.fits"))] == ["sub_0001.fits"]


@pytest.mark.parametrize("wrong", [["--size", "64"], ["--size", "3x3"], ["--bayer", "x"], ["--frames", "many"]])
def test_simulate_refuses_wrong_values(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("simulate", tmp_path / "x", *wrong)
    assert stop.value.code == 2
    assert wrong[0].strip("-") in one_line(capsys.readouterr().err) or wrong[1] == "3x3"
    assert not any(tmp_path.iterdir())


def test_demo_runs_twice_and_comes_close_to_the_truth(tmp_path, capsys, monkeypatch):
    small = SimulationSpec(n_frames=8, height=256, width=256, n_stars=200, seed=2, dither_px=4.0, wcs_error_px=1.0)
    monkeypatch.setattr(demo, "SESSION", small)
    folder = tmp_path / "demo"
    assert run("demo", folder) == 0
    first = capsys.readouterr().out
    assert run("demo", folder) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.txt", "before_after.png", "master.fits", "master.png", "subs"]
    assert len(list((folder / "subs").glob("*.fits"))) == small.n_frames
    residual = next(line for line in first.splitlines() if line.startswith(" registration residual, rms"))
    assert 0 < float(residual.split()[-3]) < 0.1  # by stars: the WCS is a pixel off
    for label in ("sky noise over the ideal", "photometric error", "trail residual", "(FWHM) over the truth"):
        assert label in first
    assert "nan" not in first
    width, height = (int.from_bytes((folder / "before_after.png").read_bytes()[k : k + 4]) for k in (16, 20))
    assert (width, height) == (2 * small.width + 4, small.height)


def test_demo_keeps_away_from_other_peoples_files(tmp_path, capsys):
    (tmp_path / "master.fits").write_text("mine")
    assert run("demo", tmp_path) == 1
    assert "master.fits" in one_line(capsys.readouterr().err)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("master.fits", "mine")]


@pytest.mark.parametrize("has_card", [True, False])
def test_doctor_says_what_there_is_and_what_stack_would_choose(has_card, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "has_nvidia_card", lambda: has_card)
    assert run("doctor") == 0
    told = " ".join(capsys.readouterr().out.split())
    for text in (f"zemosaic-phase3 {__version__}", "numba", "cores", "memory", "kernel cache", "stack would use the"):
        assert text in told
    if not cuda.CUPY_AVAILABLE and not has_card:  # nothing failed, and nothing would help
        assert "no NVIDIA card was found" in told and "stack would use the CPU, " in told
        assert "CuPy" not in told and "pip install" not in told
    elif not cuda.CUPY_AVAILABLE:
        assert "CuPy is not installed" in told
        assert "pip install cupy-cuda12x" in told
        assert "stack would use the CPU" in told


@pytest.mark.parametrize(
    ("given", "inputs", "flatten"),
    [
        (["--flatten", "x"], ["x"], "on"),
        (["x", "--flatten"], ["x"], "on"),
        (["x", "--flatten", "off"], ["x"], "off"),
        (["--flatten=auto", "x"], ["x"], "auto"),
        (["x"], ["x"], "auto"),
    ],
)
def test_flatten_without_a_word_takes_no_input_for_it(given, inputs, flatten):
    args = cli.build_parser().parse_args(["stack", *given, "-o", "y.fits"])
    assert ([str(path) for path in args.inputs], args.flatten) == (inputs, flatten)

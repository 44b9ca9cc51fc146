"""The benchmark times what it says, on the frames it says, and its verdicts follow from its figures."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from zemosaic_phase3.app import bench, cli
from zemosaic_phase3.engine.cpu import stack
from zemosaic_phase3.engine.resources import Resources
from zemosaic_phase3.errors import OutputError, PlanError, SpecError
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.methods import LineFit, RejectName, WscImpl

TINY = bench.BenchSpec(frames=6, height=16, width=24, methods=("mean", "median", "sigma_clip"), repeat=1, workers=2)


@pytest.fixture(autouse=True)
def small_memory(monkeypatch):
    """Read one megabyte to measure memory: these tests ask for no true figure."""
    monkeypatch.setattr(bench, "BANDWIDTH_BYTES", 1 << 20)


def run(*arguments: object) -> int:
    return cli.main(["bench", "--subs", "0", *(str(argument) for argument in arguments)])


def result_of(*, seconds=1.0, files=None, reading=None, bandwidth=1e9, method="mean") -> bench.BenchResult:
    """Figures of 1e9 bytes of samples: ``seconds`` 1 is all of a bandwidth of 1e9."""
    spec = bench.BenchSpec(frames=1000, height=250, width=1000, channels=1, workers=1)
    assert 4 * spec.n_samples == 1e9

    def clock(value):
        return None if value is None else bench.Timing([value], [value])

    figures = [bench.MethodFigures(method, clock(seconds), clock(2 * seconds), clock(files))]
    return bench.BenchResult(replace(spec, files=files is not None), bandwidth, clock(reading), figures, 0.0)


def test_every_rejection_and_variant_is_timed_plain():
    known = bench.methods()
    assert {spec.reject for spec in known.values()} == set(get_args(RejectName))
    assert {name: known[name].combine for name in known if known[name].reject == "none"} == {
        "mean": "mean",
        "median": "median",
    }
    for short, field, kinds in (("winsorized", "wsc_impl", WscImpl), ("linear_fit", "line_fit", LineFit)):
        assert {kind: getattr(known[f"{short}:{kind}"], field) for kind in get_args(kinds)} == {
            kind: kind for kind in get_args(kinds)
        }
    assert {(spec.normalize, spec.weight) for spec in known.values()} == {("none", "none")}
    assert known["winsorized:pixinsight"].kappas == (3.0, 3.0)
    assert known["winsorized:legacy_quantile"].is_legacy_winsor


def test_names_choose_methods():
    assert bench.chosen_methods(None) == tuple(bench.methods())
    assert bench.chosen_methods(["sigma-clip", " Mean"]) == ("mean", "sigma_clip")  # in the order of the table
    both = ("winsorized:pixinsight", "winsorized:legacy_quantile")
    for name in ("winsorized", "winsor", "winsorized_sigma_clip"):
        assert bench.chosen_methods([name]) == both
    assert bench.chosen_methods([both[1]]) == both[1:]
    with pytest.raises(SpecError, match="'fast'.*mean, median"):
        bench.chosen_methods(["mean", "fast"])
    with pytest.raises(SpecError, match="no method"):
        bench.chosen_methods([])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"frames": 0}, "frames = 0"), ({"repeat": 0}, "repeat = 0"), ({"channels": 2}, "channels = 2"),
     ({"height": 4}, "4x1920"), ({"methods": ("x",)}, "'x'")],
)  # fmt: skip
def test_specification_is_checked(wrong, said):
    with pytest.raises(SpecError, match=said):
        bench.BenchSpec(**wrong)


@pytest.mark.parametrize("memory", [40_000_000, 100_000_000, 123_456_789])
def test_rows_are_as_many_as_fit(memory):
    spec = bench.BenchSpec(frames=50, height=1000, width=500, workers=2, memory=memory)
    fitted, note = bench.fit_memory(spec)
    assert bench.needed_bytes(fitted) <= memory < bench.needed_bytes(replace(fitted, height=fitted.height + 1))
    assert replace(fitted, height=1000) == spec
    assert f"reduced to {fitted.height}x500" in note


def test_what_fits_is_left_alone_and_what_cannot_is_refused():
    spec = replace(TINY, memory=1 << 30)
    assert bench.fit_memory(spec) == (spec, "")
    assert bench.fit_memory(TINY)[0].memory > 0  # fixed before the frames take their part
    with pytest.raises(PlanError, match=r"at least .* allowed are 1.00 MB"):
        bench.fit_memory(replace(TINY, frames=50, width=2000, memory=1_000_000))


def test_frames_are_noise_with_hits_whatever_the_workers():
    spec = bench.BenchSpec(frames=4, height=200, width=300, workers=3)
    cube = bench.synthetic_stack(spec)
    assert cube.shape == (4, 200, 300, 3)
    assert cube.dtype == np.float32
    assert np.array_equal(cube, bench.synthetic_stack(replace(spec, workers=1)))
    assert not np.array_equal(cube, bench.synthetic_stack(replace(spec, seed=2)))
    assert not np.array_equal(cube[0], cube[1])
    assert np.array_equal(cube, np.rint(cube))
    assert cube.min() >= 0
    assert cube.max() <= 65535
    assert np.median(cube) == pytest.approx(bench.SKY_ADU, abs=1)
    spread = np.percentile(cube, [15.87, 84.13])
    assert np.diff(spread) / 2 == pytest.approx(bench.NOISE_ADU, rel=0.03)
    hits = np.mean(cube > bench.SKY_ADU + 6 * bench.NOISE_ADU)
    assert hits == pytest.approx(bench.HIT_SHARE, rel=0.1)


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_same_samples(channels, tmp_path):
    cube = bench.synthetic_stack(replace(TINY, channels=channels))
    paths = bench.write_stack(cube, tmp_path, 2)
    assert [path.name for path in paths] == [f"s_{k:05d}.fit" for k in range(1, 7)]
    for path, frame in zip(paths, cube, strict=True):
        source = open_source(path)
        assert source.dtype == np.uint16
        assert np.array_equal(source.read_rows(0, source.height), frame)


def test_a_full_disk_is_seen_before_a_file_is_written(tmp_path, monkeypatch):
    usage = bench.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(bench.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"free are 1.00 KB.*TMPDIR"):
        bench.write_stack(bench.synthetic_stack(TINY), tmp_path)
    assert not any(tmp_path.iterdir())


def test_work_is_done_once_unseen_and_then_by_the_clock():
    done = []
    timed = bench.timing(lambda: done.append(time.sleep(0.002)), 3)
    assert len(done) == 4
    assert len(timed.wall) == len(timed.cpu) == 3
    assert timed.seconds >= 0.002 > timed.cpu_seconds


def test_slow_work_is_not_repeated(monkeypatch):
    monkeypatch.setattr(bench, "PATIENCE_S", 0.001)
    assert len(bench.timing(lambda: time.sleep(0.002), 5).wall) == 1


def test_every_byte_is_read():
    words = np.random.default_rng(1).integers(0, 1 << 64, 1001, np.uint64)
    assert bench.sum_words(words) == words.sum()
    read = []

    def count(part):
        read.append(part.size)

    samples = np.ones((3, 100_003), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "sum_words", count)
        assert bench.read_bandwidth(samples, 3, 1) > 0
    assert sum(read) == 2 * (samples.size // 2)  # unseen and timed; an odd last sample is left out


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("method", ["mean", "median", "sigma_clip", "winsorized:legacy_quantile"])
def test_what_is_timed_in_memory_is_the_stack(method, workers):
    cube = bench.synthetic_stack(TINY)
    job = bench.array_job(cube, bench.methods()[method])
    combine = bench.combiner(job, cube, workers)
    image = combine().copy()
    assert np.array_equal(image, combine())  # nothing is left over from the time before
    assert np.array_equal(image, stack(job, Resources()).image)
    if method in ("mean", "median"):
        definition = {"mean": np.mean, "median": np.median}[method](cube.astype(np.float64), axis=0)
        assert np.array_equal(image, definition.astype(np.float32))


def test_limits_follow_the_rule():
    def limit(**figures):
        found = result_of(**figures)
        return found.limit(found.figures[0])

    assert limit(seconds=1.9) == "memory"  # 53 % of the bandwidth
    assert limit(seconds=2.1) == "compute"
    assert limit(seconds=1.0, files=4.0, reading=2.1) == "reading"
    assert limit(seconds=1.0, files=4.0, reading=1.9) == "memory"
    assert limit(seconds=3.0, files=4.0, reading=1.9) == "compute"


def test_figures_are_in_their_units():
    found = result_of(seconds=4.0)
    row = found.figures[0]
    assert found.samples_per_second(row) == pytest.approx(62.5e6)
    assert found.cpu_ns(row) == pytest.approx(16.0)
    assert found.bandwidth_share(row) == pytest.approx(0.25)


def test_one_sentence_says_what_limits():
    assert "compute for every method timed (memory could deliver samples 10.0 times as fast as mean" in bench.verdict(
        result_of(seconds=10.0)
    )
    assert "memory for every method timed (more cores would help little)" in bench.verdict(result_of())
    assert "reading for every method timed" in bench.verdict(result_of(files=1.0, reading=0.9))
    slow, fast = result_of(seconds=4.0, method="median"), result_of()
    mixed = bench.verdict(replace(slow, figures=slow.figures + fast.figures))
    assert "memory for mean; compute for median (memory could deliver samples 4.0 times as fast as median" in mixed


def test_a_run_measures_all_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.tempfile, "tempdir", str(tmp_path))
    said = []
    found = bench.run_bench(replace(TINY, files=True), lambda *args: said.append(args))
    assert [row.method for row in found.figures] == ["mean", "median", "sigma_clip"]
    for row in found.figures:
        assert row.files is not None
        assert min(row.combine.seconds, row.stack.seconds, row.files.seconds) > 0
    assert found.reading is not None
    assert found.reading.seconds > 0
    assert ("make", 6, 6) in said
    assert said[-1] == ("bench", 3, 3)
    assert not any(tmp_path.iterdir())


def test_command_prints_a_table_and_a_sentence(capsys):
    options = "--frames 5 --size 16x24 --channels 1 --methods median,winsorized --repeat 1 --workers 1"
    assert run(*options.split(), "--files") == 0
    said = capsys.readouterr()
    for text in ("5 frames of 16 x 24 x 1", "median", "winsorized:pixinsight", "GB/s", "files"):
        assert text in said.out
    assert "What limits this machine: " in said.out.splitlines()[-1]
    assert "bench: 3 of 3 methods" in said.err


def test_command_writes_json(tmp_path, capsys):
    options = ["--frames", 4, "--size", "8x8", "--methods", "mean", "--repeat", 2]
    assert run(*options, "--json", "-") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["samples"] == 4 * 8 * 8 * 3
    assert document["spec"]["repeat"] == 2
    row = document["methods"][0]
    assert (row["method"], row["files_seconds"]) == ("mean", None)
    assert len(row["combine"]["wall"]) == 2
    assert row["bandwidth_share"] == pytest.approx(
        4 * row["samples_per_second"] / document["read_bandwidth_bytes_per_second"]
    )
    file = tmp_path / "bench.json"
    assert run(*options, "--json", file, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert json.loads(file.read_text())["verdict"].startswith("What limits this machine")
    before = file.read_bytes()
    assert run(*options, "--json", file) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert run(*options, "--json", file, "--quiet", "--overwrite") == 0


def test_command_says_that_it_took_fewer_rows(capsys):
    options = "--frames 4 --size 2000x500 --methods mean --repeat 1 --workers 1 --memory 20MB"
    assert run(*options.split()) == 0
    said = capsys.readouterr()
    assert "reduced to" in said.err
    assert "reduced to" in said.out
    assert run("--frames", 400, "--size", "64x2000", "--memory", "20MB") == 1
    assert "error: 400 frames" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--methods", "x"], ["--channels", "2"], ["--size", "4x4"], ["--frames", "0"]])
def test_wrong_usage_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*wrong)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_processor_has_a_name():
    assert bench.cpu_model().strip()

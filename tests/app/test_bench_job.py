"""The whole job, stage by stage: what stages take, and what each is limited by."""

from __future__ import annotations

import json

import pytest

from zemosaic_phase3.app import bench, cli
from zemosaic_phase3.app.bench_job import StageFigures, run_job
from zemosaic_phase3.progress import bytes_read, timed
from zemosaic_phase3.records import TileReport


@pytest.mark.parametrize(
    ("cpu", "limit"), [(7.9, "cores"), (6.0, "cores"), (4.0, "in part"), (1.2, "one thread"), (0.2, "disk or card")]
)
def test_limits(cpu, limit):
    stage = StageFigures("measure", 1.0, cpu, 0.0, 8)
    assert (stage.cores, stage.limit) == (cpu, limit)


def test_one_worker_that_is_busy_is_limited_by_its_core():
    assert StageFigures("stack", 2.0, 1.9, 0.0, 1).limit == "cores"
    assert StageFigures("stack", 0.0, 0.0, 0.0, 1).cores == 0.0


def test_a_stage_counts_what_it_reads(tmp_path):
    (tmp_path / "file").write_bytes(bytes(300_000))
    if not bytes_read():
        pytest.skip("the system does not count")
    report = TileReport()
    for _ in range(2):
        with timed(report, "measure"):
            (tmp_path / "file").read_bytes()
            sum(range(200_000))
    assert 600_000 <= report.bytes_read["measure"] < 700_000
    assert 0.0 < report.cpu_seconds["measure"] <= report.seconds["measure"] + 0.02


def test_the_whole_job(tmp_path, capsys, monkeypatch):
    job = run_job(4, (120, 160), 2)
    assert [stage.stage for stage in job.stages] == ["open", "calibrate", "measure", "register", "stack", "finish"]
    assert job.seconds == pytest.approx(sum(stage.seconds for stage in job.stages))
    measured = next(stage for stage in job.stages if stage.stage == "measure")
    assert measured.cpu_seconds > 0.0
    assert not bytes_read() or measured.bytes_read >= 4 * 2 * 120 * 160
    monkeypatch.setattr(bench, "BANDWIDTH_BYTES", 1 << 20)
    small = ["--frames", "4", "--size", "64x96", "--methods", "mean", "--repeat", "1", "--workers", "2"]
    assert cli.main(["bench", *small, "--subs", "3", "--json", str(tmp_path / "b.json")]) == 0
    written = json.loads((tmp_path / "b.json").read_text())["job"]
    assert written["subs"] == 3
    assert {"seconds", "cpu_seconds", "bytes_read", "cores", "limit"} <= set(written["stages"][0])
    assert "the whole job: 3 raw subs of 64x96 from files to a tile, on the CPU" in capsys.readouterr().out
    assert cli.main(["bench", *small, "--subs", "0", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["job"] is None

"""A few seconds of stacks in one process; ``soak.py`` beside this file goes on for an hour."""

from __future__ import annotations

from pathlib import Path

import pytest
import soak
from soak import Record, Sample


@pytest.mark.filterwarnings("ignore")  # damaged frames come with astropy's opinion of them
def test_a_few_stacks_leave_nothing_behind(tmp_path: Path) -> None:
    run = soak.Soak(tmp_path, 7)
    run.run(0.0)
    for _ in range(5):
        run.one()
    record = run.run(0.0)
    assert record.faults == []
    assert sum(record.ends.values()) == 5
    assert [sample.stacks for sample in record.samples] == [0, 5]
    assert record.samples[1].files == record.samples[0].files
    assert [path.name for path in tmp_path.iterdir()] == ["same"]
    assert "Nothing was wrong" in soak.report(record, "so")


def record_of(rise: float, *, threads: int = 0) -> Record:
    """An hour in which memory rises by so much in ten minutes, and jitters."""
    samples = []
    for minute in range(61):
        jitter = (7 * minute % 5 - 2) * 0.3
        late = minute > 30
        samples.append(Sample(60.0 * minute, minute, 300.0 + rise * minute / 10.0 + jitter, 5 + threads * late, 2))
    return Record(samples)


def test_memory_that_rises_is_noticed() -> None:
    assert soak.rise(record_of(2.0).samples) == pytest.approx(2.0, abs=0.1)
    assert soak.verdict(record_of(0.2)) == []
    assert "memory rises by 2" in soak.verdict(record_of(2.0))[0]


def test_threads_that_stay_are_noticed() -> None:
    assert soak.verdict(record_of(0.0, threads=1)) == ["threads rose from 5 to 6"]


def test_an_uncaught_error_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("injected")

    run = soak.Soak(tmp_path, 7)
    monkeypatch.setattr(soak, "stack", broken)
    monkeypatch.setattr(soak.Soak, "_tile", lambda self, spec, work: broken())
    run.one()
    assert "KeyError" in soak.verdict(run.record)[0]

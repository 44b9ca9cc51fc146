"""A few tiles on a GPU that fails; ``gpu_faults.py`` beside this file makes as many as one likes, on a card."""

from __future__ import annotations

import gpu_faults
import pytest
from host_cupy import HostCupy

from zemosaic_phase3.methods import REJECTIONS

FEW = [row for row in REJECTIONS if row.name in ("none", "sigma_clip")]


def test_no_tile_is_lost_or_wrong(cupy: HostCupy) -> None:
    record = gpu_faults.faulty(24, 3, FEW)
    assert record.wrong == []
    assert record.tiles == 24 and record.runs == 3
    assert sum(record.injected.values()) > 3
    assert record.made_by["GPU, 1 attempts on the GPU"] > 8
    assert "Every tile has the CPU's bits" in gpu_faults.report(record, "here", "so")


def test_a_result_that_is_a_little_off_is_made_again_by_the_cpu(
    cupy: HostCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_faults.Faults, "draw", lambda self: "off")
    record = gpu_faults.faulty(2, 1, FEW)
    assert record.wrong == []
    assert record.disabled_runs == 1
    assert dict(record.made_by) == {"CPU, 1 attempts on the GPU": 1, "CPU, 0 attempts on the GPU": 1}


def test_a_wrong_tile_would_be_noticed(cupy: HostCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    from zemosaic_phase3.pipeline import stack_files

    monkeypatch.setattr(stack_files, "checked_stack", lambda result, *_, **__: result)
    monkeypatch.setattr(gpu_faults.Faults, "draw", lambda self: "off")
    assert "image is not the CPU's" in gpu_faults.faulty(1, 1, FEW).wrong[0]

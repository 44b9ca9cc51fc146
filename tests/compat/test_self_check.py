"""What becomes of a tile that fails its self-check where ZeMosaic asked for it."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tile_case import FakeGpu, Make

from zemosaic_phase3.compat import attached
from zemosaic_phase3.errors import SelfCheckError, SpecError
from zemosaic_phase3.pipeline import self_check


def wrong(*_: Any, **__: Any) -> self_check.Found:
    return self_check.Found(0, 0.0, 0.0, SelfCheckError("injected", (0, 0, 0), 1.0, 2.0, ("a",)))


def test_tiles_are_checked(make: Make, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[self_check.Found] = []
    right = self_check.check_result
    monkeypatch.setattr(self_check, "check_result", lambda *a, **k: found.append(right(*a, **k)) or found[-1])
    assert make(entries).path is not None
    assert found[0].wrong is None and found[0].pixels >= 4


def test_a_wrong_tile_is_told_and_raised_and_not_written(
    make: Make, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(self_check, "check_result", wrong)
    with pytest.raises(SelfCheckError, match="injected"):
        make(entries, output_temp_dir=str(tmp_path / "tiles"))
    assert list((tmp_path / "tiles").iterdir()) == []


def test_the_checkouts_own_code_takes_such_a_tile() -> None:
    worker = ModuleType("worker")
    error = SelfCheckError("injected", (0, 0, 0), 1.0, 2.0, ())
    forwarded = attached.forwarding(
        lambda: "theirs",
        lambda: _raise(error),
        is_our_fault=lambda exc: attached._costs_no_tile(worker, exc),  # noqa: SLF001
    )
    assert forwarded() == "theirs"
    assert not attached._costs_no_tile(worker, SpecError("no such method"))  # noqa: SLF001


def _raise(error: Exception) -> None:
    raise error


def test_a_wrong_tile_of_the_gpu_is_made_again_by_the_cpu(
    make: Make, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = make(entries)
    gpu = FakeGpu(monkeypatch)
    right = self_check.check_result
    monkeypatch.setattr(
        self_check, "check_result", lambda result, **k: wrong() if result.device.used_gpu else right(result, **k)
    )
    with caplog.at_level(logging.ERROR):
        made = make(entries)
    assert gpu.calls == 1
    assert "the GPU's tile is wrong: injected" in caplog.text
    np.testing.assert_array_equal(made.unit(), good.unit())

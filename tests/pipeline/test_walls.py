"""What goes wrong in one frame is that frame's reason, whatever its class; the others go on."""

from __future__ import annotations

import numpy as np
import pytest

from zemosaic_phase3.errors import FrameError, StackCancelled
from zemosaic_phase3.io.open_frame import open_source
from zemosaic_phase3.pipeline import measuring, registering
from zemosaic_phase3.pipeline.group import open_group
from zemosaic_phase3.spec import RegisterSpec

FAULTS = [KeyError("NAXIS"), IndexError("index -9223372036854775808"), ZeroDivisionError(), RecursionError("deep")]


def frames(n: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.normal(1000.0, 20.0, (40, 50)).astype(np.float32) for _ in range(n)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_opening(fault: Exception) -> None:
    def opener(descriptor: object) -> object:
        if descriptor is arrays[1]:
            raise fault
        return open_source(descriptor)

    arrays = frames()
    group = open_group(arrays, opener)
    assert [row.used for row in group.rows] == [True, False, True, True]
    assert type(fault).__name__ in group.rows[1].reason


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_measuring_and_registering(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    group = open_group(frames())
    measure, register = measuring.scan_frame, registering.register_frame
    spoilt = group.source(2)

    def scan(source: object, *arguments: object, **keywords: object) -> object:
        if source is spoilt:
            raise fault
        return measure(source, *arguments, **keywords)

    monkeypatch.setattr(measuring, "scan_frame", scan)
    measuring.scan_group(group, RegisterSpec(mode="none"), find_stars=False, workers=2)
    assert [row.used for row in group.rows] == [True, True, False, True]
    assert type(fault).__name__ in group.rows[2].reason

    def fail(group: object, i: int, *arguments: object) -> object:
        if i == 3:
            raise fault
        return register(group, i, *arguments)

    monkeypatch.setattr(registering, "register_frame", fail)
    group.reference = 0
    registering.register_group(group, RegisterSpec(mode="stars"), workers=2)
    assert "not registered" in group.rows[3].reason
    assert type(fault).__name__ in group.rows[3].reason


def test_what_is_no_fault_of_the_frame_goes_on_its_way() -> None:
    for error in (StackCancelled("stop"), MemoryError()):
        with pytest.raises(type(error)):
            registering.frame_fault(error, "a.fits")
    known = FrameError("a.fits", "truncated; copy it again")
    assert registering.frame_fault(known, "other") is known

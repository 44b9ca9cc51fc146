"""Turns a folder of astronomical sub-frames into one clean master tile: register, match, weight, reject, combine.

>>> import zemosaic_phase3 as zp
>>> tile = zp.stack("subs/", "master.fits")  # doctest: +SKIP

Nothing is loaded until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zemosaic_phase3.api import Tile, stack
    from zemosaic_phase3.errors import (
        CalibrationError,
        DeviceError,
        FrameError,
        GPUStackingError,
        NoFramesError,
        OutputError,
        PlanError,
        SelfCheckError,
        SpecError,
        StackCancelled,
        ZeMosaicError,
    )
    from zemosaic_phase3.records import TileReport
    from zemosaic_phase3.spec import CalibrationSpec, RegisterSpec, SelectSpec, StackSpec

__version__ = "0.1.0"

_HOMES = {
    "Tile": "api",
    "stack": "api",
    "CalibrationError": "errors",
    "DeviceError": "errors",
    "FrameError": "errors",
    "GPUStackingError": "errors",
    "NoFramesError": "errors",
    "OutputError": "errors",
    "PlanError": "errors",
    "SelfCheckError": "errors",
    "SpecError": "errors",
    "StackCancelled": "errors",
    "ZeMosaicError": "errors",
    "TileReport": "records",
    "CalibrationSpec": "spec",
    "RegisterSpec": "spec",
    "SelectSpec": "spec",
    "StackSpec": "spec",
}

__all__ = [
    "CalibrationError",
    "CalibrationSpec",
    "DeviceError",
    "FrameError",
    "GPUStackingError",
    "NoFramesError",
    "OutputError",
    "PlanError",
    "RegisterSpec",
    "SelectSpec",
    "SelfCheckError",
    "SpecError",
    "StackCancelled",
    "StackSpec",
    "Tile",
    "TileReport",
    "ZeMosaicError",
    "__version__",
    "stack",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its file when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

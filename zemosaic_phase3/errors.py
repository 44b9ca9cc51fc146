"""Errors this library raises on purpose; each message names the value and the remedy."""

from __future__ import annotations


class ZeMosaicError(RuntimeError):
    """Base of every error this library raises on purpose."""


class SpecError(ZeMosaicError, ValueError):
    """An option is unknown or outside its range; the message names the value and what is allowed."""


class FrameError(ZeMosaicError):
    """One frame cannot be used; the rest of the run goes on.

    Parameters
    ----------
    name : str
        File or descriptor the frame came from.
    reason : str
        What is wrong and what would help, in one sentence.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class NoFramesError(ZeMosaicError, ValueError):
    """Nothing is left to stack; the message lists what was dropped and why."""


class CalibrationError(ZeMosaicError, ValueError):
    """Calibration frames that were named fit no light; the message says what the lights ask for and what there is."""


class PlanError(ZeMosaicError):
    """The work cannot fit into the memory it may use; the message gives needed and allowed bytes."""


class DeviceError(ZeMosaicError):
    """A tile is not one for this device, however often it is tried; the message says why. Another device can do it."""


class OutputError(ZeMosaicError):
    """A result could not be written; the message names the path and the remedy."""


class SelfCheckError(ZeMosaicError):
    """A pixel of a finished stack is not what its frames make: the machine, not the frames, is at fault.

    Parameters
    ----------
    message : str
        Names the pixel, its value, what it should be, the frames, and what would help.
    pixel : tuple of int
        Row, column and channel in the result, from 0.
    value, expected : float
        ADU.
    frames : tuple of str
        Frames whose samples the engine has otherwise than the check; all frames of the pixel where none is.
    """

    def __init__(
        self, message: str, pixel: tuple[int, int, int], value: float, expected: float, frames: tuple[str, ...]
    ) -> None:
        super().__init__(message)
        self.pixel = pixel
        self.value = value
        self.expected = expected
        self.frames = frames


class StackCancelled(ZeMosaicError):
    """Raised by a progress callback, or on an abort event, to stop a tile cleanly."""


class GPUStackingError(RuntimeError):
    """The GPU engine found that it cannot stack a tile, or that its result is wrong."""


class UnsuitedTileError(GPUStackingError, DeviceError):
    """A tile that this engine does not take on, found before anything has begun; the next one may be welcome."""


class NoCardLeftError(GPUStackingError):
    """Each of several cards has failed on a tile as often as it may; the message says how."""

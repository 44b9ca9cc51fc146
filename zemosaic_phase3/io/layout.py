"""What a header claims about an image, compared with what the file can hold, before memory is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zemosaic_phase3.errors import FrameError
from zemosaic_phase3.io.mosaic_cards import bayer_cards, cfa_from_header

if TYPE_CHECKING:
    from zemosaic_phase3.io.frame import Cards, Size

MIN_SIDE_PX: Final = 8  # a file with a shorter side is no sky frame


def image_layout(shape: tuple[int, ...], name: str, minimum: int = 1) -> tuple[Size, bool]:
    """Return ((height, width, planes), channel axis is the first one) of an array of this shape."""
    if len(shape) == 2:
        size, planar = (shape[0], shape[1], 1), False
    elif len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 4:
        size, planar = (shape[1], shape[2], shape[0]), True
    elif len(shape) == 3 and shape[2] in (1, 3):
        size, planar = (shape[0], shape[1], shape[2]), False
    else:
        raise FrameError(name, f"shape {shape} is no image; expected (H, W), (H, W, 3) or (3, H, W)")
    if min(size[:2]) < minimum:
        raise FrameError(name, f"is {size[1]} x {size[0]} pixels; at least {minimum} x {minimum} are needed")
    return size, planar


def check_file_size(name: str, expected: int, largest: int, shape: tuple[int, ...]) -> None:
    """Raise FrameError where a file of ``largest`` bytes cannot hold the ``expected`` ones of its pixels."""
    if expected > largest:
        raise FrameError(
            name,
            f"truncated: expected {expected} bytes for the {' x '.join(map(str, shape))} pixels of its header,"
            f" found {largest} bytes at most; copy it again",
        )


def mosaic_of(bayer: str, size: Size, name: str, *header: Cards) -> str | None:
    """Return the pattern of a frame: as asked for, or as its headers say; None where it is no mosaic."""
    if bayer == "none" or size[2] != 1:
        return None
    return cfa_from_header(bayer_cards(*header), size[0], name) if bayer == "auto" else bayer
